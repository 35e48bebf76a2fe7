"""A run is its flags and its data: whoever takes it up compares both."""

import csv
import shutil
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from processes import TINY

import train_elem
import train_pair
from metric_learning.engine.run import identity
from metric_learning.engine.run.checkpoints import load_checkpoint, save_checkpoint
from metric_learning.engine.run.identity import check_flags, check_length, recipe_of
from metric_learning.engine.run.run_folder import link_latest
from metric_learning.models import build_model

QUIET = ["--use_gpu=False", "--num_workers=0", "--image_shape=3,32,32", "--save_iter_step=0"]


def write_csv(file, paths, changed=()):
    """Write a CSV of images in folds by their numbers; a row is that of `changed`, if it is."""
    with file.open("w", newline="") as opened:
        writer = csv.writer(opened)
        writer.writerow(["path", "label", "fold"])
        for row, path in enumerate(paths):
            label = dict(changed).get(row, path.parent.name)
            if label is not None:
                writer.writerow([path.relative_to(file.parent), label, row % 2])


@pytest.fixture(scope="module")
def made(toy_tree, tmp_path_factory):
    """A run of two steps on a CSV file, ended; its data, its folder and the flags that made it."""
    root = tmp_path_factory.mktemp("made")
    shutil.copytree(toy_tree, root / "photos")
    paths = sorted((root / "photos").glob("*/*/*.png"))
    write_csv(root / "photos.csv", paths)
    flags = [*TINY, *QUIET, "--dataset=csv", f"--csv={root / 'photos.csv'}", "--fold=0"]
    flags += [f"--model_save_dir={root / 'runs'}", "--run_name=run", "--checkpoint=auto"]
    flags += ["--total_iter_num=2", "--test_iter_step=2", "--arc_margin=0.3"]
    folder = train_elem.main(flags)
    return SimpleNamespace(root=root, paths=paths, flags=flags, folder=folder)


@pytest.fixture
def copy(made, tmp_path):
    """The same, to be changed, with flags that name the copy."""
    root = tmp_path / "copy"
    shutil.copytree(made.root, root, symlinks=True)
    flags = [flag.replace(str(made.root), str(root)) for flag in made.flags]
    paths = [root / path.relative_to(made.root) for path in made.paths]
    return SimpleNamespace(root=root, paths=paths, flags=flags, folder=root / "runs" / "run")


@pytest.fixture
def fails(capsys):
    """Train what must fail with one line and status 2, and return the line."""

    def run(*flags, script=train_elem):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            script.main([*flags])
        error = capsys.readouterr().err
        assert stop.value.code == 2 and error.count("\n") == 1, error
        return error

    return run


