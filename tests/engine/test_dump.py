"""Dumps of features: in shards, broken off, shared among processes, always the same bytes."""

import contextlib
import filecmp
import io
import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from processes import wait_until
from sharing import end_well, launch

import eval as eval_script
import infer
from metric_learning import open_features
from metric_learning.common.flags import last_of_each
from metric_learning.engine.embed import embedding
from metric_learning.engine.embed.dump import digits, lines
from metric_learning.engine.embed.dump.partial import Journal, Partial
from metric_learning.engine.report.subjects import of_features
from metric_learning.retrieval.indexes import load_search_index
from metric_learning.retrieval.unit import unit_rows

ROOT = Path(infer.__file__).resolve().parent
NUM_KILLS = 10
MODEL = ["--pretrained_model=random", "--model=test_resnet", "--image_shape=3,32,32"]
MODEL += ["--use_gpu=False", "--num_workers=0", "--batch_size=3"]


@pytest.fixture(scope="module")
def flags(toy_tree):
    return [*MODEL, "--dataset=folder", f"--data_dir={toy_tree}", "--split=all"]


@pytest.fixture(scope="module")
def whole(flags, tmp_path_factory):
    """A dump of one process, in one file."""
    return infer.main([*flags, f"--output_dir={tmp_path_factory.mktemp('whole') / 'dump'}"])


def lines_of(out):
    return [line for line in out.splitlines() if line.startswith("Test-")]


def assert_same(ours, theirs, names=("features.npy", "paths.txt", "labels.txt")):
    assert filecmp.cmpfiles(ours, theirs, names, shallow=False) == ([*names], [], [])


def vectors(rng):
    """Vectors of all sizes, signs and magnitudes that NumPy writes in its different ways."""
    normal = rng.normal(size=(200, 16))
    scales = 10.0 ** rng.integers(-30, 30, (200, 1))
    yield from (normal, np.maximum(normal, 0), 1 + np.abs(normal), normal * scales)
    yield normal * 10.0 ** rng.integers(-37, 37, (200, 16))
    yield (1 + rng.random((200, 4))) * 10.0 ** rng.integers(-5, 9, (200, 1))
    yield from (rng.integers(-9, 9, (200, 5)), np.round(normal, 2), np.zeros((2, 3)))
    yield [[1e-45, 1], [np.inf, 1], [np.nan, 1], [1e8, 1], [1e6, 1e6], [1e-4, 1e-4], [-0.0, 0.1]]
    yield rng.normal(size=(2, 1001))


def test_the_text_of_features_is_numpy_s():
    rng = np.random.default_rng(0)
    for block in vectors(rng):
        rows = np.asarray(block, np.float32)
        expected = [np.array2string(row, max_line_width=10**9, separator=" ") for row in rows]
        assert digits.to_texts(rows) == expected
    bits = rng.integers(0, 2**32, (4000, 2), np.uint32).view(np.float32)
    bits = bits[np.isfinite(bits).all(1)]
    assert digits.to_texts(bits) == [digits.to_text(row) for row in bits]


def test_most_texts_are_not_numpy_s_work(monkeypatch):
    monkeypatch.setattr(digits, "to_text", lambda row: "asked")
    rows = np.random.default_rng(0).normal(size=(100, 64)).astype(np.float32)
    for block in (rows, 1 + np.abs(rows)):
        assert digits.to_texts(block).count("asked") < 5


def test_shards_are_one_array(flags, whole, tmp_path):
    folder = infer.main([*flags, "--shard_size=7", f"--output_dir={tmp_path / 'shards'}"])
    names = [f"features-{n:05}-of-00006.npy" for n in range(6)]
    assert sorted(os.listdir(folder)) == [*names, "labels.txt", "meta.json", "paths.txt"]
    expected = np.load(whole / "features.npy")
    parts = [np.load(folder / name) for name in names]
    assert [len(part) for part in parts] == [7, 7, 7, 7, 7, 5]
    assert np.array_equal(np.concatenate(parts), expected)

    found = open_features(folder).embeddings
    assert found.shape == expected.shape and found.dtype == np.float32
    assert np.array_equal(np.asarray(found), expected) and np.array_equal([*found], expected)
    for rows in (0, -1, slice(5, 17), slice(None, None, -3), [20, 3, 3], expected[:, 0] > 0.1):
        assert np.array_equal(found[rows], expected[rows])
    assert np.array_equal(found[5:9, 2], expected[5:9, 2])
    with pytest.raises(IndexError):
        found[40]
    assert np.array_equal(of_features(folder).embeddings, expected)


