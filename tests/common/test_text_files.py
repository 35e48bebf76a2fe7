"""What is kept in files is read from regular ones: a pipe would keep its reader waiting."""

import io
import os
import zipfile

import numpy as np
import pytest

from metric_learning.common.array_pickle import load_array_pickle
from metric_learning.common.arrays import open_array
from metric_learning.common.fingerprint import load_snapshot, read_snapshot, take_snapshot
from metric_learning.engine.report.files import PAGE, find_foreign
from metric_learning.engine.run.run_folder import RunFolder
from metric_learning.reader.sets.text import read_text

READERS = {
    "snapshot": load_snapshot,
    "array": lambda path: open_array(path, "it"),
    "pickle": load_array_pickle,
    "list": lambda path: read_text(path, "a list"),
    "log": lambda path: RunFolder(path.parent, {}),
}


@pytest.mark.parametrize("kind", READERS)
def test_a_pipe_is_refused(kind, tmp_path):
    os.mkfifo(tmp_path / "log.txt")
    with pytest.raises(ValueError, match=r"expected a regular file"):
        READERS[kind](tmp_path / "log.txt")


def test_a_pipe_is_no_page_of_a_report(tmp_path):
    os.mkfifo(tmp_path / PAGE)
    assert find_foreign(tmp_path) == PAGE


def test_a_record_of_images_that_is_compressed_is_refused(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"a")
    kept = take_snapshot([str(tmp_path / "a.jpg")]).to_bytes()
    assert len(read_snapshot(kept)) == 1
    packed = io.BytesIO()
    with np.load(io.BytesIO(kept)) as arrays:
        np.savez_compressed(packed, **arrays)
    assert zipfile.ZipFile(packed).infolist()[0].compress_type
    with pytest.raises(ValueError, match="is damaged"):
        read_snapshot(packed.getvalue())
