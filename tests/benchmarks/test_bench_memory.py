"""The benchmarks of near duplicates, of the memory of an index, and of that of a list of paths."""

import json
import subprocess
import sys

import pytest

from benchmarks.speed import duplicates, paths


@pytest.mark.parametrize("kind", duplicates.KINDS)
def test_near_duplicates_are_found_and_the_recall_of_the_inverted_file_is_measured(kind, capsys):
    pytest.importorskip("faiss")
    words = ["--num_images=2000", "--dim=32", f"--kind={kind}", "--threshold=0.9"]
    found = duplicates.main([*words, "--search=both", "--ivf_queries=1000"])
    exact = json.loads(capsys.readouterr().out.splitlines()[0])
    assert exact["search"] == "exact" and exact["planted_found"] == 1
    assert exact["pairs"] >= 2000 // duplicates.COPIED
    assert found["search"] == "ivf" and 0.5 < found["recall"] <= 1


def test_memory_is_measured_beside_what_is_there_before():
    pytest.importorskip("faiss")
    # In a process of its own, which has no memory to use again.
    command = [sys.executable, "-m", "benchmarks.speed.index", "--num_images=20000", "--dim=64"]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = json.loads(printed.splitlines()[0])
    size = found["features_gib"]
    assert size == 20000 * 64 * 4 / 2**30
    assert 0.5 * size < found["build"]["private_gib"] < found["build"]["process_gib"]
    found = paths.main(["--num_images=100000"])
    assert 0 <= found["open"]["private_gib"] < 0.1 and found["file_gib"] > 0.004