def test_a_dump_goes_on_where_it_was(flags, whole, tmp_path, broken_off, capsys, monkeypatch):
    """A former dump stays until the new one is whole; nothing is computed twice."""
    folder = tmp_path / "dump"
    infer.main([*flags, "--split=test", f"--output_dir={folder}"])
    former = [(path, path.read_bytes()) for path in sorted(folder.iterdir())]
    mine = [*flags, f"--output_dir={folder}"]
    broken_off(mine, 4)
    assert all(path.read_bytes() == content for path, content in former)
    assert len(open_features(folder)) == 16

    added = []
    add = Journal.add
    monkeypatch.setattr(Journal, "add", lambda *words: added.append(words[1]) or add(*words))
    capsys.readouterr()
    infer.main(mine)
    out = capsys.readouterr().out
    assert added == list(range(4, 14)) and "4 of 14 parts of the work are there already" in out
    assert len(lines_of(out)) == 40 and lines_of(out)[39].startswith("Test-39-feature: [")
    assert sorted(os.listdir(folder)) == ["features.npy", "labels.txt", "meta.json", "paths.txt"]
    assert_same(folder, whole)


def test_lines_are_made_beside_the_main_thread_and_printed_in_it(flags, tmp_path, monkeypatch):
    """In order, few parts ahead; what goes wrong in the thread ends the command."""
    made, shown, ahead = [], [], []
    to_texts, show = lines.to_texts, lines.show

    def note_texts(rows):
        made.append(threading.current_thread())
        return to_texts(rows)

    def note_show(text):
        shown.append(threading.current_thread())
        ahead.append(len(made) - len(shown))
        show(text)

    monkeypatch.setattr(lines, "LINES_AT_ONCE", 1)
    monkeypatch.setattr(lines, "to_texts", note_texts)
    monkeypatch.setattr(lines, "show", note_show)
    infer.main([*flags, f"--output_dir={tmp_path / 'dump'}"])
    assert len(made) == len(shown) == 40
    assert {*shown} == {threading.main_thread()} and not {*made} & {*shown}
    assert max(ahead) <= lines.MOST_WAITING

    def fail(rows):
        raise ValueError("no text")

    monkeypatch.setattr(lines, "to_texts", fail)
    with pytest.raises(SystemExit):
        infer.main([*flags, f"--output_dir={tmp_path / 'other'}"])
    assert not any(thread.name.startswith("lines") for thread in threading.enumerate())


def test_what_others_do_after_a_resume_is_noted(flags, tmp_path, broken_off, monkeypatch):
    """Their journals begin anew, however long those of the killed processes were."""
    words = [*flags, f"--output_dir={tmp_path / 'dump'}"]
    broken_off(words, 5)
    journal = tmp_path / "dump" / "partial" / "done-00001.jsonl"
    journal.with_name("done-00000.jsonl").rename(journal)
    take_up, noted = Partial.open, []

    def take_up_and_note(work, *rest):
        missing = take_up(work, *rest)
        journal.write_text(json.dumps({"chunk": missing[0], "broken": []}) + "\n")
        work.poll()
        noted.append(missing[0] in work.done)
        return missing

    monkeypatch.setattr(Partial, "open", take_up_and_note)
    infer.main(words)
    assert noted == [True]


def test_unfinished_work_is_no_dump_and_of_one_command(flags, tmp_path, broken_off, error_of):
    folder = tmp_path / "dump"
    broken_off([*flags, f"--output_dir={folder}"], 2)
    with pytest.raises(ValueError, match="unfinished dump, without meta.json"):
        open_features(folder)
    for other in ("--seed=1", "--split=test", "--batch_size=2", "--shard_size=9"):
        error = error_of(infer.main, last_of_each([*flags, f"--output_dir={folder}", other]))
        assert "is unfinished work of another command, its " in error
    (folder / "partial" / "notes.txt").touch()
    error = error_of(infer.main, [*flags, f"--output_dir={folder}"])
    assert "holds partial/notes.txt, which is not of a dump of features" in error


def test_images_that_change_between_are_computed_again(tmp_path, toy_tree, broken_off, capsys):
    photos = tmp_path / "photos"
    photos.mkdir()
    files = sorted((toy_tree / "test").glob("*/*.png"))
    for number, file in enumerate(files[:6]):
        (photos / f"{number}.png").write_bytes(file.read_bytes())
    words = [*MODEL, "--batch_size=2", f"--images={photos}", f"--output_dir={tmp_path / 'dump'}"]
    broken_off(words, 2)
    (photos / "1.png").write_bytes(files[9].read_bytes())
    folder = infer.main(words)
    other = infer.main([*words, f"--output_dir={tmp_path / 'other'}"])
    assert_same(folder, other, ("features.npy", "paths.txt"))
    kept = [
        json.loads((place / "meta.json").read_text())["depends_on"] for place in (folder, other)
    ]
    assert kept[0] == kept[1]


