"""The preparation of a data set, command by command, on a small tree with every kind of trouble."""

import csv
import os
import re
import runpy
import shutil
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metric_learning.common.atomic import write_csv
from metric_learning.common.names import from_line
from metric_learning.data.prepare import __main__ as prepare
from metric_learning.reader import load_image_set
from metric_learning.reader.sets.csv_files import read_image_list

CLASSES = ("cat", 'red, "big" sofa', "été 猫", "single")


def save(path: Path, seed: int, size=(64, 48), mode="RGB", **options) -> Path:
    """Write a smooth picture that depends on the seed alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
    image.convert(mode).save(path, **options)
    return path


def read(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as opened:
        return list(csv.DictReader(opened))


def run(*argv) -> None:
    prepare.main([str(argument) for argument in argv])


@pytest.fixture(scope="module")
def troubled(tmp_path_factory) -> Path:
    """A tree with a broken, an empty, a tiny, a grey and three copied images, scanned."""
    tree = tmp_path_factory.mktemp("photos")
    for number, name in enumerate(CLASSES):
        for view in range(1 if name == "single" else 4):
            save(tree / name / f"{view}, a b.png", 10 * number + view)
    cat, sofa = tree / "cat", tree / CLASSES[1]
    data = (cat / "3, a b.png").read_bytes()
    (cat / "broken.png").write_bytes(data[: len(data) // 2])
    (cat / "empty.jpg").write_bytes(b"")
    (cat / "notes.txt").write_text("no image")
    (tree / "no images").mkdir()
    save(cat / "copy.jpg", 0, size=(200, 150), quality=60)  # of "cat/0, a b.png", larger
    save(sofa / "wrong.jpg", 1, quality=90)  # of "cat/1, a b.png"
    save(cat / "grey.png", 500, mode="L")
    save(cat / "tiny.png", 600, size=(9, 7))
    save(tree / "loose.png", 700)
    run("scan", tree, "--num_workers=2")
    return tree


def test_scan_describes_every_image(troubled):
    rows = {row["path"]: row for row in read(troubled / "scanned.csv")}
    assert len(rows) == 19
    assert Counter(row["label"] for row in rows.values()) == {
        CLASSES[0]: 9, CLASSES[1]: 5, CLASSES[2]: 4, CLASSES[3]: 1
    }  # fmt: skip
    tiny, broken = rows["cat/tiny.png"], rows["cat/broken.png"]
    assert (tiny["width"], tiny["height"], tiny["broken"]) == ("9", "7", "")
    assert len(tiny["hash"]) == 16 and int(tiny["hash"], 16) > 0
    assert broken["broken"] and broken["width"] == broken["height"] == broken["hash"] == ""
    assert rows["cat/empty.jpg"]["broken"] == "the file is empty"
    assert sum(bool(row["broken"]) for row in rows.values()) == 2
    assert list(rows) == sorted(rows)


def test_scan_says_what_is_broken_and_left_out(troubled, tmp_path, capsys):
    output = tmp_path / "list.csv"
    run("scan", troubled, f"--output={output}", "--num_workers=0")
    text = capsys.readouterr().out
    assert "  cat/empty.jpg: the file is empty\n" in text and "  loose.png\n" in text
    assert f"wrote {output}, 19 images of 4 classes\n" in text
    assert f"--data_dir={troubled}" in text
    assert output.read_bytes() == (troubled / "scanned.csv").read_bytes()


def test_filter_removes_and_reports(troubled, tmp_path, capsys):
    output, scanned = tmp_path / "kept.csv", troubled / "scanned.csv"
    run("filter", scanned, "--threshold=6", "--min_size=8", f"--output={output}")
    removed = {row["path"]: row for row in read(tmp_path / "kept_removed.csv")}
    kept = [row["path"] for row in read(output)]
    assert len(kept) == 14 and not set(kept) & set(removed)
    assert sorted(kept + list(removed)) == sorted(row["path"] for row in read(scanned))
    reasons = {path: row["reason"] for path, row in removed.items()}
    assert reasons == {
        "cat/broken.png": "broken",
        "cat/empty.jpg": "broken",
        "cat/tiny.png": "too small",
        "cat/0, a b.png": "duplicate",
        f"{CLASSES[1]}/wrong.jpg": "duplicate in another class",
    }
    assert removed["cat/tiny.png"]["detail"] == "9 x 7"
    assert removed["cat/0, a b.png"]["kept"] == "cat/copy.jpg"  # the larger one stays
    wrong = removed[f"{CLASSES[1]}/wrong.jpg"]
    assert (wrong["kept"], wrong["kept_label"]) == ("cat/1, a b.png", "cat")
    assert 0 <= int(wrong["distance"]) <= 6
    text = capsys.readouterr().out
    found = re.search(r"\nduplicate in another class +1\n  (.*)\n", text)
    assert found and found[1].startswith(f"{CLASSES[1]}/wrong.jpg of cat/1, a b.png (")


def test_filter_alone_removes_what_is_broken_and_the_largest_side_counts(troubled, tmp_path):
    output = tmp_path / "kept.csv"
    run("filter", troubled / "scanned.csv", f"--output={output}")
    assert len(read(output)) == 17
    run("filter", troubled / "scanned.csv", f"--output={output}", "--max_size=150")
    assert "cat/copy.jpg" not in {row["path"] for row in read(output)}
    assert len(read(output)) == 16


@pytest.fixture
def filtered(troubled, tmp_path) -> Path:
    file = tmp_path / "filtered.csv"
    run("filter", troubled / "scanned.csv", "--threshold=6", f"--output={file}")
    return file


def test_split_by_number_of_samples_is_an_open_set(filtered, troubled, tmp_path, capsys):
    run("split", filtered, "--min_n_samples=2", "--max_n_samples=4", f"--output={tmp_path / 's'}")
    rows = read(tmp_path / "s")
    train = {row["label"] for row in rows if row["split"] == "train"}
    test = {row["label"] for row in rows if row["split"] == "test"}
    assert train == {CLASSES[1], CLASSES[2]} and test == {"cat", "single"}
    assert "  train: 8 images of 2 classes, 4 to 4 of each" in capsys.readouterr().out
    image_set = load_image_set("csv", troubled, "train", csv=tmp_path / "s")
    assert image_set.class_names == {0: CLASSES[1], 1: CLASSES[2]}
    assert image_set.read_image(0).shape == (48, 64, 3)


def test_closed_folds_hold_a_share_of_every_class(filtered, tmp_path):
    run("split", filtered, "--min_n_samples=4", "--max_n_samples=0", f"--output={tmp_path / 's'}")
    run("folds", tmp_path / "s", "--k=2", f"--output={tmp_path / 'f'}")
    rows = read(tmp_path / "f")
    sizes = Counter((row["label"], row["fold"]) for row in rows)
    assert {sizes[label, fold] for label in CLASSES[1:3] for fold in "01"} == {2}
    assert abs(sizes["cat", "0"] - sizes["cat", "1"]) <= 1
    assert [row["fold"] for row in rows if row["label"] == "single"] == [""]


def test_open_folds_hold_whole_classes(filtered, tmp_path):
    run("folds", filtered, "--k=3", "--open_set=True", f"--output={tmp_path / 'f'}")
    fold_of = {(row["label"], row["fold"]) for row in read(tmp_path / "f")}
    assert len(fold_of) == len(CLASSES) and {fold for _, fold in fold_of} == set("012")
    assert len({fold for label, fold in fold_of if label in CLASSES[:3]}) == 3


@pytest.mark.parametrize(
    ("sizes", "flags", "words"),
    [
        ([2, 3], ["--k=2"], "fold [01] would hold one image of each of its 2 classes"),
        ([5, 6], ["--k=5"], "give a lower --k or --open_set=True"),
        ([3, 1], ["--k=2", "--open_set=True"], "no query has anything to find: give a lower --k"),
    ],
)
def test_folds_that_could_not_be_tested_are_refused(tmp_path, capsys, sizes, flags, words):
    """Their trainings would end in the first test, for no query had anything to find."""
    lines = [f"{n}_{m}.png,class {n}" for n, size in enumerate(sizes) for m in range(size)]
    (tmp_path / "list.csv").write_text("\n".join(["path,label", *lines, ""]))
    with pytest.raises(SystemExit) as stop:
        run("folds", tmp_path / "list.csv", *flags)
    assert stop.value.code == 2 and re.search(words, capsys.readouterr().err)
    assert not (tmp_path / "folds.csv").exists()


def test_the_seed_decides_the_folds(filtered, tmp_path):
    written = {}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run("split", filtered, "--min_n_samples=4", "--max_n_samples=0", f"--output={tmp_path}/s")
        run(
            "folds", tmp_path / "s", f"--random_seed={seed}", "--k=2", f"--output={tmp_path / name}"
        )
        written[name] = (tmp_path / name).read_bytes()
    assert written["a"] == written["b"] != written["c"]


def test_a_divided_tree_keeps_its_split_and_labels(toy_tree, tmp_path):
    (tmp_path / "t").symlink_to(toy_tree)
    run("scan", tmp_path / "t", f"--output={tmp_path / 'list.csv'}", "--num_workers=0")
    for split in ("train", "test"):
        ours = load_image_set("csv", toy_tree, split, csv=tmp_path / "list.csv")
        theirs = load_image_set("folder", toy_tree, split)
        assert ours.paths == theirs.paths and ours.class_names == theirs.class_names
        assert ours.labels.tolist() == theirs.labels.tolist()


def test_a_validation_folder_is_the_test_split(tmp_path, capsys):
    for seed, split in enumerate(("train", "val")):
        save(tmp_path / split / "cat" / "0.png", seed)
    save(tmp_path / "extra" / "cat" / "0.png", 9)
    run("scan", tmp_path, "--num_workers=0")
    rows = read(tmp_path / "scanned.csv")
    assert [(row["path"], row["label"], row["split"]) for row in rows] == [
        ("train/cat/0.png", "cat", "train"),
        ("val/cat/0.png", "cat", "test"),
    ]
    assert "  extra/\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("levels", "labels"),
    [((), ["Greek", "Greek"]), ((0,), ["Greek", "Greek/alpha"]), ((2,), ["Greek/alpha"])],
)
def test_deeper_folders_are_their_top_class_or_give_longer_labels(tmp_path, levels, labels):
    save(tmp_path / "Greek" / "alpha" / "1.png", 1)
    save(tmp_path / "Greek" / "0.png", 2)
    run("scan", tmp_path, "--num_workers=0", *(f"--class_levels={level}" for level in levels))
    assert [row["label"] for row in read(tmp_path / "scanned.csv")] == labels


@pytest.mark.skipif(sys.platform != "linux", reason="needs a file system that takes any bytes")
def test_names_that_are_not_utf8_go_through_all_commands(tmp_path, capsys):
    names = ["cat\udcff/0\udcfe.png", "cat\udcff/\n1.png", '"dog"/"1".png', '"dog"/\\1.png']
    for number, name in enumerate(names):
        save(tmp_path / name, number)
    shutil.copy(tmp_path / names[0], tmp_path / "cat\udcff" / "copy\udcfe.png")
    run("scan", tmp_path, "--num_workers=0")
    assert not any(row["broken"] for row in read(tmp_path / "scanned.csv"))  # which is UTF-8

    run("filter", tmp_path / "scanned.csv", "--threshold=0")
    assert "copy\\udcfe.png of cat\\udcff/0\\udcfe.png (0 bits)" in capsys.readouterr().out
    (row,) = read(tmp_path / "filtered_removed.csv")
    assert [from_line(row[name]) for name in ("path", "kept", "label")] == [
        "cat\udcff/copy\udcfe.png",
        names[0],
        "cat\udcff",
    ]
    run("split", tmp_path / "filtered.csv", "--test_share=0.5")
    file = tmp_path / "split.csv"
    found = load_image_set("csv", str(tmp_path), "all", csv=str(file))
    assert sorted(found.paths) == sorted(str(tmp_path / name) for name in names)
    assert sorted(found.class_names.values()) == ['"dog"', "cat\udcff"]
    assert all(len(found.read_image(i)) for i in range(len(found)))


@pytest.fixture
def scanned(tmp_path):
    """Two classes of three images, scanned."""
    for name in "ab":
        for number in range(3):
            save(tmp_path / name / f"{number}.png", 10 * ord(name) + number)
    run("scan", tmp_path, "--num_workers=0")
    return tmp_path


def test_filter_reads_changed_files_again(scanned, capsys):
    file, first = scanned / "scanned.csv", "of 6 images whose files are others than those that were"
    run("filter", file, "--threshold=0")
    assert len(read(scanned / "filtered.csv")) == 6 and first not in capsys.readouterr().out

    shutil.copy(scanned / "a" / "0.png", scanned / "b" / "0.png")  # now a duplicate
    (scanned / "b" / "1.png").write_bytes(b"x" * (scanned / "b" / "1.png").stat().st_size)
    (scanned / "b" / "2.png").unlink()
    os.utime(scanned / "a" / "2.png")  # the same content
    run("filter", file, "--threshold=0", "--num_workers=0")
    assert f"read again 4 {first} scanned, the first a/2.png" in capsys.readouterr().out
    assert [row["path"] for row in read(scanned / "filtered.csv")] == [
        "a/0.png",
        "a/1.png",
        "a/2.png",
    ]
    reasons = {row["path"]: row["reason"] for row in read(scanned / "filtered_removed.csv")}
    assert reasons == {
        "b/0.png": "duplicate in another class",
        "b/1.png": "broken",
        "b/2.png": "broken",
    }
    run("filter", scanned / "filtered.csv", f"--output={scanned / 'again.csv'}")
    assert "read again" not in capsys.readouterr().out


def test_filter_of_lists_elsewhere_or_of_earlier_versions(scanned, tmp_path, capsys):
    file = tmp_path / "lists" / "scanned.csv"
    file.parent.mkdir()
    rows = [{**row, "hash": "0" * 16} for row in read(scanned / "scanned.csv")]
    write_csv(file, [name for name in rows[0]], rows)
    (scanned / "a" / "0.png").touch()
    run("filter", file)
    assert "--data_dir=FOLDER says where they are" in capsys.readouterr().out
    run("filter", file, f"--data_dir={scanned}", "--num_workers=0")
    assert "read again 1 of 6" in capsys.readouterr().out
    run("filter", file, f"--data_dir={scanned}", "--verify", "--num_workers=0")
    assert "read again 6 of 6 images to verify them" in capsys.readouterr().out

    write_csv(
        file,
        [name for name in rows[0] if name != "state"],
        [{name: cell for name, cell in row.items() if name != "state"} for row in rows],
    )
    run("filter", file, f"--data_dir={scanned}", "--num_workers=0", "--threshold=0")
    assert "read again 6 of 6 images whose files" in capsys.readouterr().out
    assert len(read(file.parent / "filtered.csv")) == 6


@pytest.fixture
def error_of(capsys):
    def run_wrong(*argv):
        with pytest.raises(SystemExit) as stop:
            run(*argv)
        error = capsys.readouterr().err
        assert stop.value.code == 2
        assert error.startswith("error: ") and error.count("\n") == 1, error
        return error

    return run_wrong


def test_wrong_input_is_one_line(error_of, filtered, troubled, tmp_path):
    assert "one of scan, filter, split, folds, found nothing" in error_of()
    assert "found scna" in error_of("scna", troubled)
    assert "expected a path behind the command" in error_of("scan")
    assert "no file or folder /nowhere/x" in error_of("scan", "/nowhere/x")
    assert "no file or folder /nowhere/x.csv" in error_of("filter", "/nowhere/x.csv")
    assert "expected one folder per class" in error_of("scan", troubled / "no images")
    assert "no folder" in error_of("scan", filtered)
    assert "no file" in error_of("filter", troubled)
    assert "unknown flag --treshold: did you mean --threshold?" in error_of(
        "filter", filtered, "--treshold=3"
    )
    other = f"--output={tmp_path / 'other.csv'}"
    sizes = "--min_size=9", "--max_size=8"
    assert "is what is read" in error_of("filter", filtered)
    assert "leave no image" in error_of("filter", filtered, other, *sizes)
    assert "--threshold=40" in error_of("filter", filtered, other, "--threshold=40")
    assert "is left" in error_of("filter", filtered, other, "--min_size=1000")
    assert "name one file" in error_of("filter", filtered, "--output=a", "--report=a")
    assert "is above" in error_of("split", filtered, "--min_n_samples=9", "--max_n_samples=8")
    assert "no class has 40 to 50" in error_of("split", filtered, "--min_n_samples=40")
    assert "every class has 1 to 50" in error_of("split", filtered, "--min_n_samples=1")
    error = error_of("split", troubled / "scanned.csv", "--on_bad_image=error")
    assert "scanned.csv:6: cat/broken.png is broken: leave --on_bad_image=error out" in error
    assert "unrelated images differ by" in error_of("split", filtered, "--threshold=33")
    assert "at least 2 folds" in error_of("folds", filtered, "--k=1")
    assert "--k=5, but 3 classes have fewer" in error_of("folds", filtered)
    assert "there are 4 classes" in error_of("folds", filtered, "--k=5", "--open_set=True")
    assert "expected a file to write" in error_of("split", filtered, f"--output={tmp_path}")


def test_a_second_column_of_the_same_name_is_refused(error_of, filtered, tmp_path):
    run("folds", filtered, "--k=2", "--open_set=True", f"--output={tmp_path / 'f'}")
    assert "has a column fold already" in error_of("folds", tmp_path / "f")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (",64,", ",wide,", ":3: expected pixels as width, found 'wide'"),
        (",hash,", ",code,", " has no column hash"),
        (",broken,", ",reason,", " has no column broken"),
    ],
)
def test_a_wrong_list_is_named(error_of, filtered, old, new, message):
    text = filtered.read_text()
    lines = text.split("\n")
    first = 2 if old == ",64," else 0
    lines[first] = (lines[first] + "\n").replace(old, new, 1).rstrip("\n")
    filtered.write_text("\n".join(lines))
    other = f"--output={filtered.with_name('other.csv')}"
    assert f"{filtered}{message}" in error_of("filter", filtered, other, "--threshold=1")


def test_help_lists_the_commands_and_their_flags(capsys):
    run("--help")
    assert "python -m data.prepare folds" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        run("folds", "--help")
    text = capsys.readouterr().out
    assert text.startswith("usage: python -m data.prepare folds [--flag=value ...] PATH")
    assert "--open_set" in text and "default folds.csv" not in text


def test_it_runs_as_a_module(tmp_path, troubled, monkeypatch, capsys):
    shutil.copytree(troubled / "cat", tmp_path / "photos" / "cat")
    monkeypatch.setattr(sys, "argv", ["prepare.py", "scan", str(tmp_path / "photos")])
    monkeypatch.delitem(sys.modules, "data.prepare", raising=False)
    runpy.run_module("data.prepare", run_name="__main__")
    assert capsys.readouterr().out.endswith("scanned.csv, 9 images of 1 classes\n")


def write_list(folder: Path, rows, columns="path,label") -> Path:
    """Write a list of images that need not be there."""
    file = folder / "photos.csv"
    file.write_text("\n".join([columns, *(",".join(map(str, row)) for row in rows)]) + "\n")
    return file


def split_of(file: Path, column="split") -> dict[str, Counter]:
    """Label -> how many of its images have which value."""
    found: dict[str, Counter] = {}
    for row in read(file):
        found.setdefault(row["label"], Counter())[row[column]] += 1
    return found


def test_split_divides_the_classes_by_shares(tmp_path, capsys):
    rows = [(f"{c}/{i}.jpg", f"class {c}") for c in range(40) for i in range(3 + c)]
    file = write_list(tmp_path, rows)
    run("split", file, "--test_share=0.3", "--val_share=0.1", f"--output={tmp_path / 'a'}")
    of_class = split_of(tmp_path / "a")
    assert all(len(sides) == 1 for sides in of_class.values())
    counts = Counter(side for sides in of_class.values() for side in sides)
    assert counts == {"train": 24, "val": 4, "test": 12}
    assert "test: " in capsys.readouterr().out
    for name, seed in (("b", 0), ("c", 1)):
        seeded = (f"--random_seed={seed}", f"--output={tmp_path / name}")
        run("split", file, "--test_share=0.3", "--val_share=0.1", *seeded)
    written = [(tmp_path / name).read_bytes() for name in "abc"]
    assert written[0] == written[1] != written[2]


def test_split_alone_leaves_enough_for_the_test(tmp_path):
    """Classes of a few dozen images, as photos have, once went to one side by their sizes."""
    rows = [(f"{c}/{i}.jpg", c) for c in range(29) for i in range(29)]
    run("split", write_list(tmp_path, rows), f"--output={tmp_path / 's'}")
    tested = [label for label, sides in split_of(tmp_path / "s").items() if "test" in sides]
    assert len(tested) == 9


def test_a_closed_split_takes_a_share_of_every_class(tmp_path, capsys):
    rows = [(f"{c}/{i}.jpg", c) for c in range(5) for i in range(10)]
    rows += [("a", "one"), ("b", "two"), ("c", "two")]
    shares = ("--closed=True", "--test_share=0.3", "--val_share=0.2")
    run("split", write_list(tmp_path, rows), *shares, f"--output={tmp_path / 's'}")
    of_class = split_of(tmp_path / "s")
    assert all(of_class[str(c)] == {"train": 5, "val": 2, "test": 3} for c in range(5))
    assert of_class["one"] == {"train": 1} and of_class["two"] == {"train": 1, "test": 1}
    assert "split test: 1 of 16 images have no other of their class" in capsys.readouterr().out


@pytest.mark.parametrize("closed", [False, True])
def test_a_group_stays_on_one_side(tmp_path, closed, error_of):
    rows = [(f"{c}/{i}.jpg", c, f"{c // 2}-{i // 4}") for c in range(20) for i in range(16)]
    file = write_list(tmp_path, rows, "path,label,group")
    run("split", file, f"--closed={closed}", "--val_share=0.2", f"--output={tmp_path / 's'}")
    sides: dict[str, set] = {}
    for row in read(tmp_path / "s"):
        sides.setdefault(row["group"], set()).add(row["split"])
    assert all(len(found) == 1 for found in sides.values())
    assert {side for found in sides.values() for side in found} == {"train", "val", "test"}
    if closed:
        assert all("test" in found for found in split_of(tmp_path / "s").values())
    run("folds", file, f"--open_set={not closed}", "--k=2", f"--output={tmp_path / 'f'}")
    folds = {(row["group"], row["fold"]) for row in read(tmp_path / "f")}
    assert len(folds) == len(sides)

    other = file.read_text().replace("group", "camera")
    file.write_text(other)
    run("split", file, "--group=camera", f"--output={tmp_path / 'other'}")
    assert "has no such column" in error_of("split", file, "--group=person")


def test_groups_that_join_all_classes_cannot_be_kept_in_an_open_set(tmp_path, error_of):
    rows = [(f"{c}/{i}.jpg", c, f"camera {i}") for c in range(4) for i in range(3)]
    file = write_list(tmp_path, rows, "path,label,group")
    assert "(1 parts that stay together), or divide groups with --group=none" in error_of(
        "split", file
    )
    run("split", file, "--group=none", f"--output={tmp_path / 's'}")
    assert {side for sides in split_of(tmp_path / "s").values() for side in sides} == {
        "train", "test"
    }  # fmt: skip


def test_tests_that_cannot_be_scored_are_not_made(tmp_path, error_of, capsys):
    file = write_list(tmp_path, [(f"{c}/{i}.jpg", c) for c in range(6) for i in range(5)])
    error = error_of("folds", file, "--k=5")
    assert "fold 0 would hold one image of each of its 6 classes" in error
    assert "a lower --k or --open_set=True" in error
    run("folds", file, "--k=2", f"--output={tmp_path / 'f'}")
    assert "fold 0: " not in capsys.readouterr().out
    lonely = write_list(tmp_path, [(f"{c}/0.jpg", c) for c in range(6)])
    assert "no query has anything to find" in error_of("folds", lonely, "--k=2", "--open_set=True")
    assert "another --random_seed" in error_of("split", lonely)


def test_ways_to_split_are_not_mixed(tmp_path, error_of):
    file = write_list(tmp_path, [(f"{c}/{i}.jpg", c) for c in range(6) for i in range(5)])
    for share in ("--test_share=0.5", "--threshold=4"):
        mixed = error_of("split", file, "--min_n_samples=2", share)
        assert "leave the ones or the others out" in mixed
    assert "photos.csv has no hashes" in error_of("split", file, "--threshold=4")
    assert "expected a share for the test" in error_of("split", file, "--test_share=0")
    whole = ("--test_share=0.5", "--val_share=0.5")
    assert "less than 1 together" in error_of("split", file, *whole)
    assert "nothing is left for val" in error_of("split", file, "--val_share=0.01")


def test_labels_that_mean_the_same_are_written_the_same(tmp_path, capsys):
    file = write_list(tmp_path, [("a.jpg", "1.0"), ("b.jpg", "1 "), ("c.jpg", 2), ("d.jpg", 2)])
    run("folds", file, "--k=2", "--open_set=True", f"--output={tmp_path / 'f'}")
    assert {row["label"] for row in read(tmp_path / "f")} == {"1", "2"}
    out = capsys.readouterr().out
    assert "read as the same: spaces around labels (1)" in out and ".0 behind labels (1)" in out


def test_equal_numbers_are_one_label_beside_others(tmp_path):
    for number in range(4):
        save(tmp_path / "a" / f"{number}.png", number)
    text = "path,label\na/0.png,3\na/1.png,3.0\na/2.png,3.5\na/3.png,3.00\n"
    (tmp_path / "a.csv").write_text(text)
    run("split", tmp_path / "a.csv", "--min_n_samples=2", "--max_n_samples=3")
    labels = [row["label"] for row in read(tmp_path / "split.csv")]
    assert labels == ["3", "3", "3.5", "3"]


def test_a_tree_with_a_validation_folder_of_its_own_is_scanned_with_it(tmp_path):
    for seed, split in enumerate(("Train", "valid", "TEST")):
        save(tmp_path / split / "cat" / "0.png", seed)
    run("scan", tmp_path, "--num_workers=0")
    rows = {row["path"].partition("/")[0]: row["split"] for row in read(tmp_path / "scanned.csv")}
    assert rows == {"Train": "train", "valid": "val", "TEST": "test"}


def test_a_table_of_others_gets_a_split(tmp_path):
    """As Kaggle has them: other names of columns, semicolons, and labels of any text."""
    text = "Image;Id\n" + "".join(f'{n}.jpg;"whale; ""{n // 3}"""\n' for n in range(30))
    (tmp_path / "train.csv").write_text(text + "x.jpg;-1\n", encoding="utf-8-sig")
    output = tmp_path / "split.csv"
    columns = ["--path_column=Image", "--label_column=Id"]
    prepare.main(["split", str(tmp_path / "train.csv"), f"--output={output}", *columns])
    images = read_image_list(output)
    assert images.columns == ("path", "label", "split") and len(images.rows) == 30
    assert images.labels[0] == 'whale; "0"'


