"""--tta_flip, --tta_scales, --resize_ratio: what embeddings they give, and what remembers them."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import eval as eval_script
import infer
import metric_learning
import train_elem
from metric_learning.models import build_model

MACHINE = ["--use_gpu=False", "--num_workers=0"]
SMALL = ["--model=test_resnet", "--image_shape=3,32,32", "--transform=standard"]


@pytest.fixture
def pictures(toy_tree, tmp_path):
    """Six images of the toy tree, 40 x 32 pixels, and the same mirrored."""
    for name, mirrored in (("plain", False), ("mirrored", True)):
        (tmp_path / name).mkdir()
        for number in range(6):
            label, image = 6 + number // 2, number % 2
            pixels = np.asarray(Image.open(toy_tree / f"test/class_{label}/{image}.png"))
            pixels = pixels[:, ::-1] if mirrored else pixels
            Image.fromarray(pixels).save(tmp_path / name / f"{number}.png")
    return tmp_path


@pytest.fixture
def embed(pictures, weights):
    """Features (6, D) that infer.py dumps with flags."""

    def run(*flags, images="plain"):
        folder = pictures / "dump"
        argv = [*MACHINE, *SMALL, f"--pretrained_model={weights}", f"--images={pictures / images}"]
        infer.main([*argv, f"--output_dir={folder}", *flags])
        return np.load(folder / "features.npy")

    return run


def test_a_mirrored_view_is_that_of_the_mirrored_file(embed, pictures):
    plain, mirrored = embed(), embed(images="mirrored")
    both = embed("--tta_flip")
    np.testing.assert_allclose(both, (plain + mirrored) / 2, rtol=1e-4, atol=1e-6)
    assert np.abs(both - plain).max() > 1e-3
    about = json.loads((pictures / "dump/meta.json").read_text())
    assert about["depends_on"]["preprocessing"].endswith(", mirrored too")


def test_scales_are_those_of_the_input(embed, pictures, weights):
    model = build_model("test_resnet", pretrained_model=str(weights)).eval()
    pixels = [np.asarray(Image.open(pictures / f"plain/{n}.png"))[:, 4:36] for n in range(6)]
    inputs = torch.from_numpy((np.stack(pixels) / 255 - model.mean) / model.std)
    inputs = inputs.permute(0, 3, 1, 2).float()
    sizes = (24, 32, 48)
    with torch.inference_mode():
        views = [F.interpolate(inputs, [size, size], mode="bilinear") for size in sizes]
        views += [view.flip(3) for view in views]
        expected = torch.stack([model(view) for view in views]).mean(0).numpy()
    found = embed("--tta_flip", "--tta_scales=0.75,1,1.5")
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)


def test_a_ratio_is_taken_from_the_weights_and_views_are_not(toy_flags, tmp_path, capsys):
    flags = [
        *toy_flags,
        *SMALL,
        "--loss_name=softmax",
        "--total_iter_num=1",
        "--train_batch_size=8",
    ]
    flags += [f"--model_save_dir={tmp_path}", "--resize_ratio=1.25", "--tta_flip"]
    folder = train_elem.main([*flags, "--test_iter_step=1"])
    [tested] = [
        record["recall@1"]
        for record in map(json.loads, (folder / "stats.jsonl").read_text().splitlines())
        if "recall@1" in record
    ]
    file = f"--pretrained_model={folder / 'last.pt'}"
    assert eval_script.main([*MACHINE, file, "--tta_flip"])["recall@1"] == pytest.approx(tested)
    flags = eval_script.main([*MACHINE, file])["evaluated"]["flags"]
    assert flags["resize_ratio"] == 1.25 and not flags["tta_flip"]


def test_kept_features_are_of_their_views(toy_flags, weights, tmp_path, error_of):
    argv = [*toy_flags, *SMALL, f"--pretrained_model={weights}", f"--features={tmp_path / 'f.npy'}"]
    eval_script.main([*argv, "--tta_flip"])
    kept = eval_script.main([*argv, "--tta_flip"])["recall@1"]
    without = [flag for flag in argv if not flag.startswith("--features")]
    assert kept == eval_script.main([*without, "--tta_flip"])["recall@1"]
    for other in ([], ["--tta_flip", "--tta_scales=1,1.5"], ["--tta_flip", "--resize_ratio=1.25"]):
        assert "features of other preprocessing" in error_of(eval_script.main, [*argv, *other])


def test_a_query_is_embedded_as_its_index(toy_flags, weights, pictures, error_of, capsys):
    pytest.importorskip("faiss")
    model, index = f"--pretrained_model={weights}", f"--index={pictures / 'toy.index'}"
    views = ["--tta_flip", "--tta_scales=1,1.5", "--resize_ratio=1.25"]
    built = [*MACHINE, *SMALL, model, index, f"--images={pictures / 'plain'}"]
    infer.main([*built, *views])
    asked = [*MACHINE, model, index, f"--query={pictures / 'plain'}", "--topk=1"]
    for flags in (asked, [*asked, *views]):
        found = [answer["neighbours"][0] for answer in infer.main(flags)]
        assert [hit["row"] for hit in found] == list(range(6))
        assert min(hit["cosine"] for hit in found) > 0.99999
    for other, kept in (("--tta_flip=False", "True"), ("--tta_scales=0.5,1", "1.0,1.5")):
        error = error_of(infer.main, [*asked, other])
        assert f"{other.split('=')[0]}={kept}, found {other.split('=')[0]}=" in error


def test_programs_open_an_index_with_its_views(toy_flags, pictures, tmp_path):
    pytest.importorskip("faiss")
    flags = [*toy_flags, *SMALL, "--total_iter_num=1", "--train_batch_size=8"]
    flags += ["--test_iter_step=0", f"--model_save_dir={tmp_path}"]
    last = train_elem.main(flags) / "last.pt"
    index = tmp_path / "toy.index"
    built = [*MACHINE, f"--pretrained_model={last}", f"--index={index}", "--tta_flip"]
    infer.main([*built, f"--images={pictures / 'plain'}"])
    with pytest.raises(ValueError, match="built with another preprocessing"):
        metric_learning.open_index(index, metric_learning.load(last, device="cpu"))
    opened = metric_learning.open_index(
        index, metric_learning.load(last, device="cpu", tta_flip=True)
    )
    [best] = opened.search(str(pictures / "plain/3.png"), topk=1)
    assert best["row"] == 3 and best["cosine"] > 0.99999


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--tta_scales=1"], "1 alone is the image as it is"),
        (["--tta_scales=0.5,0.5"], "each once"),
        (["--tta_scales=-1,1"], "expected numbers above 0"),
        (["--tta_scales=a"], "expected comma-separated numbers"),
        (["--tta_scales=0.001,1"], "cannot take the size of --tta_scales=0.001"),
        (["--resize_ratio=0.9"], "expected a number of 1 to 4"),
    ],
)
def test_wrong_views_are_one_line(toy_flags, flags, message, error_of):
    argv = [*toy_flags, *SMALL, "--pretrained_model=random"]
    assert message in error_of(eval_script.main, [*argv, *flags])


def test_an_export_has_no_views(weights, tmp_path, error_of):
    argv = [*SMALL, f"--pretrained_model={weights}", "--export=safetensors", "--tta_flip"]
    error = error_of(infer.main, [*argv, f"--output={tmp_path / 'a.safetensors'}"])
    assert "--tta_flip is not used (with --export)" in error
