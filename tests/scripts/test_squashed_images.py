"""--test_resize=squash: what embeddings it gives, who takes it over, and what remembers it."""

import json
import re

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torchvision.transforms import v2

import eval as eval_script
import infer
import metric_learning
import train_elem
import train_pair
from metric_learning.engine.report.__main__ import main as report
from metric_learning.models import build_model, read_metadata

MACHINE = ["--use_gpu=False", "--num_workers=0"]
MODEL = ["--model=test_resnet", "--transform=standard"]
SQUASH = "--test_resize=squash"


def squashed(pixels, height, width):
    """Resize an image (H, W, 3) uint8 as torchvision does, its proportions lost."""
    image = torch.from_numpy(np.array(pixels)).permute(2, 0, 1)
    bicubic = v2.InterpolationMode.BICUBIC
    image = v2.functional.resize(image, [height, width], bicubic, antialias=True)
    return image.permute(1, 2, 0).numpy()


@pytest.fixture(scope="module")
def pictures(toy_tree, tmp_path_factory):
    """Six photos of 40 x 32 and 16 x 90 pixels, and the same squashed to sizes of inputs."""
    folder = tmp_path_factory.mktemp("pictures")
    for name in ("plain", "32x32", "48x24"):
        (folder / name).mkdir()
    for number in range(6):
        photo = Image.open(toy_tree / f"test/class_{6 + number // 2}/{number % 2}.png")
        if number % 2:
            photo = photo.resize((90, 16))
        photo.save(folder / f"plain/{number}.png")
        for height, width in ((32, 32), (48, 24)):
            other = Image.fromarray(squashed(photo, height, width))
            other.save(folder / f"{height}x{width}/{number}.png")
    return folder


@pytest.fixture
def embed(weights, tmp_path):
    """Features (6, D) that infer.py dumps of a folder of images with flags."""

    def run(images, *flags, weights=weights):
        argv = [*MACHINE, f"--pretrained_model={weights}", f"--images={images}"]
        infer.main([*argv, f"--output_dir={tmp_path / 'dump'}", *flags])
        return np.load(tmp_path / "dump/features.npy")

    return run


@pytest.fixture(scope="module")
def trained(toy_flags, tmp_path_factory):
    """A run of stage 1 that tests squashed images, the centre of 40 x 40 pixels."""
    return train(toy_flags, tmp_path_factory.mktemp("run"), SQUASH, "--resize_ratio=1.25")


def train(toy_flags, folder, *flags):
    short = ["--total_iter_num=2", "--test_iter_step=2", "--display_iter_step=1"]
    argv = [*toy_flags, *MODEL, "--loss_name=softmax", "--train_batch_size=8", *short]
    return train_elem.main([*argv, f"--model_save_dir={folder}", *flags])


def recalls_of(folder):
    text = (folder / "stats.jsonl").read_text()
    return [
        found["recall@1"] for found in map(json.loads, text.splitlines()) if "recall@1" in found
    ]


@pytest.mark.parametrize("shape", ["32x32", "48x24"])
@pytest.mark.parametrize("flags", [[], ["--tta_flip", "--tta_scales=0.75,1,1.5"]])
def test_embeddings_are_those_of_files_squashed_before(shape, flags, embed, pictures):
    flags = [*MODEL, f"--image_shape=3,{shape.replace('x', ',')}", *flags]
    found = embed(pictures / "plain", *flags, SQUASH)
    np.testing.assert_array_equal(found, embed(pictures / shape, *flags))
    assert np.abs(found - embed(pictures / "plain", *flags)).max() > 1e-3


def test_boxes_are_squashed_as_photos_of_their_own(embed, pictures, tmp_path):
    flags = [*MODEL, "--image_shape=3,32,32", SQUASH]
    (tmp_path / "cut").mkdir()
    lines = ["path,label,split,x_1,y_1,x_2,y_2"]
    for number in range(0, 6, 2):
        file = pictures / f"plain/{number}.png"
        Image.open(file).crop((3, 2, 37, 14)).save(tmp_path / f"cut/{number}.png")
        lines.append(f"{file},{number},test,3,2,37,14")
    (tmp_path / "boxes.csv").write_text("\n".join(lines) + "\n")
    expected = embed(tmp_path / "cut", *flags)
    np.testing.assert_array_equal(embed(tmp_path / "boxes.csv", *flags), expected)


