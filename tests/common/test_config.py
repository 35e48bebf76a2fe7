"""YAML files of flags and boards: those that come with the project are found from any folder."""

import pytest

from metric_learning.common.config import find_config, read_config, read_tree


def test_a_file_of_the_project_is_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert read_config("configs/demo_eml.yaml")["loss_name"] == "eml"
    assert "rows" in read_tree("configs/boards/demo.yaml", "board")


def test_one_s_own_file_of_the_same_name_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "demo_eml.yaml").write_text("loss_name: triplet\n")
    assert read_config("configs/demo_eml.yaml") == {"loss_name": "triplet"}


@pytest.mark.parametrize("name", ["demo_eml.yaml", "configs/none.yaml", "/configs/demo_eml.yaml"])
def test_other_names_mean_what_they_say(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert str(find_config(name)) == name
    with pytest.raises(FileNotFoundError):
        read_config(name)
