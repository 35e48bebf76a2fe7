import os

import numpy as np
import pytest
from scipy.io import savemat

from metric_learning.reader import load_image_set
from metric_learning.reader.sets import read_mat


def names(image_set):
    return [os.path.basename(path) for path in image_set.paths]


def write_cub(folder, draw, classes):
    images, labels = [], []
    for i, number in enumerate(classes, start=1):
        name = f"{number:03d}.Bird/{i}.png"
        draw(folder / "images" / name, i)
        images.append(f"{i} {name}")
        labels.append(f"{i} {number}")
    (folder / "images.txt").write_text("\n".join(images))
    (folder / "image_class_labels.txt").write_text("\n".join(labels))
    table = "\n".join(f"{number} {number:03d}.Bird" for number in sorted(set(classes)))
    (folder / "classes.txt").write_text(table + "\n")


def test_cub200_2011_splits_at_class_100(tmp_path, draw):
    write_cub(tmp_path, draw, [200, 1, 100, 101, 1])
    train, test = (load_image_set("cub200_2011", tmp_path, split) for split in ("train", "test"))
    assert train.labels.tolist() == [0, 1, 0] and names(train) == ["2.png", "3.png", "5.png"]
    assert test.class_names == {100: "101.Bird", 199: "200.Bird"}
    assert test.labels.tolist() == [199, 100]
    assert test.read_image(0).shape == (6, 8, 3)


def test_cub200_2011_ranges_are_official_class_numbers(tmp_path, draw):
    write_cub(tmp_path, draw, [51, 60, 70])
    chosen = load_image_set("cub200_2011", tmp_path, "test", test_classes="60-70")
    assert chosen.labels.tolist() == [59, 69]
    with pytest.raises(ValueError, match="no images in the train split; the data has 3 classes"):
        load_image_set("cub200_2011", tmp_path, "train", train_classes="1-50")


def test_cub200_2011_image_without_label_is_an_error(tmp_path, draw):
    write_cub(tmp_path, draw, [1, 2])
    (tmp_path / "image_class_labels.txt").write_text("1 1\n")
    with pytest.raises(ValueError, match=r"images.txt:2: .*image_class_labels.txt lacks 2"):
        load_image_set("cub200_2011", tmp_path, "train")
    (tmp_path / "image_class_labels.txt").write_text("1 0\n")
    with pytest.raises(ValueError, match=r":1: expected 'image_id class_id', found '1 0'"):
        load_image_set("cub200_2011", tmp_path, "train")


def test_cub200_2010_reads_class_folders(tmp_path, draw):
    for number in (1, 100, 101, 200):
        draw(tmp_path / "images" / f"{number:03d}.Bird" / "a.png")
    (tmp_path / "images" / "001.Bird" / "._a.png").write_text("resource fork")
    train, test = (load_image_set("cub200_2010", tmp_path, split) for split in ("train", "test"))
    assert train.labels.tolist() == [0, 1] and test.labels.tolist() == [100, 199]
    assert test.class_names == {100: "101.Bird", 199: "200.Bird"}
    draw(tmp_path / "images" / "Robin" / "a.png")
    with pytest.raises(ValueError, match="Robin: expected a name such as 001"):
        load_image_set("cub200_2010", tmp_path, "train")


@pytest.mark.parametrize("prefix", ["", "CUB/"])
def test_cub200_2010_reads_the_first_versions_lists(tmp_path, draw, prefix):
    folder = tmp_path / "CUB"
    rows = {"train": [(7, "007.A/1.png"), (3, "003.B/2.png")], "val": [(154, "154.C/3.png")]}
    for split, lines in rows.items():
        for _, path in lines:
            draw(folder / "images" / path)
        text = "\n".join(f"{prefix}images/{path} {label}" for label, path in lines)
        (folder / f"CUB200_{split}.txt").write_text(text)
    train, test = (load_image_set("cub200_2010", folder, split) for split in ("train", "test"))
    assert train.labels.tolist() == [1, 0] and train.class_names == {0: "003.B", 1: "007.A"}
    assert test.labels.tolist() == [154] and test.read_image(0).shape == (6, 8, 3)
    assert load_image_set("cub200_2010", folder, "test", test_classes="1").labels.tolist() == [3]


