"""Locks between processes: who waits, who is refused, and files that go with their lock."""

import subprocess
import sys

import pytest

from metric_learning.common.locks import claimed, locked

COUNT = """
import sys
from pathlib import Path
from metric_learning.common.locks import locked

folder, total = Path(sys.argv[1]), Path(sys.argv[1]) / "total"
for _ in range(100):
    with locked(folder / "lock", lambda line: None, "", is_kept=False):
        total.write_text(str(int(total.read_text()) + 1))
"""
HOLD = """
import sys
from pathlib import Path
from metric_learning.common.locks import locked

with locked(Path(sys.argv[1]), print, "busy"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("is_kept", [True, False])
def test_a_file_stays_or_goes_with_its_lock(is_kept, tmp_path):
    file = tmp_path / "new" / "lock"
    with locked(file, print, "", is_kept=is_kept):
        assert file.exists()
    assert file.exists() is is_kept
    with pytest.raises(RuntimeError), claimed(file, "taken", is_kept=is_kept):
        raise RuntimeError
    assert file.exists() is is_kept


def test_who_claims_what_another_process_has_is_refused(tmp_path):
    file = tmp_path / "lock"
    command = [sys.executable, "-c", HOLD, str(file)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "held\n"
        with (
            pytest.raises(ValueError, match="^taken by another$"),
            claimed(file, "taken by another"),
        ):
            raise AssertionError
        process.stdin.close()
        assert process.wait() == 0
    with claimed(file, "taken by another"):
        pass


def test_a_lock_whose_file_goes_is_one_process_s_nevertheless(tmp_path):
    """Who waits for a file that is removed meanwhile takes the lock of the new one."""
    (tmp_path / "total").write_text("0")
    command = [sys.executable, "-c", COUNT, str(tmp_path)]
    processes = [subprocess.Popen(command) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert (tmp_path / "total").read_text() == "300"
    assert [path.name for path in tmp_path.iterdir()] == ["total"]
