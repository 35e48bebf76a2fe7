"""infer.py --add and --remove: an index changes as its images do, and is whole at every moment."""

import contextlib
import os
import shutil
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import infer
from metric_learning.common.fingerprint import take_snapshot
from metric_learning.engine.search import search, update
from metric_learning.engine.search.lock import lock_of
from metric_learning.retrieval.indexes import load_search_index

pytest.importorskip("faiss")

MACHINE = ["--use_gpu=False", "--num_workers=0"]
MODEL = ["--model=test_resnet", "--image_shape=3,32,32"]


@pytest.fixture
def file(photos, weights):
    """An index of the photos, without classes."""
    found = photos.parent / "photos.index"
    flags = [*MACHINE, *MODEL, f"--pretrained_model={weights}", f"--images={photos}"]
    infer.main([*flags, f"--index={found}"])
    return found


@pytest.fixture
def change(file, change_index):
    """Change the index by infer.py and return it."""

    def run(*flags):
        change_index(file, *flags)
        return load_search_index(file)

    return run


def test_images_are_added_and_removed(change, file, photos, weights, tmp_path):
    other = photos.parent / "class_9"
    index = change(f"--add={other}", f"--remove={photos / 'class_6'}", f"--remove={photos}/class_7")
    expected = tmp_path / "expected.index"
    flags = [*MACHINE, *MODEL, f"--pretrained_model={weights}", f"--index={expected}"]
    infer.main([*flags, f"--images={photos / 'class_8'}", f"--images={other}"])

    whole = load_search_index(expected)
    assert index.paths == whole.paths and len(index) == 8
    queries = np.random.default_rng(0).normal(size=(5, index.embedding_size))
    for found, right in zip(index.search(queries, 8), whole.search(queries, 8), strict=True):
        np.testing.assert_allclose(found, right, atol=1e-6)
    assert (index.snapshot.names, index.snapshot.labels) == (
        whole.snapshot.names,
        whole.snapshot.labels,
    )
    assert (index.snapshot.states == whole.snapshot.states).all()


def test_what_is_there_already_is_embedded_again_only_where_it_changed(change, photos, capsys):
    capsys.readouterr()
    index = change(f"--add={photos}")
    assert "every image is in the index already" in capsys.readouterr().out
    before = dict(zip(index.paths, index.vectors.reconstruct_n(0, 12), strict=True))
    changed = photos / "class_7" / "1.png"
    shutil.copy(photos / "class_6" / "0.png", changed)

    index = change(f"--add={photos}")
    assert "1 images embedded, 0 of them new" in capsys.readouterr().out
    after = dict(zip(index.paths, index.vectors.reconstruct_n(0, 12), strict=True))
    assert len(index) == 12 and set(after) == set(before)
    different = [path for path in after if not np.allclose(after[path], before[path], atol=1e-6)]
    assert different == [str(changed)]
    found = take_snapshot(index.paths)
    assert (found.states == index.snapshot.states).all()


def test_classes_of_new_images_are_those_of_their_folders(
    toy_tree, weights, tmp_path, photos, capsys
):
    file = tmp_path / "set.index"
    flags = [*MACHINE, *MODEL, f"--pretrained_model={weights}", f"--index={file}"]
    infer.main([*flags, "--dataset=folder", f"--data_dir={toy_tree}"])
    deep = tmp_path / "new" / "mugs" / "red"
    deep.mkdir(parents=True)
    shutil.copy(photos / "class_6" / "0.png", deep / "a.png")
    shutil.copytree(photos / "class_7", tmp_path / "more" / "class_7" / "old")
    infer.main(
        [*MACHINE[:1], f"--pretrained_model={weights}", f"--index={file}"]
        + [f"--add={tmp_path / 'new'}", f"--add={tmp_path / 'more'}"]
    )
    index = load_search_index(file)
    assert [index.class_name(row) for row in range(16, 21)] == ["mugs", *["class_7"] * 4]
    assert index.labels[17] == index.labels[4] and index.labels[16] not in index.labels[:16]
    assert index.snapshot.labels[-2:] == ["class_7", "class_7"]
    assert "1 new classes, the first mugs" in capsys.readouterr().out


def test_files_that_are_gone_can_be_removed(change, photos):
    os.remove(photos / "class_6" / "2.png")
    index = change(f"--remove={photos / 'class_6' / '2.png'}")
    assert len(index) == 11 and not any(path.endswith("class_6/2.png") for path in index.paths)