def write_listed(file, rows):
    file.write_text("path,label,group,kept,cosine,is_kept\n" + "".join(f"{r}\n" for r in rows))
    return file


def test_filter_takes_a_list_of_near_duplicates(scanned, tmp_path, capsys, error_of):
    """All but the kept ones go; what a list of leaks names goes, though it is the same file."""
    file, listed = scanned / "scanned.csv", scanned / "found.csv"
    rows = [f"{scanned}/a/{n}.png,0,0,{scanned}/a/0.png,0.990000,{n == 0}" for n in range(3)]
    rows.append(f"{scanned}/b/1.png,1,1,{scanned}/b/1.png,1.000000,False")
    run("filter", file, f"--duplicates={write_listed(listed, rows)}")
    assert [row["path"] for row in read(scanned / "filtered.csv")] == [
        *("a/0.png", "b/0.png", "b/2.png")
    ]
    removed = read(scanned / "filtered_removed.csv")
    assert [row["reason"] for row in removed] == ["listed as a near duplicate"] * 3
    assert removed[0]["detail"] == f"cosine 0.990000 to {scanned}/a/0.png"
    assert re.search("listed as a near duplicate +3", capsys.readouterr().out)

    write_listed(listed, ["elsewhere/a.png,0,0,b.png,0.99,False"])
    words = ["filter", file, f"--duplicates={listed}"]
    assert "none of its 1 images is in" in error_of(*words)
    listed.write_text("path,label\na.png,0\n")
    assert "expected a list of 'python -m retrieval.duplicates'" in error_of(*words)
    assert "No such file" in error_of("filter", file, "--duplicates=gone.csv")


