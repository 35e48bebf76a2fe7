"""Tests of models.clip and models.clip_text: the two towers are those of open_clip."""

import socket
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from metric_learning.models import build_model, clip, load_weights
from metric_learning.models.clip import PREFIX, ImageTower, find_clip
from metric_learning.models.clip_text import embed_texts
from metric_learning.reader.transforms import TRANSFORMS

open_clip = pytest.importorskip("open_clip")

TEXTS = ["a red sofa", "Two dogs, asleep.", "ein Stuhl"]
OPENAI_SIZES = ("input_resolution", "context_length", "vocab_size")


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def make(tiny_clips):
    """Build a model of open_clip with random weights that differ from those of a new one."""

    def run(name, **options):
        torch.manual_seed(7)
        model = open_clip.create_model(name, **options).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.02 * torch.randn_like(parameter)
        return model

    return run


@pytest.fixture
def saved(make, tmp_path):
    """The tiny model and the file of its weights."""
    model = make("tiny")
    torch.save(model.state_dict(), tmp_path / "clip.pt")
    return model, tmp_path / "clip.pt"


def images_for(size):
    return torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("tiny", 32),
        ("tiny-quickgelu", 32),
        ("tiny-resnet", 64),
        ("tiny-timm", 160),
        ("tiny-coca", 32),
    ],
)
@torch.no_grad()
def test_both_towers_embed_as_open_clip_does(name, size, make, tmp_path):
    theirs = make(name)
    torch.save(theirs.state_dict(), tmp_path / "clip.pt")
    ours = build_model(f"{PREFIX}{name}").eval()
    report = load_weights(ours, tmp_path / "clip.pt")
    assert not report.missing and "logit_scale" in report.unexpected
    assert not any(key.startswith("visual.") for key in report.unexpected)
    assert ours.embedding_size == ours.feature_size == 24
    assert ours.backbone.pretrained_cfg["input_size"] == (3, size, size)
    images = images_for(size)
    torch.testing.assert_close(ours(images), theirs.encode_image(images, normalize=False))
    expected = theirs.encode_text(open_clip.get_tokenizer(name)(TEXTS), normalize=False)
    texts = embed_texts(f"{PREFIX}{name}", tmp_path / "clip.pt", TEXTS)
    assert texts.dtype == np.float32
    np.testing.assert_allclose(texts, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", ["open_clip training", "safetensors"])
@torch.no_grad()
def test_forms_of_weights(form, saved, tmp_path):
    theirs, _ = saved
    state = theirs.state_dict()
    file = tmp_path / "other"
    if form == "safetensors":
        save_file(state, file, {"format": "pt"})
    else:
        state = {f"module.{key}": tensor for key, tensor in state.items()}
        torch.save({"epoch": 3, "name": "run", "state_dict": state}, file)
    ours = build_model(f"{PREFIX}tiny", pretrained_model=file).eval()
    images = images_for(32)
    torch.testing.assert_close(ours(images), theirs.encode_image(images))
    expected = theirs.encode_text(open_clip.tokenize(TEXTS, 16))
    np.testing.assert_allclose(embed_texts(f"{PREFIX}tiny", file, TEXTS), expected, atol=1e-5)


@torch.no_grad()
def test_openai_s_weights_of_half_precision_and_their_activation(make, tmp_path):
    theirs = make("tiny-quickgelu")
    del theirs.context_length, theirs.vocab_size
    for name in OPENAI_SIZES:
        theirs.register_buffer(name, torch.tensor(32))
    images, tokens = images_for(32), open_clip.tokenize(TEXTS, 16)
    torch.save(theirs.half().state_dict(), tmp_path / "openai.pt")
    theirs.float()
    ours = build_model(f"{PREFIX}tiny-quickgelu").eval()
    report = load_weights(ours, tmp_path / "openai.pt")
    assert set(OPENAI_SIZES) <= set(report.unexpected)
    torch.testing.assert_close(ours(images), theirs.encode_image(images))
    texts = embed_texts(f"{PREFIX}tiny-quickgelu", tmp_path / "openai.pt", TEXTS)
    np.testing.assert_allclose(texts, theirs.encode_text(tokens), atol=1e-5)
    with pytest.raises(ValueError, match=r"quick GELU: add \.openai"):
        build_model(f"{PREFIX}tiny", pretrained_model=tmp_path / "openai.pt")


@pytest.mark.parametrize(("name", "own", "size"), [("tiny", 32, 48), ("tiny-timm", 160, 96)])
@torch.no_grad()
def test_position_embedding_is_resampled(name, own, size, make, tmp_path):
    torch.save(make(name).state_dict(), tmp_path / "clip.pt")
    ours = build_model(f"{PREFIX}{name}", image_size=size).eval()
    assert not load_weights(ours, tmp_path / "clip.pt").missing
    theirs = open_clip.create_model(name, str(tmp_path / "clip.pt"), force_image_size=size).eval()
    images = images_for(size)
    torch.testing.assert_close(ours(images), theirs.encode_image(images))
    assert ours.backbone.pretrained_cfg["input_size"] == (3, own, own)


def test_a_checkpoint_of_the_image_tower_alone_is_whole(saved, tmp_path):
    _, file = saved
    tower = build_model(f"{PREFIX}tiny", 8, file)
    torch.save(tower.state_dict(), tmp_path / "own.pt")
    other = build_model(f"{PREFIX}tiny", 8)
    report = load_weights(other, tmp_path / "own.pt")
    assert not report.missing and not report.unexpected
    assert torch.equal(other(images_for(32)), tower(images_for(32)))
    with pytest.raises(ValueError, match=r"own\.pt holds no text tower"):
        embed_texts(f"{PREFIX}tiny", tmp_path / "own.pt", TEXTS)


@pytest.mark.parametrize(
    ("name", "quick_gelu", "mean"),
    [
        ("ViT-B-32", False, 0.48145466),
        ("ViT-B-32.openai", True, 0.48145466),
        ("ViT-B-32.laion2b_s34b_b79k", False, 0.48145466),
        ("ViT-B-32-quickgelu", True, 0.48145466),
        ("ViT-L-14", False, 0.48145466),  # its weights differ
        ("ViT-L-14.laion2b_s32b_b82k", False, 0.5),
        ("ViT-B-16-SigLIP", False, 0.5),
        ("MobileCLIP-S1", False, 0.0),
        ("ViT-S-32-alt", False, 0.48145466),  # has none
    ],
)
def test_activation_and_mean_of_the_name(name, quick_gelu, mean):
    clip = find_clip(f"{PREFIX}{name}")
    assert clip.architecture == name.partition(".")[0]
    assert (clip.quick_gelu, clip.mean[0], len(clip.std)) == (quick_gelu, mean, 3)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("ViT-B-33", "close to it: ViT-B-32"),
        ("ViT-B-32.opanai", "weights of ViT-B-32 are openai, "),
        ("", "expected open_clip:NAME"),
        ("hf-hub:timm/ViT-B-16-SigLIP", "unknown model open_clip:hf-hub"),
    ],
)
def test_unknown_name(name, part):
    with pytest.raises(ValueError, match=part):
        build_model(f"{PREFIX}{name}")


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(ValueError, match="pip install open_clip_torch"):
        build_model(f"{PREFIX}ViT-B-32")


