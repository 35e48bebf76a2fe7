import json
import pickle
import shutil

import numpy as np
import pytest

from metric_learning.reader import check


def run(capsys, *argv):
    try:
        status = check.main([str(arg) for arg in argv])
    except SystemExit as stop:
        status = stop.code
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.mark.parametrize("num_workers", [0, 2])
def test_clean_data_set(make_sop, tmp_path, capsys, num_workers):
    status, out, err = run(
        capsys,
        *("--dataset=sop", f"--data_dir={make_sop(3)}", f"--num_workers={num_workers}"),
        f"--json={tmp_path / 'report.json'}",
    )
    assert status == 0 and err == "" and "\nclean; read in" in out
    assert out.splitlines()[4].split() == ["train", "9", "3", "3", "/", "3", "/", "3", "0"]
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["problems"] == 0 and report["splits"]["test"]["images"] == 9


def test_every_problem_is_found_and_named(make_sop, tmp_path, capsys):
    folder = make_sop(4)
    images = folder / "mug_final"
    (images / "1 view 0.png").unlink()
    data = (images / "1 view 1.png").read_bytes()
    (images / "1 view 1.png").write_bytes(data[: len(data) // 2])
    shutil.copy(images / "2 view 0.png", images / "2 view 1.png")
    shutil.copy(images / "2 view 0.png", images / "5 view 0.png")
    with open(folder / "Ebay_test.txt", "a") as file:
        file.write("\n98 3 1 mug_final/3 view 0.png\n99 7 1 mug_final/4 view 0.png")
    path = tmp_path / "report.json"
    status, out, _ = run(
        capsys, f"--data_dir={folder}", "--num_workers=0", f"--json={path}", "--dataset=sop"
    )
    report = json.loads(path.read_text())
    assert status == 1
    assert list(report["missing"]) == [str(images / "1 view 0.png")]
    assert list(report["broken"]) == [str(images / "1 view 1.png")]
    assert [[file["path"][-12:] for file in group] for group in report["duplicates"]] == [
        ["2 view 0.png", "2 view 1.png", "5 view 0.png"]
    ]
    assert report["duplicates"][0][2]["splits"] == ["test"]
    assert report["paths_in_both_splits"] == [str(images / "3 view 0.png")]
    assert report["repeated"] == {"train": [], "test": [str(images / "4 view 0.png")]}
    assert report["classes_in_both_splits"] == ["3"]
    assert report["splits"]["test"]["one_image_classes"] == 2
    assert report["problems"] == 6 and "\n6 problems; read in" in out
    for name in ("1 view 0.png", "1 view 1.png: ", "2 view 1.png (train) = "):
        assert name in out
    assert all(len(line) == 44 for line in out.splitlines() if line.startswith("missing files"))


def test_long_lists_are_cut_on_screen_but_not_in_json(make_sop, tmp_path, capsys):
    folder = make_sop(9)
    shutil.rmtree(folder / "mug_final")
    path = tmp_path / "report.json"
    status, out, _ = run(capsys, f"--data_dir={folder}", "--num_workers=0", f"--json={path}")
    assert status == 1 and "  and 34 more\n" in out
    assert len(json.loads(path.read_text())["missing"]) == 54


def test_classes_may_be_shared_where_the_set_is_closed(tmp_path, draw, capsys):
    for seed, split in enumerate(("train", "test")):
        for number, name in enumerate(("cat", "dog")):
            draw(tmp_path / split / name / "0.png", 10 * seed + number)
    status, out, _ = run(capsys, "--dataset=folder", f"--data_dir={tmp_path}", "--num_workers=0")
    assert status == 0 and "classes in both splits (allowed)" in out


def test_classes_chosen_for_both_splits_are_a_problem(tmp_path, draw, capsys):
    for number in range(4):
        draw(tmp_path / "images_background" / "Greek" / f"c{number}" / "0.png", number)
    options = ("--dataset=omniglot", f"--data_dir={tmp_path}", "--num_workers=0")
    status, out, _ = run(capsys, *options, "--train_classes=1-2", "--test_classes=2-4")
    assert status == 1 and "2 problems;" in out and "  Greek/c1\n" in out
    assert run(capsys, *options, "--train_classes=1-2", "--test_classes=3-4")[0] == 0


def test_images_in_memory_are_compared(tmp_path, capsys):
    rng = np.random.default_rng(0)
    shared = rng.integers(0, 255, (1, 3072), dtype=np.uint8)
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        own = rng.integers(0, 255, (1, 3072), dtype=np.uint8)
        pixels = shared if name in ("data_batch_2", "test_batch") else own
        (tmp_path / name).write_bytes(pickle.dumps({b"data": pixels, b"labels": [1]}, protocol=2))
    status, out, _ = run(capsys, "--dataset=cifar10", f"--data_dir={tmp_path}")
    assert status == 1
    assert "  data_batch_2:0000 (train) = test_batch:0000 (test)\n" in out


def test_queries_and_gallery_are_counted(tmp_path, draw, capsys):
    lines = ["4", "image_name item_id evaluation_status"]
    for i, status in enumerate(("train", "query", "gallery", "gallery")):
        draw(tmp_path / "img" / f"{i}.png", i)
        lines.append(f"img/{i}.png id_{i // 2} {status}".replace("id_1", "id_9"))
    lines[3] = lines[3].replace("id_0", "id_9")
    (tmp_path / "list_eval_partition.txt").write_text("\n".join(lines))
    status, out, _ = run(capsys, "--dataset=inshop", f"--data_dir={tmp_path}", "--num_workers=0")
    assert status == 0 and "1 queries, 2 in gallery" in out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--dataset=nope"], "unknown dataset 'nope'"),
        (["--dataset=list"], "needs --train_list=FILE"),
        (["--dataset=sop", "--data_dir=/nonexistent"], "no folder /nonexistent"),
        (["--num_workers=-1"], "--num_workers: expected an integer of at least 0"),
    ],
)
def test_user_errors_are_one_line(capsys, argv, message):
    status, out, err = run(capsys, *argv)
    assert status == 2 and out == ""
    assert err.startswith("error: ") and message in err and err.count("\n") == 1


def test_unwritable_report_is_an_error_before_the_work(make_sop, tmp_path, capsys):
    flags = f"--data_dir={make_sop()}", "--num_workers=0", f"--json={tmp_path}"
    status, out, err = run(capsys, *flags)
    assert status == 2 and out == "" and err.startswith("error: ")


def test_real_cub_has_the_files_that_were_unpacked(real_cub, capsys):
    status, out, _ = run(
        capsys,
        *("--dataset=cub200_2011", f"--data_dir={real_cub}", "--num_workers=2"),
        *("--train_classes=1,10", "--test_classes=50"),
    )
    assert status == 0 and "clean; read in" in out