@pytest.mark.parametrize("step", range(1, 8))
def test_the_end_of_a_dump_can_be_broken_off_too(flags, whole, tmp_path, monkeypatch, step):
    """The files take their places one after the other; the next call goes on with it."""
    folder = tmp_path / "dump"
    infer.main([*flags, "--split=test", "--shard_size=9", f"--output_dir={folder}"])
    replace, count = os.replace, 0

    def replace_some(source, target):
        nonlocal count
        count += str(source).startswith(str(folder)) and Path(source).suffix != ".tmp"
        if count == step:
            raise KeyboardInterrupt
        replace(source, target)

    words = [*flags, f"--output_dir={folder}"]
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace_some)
        try:
            infer.main(words)
        except SystemExit:
            assert (folder / "partial").exists()
    infer.main(words)
    assert sorted(os.listdir(folder)) == ["features.npy", "labels.txt", "meta.json", "paths.txt"]
    assert_same(folder, whole)


def test_processes_share_a_dump_and_are_killed(flags, whole, tmp_path):
    """Killed as one process, it goes on as two; its bytes are those of one."""
    folder = tmp_path / "dump"
    words = [*last_of_each([*flags, f"--output_dir={folder}"])]
    (process,) = launch(words, 1)
    wait_until((folder / "partial" / "done.jsonl").exists)
    process.kill()
    process.join()
    end_well(launch(words, 2))
    assert_same(folder, whole)


def test_processes_share_an_index(flags, whole, tmp_path):
    """It holds what an index of one process does."""
    pytest.importorskip("faiss")
    file = tmp_path / "photos.index"
    end_well(launch([*last_of_each([*flags, f"--index={file}"])], 2))
    found = load_search_index(file)
    assert found.paths == open_features(whole).paths
    unit = found.vectors.reconstruct_n(0, len(found))
    assert np.array_equal(unit, unit_rows(np.load(whole / "features.npy")).numpy())


@pytest.fixture
def many(toy_tree, tmp_path, capsys):
    """Flags of a dump that takes some seconds; its folder and lines when it is not disturbed."""
    listed = tmp_path / "many.txt"
    listed.write_text("".join(f"{file}\n" for file in sorted(toy_tree.glob("*/*/*.png")) * 200))
    flags = [*last_of_each([*MODEL, f"--images={listed}"])]
    folder = infer.main([*flags, f"--output_dir={tmp_path / 'undisturbed'}"])
    return flags, folder, lines_of(capsys.readouterr().out)


@pytest.mark.slow
def test_ten_kills_change_no_byte(many, tmp_path, capsys):
    """Of one, two and three processes; at the end the lines of all images are printed."""
    flags, undisturbed, expected = many
    folder = tmp_path / "dump"
    words = [*flags, f"--output_dir={folder}"]
    rng = random.Random(0)
    for number in range(NUM_KILLS):
        before = noted_at(folder)
        processes = launch(words, number % 3 + 1, sync_seconds=0.05)
        wait_until(lambda before=before: noted_at(folder) > before)
        time.sleep(rng.random() / 10)
        assert not (folder / "meta.json").exists()
        for process in processes:
            process.kill()
            process.join()

    infer.main(words)
    out = capsys.readouterr().out
    assert "parts of the work are there already" in out and lines_of(out) == expected
    assert_same(folder, undisturbed, ("features.npy", "paths.txt"))


def noted_at(folder):
    """When processes last noted what they had done."""
    times = [0]
    with contextlib.suppress(FileNotFoundError):
        for file in (folder / "partial").glob("done-*.jsonl"):
            times.append(file.stat().st_mtime_ns)
    return max(times)


