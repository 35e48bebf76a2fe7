"""Boards of one's own images: what is held out, what is chosen by time, and what is left."""

import csv
import json

import pytest
from PIL import Image

from metric_learning import leaderboard, load
from metric_learning.engine.leaderboard import launch, own_data
from metric_learning.engine.leaderboard.leaderboard import KIND
from metric_learning.engine.leaderboard.own_data import EFFORTS, Effort
from metric_learning.engine.leaderboard.trainings.plan import Plan
from metric_learning.engine.leaderboard.trainings.work import work
from metric_learning.reader import load_image_set

SMALL = Effort((32,), ("normsoftmax",), 1)


@pytest.fixture
def try_out(data, tmp_path, monkeypatch):
    """Try little on the demo's images in this process; returns the table."""

    def run_here(board, output, places, seconds):
        limits.append(seconds)
        work(Plan(board, output), places[0])

    def try_here(*flags):
        words = ["--dataset=demo", f"--data_dir={data}", f"--output_dir={tmp_path / 'out'}"]
        return leaderboard.main([*words, "--jobs=1", "--flag=model=test_resnet", *flags])

    limits = []
    monkeypatch.setattr(launch, "run_processes", run_here)
    monkeypatch.setattr(own_data, "EFFORTS", (SMALL,))
    try_here.limits = limits
    return try_here


def rows_of(file):
    with open(file, newline="") as opened:
        return list(csv.DictReader(opened))


def test_the_winner_lies_in_best_with_what_is_to_be_expected(try_out, tmp_path, capsys):
    found = try_out("--minutes=5")
    output, said = tmp_path / "out", capsys.readouterr().out
    best = output / "best"
    assert found["best_folder"] == str(best) and (best / "model.pt").exists()
    assert 0 < try_out.limits[0] < 300

    # What was expected is the figure of the row that was best on the folds, on held-out classes.
    winner = max((r for r in found["rows"] if "figures" in r), key=lambda r: r["validation"])
    expected = json.loads((best / "expected.json").read_text())
    assert expected == {"row": winner["name"], "recall@1": winner["figures"]["recall@1"]}
    assert f"a Recall@1 of {100 * expected['recall@1']['mean']:.1f}" in said

    divided, whole = (rows_of(output / name) for name in ("images.csv", "all_images.csv"))
    held_out = {row["label"] for row in divided if row["split"] == "test"}
    kept = {row["label"] for row in divided if row["split"] == "train"}
    assert not held_out & kept and len(held_out) == len(held_out | kept) // 5
    assert [row["path"] for row in whole] == [row["path"] for row in divided]
    assert {row["split"] for row in whole} == {"train"}

    # The last training has seen all of them.
    log = (output / "on_all_images" / "log.txt").read_text()
    assert f"{len(whole)} images of {len(held_out | kept)} classes" in log
    assert (best / "report").is_dir()

    # The same command once more trains nothing.
    weights = (best / "model.pt").read_bytes()
    results = {path: path.stat().st_mtime_ns for path in output.rglob("result.json")}
    try_out("--minutes=5")
    assert (best / "model.pt").read_bytes() == weights
    assert {path: path.stat().st_mtime_ns for path in output.rglob("result.json")} == results


def test_more_time_tries_more(data, tmp_path):
    images = own_data.divide(load_image_set("demo", str(data), "all"), tmp_path)
    texts, chosen = {"model": "test_resnet"}, []
    for number, seconds in enumerate((0.001, 20.0, 1e9)):
        folder = tmp_path / str(number)
        folder.mkdir()
        chosen.append(EFFORTS.index(own_data.choose_effort(images, texts, seconds, folder)))
    assert chosen[0] == len(EFFORTS) - 1 and chosen[2] == 0
    assert chosen == sorted(chosen, reverse=True)
    assert own_data.last_seconds(images, texts, EFFORTS[-1]) == 0