@pytest.mark.parametrize(
    ("new", "words"),
    [
        (["--fold=1"], "--fold=0, found --fold=1"),
        (["--train_classes=1-5"], "--train_classes=None, found --train_classes=1-5"),
        (["--test_classes=1-5"], "--test_classes=None, found --test_classes=1-5"),
        (["--lr=0.02"], "--lr=0.01, found --lr=0.02"),
        (["--train_batch_size=6"], "--train_batch_size=8, found --train_batch_size=6"),
        (["--batch_size=6"], "--train_batch_size=8, found --train_batch_size=6"),
        (["--seed=1"], "--seed=0, found --seed=1"),
        (["--lr_strategy=cosine_decay"], "--lr_strategy=piecewise_decay, found"),
        (["--min_crop_area=0.5"], "--min_crop_area=0.08, found --min_crop_area=0.5"),
        (["--image_shape=3,64,64"], "--image_shape=3,32,32, found --image_shape=3,64,64"),
        (["--amp=bfloat16"], "--amp=auto, found --amp=bfloat16"),
        (["--cache=cached"], "--cache=False, found --cache=True"),
        (["--pretrained_model=stage_1.pt"], "--pretrained_model=None, found"),
        (["--loss_name=softmax"], "--loss_name=arcmargin, found --loss_name=softmax"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_another_command_does_not_take_up_a_run(made, fails, new, words):
    error = fails(*made.flags, *new)
    assert words in error and str(made.folder / "last.pt") in error and "--run_name" in error


@pytest.mark.parametrize(
    ("left_out", "words"),
    [
        ("train_batch_size", "--train_batch_size=8, found --train_batch_size=256, the default"),
        ("arc_margin", "--arc_margin=0.3, found --arc_margin=0.15, the default"),
        ("fold", "--fold=0, found --fold=None, the default"),
        ("image_shape", "--image_shape=3,32,32, found --image_shape=3,"),
    ],
)
def test_a_flag_that_is_left_out_is_another_command(made, fails, left_out, words):
    error = fails(*(flag for flag in made.flags if not flag.startswith(f"--{left_out}=")))
    assert words in error


def test_harmless_flags_may_change(made, copy, capsys):
    more = ["--num_workers=1", "--display_iter_step=2", "--keep=1", "--save_iter_step=1"]
    more += ["--on_bad_image=skip", "--device=cpu", "--total_iter_num=3", "--test_iter_step=0"]
    assert train_elem.main([*copy.flags, *more]) == copy.folder
    assert load_checkpoint(copy.folder / "last.pt")["step"] == 3
    meta = load_checkpoint(copy.folder / "last.pt")["meta"]
    assert {"fold", "arc_margin", "keep"} <= set(meta["given"])


def test_a_moved_data_set_is_the_same_and_nothing_is_done(copy, capsys):
    assert train_elem.main(copy.flags) == copy.folder
    out = capsys.readouterr().out.splitlines()
    assert out[0].endswith(f"run folder: {copy.folder}")
    assert out[-1].endswith(f"{copy.folder} has finished its 2 steps: nothing to do")


def replace_image(copy):
    Image.new("RGB", (40, 32), "grey").save(copy.paths[1])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (replace_image, "images of the train split: 1 of 20 replaced, the first "),
        (lambda copy: copy.paths[3].unlink(), "is no longer there"),
        (
            lambda copy: write_csv(copy.root / "photos.csv", copy.paths, {1: "class_7"}),
            "1 of 20 relabelled, the first test/class_6/1.png: class_6, not class_7",
        ),
        (
            lambda copy: write_csv(copy.root / "photos.csv", copy.paths[:-4]),
            "10 training classes, not 9",
        ),
        (
            lambda copy: write_csv(copy.root / "photos.csv", copy.paths, {3: None}),
            "images of the train split: 1 removed, the first test/class_6/3.png",
        ),
        (lambda copy: Image.new("RGB", (40, 32)).save(copy.paths[2]), "images of the test split"),
    ],
    ids=["replaced", "removed", "relabelled", "fewer classes", "fewer images", "test image"],
)
def test_a_run_is_not_taken_up_with_other_data(copy, fails, change, words):
    change(copy)
    flags = [*copy.flags, "--on_bad_image=skip", "--total_iter_num=3"]
    for which in ("auto", copy.folder / "last.pt"):
        error = fails(*flags, f"--checkpoint={which}")
        assert "was trained on other data" in error and "--on_changed_data=accept" in error
        assert words in error


def test_who_means_it_accepts_other_data(copy, capsys):
    replace_image(copy)
    accept = ["--on_changed_data=accept", "--total_iter_num=3", "--test_iter_step=0"]
    train_elem.main([*copy.flags, *accept])
    assert (
        "other data than before, accepted: images of the train split: 1 of 20"
        in (copy.folder / "log.txt").read_text()
    )
    train_elem.main([*copy.flags, "--total_iter_num=3", "--test_iter_step=0"])
    assert "nothing to do" in capsys.readouterr().out


def test_a_lost_snapshot_or_another_decoder(copy, fails, monkeypatch, capsys):
    """Without the snapshot beside it, a checkpoint knows its images nevertheless."""
    for file in copy.folder.glob("*_images.npz"):
        file.unlink()
    train_elem.main(copy.flags)
    assert "nothing to do" in capsys.readouterr().out
    replace_image(copy)
    assert "images of the train split: 20 images, sha256:" in fails(*copy.flags)
    monkeypatch.setattr(identity, "DECODER", 99)
    assert "another decoder of images (2, not 99)" in fails(*copy.flags)


def test_a_checkpoint_of_an_earlier_version_resumes_with_a_line(copy):
    last = copy.folder / "last.pt"
    checkpoint = load_checkpoint(last)
    for name in ("depends_on", "given"):
        del checkpoint["meta"][name]
    save_checkpoint(last, checkpoint)
    (copy.folder / "best.pt").unlink()
    train_elem.main([*copy.flags, "--total_iter_num=3", "--test_iter_step=0"])
    assert "is of an earlier version" in (copy.folder / "log.txt").read_text()
    assert "were not compared" in (copy.folder / "log.txt").read_text()


def test_a_run_does_not_become_shorter(made, fails):
    last = made.folder / "last.pt"
    for which in ("auto", last):
        error = fails(*made.flags, f"--checkpoint={which}", "--total_iter_num=1")
        assert f"{last} has done 2 steps, found a length of 1" in error


def test_a_longer_cosine_is_said():
    checkpoint = {"step": 5, "meta": {"flags": {"total_iter_num": 10}}}
    schedule = SimpleNamespace(total_iter_num=20, lr_strategy="cosine_decay")
    assert check_length(schedule, "last.pt", checkpoint) == [
        "20 steps instead of 10: from step 5 on, the rate follows the cosine of the new length"
    ]
    schedule.lr_strategy = "constant"
    assert check_length(schedule, "last.pt", checkpoint) == []


def test_other_starting_weights_are_another_run(tmp_path):
    weights, other = tmp_path / "a.pt", tmp_path / "b.pt"
    for seed, file in enumerate((weights, other)):
        torch.manual_seed(seed)
        torch.save(build_model("test_resnet").state_dict(), file)
    start = identity.hash_weights(weights)
    meta = {"flags": {"pretrained_model": str(weights)}, "given": ["pretrained_model"]}
    meta["depends_on"] = {"start": start}

    def check(file):
        values = {"pretrained_model": str(file), "on_changed_data": "error"}
        check_flags(values, set(), "last.pt", meta)

    check(weights)
    copied = shutil.copy(weights, tmp_path / "c.pt")
    check(copied)
    with pytest.raises(ValueError, match=r"a\.pt, found --pretrained_model=.*b\.pt"):
        check(other)
    shutil.copy(other, weights)
    with pytest.raises(ValueError, match=r"a\.pt, found another content"):
        check(weights)
    weights.unlink()  # a run goes on without them
    check(weights)


def test_the_link_leads_to_the_newest_run(made, tmp_path):
    latest = made.folder.parent / "latest"
    assert latest.is_symlink() and latest.resolve() == made.folder.resolve()
    for name in ("run", "run-2"):
        (tmp_path / name).mkdir()
        link_latest(tmp_path / name)
        assert (tmp_path / "latest").resolve() == tmp_path / name
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "run", "run-2"]
    mine = tmp_path / "mine" / "latest"
    mine.mkdir(parents=True)
    link_latest(tmp_path / "mine" / "run")
    assert mine.is_dir() and not mine.is_symlink()


def test_the_recipe_is_all_but_the_seed(made):
    meta = load_checkpoint(made.folder / "last.pt")["meta"]
    recipe = recipe_of(meta)
    other = {**meta, "flags": {**meta["flags"], "seed": 7, "run_name": "b", "num_workers": 9}}
    assert recipe_of(other) == recipe and recipe["--lr"] == 0.01
    assert recipe_of({**meta, "flags": {**meta["flags"], "lr": 0.1}}) != recipe
    assert recipe_of({}) is None and recipe_of({"flags": {}}) is None


@pytest.mark.parametrize(
    ("script", "flags", "words"),
    [
        (train_elem, ["--verify=True"], "--verify is not used"),
        (train_pair, ["--on_changed_data=accept"], "--on_changed_data is not used"),
    ],
)
def test_flags_that_nothing_would_use(toy_flags, fails, script, flags, words):
    assert words in fails(*toy_flags, "--train_batch_size=8", *flags, script=script)