def test_weights_of_another_model(make, saved, tmp_path):
    _, file = saved
    with pytest.raises(ValueError, match="another model than open_clip:tiny-resnet: .* missing"):
        build_model(f"{PREFIX}tiny-resnet", pretrained_model=file)
    with pytest.raises(ValueError, match=r"text tower is that of another .* cls_emb"):
        embed_texts(f"{PREFIX}tiny-coca", file, TEXTS)
    with pytest.raises(ValueError, match="another model than ResNet18: .* need --model=open_clip:"):
        build_model("ResNet18", pretrained_model=file)


def test_texts_that_cannot_be_embedded(saved, tiny_clips):
    _, file = saved
    with pytest.raises(ValueError, match="15 tokens, open_clip:tiny reads at most 14"):
        embed_texts(f"{PREFIX}tiny", file, ["short", "word " * 15])
    assert embed_texts(f"{PREFIX}tiny", file, ["word " * 14]).shape == (1, 24)
    with pytest.raises(ValueError, match="tiny-hf needs a vocabulary from the network"):
        embed_texts(f"{PREFIX}tiny-hf", file, TEXTS)
    with pytest.raises(ValueError, match="ResNet18 embeds images alone"):
        embed_texts("ResNet18", file, TEXTS)


def test_the_image_tower_of_a_model_whose_text_tower_cannot_be_had(tiny_clips):
    assert build_model(f"{PREFIX}tiny-hf").eval()(images_for(32)).shape == (3, 24)


@pytest.mark.parametrize(("name", "size"), [("tiny", 32), ("tiny-timm", 160)])
def test_activations_computed_again_give_the_same_gradient(name, size, tiny_clips):
    tower = ImageTower(f"{PREFIX}{name}").train()
    gradients = []
    for enable in (False, True):
        tower.set_grad_checkpointing(enable)
        tower.zero_grad()
        tower(images_for(size)).square().sum().backward()
        gradients.append([p.grad.clone() for p in tower.parameters() if p.grad is not None])
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))


def test_a_tower_that_cannot_compute_activations_again(tiny_clips):
    with pytest.raises(AttributeError):
        ImageTower(f"{PREFIX}tiny-resnet").set_grad_checkpointing()


def test_images_are_prepared_as_open_clip_does(tiny_clips):
    tower = ImageTower(f"{PREFIX}tiny")
    mean, std = tower.pretrained_cfg["mean"], tower.pretrained_cfg["std"]
    x, y = np.meshgrid(np.arange(96), np.arange(64))
    rgb = np.stack([2 * x + y, 255 - x - y, 120 + 60 * np.sin(x / 7) + y / 2], 2).astype(np.uint8)
    expected = open_clip.image_transform(32, is_train=False)(Image.fromarray(rgb)).numpy()
    level = 1 / 255 / min(std)
    np.testing.assert_allclose(
        TRANSFORMS["standard"].eval(rgb, 32, mean, std), expected, atol=1.01 * level
    )


@pytest.mark.parametrize(
    ("name", "is_squashed"),
    [("ViT-B-16-SigLIP", True), ("ViT-B-32", False), ("ViT-B-32.openai", False)],
)
def test_images_are_squashed_where_open_clip_does_it(name, is_squashed):
    assert find_clip(f"{PREFIX}{name}").is_squashed == is_squashed


def test_a_tower_says_how_its_images_are_resized(tiny_clips, monkeypatch):
    assert build_model(f"{PREFIX}tiny").backbone.pretrained_cfg["crop_mode"] == "center"
    squashed = replace(find_clip(f"{PREFIX}tiny"), is_squashed=True)
    monkeypatch.setattr(clip, "find_clip", lambda name: squashed)
    assert build_model(f"{PREFIX}tiny").backbone.pretrained_cfg["crop_mode"] == "squash"