def test_weights_say_it_and_a_second_stage_and_tests_take_it(
    trained, toy_flags, embed, pictures, tmp_path
):
    start = [*MACHINE, f"--pretrained_model={trained / 'last.pt'}"]
    result = eval_script.main(start)
    assert [result["recall@1"]] == pytest.approx(recalls_of(trained))
    assert result["evaluated"]["flags"]["test_resize"] == "squash"
    embed(pictures / "plain", weights=trained / "last.pt")
    about = json.loads((tmp_path / "dump/meta.json").read_text())
    assert about["depends_on"]["preprocessing"].endswith(", squashed to 40 x 40 px")

    flags = ["--loss_name=eml", "--train_batch_size=8", "--total_iter_num=1", "--test_iter_step=1"]
    data = [flag for flag in toy_flags if not flag.startswith("--model=")]
    second = train_pair.main([*start, *data, *flags, f"--model_save_dir={tmp_path}"])
    text = (second / "log.txt").read_text()
    assert re.search(r"as .*last.pt was trained: .*--test_resize=squash", text)
    assert read_metadata(second / "last.pt")["flags"]["test_resize"] == "squash"

    other = [f"--model_save_dir={tmp_path / 'other'}", "--test_resize=short_side"]
    text = (train_pair.main([*start, *data, *flags, *other]) / "log.txt").read_text()
    assert "trained with --test_resize=squash, this run takes --test_resize=short_side" in text
    assert "warning: " in text and "test images squash there, short_side here" in text


def test_weights_that_do_not_say_it_saw_short_sides(trained, embed, pictures, tmp_path, capsys):
    state = torch.load(trained / "last.pt", weights_only=True)
    del state["meta"]["flags"]["test_resize"]
    older = tmp_path / "older.pt"
    torch.save(state, older)
    found = embed(pictures / "plain", weights=older)
    expected = embed(pictures / "plain", "--test_resize=short_side", weights=trained / "last.pt")
    np.testing.assert_array_equal(found, expected)
    asked = embed(pictures / "plain", SQUASH, weights=older)
    np.testing.assert_array_equal(asked, embed(pictures / "plain", weights=trained / "last.pt"))
    assert np.abs(asked - found).max() > 1e-3


def test_a_run_of_before_does_not_go_on_with_it(toy_flags, tmp_path, error_of):
    folder = train(toy_flags, tmp_path, "--checkpoint=auto")
    state = torch.load(folder / "last.pt", weights_only=True)
    del state["meta"]["flags"]["test_resize"]
    torch.save(state, folder / "last.pt")
    short = ["--loss_name=softmax", "--train_batch_size=8", "--total_iter_num=2"]
    argv = [*toy_flags, *MODEL, *short, "--test_iter_step=2", "--display_iter_step=1"]
    argv += [f"--model_save_dir={tmp_path}", "--checkpoint=auto"]
    error = error_of(train_elem.main, [*argv, SQUASH])
    assert "made with --test_resize=short_side, found --test_resize=squash" in error
    assert train_elem.main(argv) == folder


@pytest.mark.parametrize("flags", [["--augment_on=device"], ["--cache"]], ids=["device", "cache"])
def test_a_device_and_a_cache_leave_the_tests_as_they_are(flags, trained, toy_flags, tmp_path):
    flags = [f"--cache={tmp_path}/cache" if flag == "--cache" else flag for flag in flags]
    other = train(toy_flags, tmp_path, SQUASH, "--resize_ratio=1.25", *flags)
    assert recalls_of(other) == recalls_of(trained)


def test_kept_features_are_of_their_resizing(toy_flags, weights, tmp_path, error_of):
    argv = [*toy_flags, *MODEL, f"--pretrained_model={weights}", f"--features={tmp_path / 'f.npy'}"]
    first = eval_script.main([*argv, SQUASH])
    assert eval_script.main([*argv, SQUASH])["recall@1"] == first["recall@1"]
    assert "features of other preprocessing" in error_of(eval_script.main, argv)


def test_queries_are_squashed_as_their_index_was(weights, pictures, tmp_path, error_of):
    pytest.importorskip("faiss")
    index = f"--index={tmp_path / 'toy.index'}"
    own = [*MACHINE, f"--pretrained_model={weights}", index]
    shape = [*MODEL, "--image_shape=3,32,32"]
    infer.main([*own, *shape, SQUASH, f"--images={pictures / 'plain'}"])
    asked = [*own, f"--query={pictures / 'plain'}", "--topk=1"]
    answers = infer.main(asked)
    assert [answer["neighbours"][0]["row"] for answer in answers] == list(range(6))
    assert min(answer["neighbours"][0]["cosine"] for answer in answers) > 0.99999
    error = error_of(infer.main, [*asked, "--test_resize=short_side"])
    assert "--test_resize=squash, found --test_resize=short_side" in error


