"""Wrong flags and broken files: one clear line, exit status 2, and no run folder left behind."""

import shutil

import numpy as np
import pytest
import torch

import eval as eval_script
import infer
import train_elem
import train_pair

SCRIPTS = {"elem": train_elem, "pair": train_pair, "eval": eval_script, "infer": infer}


@pytest.fixture
def fails(error_of, toy_flags, tmp_path, monkeypatch):
    """Run a script that must fail, and return its one line."""
    monkeypatch.chdir(tmp_path)

    def run(script, *flags, base=toy_flags):
        steps = ["--total_iter_num=2", "--train_batch_size=6"] if script in ("elem", "pair") else []
        return error_of(SCRIPTS[script].main, [*base, *steps, *flags])

    return run


@pytest.fixture(scope="module")
def checkpoint(toy_flags, tmp_path_factory):
    """A stage-1 checkpoint of ResNet18 on the toy tree."""
    folder = tmp_path_factory.mktemp("runs")
    return (
        train_elem.main(
            [*toy_flags, "--total_iter_num=1", "--train_batch_size=6", "--test_iter_step=0"]
            + [f"--model_save_dir={folder}"]
        )
        / "last.pt"
    )


def test_missing_data_folder_says_how_to_get_the_data(fails):
    error = fails("elem", base=["--model=ResNet18", "--data_dir=/nowhere/sop"])
    assert "/nowhere/sop" in error and "download.py sop" in error and "--dataset=demo" in error


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--train_classes=3-2"], ["--train_classes=3-2"]),
        (["--train_classes=40-50"], ["--train_classes=40-50"]),
        (["--class_dim=11318"], ["--class_dim=11318", "6 training classes"]),
        (["--total_images=59551"], ["--total_images=59551", "24 training images"]),
        (["--model=ResNet5"], ["unknown model ResNet5", "ResNet50"]),
        (["--image_shape=1,32,32"], ["--image_shape", "3,HEIGHT,WIDTH"]),
        (["--loss_name=eml"], ["softmax", "arcmargin", "train_pair.py has eml"]),
        (["--arc_scale=3"], ["--arc_scale is not used by --loss_name=softmax", "arcmargin"]),
        (["--train_list=x.txt"], ["train_list", "folder"]),
        (["--lr=nan"], ["--lr"]),
        (["--num_epochs=1"], ["found both"]),
        (["--lr_strategy=constant", "--lr_steps=5"], ["--lr_steps is not used"]),
        (["--device=cuda:7"], ["--device=cuda:7"]),
        (["--min_crop_area=2"], ["--min_crop_area"]),
        (["--lr_head_mult=-3"], ["--lr_head_mult", "at least 0"]),
        (["--train_batch_size=1"], ["--train_batch_size=1", "at least 2 images"]),
        (["--seed=99999999999999999999"], ["--seed"]),
        (["--model=inception_v3"], ["inception_v3", "--image_shape=3,32,32"]),
        (["--pretrained_model=nowhere.pt"], ["nowhere.pt"]),
        (["--checkpoint=nowhere.pt"], ["nowhere.pt does not exist"]),
        (["--config=nowhere.yaml"], ["nowhere.yaml"]),
        (["--model_save_dir=/proc/output"], ["/proc/output", "--model_save_dir"]),
        (["--cache_size=100"], ["--cache_size is not used", "no --cache"]),
        (["--cache=/proc/cache"], ["/proc/cache"]),
        (["--prefetch=3"], ["--prefetch is not used", "--num_workers=0"]),
        (["--augment_on=device"], ["--augment_on=device needs --transform=standard", "reference"]),
        (["--decode_on=device"], ["--decode_on=device needs a CUDA GPU", "cpu"]),
        (["--on_bad_image=ignore"], ["--on_bad_image", "error", "skip"]),
    ],
    ids=lambda value: value[0] if value[0].startswith("--") else "",
)
def test_wrong_flags_of_stage_1(fails, flags, words, tmp_path):
    error = fails("elem", *flags)
    assert all(word in error for word in words), error
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--loss_name=eml", "--train_batch_size=7"], ["got 7", "samples_each_class"]),
        (["--loss_name=eml", "--train_batch_size=2"], ["at least 2 classes", "4 or more"]),
        (["--loss_name=eml", "--train_batch_size=20"], ["at least 10 training classes", "got 6"]),
        (["--loss_name=triplet", "--train_batch_size=8"], ["8", "3"]),
        (["--loss_name=triplet", "--samples_each_class=2"], ["not used by --loss_name=triplet"]),
        (["--loss_name=npairs", "--samples_each_class=3"], ["samples_each_class 2"]),
        (["--loss_name=eml", "--lr_head_mult=10"], ["--lr_head_mult is not used"]),
    ],
    ids=lambda value: value[-1],
)
def test_wrong_flags_of_stage_2(fails, flags, words):
    error = fails("pair", *flags)
    assert all(word in error for word in words), error


