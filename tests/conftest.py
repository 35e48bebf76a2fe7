"""Fixtures shared by all tests."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def shared() -> Path:
    """The folder of real data and reference outputs beside the checkout; skips where absent."""
    path = ROOT.parent / "shared"
    if not path.is_dir():
        pytest.skip("needs the folder of real data beside the checkout")
    return path


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
