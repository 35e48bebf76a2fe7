"""What the tests of boards share."""

import pytest

from metric_learning.data.make_demo import make_demo


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A small drawn data set, in a folder of its own."""
    folder = tmp_path_factory.mktemp("boards") / "demo"
    make_demo(folder, 40, 4, 32)
    return folder