def test_broken_lists_name_file_and_line(fails, tmp_path):
    base = ["--model=ResNet18", f"--data_dir={tmp_path}", "--use_gpu=False"]
    header = "image_id class_id super_class_id path\n"
    for line, words in (("1 1 a.jpg\n", ["Ebay_train.txt:2"]), ("1 one 1 a.jpg\n", ["'1 one 1"])):
        (tmp_path / "Ebay_train.txt").write_text(header + line)
        (tmp_path / "Ebay_test.txt").write_text(header + "1 1 1 a.jpg\n")
        error = fails("elem", base=base)
        assert all(word in error for word in words), error


@pytest.mark.parametrize("fault", ["missing", "truncated", "text"])
def test_a_broken_image_is_named(fails, toy_tree, toy_flags, tmp_path, fault):
    tree = shutil.copytree(toy_tree, tmp_path / "tree")
    broken = tree / "train" / "class_2" / "1.png"
    content = {"missing": None, "truncated": broken.read_bytes()[:300], "text": b"hello"}[fault]
    lists = []
    for split in ("train", "test"):
        images = sorted((tree / split).glob("*/*.png"))
        file = tmp_path / f"{split}.txt"
        file.write_text("".join(f"{p} {p.parent.name[6:]}\n" for p in images))
        lists.append(f"--{split}_list={file}")
    if content is None:
        broken.unlink()
    else:
        broken.write_bytes(content)
    base = [flag for flag in toy_flags if not flag.startswith("--data")]
    for workers in (0, 2):
        error = fails(
            *("elem", "--dataset=list", "--train_batch_size=24", f"--num_workers={workers}"),
            *(*lists, f"--run_name=run{workers}"),
            base=base,
        )
        assert str(broken) in error
        # One that is not there is found before the first step.
        is_saved = (tmp_path / "output" / f"run{workers}" / "last.pt").exists()
        assert is_saved == (fault != "missing")


def test_weights_that_do_not_fit_are_listed(fails, checkpoint, tmp_path):
    error = fails("elem", "--model=ResNet50", f"--pretrained_model={checkpoint}")
    assert "another model" in error and "backbone.layer1.0.conv3.weight" in error
    (tmp_path / "page.pth").write_text("<html>not found</html>")
    for script in SCRIPTS:
        assert "page.pth" in fails(script, f"--pretrained_model={tmp_path / 'page.pth'}")


def test_eval_refuses_flags_that_contradict_the_checkpoint(fails, checkpoint):
    weights = f"--pretrained_model={checkpoint}"
    assert "was made with --model=ResNet18" in fails("eval", weights, "--model=ResNet50")
    assert "--embedding_size=64" in fails("eval", weights, "--embedding_size=64")
    assert "--pretrained_model=CHECKPOINT" in fails("eval")
    assert "--train_classes is not used" in fails(
        "eval", weights, "--train_classes=1-2", "--split=all"
    )


def test_resume_refuses_another_run_s_checkpoint(fails, checkpoint, tmp_path):
    resume = f"--checkpoint={checkpoint}"
    assert "was written by train_elem.py" in fails("pair", resume)
    assert "--loss_name=softmax" in fails("elem", resume, "--loss_name=arcmargin")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "weights.pt")
    assert "give it as --pretrained_model" in fails(
        "elem", f"--checkpoint={tmp_path / 'weights.pt'}"
    )


def test_infer_needs_images(fails, checkpoint, tmp_path):
    base = [f"--pretrained_model={checkpoint}", "--use_gpu=False"]
    assert "no such image" in fails("infer", "--images=nowhere", base=base)
    assert "no images below" in fails("infer", f"--images={tmp_path}", base=base)
    error = fails("infer", "--images=a.jpg", "--test_classes=1", "--dataset=demo", base=base)
    assert "--dataset, --test_classes is not used (--images is used instead" in error


def test_a_result_file_that_cannot_be_written_is_refused_before_the_work(
    fails, checkpoint, tmp_path, capsys
):
    error = fails("eval", f"--pretrained_model={checkpoint}", f"--json={tmp_path}")
    assert f"--json={tmp_path}" in error and "folder" in error
    assert "--json=/proc" in fails("eval", f"--pretrained_model={checkpoint}", "--json=/proc/a/b")


def test_ks_must_be_positive(fails, checkpoint):
    assert "--ks" in fails("eval", f"--pretrained_model={checkpoint}", "--ks=0")


def test_embeddings_that_are_not_finite_are_no_result(fails, checkpoint, tmp_path):
    state = torch.load(checkpoint, weights_only=True)
    state["model"]["backbone.bn1.weight"][:] = np.nan
    torch.save(state, tmp_path / "nan.pt")
    assert "NaN or infinity" in fails("eval", f"--pretrained_model={tmp_path / 'nan.pt'}")
