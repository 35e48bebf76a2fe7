"""infer.py --export: files that give the dump's features without this project."""

import functools
import json
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from torch.nn.functional import normalize

import eval as eval_script
import infer
import train_elem
from metric_learning.engine.embed import export
from metric_learning.models import build_model
from metric_learning.models.weights.fingerprint import hash_weights
from metric_learning.reader import load_index
from metric_learning.reader.transforms import TRANSFORMS

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.load` is deprecated")
MACHINE = ["--use_gpu=False", "--num_workers=0"]
SIZE = 32


@pytest.fixture(scope="module")
def checkpoint(toy_flags, tmp_path_factory):
    """A stage-1 checkpoint with an embedding layer and the antialiased transform."""
    folder = tmp_path_factory.mktemp("runs")
    run = train_elem.main(
        [*toy_flags, "--model=test_resnet", "--embedding_size=8", "--loss_name=arcmargin"]
        + ["--train_batch_size=8", "--total_iter_num=1", "--test_iter_step=0"]
        + [f"--model_save_dir={folder}"]
    )
    return run / "last.pt"


@pytest.fixture(scope="module")
def sources(checkpoint, tmp_path_factory):
    """Flags of models by name: a checkpoint, and state dicts that say nothing of their model."""
    folder = tmp_path_factory.mktemp("weights")
    flags = {"checkpoint": [f"--pretrained_model={checkpoint}"]}
    for name in ("ResNet18", "mobilenetv3_small_050", "test_vit"):
        torch.manual_seed(0)
        backbone = build_model(name, image_size=SIZE).backbone
        torch.save(backbone.state_dict(), folder / f"{name}.pth")
        flags[name] = [
            f"--pretrained_model={folder / name}.pth",
            f"--model={name}",
            f"--image_shape=3,{SIZE},{SIZE}",
        ]
    return flags


@pytest.fixture(scope="module")
def exported(sources, tmp_path_factory):
    """Export a model in a form, once, and return the file."""
    folder = tmp_path_factory.mktemp("exported")

    @functools.cache
    def run(form, name, *flags):
        file = folder / f"{name}{''.join(flags)}.{form}".replace("=", "_")
        assert infer.main([*sources[name], *flags, f"--export={form}", f"--output={file}"]) == file
        return file

    return run


@pytest.fixture(scope="module")
def dump(toy_tree, tmp_path_factory):
    """Dump the features of the toy tree's test images, once, in the order of their paths."""
    folder = tmp_path_factory.mktemp("dump")

    @functools.cache
    def run(*flags):
        images = f"--images={toy_tree / 'test'}"
        infer.main([*flags, *MACHINE, images, f"--output_dir={folder}"])
        return np.load(folder / "features.npy")

    return run


def metadata_of(file):
    """Read the description in a file as its own library gives it."""
    if file.suffix == ".onnx":
        [entry] = onnx.load(file).metadata_props
        assert entry.key == "metadata"
        return json.loads(entry.value)
    if file.suffix == ".torchscript":
        extra = {"metadata": ""}
        torch.jit.load(file, _extra_files=extra)
        return json.loads(extra["metadata"])
    with safe_open(file, framework="pt") as opened:
        return json.loads(opened.metadata()["metadata"])


def network_of(file):
    """Load a file as its own library does: images (B, 3, S, S) -> embeddings (B, D)."""
    if file.suffix == ".torchscript":
        script = torch.jit.load(file)
        return lambda images: script(torch.from_numpy(images)).numpy()
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return lambda images: session.run(["embeddings"], {"images": images})[0]


def inputs_of(metadata, toy_tree):
    """Preprocess the toy tree's test images as the description says."""
    index = load_index("folder", toy_tree, "test")
    transform = TRANSFORMS[metadata["transform"]].eval
    size = metadata["image_shape"][1]
    images = [
        transform(index.read_image(row), size, metadata["mean"], metadata["std"])
        for row in range(len(index))
    ]
    return np.stack(images)


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("checkpoint", "onnx"),
        ("checkpoint", "torchscript"),
        ("ResNet18", "onnx"),
        ("mobilenetv3_small_050", "onnx"),
        ("test_vit", "onnx"),
        ("test_vit", "torchscript"),
    ],
)
def test_the_features_are_those_of_the_dump(name, form, sources, exported, dump, toy_tree):
    file = exported(form, name)
    metadata = metadata_of(file)
    features = dump(*sources[name])
    images = inputs_of(metadata, toy_tree)
    network = network_of(file)
    assert metadata["output"]["shape"] == ["batch", features.shape[1]]
    scale = min(1, np.abs(features).max())
    for batch in (1, 5, len(images)):
        found = network(images[:batch])
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, features[:batch], rtol=0, atol=1e-4 * scale)


def test_the_batch_is_free_and_the_rest_is_not(exported):
    session = onnxruntime.InferenceSession(exported("onnx", "checkpoint"))
    [images], [embeddings] = session.get_inputs(), session.get_outputs()
    assert (images.name, images.shape) == ("images", ["batch", 3, SIZE, SIZE])
    assert (embeddings.name, embeddings.shape) == ("embeddings", ["batch", 8])


def embed_with_pillow(file, image_file):
    """The README's example: the features of an image with Pillow, NumPy and onnxruntime alone."""
    session = onnxruntime.InferenceSession(file)
    about = json.loads(session.get_modelmeta().custom_metadata_map["metadata"])
    (_, height, width), mean, std = about["image_shape"], about["mean"], about["std"]

    image = Image.open(image_file).convert("RGB")
    scale = max(width / image.width, height / image.height)
    image = image.resize([round(side * scale) for side in image.size], Image.Resampling.BICUBIC)
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    pixels = np.asarray(image.crop((left, top, left + width, top + height)), np.float32)
    images = ((pixels / 255 - mean) / std).astype(np.float32).transpose(2, 0, 1)[None]
    return session.run(["embeddings"], {"images": images})[0]


def test_a_few_lines_without_this_project_give_the_features(sources, exported, dump, toy_tree):
    file = exported("onnx", "checkpoint")
    features = dump(*sources["checkpoint"])
    paths = sorted((toy_tree / "test").glob("*/*.png"))
    found = np.concatenate([embed_with_pillow(file, path) for path in paths])
    assert np.abs(features).max() > 0.1
    np.testing.assert_allclose(found, features, rtol=0, atol=1e-3)


def test_every_form_says_the_same_of_the_model(exported, checkpoint):
    described = [metadata_of(exported(form, "checkpoint")) for form in export.FORMS]
    about = described[0]
    assert about == described[1] == described[2]
    assert about["model"] == "test_resnet" and about["embedding_size"] == 8
    assert about["image_shape"] == [3, SIZE, SIZE] and about["transform"] == "standard"
    assert (about["loss"], about["dataset"], about["step"]) == ("arcmargin", "folder", 1)
    assert about["class_names"] == [f"class_{number}" for number in range(6)]
    assert about["fingerprint"] == hash_weights(checkpoint)
    assert about["input"]["name"] == "images" and about["output"]["normalized"] is False
    steps = " ".join(about["preprocessing"])
    assert "short side of 32 pixels" in steps and "bicubic" in steps
    assert str(about["mean"]) in steps and str(about["std"]) in steps
    assert str(checkpoint.parent) not in json.dumps(about)  # no folder of this machine


def test_foreign_weights_are_described_by_the_flags(exported):
    about = metadata_of(exported("onnx", "test_vit", "--transform=reference"))
    assert about["model"] == "test_vit" and about["mean"] == [0.5, 0.5, 0.5]
    assert about["embedding_size"] == 0 and about["output"]["shape"] == ["batch", 64]
    assert "Lanczos" in about["preprocessing"][2]
    assert not {"loss", "dataset", "class_names"} & set(about)


def test_options_of_the_model_are_exported(sources, exported, dump, toy_tree):
    options = ["--pooling=gem", "--feature_norm=layernorm"]
    features = dump(*sources["ResNet18"], *options)
    network, weights = (exported(form, "ResNet18", *options) for form in ("onnx", "safetensors"))
    images = inputs_of(metadata_of(network), toy_tree)
    np.testing.assert_allclose(network_of(network)(images), features, rtol=0, atol=1e-4)
    assert np.array_equal(dump(f"--pretrained_model={weights}"), features)


@pytest.mark.parametrize("name", ["checkpoint", "test_vit"])
def test_exported_weights_need_no_flags(name, sources, exported, dump):
    file = exported("safetensors", name, "--transform=reference")
    features = dump(*sources[name], "--transform=reference")
    assert np.array_equal(dump(f"--pretrained_model={file}"), features)


@pytest.mark.parametrize("form", ["onnx", "torchscript"])
def test_normalized_embeddings_have_length_1(form, exported):
    images = np.random.default_rng(0).normal(size=(3, 3, SIZE, SIZE)).astype(np.float32)
    plain = network_of(exported(form, "checkpoint"))(images)
    file = exported(form, "checkpoint", "--normalize=True")
    unit = normalize(torch.from_numpy(plain)).numpy()
    np.testing.assert_allclose(network_of(file)(images), unit, rtol=0, atol=1e-5)
    assert metadata_of(file)["output"]["normalized"] is True


@pytest.mark.parametrize("form", list(export.FORMS))
def test_only_its_own_lines_are_printed(form, sources, tmp_path, capfd):
    file = tmp_path / f"a.{form}"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        infer.main([*sources["test_vit"], f"--export={form}", f"--output={file}"])
    captured = capfd.readouterr()
    assert captured.err == ""
    lines = captured.out.splitlines()
    assert len(lines) == (2 if form == "safetensors" else 3)
    assert f"test_vit as {form}, 64 dimensions" in lines[-1]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--export=onnx"], "--output=NAME.onnx"),
        (["--export=onnx", "--output=new/a.pt"], "a.pt: expected a name that ends in .onnx"),
        (["--export=onnx", "--output=/proc/a/b.onnx"], "--output=/proc/a/b.onnx cannot be written"),
        (["--export=onnx", "--output=/proc/b.onnx"], "/proc/b.onnx"),
        (["--export=onnx", "--output=a.onnx", "--images=b"], "--images is not used (with --export"),
        (["--export=onnx", "--output=a.onnx", "--index=b"], "--index is not used (with --export"),
        (["--export=onnx", "--output=a.onnx", "--query=b"], "--query is not used (with --export"),
        (["--export=onnx", "--output=a.onnx", "--dataset=sop"], "--dataset is not used"),
        (["--export=onnx", "--output=a.onnx", "--amp=bfloat16"], "--amp is not used"),
        (["--export=onnx", "--output=a.onnx", "--model=ResNet50"], "made with --model=test_resnet"),
        (
            ["--export=safetensors", "--output=a.safetensors", "--normalize=True"],
            "--normalize is not used (--export=safetensors",
        ),
        (["--output=a.onnx"], "--output is not used (without --export)"),
        (["--normalize=True", "--index=b"], "--normalize is not used (--index is all"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_flags(flags, words, error_of, sources, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert words in error_of(infer.main, [*sources["checkpoint"], *flags])
    assert not list(tmp_path.iterdir())


def test_the_exported_file_is_not_replaced(error_of, exported):
    file = exported("safetensors", "checkpoint")
    flags = [f"--pretrained_model={file}", "--export=safetensors", f"--output={file}"]
    assert "is what is exported" in error_of(infer.main, flags)


def test_weights_that_are_not_finite_are_not_exported(error_of, checkpoint, tmp_path):
    state = torch.load(checkpoint, weights_only=True)
    state["model"]["embedding.bias"][0] = np.nan
    torch.save(state, tmp_path / "nan.pt")
    flags = [f"--pretrained_model={tmp_path / 'nan.pt'}", f"--output={tmp_path / 'a.safetensors'}"]
    assert "NaN or infinity" in error_of(infer.main, [*flags, "--export=safetensors"])
    assert not (tmp_path / "a.safetensors").exists()


def test_an_onnx_network_is_no_weights_file(error_of, exported):
    file = exported("onnx", "checkpoint")
    error = error_of(infer.main, [f"--pretrained_model={file}", *MACHINE])
    assert str(file) in error and "give the checkpoint that it was made of" in error


def test_a_torchscript_archive_is_no_weights_file(error_of, exported):
    file = exported("torchscript", "checkpoint")
    error = error_of(infer.main, [f"--pretrained_model={file}", *MACHINE])
    assert f"{file}: not a weights file but a TorchScript archive" in error
    assert "give the checkpoint that it was exported from, or what --export=safetensors" in error


def test_exported_weights_know_their_data_set(exported, sources, toy_tree):
    results = [
        eval_script.main([f"--pretrained_model={file}", f"--data_dir={toy_tree}", *MACHINE])
        for file in (exported("safetensors", "checkpoint"), sources["checkpoint"][0].split("=")[1])
    ]
    assert results[0]["map@r"] == results[1]["map@r"]
    assert results[0]["evaluated"]["flags"]["dataset"] == "folder"


def test_a_config_may_name_what_is_exported(sources, tmp_path):
    file = tmp_path / "weights.safetensors"
    (tmp_path / "export.yaml").write_text(f"export: safetensors\noutput: {file}\n")
    assert infer.main([*sources["checkpoint"], f"--config={tmp_path / 'export.yaml'}"]) == file