def test_split_and_folds_leave_out_what_is_broken(troubled, tmp_path, capsys):
    for command, flags in (("split", ()), ("folds", ("--open_set", "--k=2", "--threshold=none"))):
        run(command, troubled / "scanned.csv", *flags, f"--output={tmp_path / command}")
        first = capsys.readouterr().out.partition("\n")[0]
        assert first.startswith("left out: 2 broken images (cat/broken.png: ")
        assert first.endswith(
            "; cat/empty.jpg: the file is empty); --on_bad_image=error stops at them"
        )
        paths = {row["path"] for row in read(tmp_path / command)}
        assert len(paths) == 17 and not paths & {"cat/broken.png", "cat/empty.jpg"}


def test_a_line_names_some_of_many_broken_images_and_a_class_of_them_alone(tmp_path, capsys):
    for name in "ab":
        for number in range(2):
            save(tmp_path / name / f"{number}.png", 10 * ord(name) + number)
    for name in ("c", "d"):
        (tmp_path / name).mkdir()
        for number in range(4):
            (tmp_path / name / f"{number}.png").write_bytes(b"")
    run("scan", tmp_path, "--num_workers=0")
    run("split", tmp_path / "scanned.csv")
    out = capsys.readouterr().out
    assert "left out: 8 broken images, all of 2 classes such as c (c/0.png: the file is" in out
    assert "c/3.png: the file is empty; d/0.png: the file is empty; and 3 more, see" in out
    assert {row["label"] for row in read(tmp_path / "split.csv")} == {"a", "b"}


