"""infer.py on an index in Milvus Lite: built, asked, and changed by --add and --remove."""

import fcntl
import shutil

import pytest
import torch

import infer
from metric_learning.models import build_model
from metric_learning.retrieval.milvus import open_milvus_index

pytest.importorskip("faiss")
pytest.importorskip("pymilvus")
pytest.importorskip("milvus_lite")

MACHINE = ["--use_gpu=False", "--num_workers=0"]
MODEL = ["--model=test_resnet", "--image_shape=3,32,32"]


@pytest.fixture
def place(photos, weights, tmp_path):
    """An index of the photos with their classes and a threshold."""
    shutil.copytree(photos, tmp_path / "set" / "test")
    found = f"milvus:{tmp_path / 'photos.db'}#photos"
    flags = [*MACHINE, *MODEL, f"--pretrained_model={weights}", f"--index={found}"]
    data = ["--dataset=folder", f"--data_dir={tmp_path / 'set'}"]
    infer.main([*flags, *data, "--unknown_threshold=0.25"])
    return found


@pytest.fixture
def change(place, change_index):
    """Change the index by infer.py and return its paths, in the order of the rows."""

    def run(*flags):
        change_index(place, *flags)
        index = open_milvus_index(place)
        try:
            assert index.metadata["unknown_threshold"]["cosine"] == 0.25
            return index.held().paths
        finally:
            index.client.close()

    return run


def test_images_are_added_removed_and_embedded_again(
    change, place, weights, tmp_path, photos, capsys
):
    inside = tmp_path / "set" / "test"
    paths = change(f"--add={tmp_path / 'class_9'}", f"--remove={inside / 'class_6'}")
    assert len(paths) == 12 and not any("class_6" in path for path in paths)
    assert paths[-4:] == [f"{tmp_path}/class_9/{n}.png" for n in range(4)]
    out = capsys.readouterr().out
    assert "4 images removed" in out and "1 new classes, the first class_9" in out

    assert change(f"--add={tmp_path / 'class_9'}") == paths
    assert "every image is in the index already" in capsys.readouterr().out
    changed = tmp_path / "class_9" / "2.png"
    shutil.copy(photos / "class_7" / "0.png", changed)
    assert change(f"--add={tmp_path / 'class_9'}") == paths
    assert "1 images embedded, 0 of them new" in capsys.readouterr().out

    ask = [*MACHINE, f"--pretrained_model={weights}", f"--index={place}", f"--query={changed}"]
    (answer,) = infer.main([*ask, "--topk=2"])
    found = answer["neighbours"]
    assert {one["path"] for one in found} == {str(changed), str(inside / "class_7" / "0.png")}
    assert all(one["cosine"] == pytest.approx(1, abs=1e-5) for one in found)
    assert {one["class_name"] for one in found} == {"class_9", "class_7"}


def test_answers_that_have_changed_are_refused(place, weights, photos, tmp_path, error_of):
    ask = [*MACHINE, f"--pretrained_model={weights}", f"--index={place}"]
    ask += [f"--query={photos / 'class_7' / '0.png'}", "--topk=1"]
    (answer,) = infer.main(ask)
    found = answer["neighbours"][0]
    assert found["is_here"] and found["path"] == str(tmp_path / "set/test/class_7/0.png")
    shutil.copy(photos / "class_8" / "0.png", found["path"])
    assert "1 of the 1 images found have changed since it was built" in error_of(infer.main, ask)
    (answer,) = infer.main([*ask, "--on_changed_data=accept"])
    assert answer["neighbours"][0]["row"] == found["row"]


def test_wrong_changes_are_one_line(place, weights, photos, tmp_path, error_of):
    other = tmp_path / "other.pth"
    torch.save(build_model("test_resnet").state_dict(), other)
    flags = [MACHINE[0], f"--index={place}"]
    for words, message in (
        ([f"--remove={photos}"], "holds no such image or folder"),
        ([f"--remove={tmp_path}"], "would leave no image"),
        ([f"--add={photos}", f"--pretrained_model={other}"], "other weights"),
        ([f"--add={photos}"], "expected --pretrained_model"),
    ):
        assert message in error_of(infer.main, [*flags, *words])
    error = error_of(infer.main, [*flags[:1], f"--index={place}_2", f"--remove={photos}"])
    assert "holds no index photos_2" in error
    index = open_milvus_index(place)
    assert len(index) == 12
    index.client.close()


def test_a_database_that_another_process_has_is_one_line(weights, photos, tmp_path, error_of):
    (tmp_path / "other.db").mkdir()
    index = f"--index=milvus:{tmp_path / 'other.db'}#photos"
    build = [*MACHINE, *MODEL, f"--pretrained_model={weights}", f"--images={photos}"]
    with (tmp_path / "other.db" / "LOCK").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for words in (build, [MACHINE[0], f"--remove={photos}"]):
            error = error_of(infer.main, [*words, index])
            assert "other.db: another process has it open" in error
