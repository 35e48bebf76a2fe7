"""Near duplicates: pairs against brute force in float64, groups, and the command."""

import csv

import numpy as np
import pytest

from metric_learning.engine.search import duplicates
from metric_learning.reader import load_index
from metric_learning.retrieval import near_pairs
from metric_learning.retrieval.near_pairs import find_near_pairs, group_pairs


@pytest.fixture
def rows():
    """60 embeddings of any length, of which 7 are copied with a little noise."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(60, 12)) * rng.uniform(0.1, 9, (60, 1))
    rows[50:57] = rows[3:10] * 2 + 0.02 * rng.normal(size=(7, 12))
    rows[57] = rows[3]
    return rows.astype(np.float32)


def brute_force_cosines(ours, theirs):
    """Cosines (N, M) in float64, rounded to float32."""
    norms = [np.linalg.norm(rows.astype(np.float64), axis=1) for rows in (ours, theirs)]
    products = ours.astype(np.float64) @ theirs.T.astype(np.float64)
    return (products / np.maximum(np.outer(*norms), 1e-30)).astype(np.float32)


def brute_force(ours, theirs, threshold):
    return np.argwhere(brute_force_cosines(ours, theirs) >= threshold)


@pytest.mark.parametrize("block", [7, 4096])
@pytest.mark.parametrize("threshold", [-0.1, 0.3, 0.9])
def test_pairs_are_those_of_brute_force(rows, monkeypatch, block, threshold, device):
    monkeypatch.setattr(near_pairs, "BLOCK", block)
    expected = brute_force(rows, rows, threshold)
    found = find_near_pairs(rows, None, threshold, device)
    assert np.stack(found[:2], 1).tolist() == [
        pair for pair in expected.tolist() if pair[0] < pair[1]
    ]
    found = find_near_pairs(rows[:20], rows, threshold, device)
    assert np.stack(found[:2], 1).tolist() == brute_force(rows[:20], rows, threshold).tolist()


@pytest.mark.parametrize("dim", [3, 40, 300])
@pytest.mark.parametrize("classes", [1, 30])
def test_no_pair_is_lost_among_many_blocks(dim, classes, device):
    """The sketches of some are shorter than they, blocks are left out, and others are split."""
    rng = np.random.default_rng(dim)
    centres = rng.normal(size=(classes, dim))
    rows = centres[rng.integers(0, classes, 1500)] + 0.4 * rng.normal(size=(1500, dim))
    rows[1400:] = rows[:100] + 0.1 * rng.normal(size=(100, dim))
    rows[::97], rows[5] = 0, rows[4]  # a zero row is near none
    rows = rows.astype(np.float32)
    cosines = rows / np.maximum(np.linalg.norm(rows, axis=1)[:, None], 1e-9)
    for threshold in (float(np.quantile(cosines @ cosines.T, 0.999)), 1.0):
        for ours, theirs in ((rows, None), (rows[:700], rows), (rows, rows[:70])):
            expected = brute_force_cosines(ours, rows if theirs is None else theirs)
            if theirs is None:
                expected[np.tril_indices(len(rows))] = -1
            places = np.argwhere(expected >= np.float32(threshold))
            found = find_near_pairs(ours, theirs, threshold, device)
            assert len(places) and np.stack(found[:2], 1).tolist() == places.tolist()
            np.testing.assert_allclose(found.cosines, expected[tuple(places.T)], atol=1e-7)


def test_features_that_are_not_finite_are_refused(rows, device):
    assert len(find_near_pairs(rows[:0], rows, 0.9, device).rows) == 0
    rows[[3, 7]] = np.nan
    with pytest.raises(ValueError, match="NaN or infinity, first in row 3"):
        find_near_pairs(rows, None, 0.9, device)


def test_an_index_finds_most_and_says_how_many(rows):
    pytest.importorskip("faiss")
    exact = find_near_pairs(rows, None, 0.9)
    found = find_near_pairs(rows, None, 0.9, most_exact=10)
    assert {*zip(*found[:2], strict=True)} <= {*zip(*exact[:2], strict=True)}
    assert found.recall == len(found.rows) / len(exact.rows) > 0.5


def test_groups_are_connected(rows):
    groups = group_pairs(find_near_pairs(rows, None, 0.9), len(rows))
    assert groups[3] == groups[50] == groups[57] == 0 and groups[4] == groups[51] == 1
    assert groups.max() == 6 and (groups >= 0).sum() == 15


def test_the_command(rows, toy_tree, tmp_path, capsys, error_of):
    images = load_index("folder", toy_tree, "all")
    folders = [tmp_path / name for name in ("all", "some")]
    for folder, chosen in zip(folders, (range(40), range(3, 6)), strict=True):
        folder.mkdir()
        np.save(folder / "features.npy", rows[[*range(30), *range(50, 60)]][chosen])
        (folder / "paths.txt").write_text("".join(f"{images.paths[n]}\n" for n in chosen))
        (folder / "labels.txt").write_text("".join(f"{images.labels[n]}\n" for n in chosen))
    output, kept = tmp_path / "found.csv", tmp_path / "kept.csv"
    words = [str(folders[0]), "--threshold=0.9", f"--output={output}", "--use_gpu=False"]
    duplicates.main([*words, f"--kept={kept}"])
    assert "15 of 40 images are in 7 groups of near duplicates, 8 beside" in capsys.readouterr().out
    listed = [*csv.DictReader(output.open())]
    assert [row["path"] for row in listed if row["group"] == "0"] == [
        images.paths[n] for n in (3, 30, 37)
    ]
    left = load_index("csv", None, "all", csv=str(kept))
    assert len(left) == 32 and images.paths[30] not in left.paths

    duplicates.main([*words, f"--against={folders[1]}"])
    assert "7 of 40 images are among the 3 others" in capsys.readouterr().out
    (folders[0] / "labels.txt").unlink()
    assert "has none" in error_of(duplicates.main, [*words, f"--kept={kept}"])
    assert "No such file" in error_of(duplicates.main, [tmp_path / "nowhere", *words[1:]])


def test_parts_of_one_photo_are_told_apart(tmp_path):
    """Two of three boxes look the same: the list and what is left name them by their boxes."""
    folder = tmp_path / "features"
    folder.mkdir()
    np.save(folder / "features.npy", np.array([[1, 0], [0, 1], [1, 0.01]], np.float32))
    (folder / "paths.txt").write_text("a.png\n" * 3)
    (folder / "labels.txt").write_text("0\n0\n1\n")
    (folder / "boxes.txt").write_text("0,0,4,4\n4,0,8,4\n4,4,8,8\n")
    output, kept = tmp_path / "found.csv", tmp_path / "kept.csv"
    duplicates.main([str(folder), f"--output={output}", f"--kept={kept}", "--use_gpu=False"])
    rows = [*csv.DictReader(output.open())]
    boxes = [tuple(row[name] for name in ("x_1", "y_1", "x_2", "y_2")) for row in rows]
    assert boxes == [("0", "0", "4", "4"), ("4", "4", "8", "8")]
    assert [row["is_kept"] for row in rows] == ["True", "False"]
    assert len([*csv.DictReader(kept.open())]) == 2


def test_too_many_pairs_are_refused(rows, monkeypatch):
    monkeypatch.setattr(near_pairs, "MOST_PAIRS", 5)
    with pytest.raises(ValueError, match="more than 5 pairs are near duplicates, 2 of them of"):
        find_near_pairs(rows, None, 0.9)