def save_annotations(path, field, rows, **variables):
    annotations = np.zeros((1, len(rows)), dtype=[(field, object), ("class", object)])
    for i, (name, number) in enumerate(rows):
        annotations[0, i] = (name, number)
    savemat(path, {"annotations": annotations, **variables})


CAR_NAMES = np.array([f"Car {i}" for i in range(1, 197)], dtype=object).reshape(1, -1)


def test_cars196_pooled_annotations(tmp_path, draw):
    rows = [(f"car_ims/{i:06d}.png", number) for i, number in enumerate([98, 99, 1, 196])]
    for name, _ in rows:
        draw(tmp_path / name)
    save_annotations(tmp_path / "cars_annos.mat", "relative_im_path", rows, class_names=CAR_NAMES)
    train, test = (load_image_set("cars196", tmp_path, split) for split in ("train", "test"))
    assert train.labels.tolist() == [1, 0] and train.class_names == {0: "Car 1", 1: "Car 98"}
    assert test.labels.tolist() == [98, 195] and test.read_image(1).shape == (6, 8, 3)
    assert load_image_set("cars196", tmp_path, "train", train_classes="196").num_classes == 1


@pytest.mark.usefixtures("in_process")
def test_cars196_devkit(tmp_path, draw):
    devkit = tmp_path / "devkit"
    devkit.mkdir()
    draw(tmp_path / "cars_train" / "00001.png")
    draw(tmp_path / "cars_test" / "00001.png")
    savemat(devkit / "cars_meta.mat", {"class_names": CAR_NAMES})
    save_annotations(devkit / "cars_train_annos.mat", "fname", [("00001.png", 150)])
    save_annotations(devkit / "cars_test_annos_withlabels.mat", "fname", [("00001.png", 2)])
    train, test = (load_image_set("cars196", tmp_path, split) for split in ("train", "test"))
    assert train.paths == [str(tmp_path / "cars_test" / "00001.png")]
    assert test.paths == [str(tmp_path / "cars_train" / "00001.png")]
    assert test.labels.tolist() == [149]


def test_cars196_broken_annotations_are_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="cars196: no file .*cars_annos.mat"):
        load_image_set("cars196", tmp_path, "train")
    (tmp_path / "cars_annos.mat").write_bytes(b"nonsense " * 40)
    with pytest.raises(ValueError, match="cars_annos.mat: not a MATLAB file") as caught:
        load_image_set("cars196", tmp_path, "train")
    assert "\n" not in str(caught.value)
    savemat(tmp_path / "cars_annos.mat", {"other": 1})
    with pytest.raises(ValueError, match="expected the variable annotations"):
        load_image_set("cars196", tmp_path, "train")


@pytest.fixture
def in_process(monkeypatch):
    """MATLAB files are read in this process, for another one takes a second to start."""

    def read(path, state, variables):
        return read_mat.load_variables(str(path), [*variables])

    monkeypatch.setattr(read_mat, "_read", read)


def write_devkit(root, devkit, draw, nested=False, labels_beside=False):
    """Stanford Cars as it is: two training and one test image, numbered apart."""
    devkit.mkdir(parents=True)
    for split, count in (("train", 2), ("test", 1)):
        folder = root / f"cars_{split}" / (f"cars_{split}" if nested else "")
        for i in range(1, count + 1):
            draw(folder / f"{i:05d}.png", i)
    savemat(devkit / "cars_meta.mat", {"class_names": CAR_NAMES})
    rows = [("00001.png", 150), ("00002.png", 3)]
    save_annotations(devkit / "cars_train_annos.mat", "fname", rows)
    place = root if labels_beside else devkit
    save_annotations(place / "cars_test_annos_withlabels.mat", "fname", [("00001.png", 2)])


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize(("inside", "nested"), [("", True), ("stanford_cars", False)])
def test_cars196_of_torchvision(tmp_path, draw, inside, nested):
    root = tmp_path / inside
    write_devkit(root, root / "devkit", draw, nested=nested, labels_beside=True)
    train, test = (load_image_set("cars196", tmp_path, split) for split in ("train", "test"))
    assert train.labels.tolist() == [1, 0] and test.labels.tolist() == [149]
    assert names(train) == ["00002.png", "00001.png"] and train.require_whole()


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("width", [5, 6])
def test_cars196_of_kaggle_whose_images_have_their_pooled_numbers(tmp_path, draw, width):
    rows = [("car_ims/000001.jpg", 150), ("car_ims/000002.jpg", 3)]
    for split, i in (("train", 1), ("test", 2)):
        draw(tmp_path / f"cars_{split}" / f"cars_{split}" / f"{i:0{width}d}.png", i).rename(
            tmp_path / f"cars_{split}" / f"cars_{split}" / f"{i:0{width}d}.jpg"
        )
    save_annotations(tmp_path / "cars_annos.mat", "relative_im_path", rows, class_names=CAR_NAMES)
    train, test = (load_image_set("cars196", tmp_path, split) for split in ("train", "test"))
    assert train.class_names == {0: "Car 3"} and "cars_test/cars_test" in train.paths[0]
    assert test.labels.tolist() == [149] and test.require_whole()


