"""Fixtures shared by all tests."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metric_learning.common import flags

ROOT = Path(__file__).resolve().parent.parent
TINY_TEXT = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}
TINY_VIT = {"image_size": 32, "patch_size": 8, "width": 32, "head_width": 16, "layers": 2}
TINY_COCA = {"attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True}
TINY_CLIPS = {
    "tiny": {"vision_cfg": TINY_VIT, "text_cfg": TINY_TEXT},
    "tiny-quickgelu": {"vision_cfg": TINY_VIT, "text_cfg": TINY_TEXT, "quick_gelu": True},
    "tiny-resnet": {
        "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 16},
        "text_cfg": TINY_TEXT,
    },
    "tiny-timm": {
        "vision_cfg": {"timm_model_name": "test_vit", "image_size": 160},
        "text_cfg": {**TINY_TEXT, "no_causal_mask": True, "proj_bias": True, "pool_type": "last"},
        "custom_text": True,
    },
    "tiny-coca": {
        "vision_cfg": TINY_VIT | TINY_COCA,
        "text_cfg": {**TINY_TEXT, "embed_cls": True, "output_tokens": True},
        "multimodal_cfg": TINY_TEXT,
        "custom_text": True,
    },
    "tiny-hf": {
        "vision_cfg": TINY_VIT,
        "text_cfg": {"hf_model_name": "roberta-base", "hf_tokenizer_name": "roberta-base"},
    },
}


@pytest.fixture(scope="session", autouse=True)
def _last_of_equal_flags_counts():
    """Tests put common and own flags together; that one given twice is refused has its own test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flags, "_refuse_repeated", lambda words, table: None)
        yield


@pytest.fixture
def shared() -> Path:
    """The folder of real data and reference outputs beside the checkout; skips where absent."""
    path = ROOT.parent / "shared"
    if not path.is_dir():
        pytest.skip("needs the folder of real data beside the checkout")
    return path


@pytest.fixture
def error_of(capsys):
    """Run the main of a script, which must fail with one line and status 2, and return the line."""

    def run(main, flags):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main([*map(str, flags)])
        error = capsys.readouterr().err
        assert stop.value.code == 2
        assert error.startswith("error: ") and error.count("\n") == 1, error
        return error

    return run


@pytest.fixture(scope="session")
def toy_tree(tmp_path_factory) -> Path:
    """A folder-per-class tree of 6 train and 4 test classes, 4 images each of 40 x 32 pixels."""
    root = tmp_path_factory.mktemp("toy")
    rng = np.random.default_rng(0)
    for split, classes in (("train", range(6)), ("test", range(6, 10))):
        for label in classes:
            colours = rng.integers(0, 256, (2, 2, 3))
            folder = root / split / f"class_{label}"
            folder.mkdir(parents=True)
            for number in range(4):
                noise = rng.integers(-90, 90, 3) + rng.integers(-40, 40, (32, 40, 3))
                pixels = np.kron(colours, np.ones((16, 20, 1))) + noise
                image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
                image.save(folder / f"{number}.png")
    return root


@pytest.fixture(scope="session")
def toy_flags(toy_tree) -> list[str]:
    """Flags of a run on the toy tree that takes a second or two."""
    return [
        "--dataset=folder",
        f"--data_dir={toy_tree}",
        "--model=ResNet18",
        "--image_shape=3,32,32",
        "--use_gpu=False",
        "--num_workers=0",
    ]


@pytest.fixture(scope="session")
def tiny_clips(tmp_path_factory) -> list[str]:
    """Names of tiny CLIP models that open_clip then knows."""
    open_clip = pytest.importorskip("open_clip")
    folder = tmp_path_factory.mktemp("clips")
    for name, config in TINY_CLIPS.items():
        (folder / f"{name}.json").write_text(json.dumps({"embed_dim": 24, **config}))
    open_clip.add_model_config(folder)
    return list(TINY_CLIPS)