def test_an_image_that_cannot_be_read_is_left_out_and_told(change, photos, tmp_path, capsys):
    (tmp_path / "class_9" / "bad.png").write_bytes(b"no image")
    index = change(f"--add={tmp_path / 'class_9'}")
    assert len(index) == 16 and [*index.metadata["broken"]] == [f"{tmp_path}/class_9/bad.png"]
    shutil.copy(tmp_path / "class_9" / "0.png", tmp_path / "class_9" / "bad.png")
    assert change(f"--add={tmp_path / 'class_9'}").metadata["broken"] == {}


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--remove={photos}/nothing"], "holds no such image or folder"),
        (["--remove={photos}"], "would leave no image"),
        (["--add={photos}"], "expected --pretrained_model"),
        (["--add={photos}", "--pretrained_model={other}"], "other weights"),
        (["--add={photos}/nothing", "--pretrained_model={weights}"], "no such image or folder"),
        (["--remove={photos}", "--query={photos}", "--pretrained_model={weights}"], "stays as"),
        (["--remove={photos}", "--batch_size=3"], "--batch_size is not used"),
        (["--remove={photos}", "--topk=3"], "--topk is not used"),
        (["--remove={photos}", "--index_type=hnsw"], "--index_type is not used"),
    ],
)
def test_wrong_changes_are_refused_and_change_nothing(
    flags, words, file, photos, weights, tmp_path, error_of
):
    import torch

    from metric_learning.models import build_model

    other = tmp_path / "other.pth"
    torch.save(build_model("test_resnet").state_dict(), other)
    before = file.read_bytes()
    texts = {"photos": photos, "weights": weights, "other": other}
    given = [flag.format(**texts) for flag in flags]
    assert words in error_of(infer.main, ["--use_gpu=False", f"--index={file}", *given])
    assert file.read_bytes() == before


def test_a_change_without_an_index_is_refused(error_of, photos):
    assert "--index=FILE" in error_of(infer.main, [f"--remove={photos}"])


def test_an_interrupted_addition_goes_on(change, file, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(update, "ROUND", 2)
    monkeypatch.setattr(update, "SAVE_EVERY", 0)
    embed, rounds = update.add_round, []

    def stops(*arguments):
        rounds.append(1)
        if len(rounds) == 2:
            raise KeyboardInterrupt
        return embed(*arguments)

    monkeypatch.setattr(update, "add_round", stops)
    with pytest.raises(SystemExit):
        change(f"--add={tmp_path / 'class_9'}")
    assert len(load_search_index(file)) == 14
    assert len(change(f"--add={tmp_path / 'class_9'}")) == 16


@contextlib.contextmanager
def held_by_another(file):
    """Let another process hold the lock of an index."""
    program = "import fcntl, sys; file = open(sys.argv[1], 'a'); fcntl.lockf(file, fcntl.LOCK_EX); "
    program += "print('held', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", program, str(lock_of(str(file)))]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def test_an_index_that_another_command_has_is_not_built_again(
    file, photos, weights, tmp_path, error_of
):
    before = file.read_bytes()
    link = tmp_path / "link.index"
    link.symlink_to(file)
    flags = [*MACHINE, *MODEL, f"--pretrained_model={weights}", f"--images={photos}"]
    with held_by_another(file):
        for name in (file, link):
            words = error_of(infer.main, [*flags, f"--index={name}"])
            assert f"--index={name}: another command is building or changing it" in words
    assert file.read_bytes() == before and not (tmp_path / "photos.index.partial").exists()
    infer.main([*flags, f"--index={file}"])  # it is free again
    assert not lock_of(str(file)).exists()


def test_a_change_waits_until_an_index_is_free(change, file, photos, capsys):
    with held_by_another(file) as other:
        ends = threading.Timer(0.5, other.stdin.close)
        ends.start()
        index = change(f"--remove={photos / 'class_6'}")
        ends.join()
    assert len(index) == 8 and not lock_of(str(file)).exists()
    assert (
        f"{file} is being built or changed by another command, waiting" in capsys.readouterr().out
    )


def test_an_index_is_held_while_it_is_built(photos, weights, tmp_path, monkeypatch):
    file, seen = tmp_path / "new.index", []
    write = search.write_index

    def look(*arguments):
        seen.append(lock_of(str(file)).exists())
        write(*arguments)

    monkeypatch.setattr(search, "write_index", look)
    flags = [*MACHINE, *MODEL, f"--pretrained_model={weights}", f"--images={photos}"]
    infer.main([*flags, f"--index={file}"])
    assert seen == [True] and not lock_of(str(file)).exists()


@pytest.mark.slow
def test_changes_of_several_processes_come_one_after_the_other(file, photos, weights, tmp_path):
    command = [sys.executable, "infer.py", "--use_gpu=False", f"--index={file}"]
    changes = [
        [f"--add={tmp_path / 'class_9'}", f"--pretrained_model={weights}"],
        [f"--remove={photos / 'class_6'}"],
        [f"--remove={photos / 'class_7' / '0.png'}"],
    ]
    processes = [subprocess.Popen([*command, *flags]) for flags in changes]
    deadline = time.monotonic() + 100
    while any(process.poll() is None for process in processes):
        assert time.monotonic() < deadline
        assert len(load_search_index(file)) in range(7, 17)
        time.sleep(0.05)
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert len(load_search_index(file)) == 12 + 4 - 4 - 1
