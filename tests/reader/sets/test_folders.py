import pytest

from metric_learning import reader
from metric_learning.data.prepare import __main__ as prepare
from metric_learning.reader import load_image_set, splits_of
from metric_learning.reader.sets.folders import list_classes
from metric_learning.reader.sets.table import SPLITS
from metric_learning.reader.sets.walk import walk_images


def write_tree(root, draw, classes, images_per_class=2):
    for seed, name in enumerate(classes):
        for view in range(images_per_class):
            draw(root / name / f"{view}.png", seed * 10 + view)


def test_folder_with_train_and_test(tmp_path, draw):
    write_tree(tmp_path / "train", draw, ["dog", "cat"])
    write_tree(tmp_path / "test", draw, ["fox", "dog"])
    train, test = (load_image_set("folder", tmp_path, split) for split in ("train", "test"))
    assert train.labels.tolist() == [0, 0, 1, 1] and train.class_names == {0: "cat", 1: "dog"}
    assert test.labels.tolist() == [1, 1, 2, 2] and test.class_names == {1: "dog", 2: "fox"}
    only = load_image_set("folder", tmp_path, "test", test_classes="2")
    assert only.class_names == {2: "fox"} and only.labels.tolist() == [2, 2]


def test_val_is_the_test_folder_of_imagenet(tmp_path, draw):
    for folder in ("train", "val"):
        write_tree(tmp_path / folder, draw, ["n02", "n01"], images_per_class=1)
    test = load_image_set("folder", tmp_path, "test")
    assert test.class_names == {0: "n01", 1: "n02"} and "/val/n01/" in test.paths[0]
    write_tree(tmp_path / "test", draw, ["n02"])
    assert "/test/n02/" in load_image_set("folder", tmp_path, "test").paths[0]


def test_the_test_folder_alone_can_be_tested(tmp_path, draw):
    write_tree(tmp_path / "val", draw, ["n02", "n01"])
    test = load_image_set("folder", tmp_path, "test")
    assert test.class_names == {0: "n01", 1: "n02"} and test.labels.tolist() == [0, 0, 1, 1]
    with pytest.raises(FileNotFoundError, match="no class folders with images"):
        load_image_set("folder", tmp_path, "train")
    (tmp_path / "test").mkdir()  # empty
    assert "/val/n01/" in load_image_set("folder", tmp_path, "test").paths[0]


@pytest.mark.parametrize("val", ["val", "valid", "validation", "Val"])
@pytest.mark.parametrize("others", ["", "test/0.png", "Test/"])
def test_an_empty_or_flat_test_folder_hides_no_validation(tmp_path, draw, val, others):
    for folder in ("Train", val):
        write_tree(tmp_path / folder, draw, ["cat", "dog"], images_per_class=1)
    if others:
        (tmp_path / others).parent.mkdir(exist_ok=True)
        draw(tmp_path / others) if others.endswith(".png") else (tmp_path / others).mkdir()
    test = load_image_set("folder", tmp_path, "test")
    assert f"/{val}/cat/" in test.paths[0]
    assert f"{val}/ is the test split: no test/ holds class folders" in test.notes
    assert load_image_set("folder", tmp_path, "val").paths == test.paths
    assert splits_of("folder", tmp_path) == ("train", "test")
    assert test.left_out.items.get("loose", []) == ([others] if others == "test/0.png" else [])


def test_a_test_folder_of_one_folder_without_class_hides_no_validation(tmp_path, draw):
    for name in ("train/a/0", "train/b/0", "val/a/1", "val/b/1", "test/unknown/2"):
        draw(tmp_path / f"{name}.png")
    found = load_image_set("folder", str(tmp_path), "test")
    assert (len(found), sorted(found.class_names.values())) == (2, ["a", "b"])
    assert found.notes[0].startswith("val/ is the test split")
    draw(tmp_path / "test" / "a" / "2.png")
    assert len(load_image_set("folder", str(tmp_path), "test")) == 2
    assert load_image_set("folder", str(tmp_path), "test").notes == ()


def test_a_split_of_an_unknown_name_is_no_class(tmp_path, draw, capsys):
    for name in ("train/a/0", "train/b/0", "dev/a/1", "dev/b/1"):
        draw(tmp_path / f"{name}.png")
    with pytest.raises(ValueError, match=r"holds train/ and dev/.*rename dev/ to train, val or"):
        load_image_set("folder", str(tmp_path), "train")
    with pytest.raises(SystemExit):
        prepare.main(["scan", str(tmp_path)])
    assert "rename dev/ to train, val or test" in capsys.readouterr().err
    draw(tmp_path / "train" / "0.png")  # so it is a class
    draw(tmp_path / "dev" / "0.png")
    assert load_image_set("folder", str(tmp_path), "train").class_names == {0: "dev"}


def test_a_data_set_within_a_folder_is_no_class(tmp_path, draw, capsys):
    for name in ("train/a/0", "train/b/0", "test/a/1", "test/b/1"):
        draw(tmp_path / "photos" / f"{name}.png")
    with pytest.raises(ValueError, match=r"divided into splits: give --data_dir=\S+photos"):
        load_image_set("folder", str(tmp_path), "train")
    with pytest.raises(SystemExit):
        prepare.main(["scan", str(tmp_path)])
    assert "holds one folder, photos/" in capsys.readouterr().err


