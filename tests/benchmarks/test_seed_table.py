"""The table of means and deviations over seeds."""

import json

import pytest

from benchmarks.quality.seed_table import main

KEPT = {"images": "16 images, sha256:1", "decoder": 1, "preprocessing": "standard, 32 px"}
RECIPE = {"--loss_name": "eml", "--lr": 0.1, "steps": 5, "training images": "24 images, sha256:2"}


@pytest.fixture
def write(tmp_path):
    """Write a result of eval.py, with other facts where they are given."""

    def write_result(name, recall, recipe=RECIPE, flags=(), **kept):
        depends_on = {**KEPT, "weights": f"sha256:{name}", **kept}
        about = {"depends_on": depends_on, "recipe": recipe, "flags": {"seed": 0, **dict(flags)}}
        result = {"recall@1": recall, "evaluated": about}
        (tmp_path / f"{name}.json").write_text(json.dumps(result))

    return write_result


@pytest.fixture
def fails(tmp_path, capsys):
    """Make a table, which must fail with one line, and return the line."""

    def run(*names):
        with pytest.raises(SystemExit):
            main([str(tmp_path), *names, "--metrics=recall@1"])
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        return error

    return run


def test_mean_and_deviation_in_percent(tmp_path, write, fails):
    write("frozen", 0.5, recipe=None)
    for name, recall in (("eml_0", 0.6), ("eml_1", 0.7), ("eml_2", 0.8)):
        write(name, recall)
    table = main([str(tmp_path), "frozen", "eml", "--metrics=recall@1"])
    assert table.splitlines()[2:] == ["| frozen | 50.0 | 1 |", "| eml | 70.0 ± 10.0 | 3 |"]
    assert "no npairs.json" in fails("npairs")


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"recipe": {**RECIPE, "--lr": 0.5}}, "are not seeds of one row: they differ in --lr (0.1"),
        ({"recipe": {**RECIPE, "steps": 9}}, "they differ in steps (5, not 9)"),
        ({"recipe": None}, "do not say how they were trained"),
        ({"preprocessing": "reference, 32 px"}, "they differ in preprocessing (standard"),
        ({"images": "16 images, sha256:9"}, "cannot stand in one table: they differ in images"),
        ({"flags": {"rerank": "qe"}}, "cannot stand in one table: they differ in --rerank"),
        ({"weights": "sha256:eml_0"}, "are results of the same weights"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_is_no_seed_of_a_row_is_refused(write, fails, other, words):
    write("eml_0", 0.6)
    write("eml_1", 0.7, **other)
    error = fails("eml")
    assert words in error and "eml_1.json" in error


def test_a_result_that_does_not_say_what_it_is_of(tmp_path, write, fails):
    write("eml_0", 0.6)
    for content in ('{"recall@1": 0.9}', "[]", "{"):
        (tmp_path / "eml_3.json").write_text(content)
        assert "eml_3.json" in fails("eml")
    write("eml_3", 0.7)
    write("eml_1_old", 0.9)  # no seed
    assert main([str(tmp_path), "eml", "--metrics=recall@1"]).endswith("| 65.0 ± 7.1 | 2 |")
    write("triplet", 0.9, images="9 images, sha256:3")
    assert "eml_0.json and" in fails("eml", "triplet")
