"""Reading stats.jsonl, also that of a run that was killed."""

import pytest

from metric_learning.engine.run.records import read_records

LINE = '{"kind": "train", "step": 1, "loss": 0.25}\n'


@pytest.mark.parametrize("torn", ["", '{"kind": "tr', "{", "\0\0"])
def test_a_torn_last_line_is_left_out(tmp_path, torn):
    file = tmp_path / "stats.jsonl"
    file.write_text(LINE + torn)
    assert read_records(file) == [{"kind": "train", "step": 1, "loss": 0.25}]
    file.write_text(torn)
    assert read_records(file) == []


@pytest.mark.parametrize("wrong", ["{\n", "[]\n", '{"step": 1}\n', "{" + LINE])
def test_another_line_that_is_no_record_is_named(tmp_path, wrong):
    file = tmp_path / "stats.jsonl"
    file.write_text(LINE + wrong + LINE)
    with pytest.raises(ValueError, match="stats.jsonl:2: expected a JSON record"):
        read_records(file)
