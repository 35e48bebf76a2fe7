from dataclasses import fields

import numpy as np
import pytest

from metric_learning import eval as evaluation
from metric_learning import train_elem
from metric_learning.engine.options.parts import DataOptions
from metric_learning.engine.options.tables import DATA_FLAGS
from metric_learning.reader import load_image_set, splits_of
from metric_learning.reader.check import SET_OPTIONS
from metric_learning.reader.sets.folds import class_folds, image_folds, parse_fold

FOLDS = [f"{number}/3" for number in range(3)]


def write_split_csv(folder, splits, images):
    """Write a CSV file of 4 classes a split, of so many images each; return the options."""
    lines = ["path,label,split"]
    for number, split in enumerate(splits):
        for label in range(4):
            lines += [
                f"{split}_{label}_{i}.jpg,{4 * number + label},{split}" for i in range(images)
            ]
    for line in lines[1:]:
        (folder / line.split(",")[0]).touch()
    (folder / "images.csv").write_text("\n".join(lines) + "\n")
    return {"csv": folder / "images.csv"}


def classes_of(image_set):
    return set(image_set.class_names.values())


def labels_of(sizes):
    return np.repeat(np.arange(len(sizes)), sizes)


def test_folds_share_no_class_and_hold_all(make_sop):
    folder = make_sop()
    whole = load_image_set("sop", folder, "train")
    held_out = [load_image_set("sop", folder, "val", val_fold=fold) for fold in FOLDS]
    assert set.union(*map(classes_of, held_out)) == classes_of(whole)
    assert sum(map(len, held_out)) == len(whole)
    for fold, val in zip(FOLDS, held_out, strict=True):
        train = load_image_set("sop", folder, "train", val_fold=fold)
        assert classes_of(train) == classes_of(whole) - classes_of(val)
        assert sorted(train.paths + val.paths) == sorted(whole.paths)
        assert train.labels.max() == train.num_classes - 1

    test = load_image_set("sop", folder, "test", val_fold="0/3")
    assert test.paths == load_image_set("sop", folder, "test").paths


def test_folds_of_images_hold_every_class(tmp_path):
    options = write_split_csv(tmp_path, ("train", "test"), 6)
    whole = load_image_set("csv", None, "train", **options)
    held_out = [
        load_image_set("csv", None, "val", val_fold=f"{f}:images", **options) for f in FOLDS
    ]
    assert sorted(path for val in held_out for path in val.paths) == sorted(whole.paths)
    for val in held_out:
        assert classes_of(val) == classes_of(whole)


def test_what_the_data_holds_out_is_divided_too(tmp_path):
    options = write_split_csv(tmp_path, ("train", "val", "test"), 2)
    parts = [load_image_set("csv", None, split, **options) for split in ("train", "val")]
    both = sorted(parts[0].paths + parts[1].paths)
    assert splits_of("csv", None, **options, val_fold="1/2") == ("train", "val", "test")
    found = [load_image_set("csv", None, s, **options, val_fold="1/2") for s in ("train", "val")]
    assert sorted(found[0].paths + found[1].paths) == both

    assert splits_of("csv", None, **options, val_fold="none") == ("train", "test")
    assert load_image_set("csv", None, "train", **options, val_fold="none").paths == sorted(both)
    with pytest.raises(ValueError, match="--val_fold=none: nothing is held out"):
        load_image_set("csv", None, "val", **options, val_fold="none")


def test_folds_are_of_about_the_same_size():
    sizes = np.random.default_rng(1).integers(2, 40, 200)
    found = np.bincount(class_folds(labels_of(sizes), 5))
    assert np.ptp(found) <= sizes.max() / 4
    folds = image_folds(labels_of([10, 11, 13]), 5)
    assert np.ptp(np.bincount(folds)) <= 1
    for first, last in ((0, 10), (10, 21), (21, 34)):
        assert np.ptp(np.bincount(folds[first:last], minlength=5)) <= 1


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("3/3", "the last of them is 2"),
        ("0/1", "at least 2 folds"),
        ("1", "such as 0/5 or 0/5:images, or none"),
        ("-1/5", "such as 0/5"),
        ("0/5:classes", "such as 0/5"),
        ("", "such as 0/5"),
    ],
)
def test_bad_folds_are_named(text, reason):
    with pytest.raises(ValueError, match=reason):
        parse_fold(text)


def test_too_few_for_so_many_folds(make_sop):
    with pytest.raises(ValueError, match="--val_fold=0/9: expected at least as many training cla"):
        load_image_set("sop", make_sop(), "train", val_fold="0/9")
    with pytest.raises(ValueError, match="--val_fold=0/3:images: expected at least two images"):
        load_image_set("sop", make_sop(), "val", val_fold="0/3:images")


def test_a_training_tests_its_fold_and_the_test_is_left_to_eval(tmp_path, toy_tree):
    args = ["--dataset=folder", f"--data_dir={toy_tree}", "--model=test_resnet"]
    args += [
        "--image_shape=3,32,32",
        "--total_iter_num=1",
        "--train_batch_size=8",
        "--num_workers=0",
        "--val_fold=1/3",
    ]
    folder = train_elem.main([*args, f"--model_save_dir={tmp_path}", "--test_iter_step=1"])
    weights = f"--pretrained_model={folder / 'last.pt'}"
    result = evaluation.main([weights, "--split=val", "--num_workers=0"])
    log = (folder / "log.txt").read_text()
    assert "fold 1 of 3 folds of training classes" in log
    assert f"test_recall {result['recall@1']:.5f}" in log


def test_all_doors_have_the_flag():
    assert "val_fold" in {flag.name for flag in DATA_FLAGS}
    assert "val_fold" in SET_OPTIONS
    assert "val_fold" in {field.name for field in fields(DataOptions)}
