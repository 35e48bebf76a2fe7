"""What tests of several scripts use."""

import shutil

import pytest
import torch

import infer
from metric_learning.models import build_model


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Weights of a random tiny model."""
    file = tmp_path_factory.mktemp("weights") / "0.pth"
    torch.manual_seed(0)
    torch.save(build_model("test_resnet").state_dict(), file)
    return file


@pytest.fixture
def photos(toy_tree, tmp_path):
    """A folder of the toy tree's first test classes, and one of another class beside it."""
    shutil.copytree(toy_tree / "test", tmp_path / "photos")
    shutil.move(tmp_path / "photos" / "class_9", tmp_path / "class_9")
    return tmp_path / "photos"


@pytest.fixture
def change_index(weights):
    """Change an index by the flags of infer.py."""

    def run(index, *flags):
        model = [f"--pretrained_model={weights}"] if any("--add" in flag for flag in flags) else []
        infer.main(["--use_gpu=False", *model, f"--index={index}", *flags])

    return run