def test_a_folder_is_known_after_a_kill_at_any_moment(try_out, tmp_path, monkeypatch):
    output = tmp_path / "out"

    def stop(*given):
        raise KeyboardInterrupt

    for name in ("image_cost", "write_json", "write_csv"):
        with monkeypatch.context() as patch, pytest.raises((SystemExit, KeyboardInterrupt)):
            patch.setattr(own_data, name, stop)
            try_out("--minutes=5")
        (output / ".effort.json.77.tmp").write_text("{")
        assert KIND.find_foreign(output) is None
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "images.csv").write_text("path,label\n")
    assert KIND.find_foreign(tmp_path / "mine") == "images.csv"


def test_too_few_classes_are_refused(tmp_path, error_of):
    for name in "abcdefg":
        (tmp_path / "few" / name).mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(tmp_path / "few" / name / "0.png")
    words = ["--dataset=folder", f"--data_dir={tmp_path / 'few'}"]
    words.append(f"--output_dir={tmp_path / 'out'}")
    assert "at least 8 classes" in error_of(leaderboard.main, [*words, "--minutes=5"])


@pytest.fixture
def shaped(tmp_path):
    """Return what divides ten classes of two images of a width and height."""

    def divide(width, height):
        folder = tmp_path / f"{width} by {height}"
        for number in range(20):
            file = folder / str(number // 2) / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            colour = (10 * number, 255 - 10 * number, 100)
            Image.new("RGB", (width, height), colour).save(file)
        return own_data.divide(load_image_set("folder", str(folder), "all"), tmp_path)

    return divide


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    [
        (40, 40, (96, 128)),
        (59, 40, (96, 128)),  # 1.475
        (32, 64, (96, (128, 64), 128, (192, 96))),
        (90, 30, (96, (64, 160), 128, (64, 224))),
        (20, 600, (96, (512, 32), 128, (704, 32))),
    ],
)
def test_rectangles_are_tried_where_images_are_far_from_square(
    shaped, width, height, expected, capsys, tmp_path, monkeypatch
):
    images, texts = shaped(width, height), {"model": "test_resnet"}
    effort = Effort((96, 128), ("supcon",), 2)
    assert own_data.sizes_of(images, texts, effort) == expected
    rows = {row.name: row.flags for row in own_data.own_board(images, texts, effort).rows}
    for size in expected:
        sides = (size, size) if isinstance(size, int) else size
        shown = f"{size} px" if isinstance(size, int) else "{} x {} px".format(*size)
        for name in ("frozen", "supcon"):
            assert rows[f"{name}, {shown}"]["image_shape"] == "3,{},{}".format(*sides)
    assert len(rows) == 2 * len(expected)

    monkeypatch.setattr(own_data, "EFFORTS", (effort,))
    own_data.choose_effort(images, texts, 1.0, tmp_path)
    is_said = f"not square (width by height {width / height:.2f}): rectangles" in (
        capsys.readouterr().out
    )
    assert is_said == (len(expected) > 2)


def test_networks_of_squares_alone_try_no_rectangles(shaped, monkeypatch):
    def cost(model, embedding_size, head, size, device):
        if size[0] != size[1]:
            raise ValueError("squares alone")

    monkeypatch.setattr(own_data, "image_cost", cost)
    monkeypatch.setattr(
        own_data, "_image_seconds", lambda images, texts, size: cost("", 0, (), size, "")
    )
    images = shaped(32, 64)
    assert own_data.sizes_of(images, {"model": "square"}, Effort((96,), (), 0)) == (96,)


def test_a_given_shape_is_the_only_one(shaped, try_out, tmp_path, error_of):
    effort = Effort((96, 128), ("supcon",), 2)
    texts = {"model": "test_resnet", "image_shape": "3,96,48"}
    for images in (shaped(40, 40), shaped(20, 60)):
        assert own_data.sizes_of(images, texts, effort) == ((96, 48),)
    with pytest.raises(ValueError, match=r"--flag=image_shape=96: expected 3,HEIGHT,WIDTH"):
        own_data.sizes_of(images, {**texts, "image_shape": "96"}, effort)

    found = try_out("--minutes=5", "--flag=image_shape=3,64,32")
    assert {row["name"] for row in found["rows"]} == {
        "frozen, 64 x 32 px",
        "normsoftmax, 64 x 32 px",
    }

    embedder = load(tmp_path / "out" / "best" / "model.pt")
    assert embedder.preprocessing.crop_size == (64, 32)