@pytest.mark.slow
def test_a_full_disk_stops_a_dump_which_goes_on_later(many, tmp_path, error_of):
    flags, undisturbed, _ = many
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs to mount a small disk")
    try:
        words = [*flags, f"--output_dir={disk / 'dump'}"]
        assert "No space left on device" in error_of(infer.main, words)
        subprocess.run(["mount", "-o", "remount,size=50m", str(disk)], check=True)
        assert_same(infer.main(words), undisturbed, ("features.npy", "paths.txt"))
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_fewer_bits(flags, whole, tmp_path, capsys, dtype):
    words = [*flags, f"--feature_dtype={dtype}", "--normalize=True", "--shard_size=30"]
    folder = infer.main([*words, f"--output_dir={tmp_path / 'dump'}"])
    out = capsys.readouterr().out
    exact = np.load(whole / "features.npy").astype(np.float64)
    exact /= np.linalg.norm(exact, axis=1, keepdims=True)
    found = np.asarray(open_features(folder).embeddings)
    assert found.dtype == (np.float16 if dtype == "float16" else np.float32)
    steps = {"float32": 1e-6, "float16": 5e-4, "int8": 0.5 / 127 * 1.001}[dtype]
    assert (np.abs(found - exact) <= steps * np.abs(exact).max(1, keepdims=True)).all()
    stored = np.load(folder / "features-00000-of-00002.npy")
    assert stored.dtype == np.dtype(dtype) and len(stored) == 30
    assert ("Recall@1 of " in out) == (dtype != "float32")
    if dtype != "float32":
        labels = open_features(folder).labels
        for rows, name in ((exact, "float32"), (found.astype(np.float64), dtype)):
            cosines = rows @ rows.T / np.linalg.norm(rows, axis=1)
            np.fill_diagonal(cosines, -2)
            expected = (labels[cosines.argmax(1)] == labels).mean()
            assert f"{name} {expected:.5f}" in out or f"{name} features {expected:.5f}" in out


@pytest.mark.parametrize("more", [[], ["--shard_size=7", "--feature_dtype=int8"]])
def test_a_dump_is_evaluated_and_indexed_instead_of_images(flags, tmp_path, more, monkeypatch):
    """What is measured of its features is what is measured of those of the images, to its bits."""
    pytest.importorskip("faiss")
    about, file = [*flags[:-1], "--split=test"], tmp_path / "found.index"
    dump = infer.main([*about, *more, f"--output_dir={tmp_path / 'dump'}"])
    expected = eval_script.main(about)
    computed = infer.main([*about, f"--index={file}"])
    vectors = load_search_index(computed).vectors.reconstruct_n(0, 16)
    monkeypatch.setattr(embedding, "load_images", None)  # nothing is computed again

    about = [word for word in about if word.split("=")[0] not in ("--batch_size", "--num_workers")]
    found = eval_script.main([*about, f"--features={dump}"])
    compared = eval_script.main([*about[1:], "--compare", str(dump), str(dump)])
    for result in (compared["first"], compared["second"]):
        assert result["recall@1"] == found["recall@1"]
    infer.main([*about, f"--features={dump}", f"--index={file}"])
    kept = load_search_index(file)
    assert kept.paths == open_features(dump).paths and kept.class_name(0) == "class_6"
    rows = unit_rows(np.asarray(open_features(dump).embeddings)).numpy()
    assert np.array_equal(kept.vectors.reconstruct_n(0, 16), rows)
    if not more:
        assert found["recall@1"] == expected["recall@1"] and np.allclose(rows, vectors, atol=1e-6)


def test_an_index_of_a_dump_leaves_out_what_the_dump_does(tmp_path, toy_tree):
    pytest.importorskip("faiss")
    photos, file = tmp_path / "photos", tmp_path / "photos.index"
    shutil.copytree(toy_tree / "test" / "class_6", photos)
    (photos / "1.png").write_bytes(b"no image")
    about = [*MODEL[:4], f"--images={photos}"]
    dump = infer.main([*about, "--on_bad_image=skip", f"--output_dir={tmp_path / 'dump'}"])
    infer.main([*about, f"--features={dump}", f"--index={file}"])
    found = load_search_index(file)
    assert found.paths == [str(photos / f"{number}.png") for number in (0, 2, 3)]
    assert [*found.metadata["broken"]] == [str(photos / "1.png")]