@pytest.mark.usefixtures("in_process")
def test_cars196_with_a_complete_devkit_does_not_read_the_pooled_annotations(tmp_path, draw):
    """Kaggle's images are numbered anew, so cars_annos.mat would give them wrong classes."""
    rows = [(f"car_ims/{i:06d}.jpg", 1) for i in range(1, 4)]
    for side in ("cars_train", "cars_test"):
        draw(tmp_path / side / side / "00001.png")
    save_annotations(tmp_path / "cars_annos.mat", "relative_im_path", rows, class_names=CAR_NAMES)
    with pytest.raises(FileNotFoundError, match="are numbered anew; put cars_meta.mat"):
        load_image_set("cars196", tmp_path, "train")
    write_devkit(tmp_path, tmp_path / "devkit", draw, nested=True)
    assert load_image_set("cars196", tmp_path, "train").class_names == {0: "Car 2", 1: "Car 3"}


@pytest.mark.parametrize("crash", ["os.kill(os.getpid(), 11)", "time.sleep(9)", "sys.exit(3)"])
def test_a_damaged_mat_file_ends_its_own_process_alone(tmp_path, monkeypatch, crash):
    program = tmp_path / "crash.py"
    program.write_text(f"import os, sys, time; {crash}")
    monkeypatch.setattr(read_mat, "__file__", str(program))
    monkeypatch.setattr(read_mat, "SECONDS", 0.5)
    (tmp_path / "cars_annos.mat").touch()
    with pytest.raises(ValueError, match="cars_annos.mat: not a MATLAB file: (status|not read in)"):
        load_image_set("cars196", tmp_path, "train")


@pytest.mark.usefixtures("in_process")
def test_cars196_annotations_of_another_shape_are_an_error(tmp_path):
    savemat(tmp_path / "cars_annos.mat", {"annotations": 1, "class_names": CAR_NAMES})
    with pytest.raises(ValueError, match="expected annotations with the fields relative_im_path"):
        load_image_set("cars196", tmp_path, "train")
    rows = [("a.jpg", 0)]
    save_annotations(tmp_path / "cars_annos.mat", "relative_im_path", rows, class_names=CAR_NAMES)
    with pytest.raises(ValueError, match="expected classes from 1 on"):
        load_image_set("cars196", tmp_path, "train")


@pytest.mark.parametrize("file", ["image_class_labels.txt", "images.txt", "classes.txt"])
def test_cub200_2011_lines_twice_are_an_error(tmp_path, draw, file):
    write_cub(tmp_path, draw, [1, 2])
    text = (tmp_path / file).read_text().strip()
    (tmp_path / file).write_text(f"{text}\n{text}\n")
    with pytest.raises(ValueError, match=f"{file}:3: 1 stands in line 1 already"):
        load_image_set("cub200_2011", tmp_path, "train")


def test_cub200_2011_class_numbers_may_be_large(tmp_path, draw):
    write_cub(tmp_path, draw, [1, 2])
    label_file = tmp_path / "image_class_labels.txt"
    label_file.write_text(label_file.read_text().replace("2 2", f"2 {10**17}"))
    test = load_image_set("cub200_2011", tmp_path, "test")
    assert test.labels.tolist() == [10**17 - 1]
    assert test.notes == (f"test: classes {10**17} of {10**17}: {10**17}",)
    assert load_image_set("cub200_2011", tmp_path, "all").labels.tolist() == [0, 10**17 - 1]
