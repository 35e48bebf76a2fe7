import numpy as np
import pytest

from metric_learning.reader import DATASETS, ImageError, load_image_set


@pytest.mark.parametrize(
    ("ranges", "labels"), [("1", [4, 4]), ("2-3", [5, 5, 6, 6]), (" 1 , 3 ", [4, 4, 6, 6])]
)
def test_ranges_choose_inside_a_split_by_list(make_sop, ranges, labels):
    image_set = load_image_set("sop", make_sop(), "test", test_classes=ranges, train_classes="9")
    assert image_set.labels.tolist() == labels


@pytest.mark.parametrize(
    ("ranges", "reason"),
    [
        ("", "expected class ranges such as"),
        ("a-b", "expected class ranges such as"),
        ("1-", "expected class ranges such as"),
        ("1,,2", "expected class ranges such as"),
        ("-3", "expected class ranges such as"),
        ("1.5", "expected class ranges such as"),
        ("1-2-3", "expected class ranges such as"),
        ("0-2", "counted from 1"),
        ("3-1", "runs backwards; write 1-3"),
        ("1-4", "no class 4; there are classes 1-3"),
        ("1-2,2-3", "ranges overlap"),
        ("1,1", "ranges overlap"),
    ],
)
def test_bad_ranges_are_named(make_sop, ranges, reason):
    with pytest.raises(ValueError) as caught:
        load_image_set("sop", make_sop(), "train", train_classes=ranges)
    message = str(caught.value)
    assert message.startswith(f"sop: --train_classes={ranges}: ") and reason in message
    assert "\n" not in message


def test_split_without_images_is_an_error(tmp_path):
    (tmp_path / "Ebay_test.txt").write_text("image_id class_id super_class_id path\n")
    with pytest.raises(ValueError, match="sop: no images in the test split"):
        load_image_set("sop", tmp_path, "test")


def test_unknown_names_and_unused_options_are_errors(make_sop, tmp_path):
    with pytest.raises(ValueError, match="unknown dataset 'cub'; expected one of sop, demo"):
        load_image_set("cub", None, "train")
    with pytest.raises(ValueError, match="unknown split 'dev'; expected one of train, val"):
        load_image_set("sop", make_sop(), "dev")
    with pytest.raises(ValueError, match="--dataset=sop has no val split: a CSV file has one"):
        load_image_set("sop", make_sop(), "val")
    with pytest.raises(ValueError, match="--test_list is for --dataset=list"):
        load_image_set("sop", make_sop(), "train", test_list=tmp_path / "a.txt")


@pytest.mark.parametrize("name", [name for name, spec in DATASETS.items() if spec.folder])
def test_missing_data_says_how_to_get_it(tmp_path, monkeypatch, name):
    monkeypatch.setenv("METRIC_LEARNING_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError) as caught:
        load_image_set(name, None, "train")
    message = str(caught.value)
    assert message.startswith(f"{name}: no folder {tmp_path / DATASETS[name].folder}; ")
    assert "\n" not in message
    if name in ("demo", "glyphs"):
        assert message.endswith(f"run: python data/make_{name}.py")
    elif name in ("market1501", "veri776"):
        assert "from its authors and give its folder as --data_dir" in message
    else:
        assert f"python data/download.py {name}" in message and "--dataset=demo" in message


def test_folder_of_another_data_set_says_what_is_missing(tmp_path):
    for name in set(DATASETS) - {"list", "csv", "folder"}:
        with pytest.raises(FileNotFoundError, match=f"{name}: no "):
            load_image_set(name, tmp_path, "train")


def test_default_folder_lies_under_data(make_sop, monkeypatch):
    folder = make_sop()
    folder.rename(folder.parent / "Stanford_Online_Products")
    monkeypatch.setenv("METRIC_LEARNING_DATA", str(folder.parent))
    assert len(load_image_set("sop", None, "train")) == 6


def test_missing_image_is_found_when_read_not_when_listed(make_sop):
    folder = make_sop()
    (folder / "mug_final" / "1 view 0.png").unlink()
    image_set = load_image_set("sop", folder, "train")
    with pytest.raises(ImageError, match="1 view 0.png: No such file"):
        image_set.read_image(0)


def test_real_cub(real_cub):
    train = load_image_set("cub200_2011", real_cub, "train", train_classes="1-25")
    test = load_image_set("cub200_2011", real_cub, "test", test_classes="26-50")
    assert (len(train), train.num_classes) == (1402, 25)
    assert (len(test), test.num_classes) == (1487, 25)
    assert train.labels.min() == 0 and test.labels.min() == 25
    assert train.class_names[0] == "001.Black_footed_Albatross"
    image = train.read_image(0)
    assert image.dtype == np.uint8 and image.shape[2] == 3 and min(image.shape[:2]) == 160
    with pytest.raises(ValueError, match="50 classes, numbers 1-50.*--test_classes, e.g. 26-50"):
        load_image_set("cub200_2011", real_cub, "test")


def test_real_omniglot(real_omniglot):
    train, test = (load_image_set("omniglot", real_omniglot, split) for split in ("train", "test"))
    assert len(train) + len(test) == 19_280 and train.num_classes + test.num_classes == 964
    alphabets = [{n.split("/")[0] for n in i.class_names.values()} for i in (train, test)]
    assert [len(names) for names in alphabets] == [20, 10] and not set.intersection(*alphabets)
    drawing = train.read_image(0)
    assert drawing.shape == (105, 105, 3) and set(np.unique(drawing)) == {0, 255}


def test_real_cifar10(real_cifar10):
    train, test = (load_image_set("cifar10", real_cifar10, split) for split in ("train", "test"))
    assert train.num_classes == test.num_classes == 10 and len(train) == len(test) == 100
    assert train.class_names == test.class_names
    assert train.class_names[0] == "airplane" and train.class_names[9] == "truck"
    assert train.read_image(0).shape == (32, 32, 3)
