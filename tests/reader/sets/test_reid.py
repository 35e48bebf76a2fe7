"""Market-1501 and VeRi-776, of small stand-ins with the names of their files."""

import pytest

from metric_learning.reader import load_image_set, splits_of

MARKET = {
    "bounding_box_train": ["0002_c1s1_000451_03.jpg", "0007_c3s3_077419_03.jpg", "Thumbs.db"],
    "query": ["0001_c1s1_001051_00.jpg", "0003_c4s6_015641_00.jpg"],
    "bounding_box_test": [
        *("-1_c1s1_000401_03.jpg", "0000_c2s1_000401_01.jpg", "0001_c1s1_001051_03.jpg"),
        *("0001_c2s1_000301_02.jpg", "0003_c5s1_000301_02.jpg"),
    ],
}
VERI = {
    "image_train": ["0002_c002_00030600_0.jpg"],
    "image_query": ["0001_c001_00016450_0.jpg"],
    "image_test": ["0001_c001_00016450_0.jpg", "0001_c012_00016460_0.jpg"],
}


@pytest.fixture
def make(tmp_path, draw):
    def write(folders):
        for folder, names in folders.items():
            for seed, name in enumerate(names):
                (tmp_path / folder).mkdir(exist_ok=True)
                if name.endswith(".jpg"):
                    draw(tmp_path / folder / name, seed)
                else:
                    (tmp_path / folder / name).touch()
        return tmp_path

    return write


def test_market1501(make):
    folder = make(MARKET)
    assert splits_of("market1501", folder) == ("train", "test")
    train, test = (load_image_set("market1501", folder, s) for s in ("train", "test"))
    assert train.class_names == {0: "0002", 1: "0007"} and train.groups is None
    assert [test.class_names[label] for label in test.labels] == [
        *("0001", "0003"),
        *("0000", "0001", "0001", "0003"),
    ]
    assert test.groups.tolist() == [1, 4, 2, 1, 2, 5]
    assert test.is_query.tolist() == [True] * 2 + [False] * 4
    assert (test.is_gallery == ~test.is_query).all()
    assert "1 image of no class" in test.left_out.describe()

    whole = load_image_set("market1501", folder, "all")
    assert len(whole) == 8 and whole.class_names[int(whole.labels[0])] == "0002"
    held_out = load_image_set("market1501", folder, "val", val_fold="0/2")
    assert held_out.groups is not None and len(held_out) == 1


def test_veri776_holds_the_queries_in_its_gallery_too(make):
    test = load_image_set("veri776", make(VERI), "test")
    assert test.groups.tolist() == [1, 1, 12] and test.is_query.tolist() == [True, False, False]


def test_other_folders_and_names_are_one_line(make, tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder bounding_box_train .*from its authors"):
        load_image_set("market1501", tmp_path, "test")
    folder = make({**VERI, "image_query": ["car.jpg"]})
    with pytest.raises(ValueError, match="car.jpg: expected CLASS_cCAMERA"):
        load_image_set("veri776", folder, "test")