def test_a_validation_folder_beside_a_test_folder_is_a_split_of_its_own(tmp_path, draw):
    for split, classes in (("train", "ab"), ("valid", "cd"), ("test", "ef")):
        write_tree(tmp_path / split, draw, classes)
    assert splits_of("folder", tmp_path) == ("train", "val", "test")
    sets = {split: load_image_set("folder", tmp_path, split) for split in (*SPLITS, "all")}
    assert [list(sets[split].class_names.values()) for split in SPLITS] == [["a", "b"], ["c", "d"],
        ["e", "f"]]  # fmt: skip
    assert sets["val"].labels.tolist() == [2, 2, 3, 3]
    assert sets["all"].labels.tolist() == [n for n in range(6) for _ in range(2)]
    assert sets["all"].paths == [path for split in SPLITS for path in sets[split].paths]


def test_train_alone_is_trained_on_and_a_missing_test_says_what_is_there(tmp_path, draw):
    write_tree(tmp_path / "train", draw, ["cat", "dog"])
    train = load_image_set("folder", tmp_path, "train")
    assert train.class_names == {0: "cat", 1: "dog"} and splits_of("folder", tmp_path) == ("train",)
    with pytest.raises(
        FileNotFoundError,
        match="for the test split .* holds train/ .--test_iter_step=0 .*validation",
    ):
        load_image_set("folder", tmp_path, "test")
    draw(tmp_path / "bus" / "0.png")  # train/ is a class then, of vehicles
    both = load_image_set("folder", tmp_path, "all")
    assert both.class_names == {0: "bus", 1: "train"} and len(both) == 5


def test_what_lies_beside_the_splits_is_counted(tmp_path, draw):
    for folder in ("train", "test", "extra"):
        write_tree(tmp_path / folder, draw, ["cat", "dog"])
    draw(tmp_path / "train" / "loose.png")
    (tmp_path / "labels.xml").touch()
    items = load_image_set("folder", tmp_path, "train").left_out.items
    assert items["beside"] == ["extra/"] and items["loose"] == ["train/loose.png"]
    assert items["no image"] == ["labels.xml"]


def test_class_folders_of_numbers_are_ordered_by_value(tmp_path, draw):
    write_tree(tmp_path, draw, ["1", "2", "3", "10"], images_per_class=1)
    chosen = load_image_set("folder", tmp_path, "train", train_classes="1-2")
    assert chosen.class_names == {0: "1", 1: "2"}
    assert chosen.notes == ("train: classes 1-2 of 4: 1 to 2",)


def test_folder_of_classes_is_halved_or_chosen(tmp_path, draw):
    write_tree(tmp_path, draw, ["e", "d", "c", "b", "a"])
    (tmp_path / "a" / "notes.txt").write_text("no image")
    (tmp_path / "a" / "._0.png").write_text("no image")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "empty").mkdir()
    train, test = (load_image_set("folder", tmp_path, split) for split in ("train", "test"))
    assert list(train.class_names.values()) == ["a", "b", "c"] and len(train) == 6
    assert test.class_names == {3: "d", 4: "e"} and test.labels.tolist() == [3, 3, 4, 4]
    chosen = load_image_set("folder", tmp_path, "train", train_classes="5,1-2")
    assert chosen.class_names == {0: "a", 1: "b", 2: "e"}
    assert chosen.labels.tolist() == [0, 0, 1, 1, 2, 2]


def test_folder_without_classes_or_folder_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="no class folders .*expected train/CLASS"):
        load_image_set("folder", tmp_path, "train")
    with pytest.raises(ValueError, match="--dataset=folder needs --data_dir"):
        load_image_set("folder", None, "train")


def test_omniglot_alphabets_split(tmp_path, draw):
    root = tmp_path / "omniglot-py" / "images_background"
    for number in range(23):
        for character in range(1 + number % 2):
            draw(root / f"Alphabet_{number:02d}" / f"character{character:02d}" / "1.png")
    for place in (tmp_path, tmp_path / "omniglot-py", root):
        train, test = (load_image_set("omniglot", place, split) for split in ("train", "test"))
        assert train.num_classes == 30 and train.labels.tolist() == list(range(30))
        assert test.labels.tolist() == [30, 31, 32, 33]
        assert test.class_names[30] == "Alphabet_20/character00"
    chosen = load_image_set("omniglot", tmp_path, "test", test_classes="1-3")
    assert list(chosen.class_names.values())[-1] == "Alphabet_01/character01"


def test_omniglot_in_an_empty_folder_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="omniglot: no images_background/ALPHABET"):
        load_image_set("omniglot", tmp_path, "train")


def test_the_walk_reads_nested_folders_as_their_top_class_and_counts_the_rest(tmp_path, draw):
    names = ("b/0.png", "b/c/1.JPG", "b c/0.png", "a.png", ".x/0.png", "b/.0.png", "b/n.txt")
    for name in names:
        draw((tmp_path / name).with_suffix(".png")).rename(tmp_path / name)
    (tmp_path / "linked").symlink_to(tmp_path / "b")
    found = walk_images(tmp_path)
    assert list(found.images) == ["", "b", "b/c", "b c", "linked", "linked/c"]
    assert found.images["b/c"] == [str(tmp_path / "b/c/1.JPG")]
    assert found.folders == ["b", "b c", "linked"]
    classes, left_out = list_classes(tmp_path)
    assert list(classes) == ["b", "b c", "linked"] and len(classes["b"]) == 2
    assert left_out.describe() == (
        f"left out of {tmp_path}: 2 files that are no images (.txt 2), 3 hidden, "
        "1 image in no class folder"
    )
    with pytest.raises(FileNotFoundError):
        walk_images(tmp_path / "gone")


def test_the_former_name_opens_the_same():
    assert reader.load_index is load_image_set