def test_a_dump_of_something_else_is_not_evaluated(flags, whole, tmp_path, error_of):
    words = [word for word in flags if word.split("=")[0] not in ("--batch_size", "--num_workers")]
    for more, message in (
        (["--seed=1"], "holds features of other weights"),
        (["--split=test"], "holds features of other images, or these have changed since"),
        (["--batch_size=4"], "--batch_size is not used"),
        ([f"--features={tmp_path}"], "holds no meta.json"),
    ):
        asked = last_of_each([*words, f"--features={whole}", *more])
        assert message in error_of(eval_script.main, asked)
    pair = [*words[1:], "--compare", whole, tmp_path]
    assert "holds no meta.json: expected a checkpoint" in error_of(eval_script.main, pair)
    assert "--features is not used (without --index)" in error_of(
        infer.main, [*flags, f"--features={whole}"]
    )
    unit = infer.main([*flags, "--normalize=True", f"--output_dir={tmp_path / 'unit'}"])
    asked = [*words, f"--features={unit}", "--distance=euclidean"]
    assert "holds normalised features" in error_of(eval_script.main, asked)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_parquet_holds_the_same(flags, tmp_path, dtype, broken_off):
    parquet = pytest.importorskip("pyarrow.parquet")
    words = [*flags, "--parquet=True", f"--feature_dtype={dtype}", "--shard_size=25"]
    words.append(f"--output_dir={tmp_path / 'dump'}")
    broken_off(words, 3)
    folder = infer.main(infer.main(words) and words)  # which replaces it
    found = open_features(folder)
    tables = [parquet.read_table(file) for file in sorted(folder.glob("*.parquet"))]
    assert [len(table) for table in tables] == [25, 15]
    start = 0
    for table in tables:
        rows = slice(start, start := start + len(table))
        assert table.column_names == ["path", "label", "class_name", "feature"]
        kind = table.schema.field("feature").type
        assert kind.list_size == 96 and kind.value_type == {"float16": "halffloat"}.get(
            dtype, "float"
        )
        assert table["path"].to_pylist() == found.paths[rows]
        assert table["label"].to_pylist() == found.labels[rows].tolist()
        assert table["class_name"].to_pylist() == [
            Path(path).parent.name for path in found.paths[rows]
        ]
        features = table["feature"].combine_chunks().flatten().to_numpy().reshape(-1, 96)
        assert np.array_equal(features, found.embeddings[rows])


def test_parquet_without_pyarrow_is_one_line(flags, tmp_path, error_of, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    error = error_of(infer.main, [*flags, "--parquet=True", f"--output_dir={tmp_path / 'dump'}"])
    assert error == "error: --parquet needs the package pyarrow: pip install pyarrow\n"


def test_images_come_from_lists(tmp_path, toy_tree, error_of, monkeypatch):
    """A text list, a CSV file, standard input, and several of them, in their order."""
    files = sorted(map(str, (toy_tree / "test").glob("*/*.png")))
    listed, table = tmp_path / "list.txt", toy_tree / "table.csv"
    listed.write_text("\n".join(files[:3]) + "\n\n" + files[3] + "\r\n")
    names = [os.path.relpath(file, toy_tree) for file in files[4:6]]
    table.write_text("label,path\n" + "".join(f"a,{name}\n" for name in names))
    folder = tmp_path / "folder"
    shutil.copytree(toy_tree / "test" / "class_9", folder)
    expected = {
        (f"--images={listed}",): files[:4],
        (f"--images={table}",): files[4:6],
        (f"--images={listed}", f"--images={table}", f"--images={files[7]}"): [*files[:6], files[7]],
    }
    for words, paths in expected.items():
        out = infer.main([*MODEL, *words, f"--output_dir={tmp_path / 'dump'}"])
        assert open_features(out).paths == paths
        alone = infer.main([*MODEL, f"--images={paths[-1]}", f"--output_dir={tmp_path / 'one'}"])
        np.testing.assert_allclose(
            np.load(out / "features.npy")[-1], np.load(alone / "features.npy")[0], rtol=1e-4
        )

    typed = io.TextIOWrapper(io.BytesIO("\n".join(files[:2]).encode()))
    monkeypatch.setattr(sys, "stdin", typed)
    infer.main([*MODEL, "--images=-", f"--output_dir={out}"])
    assert open_features(out).paths == files[:2]
    table.write_text("file,label\na.png,a\n")
    assert "expected a column path, found file, label" in error_of(
        infer.main, [*MODEL, f"--images={table}"]
    )
    table.unlink()
    listed.write_text("\n")
    assert "expected paths of images, one a line" in error_of(
        infer.main, [*MODEL, f"--images={listed}"]
    )


def test_a_damaged_journal_and_a_second_writer_are_one_line(flags, tmp_path, broken_off, error_of):
    words = [*flags, f"--output_dir={tmp_path / 'dump'}"]
    broken_off(words, 2)
    folder = tmp_path / "dump" / "partial"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=folder
    )
    assert holder.stdout.readline() == b"held\n"
    assert "another command is writing its features there" in error_of(infer.main, words)
    holder.communicate(b"\n")
    (folder / "done-00000.jsonl").write_text('{"chunk": 99, "broken": []}\n')
    assert "done-00000.jsonl is damaged" in error_of(infer.main, words)


HOLD = """
import fcntl, sys
file = open("lock", "a")
fcntl.lockf(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.readline()
"""