def test_a_column_broken_of_another_table_means_nothing(tmp_path):
    file = write_list(tmp_path, [(f"{n}.jpg", n // 3, "no") for n in range(9)], "path,label,broken")
    run("split", file, f"--output={tmp_path / 's'}")
    assert len(read(tmp_path / "s")) == 9


@pytest.mark.parametrize("closed", [False, True])
def test_near_duplicates_stay_on_one_side(tmp_path, closed, capsys, error_of):
    """Ten classes of ten photos, half of them saved again; one in the next class, of every two."""
    for number in range(50):
        folder = tmp_path / "photos" / f"class {number // 5}"
        save(folder / f"{number}.png", number)
        save(folder / f"{number} again.jpg", number, size=(96, 72), quality=80)
    for number in range(0, 50, 10):
        save(tmp_path / "photos" / f"class {number // 5 + 1}" / f"{number}.png", number)
    file = tmp_path / "photos" / "scanned.csv"
    run("scan", tmp_path / "photos", "--num_workers=0")

    def divided(command, column, *flags):
        run(command, file, *flags, f"--output={tmp_path / command}")
        sides: dict[str, set[str]] = {}
        for row in read(tmp_path / command):
            stem = Path(row["path"]).stem.removesuffix(" again")
            sides.setdefault(stem, set()).add(row[column])
        assert len({side for found in sides.values() for side in found}) >= 2
        return sum(len(found) > 1 for found in sides.values())

    capsys.readouterr()
    for command, column in (("split", "split"), ("folds", "fold")):
        flag = f"--closed={closed}" if command == "split" else f"--open_set={not closed}"
        assert divided(command, column, flag) == 0
        out = capsys.readouterr().out
        assert "near duplicates: 105 images in 50 groups stay with their like ('filter" in out
        assert "near duplicates in several classes         5\n  class 0/0" in out
        assert divided(command, column, flag, "--threshold=none") > 0
        assert "near duplicates" not in capsys.readouterr().out
    if not closed:
        for number in range(0, 50, 5):  # now all classes are joined
            name = f"class {(number // 5 + 1) % 10}"
            save(tmp_path / "photos" / name / f"{number}.png", number)
        run("scan", tmp_path / "photos", "--num_workers=0")
        assert "or divide near duplicates with --threshold=none" in error_of("split", file)