def test_an_export_says_it_and_is_read_so(trained, embed, pictures, tmp_path):
    ort = pytest.importorskip("onnxruntime")
    start = [f"--pretrained_model={trained / 'last.pt'}", "--normalize=False"]
    file = infer.main([*start, "--export=onnx", f"--output={tmp_path / 'a.onnx'}"])
    session = ort.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    about = json.loads(session.get_modelmeta().custom_metadata_map["metadata"])
    assert about["test_resize"] == "squash" and about["resize_ratio"] == 1.25
    assert "resize height and width to 40 x 40 pixels" in " ".join(about["preprocessing"])

    pixels = [np.asarray(Image.open(pictures / f"plain/{n}.png")) for n in range(6)]
    crops = np.stack([squashed(one, 40, 40)[4:36, 4:36] for one in pixels])
    inputs = ((crops / 255 - about["mean"]) / about["std"]).transpose(0, 3, 1, 2)
    [found] = session.run(["embeddings"], {"images": inputs.astype(np.float32)})
    expected = embed(pictures / "plain", weights=trained / "last.pt")
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)

    start = start[:1]
    bare = infer.main([*start, "--export=safetensors", f"--output={tmp_path / 'a.safetensors'}"])
    np.testing.assert_array_equal(embed(pictures / "plain", weights=bare), expected)


def test_a_folder_of_a_hub_says_it_to_timm_and_is_read_so(trained, pictures, tmp_path):
    start = [f"--pretrained_model={trained / 'last.pt'}", "--export=hub"]
    folder = infer.main([*start, f"--output={tmp_path / 'shop'}"])
    config = json.loads((folder / "config.json").read_text())
    network = timm.create_model(f"local-dir:{folder}", pretrained=True)
    data = timm.data.resolve_model_data_config(network)
    assert (data["crop_mode"], data["crop_pct"]) == ("squash", 0.8)
    resize, crop = timm.data.create_transform(**data).transforms[:2]
    assert tuple(resize.size) == (40, 40) and tuple(crop.size) == (32, 32)

    paths = sorted(map(str, (pictures / "plain").glob("*.png")))
    own = metric_learning.load(folder)
    assert own.preprocessing.covered == (40, 40) and own.preprocessing.is_squashed
    np.testing.assert_array_equal(own(paths), metric_learning.load(trained / "last.pt")(paths))

    del config["metric_learning"]  # as others write it
    (folder / "config.json").write_text(json.dumps(config))
    foreign = metric_learning.load(folder).preprocessing
    assert foreign.is_squashed and foreign.covered == (32, 32)
    config["pretrained_cfg"]["crop_mode"] = "border"
    (folder / "config.json").write_text(json.dumps(config))
    assert not metric_learning.load(folder).preprocessing.is_squashed


def test_a_report_says_it(trained, tmp_path):
    report([str(trained), f"--report_dir={tmp_path / 'report'}", *MACHINE])
    assert "32 × 32 px, images squashed" in (tmp_path / "report/index.html").read_text()


def test_a_model_of_timm_is_fetched_with_it(tmp_path, monkeypatch):
    from metric_learning.pretrained import fetch_weights

    model = build_model("test_resnet")
    for mode, expected in (("squash", "squash"), ("center", None)):
        monkeypatch.setitem(model.backbone.pretrained_cfg, "crop_mode", mode)
        fetch_weights.write(model, tmp_path / f"{mode}.safetensors", "here")
        found = read_metadata(tmp_path / f"{mode}.safetensors")
        assert found.get("test_resize") == expected
        sight = metric_learning.load(tmp_path / f"{mode}.safetensors").preprocessing
        assert sight.is_squashed == (expected == "squash")


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--test_resize=stretch", "short_side"),
        ("--test_resize", "--test_resize"),
        ("--test_resize=squash,256", "squash"),
    ],
)
def test_other_words_are_one_line(toy_flags, flag, message, error_of):
    error = error_of(eval_script.main, [*toy_flags, *MODEL, "--pretrained_model=random", flag])
    assert message in error
