"""What tests of several scripts use."""

import pytest
import torch

from metric_learning.models import build_model


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Weights of a random tiny model."""
    file = tmp_path_factory.mktemp("weights") / "0.pth"
    torch.manual_seed(0)
    torch.save(build_model("test_resnet").state_dict(), file)
    return file
