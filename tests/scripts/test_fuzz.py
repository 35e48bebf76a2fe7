"""Files and flags that were made up: one line and status 2, or a harmless success, never more.

The quick part hands them to what reads each kind of file. The slow one gives 300 of them to the
scripts, as a stranger would.
"""

import copy
import io
import json
import os
import pickle
import random
import shutil
import signal
import zipfile

import numpy as np
import pytest
import torch

import eval as eval_script
import infer
import train_elem
import train_pair
from metric_learning.common import flags as common_flags
from metric_learning.common.arrays import open_array
from metric_learning.common.cli import user_errors
from metric_learning.common.config import read_config
from metric_learning.common.flags import parse_flags
from metric_learning.engine.embed.dump.opened import open_features
from metric_learning.engine.report import __main__ as report
from metric_learning.engine.report import summary
from metric_learning.engine.run.records import read_records
from metric_learning.models.weights.metadata import own_metadata
from metric_learning.retrieval import indexes

REFUSE_REPEATED = common_flags._refuse_repeated
PATIENCE = 30  # seconds that one case may take
NUM_QUICK, NUM_SLOW = 12, 30  # of each kind
NESTED = json.loads("[" * 40 + "]" * 40)
ODD = [None, True, -1, 0, 2**40, 10**30, 1e308, float("nan"), "", "x", "\ud800", "a\nb", [], {}]
ODD += [[[1]], NESTED, {"a": NESTED}, "../../etc/passwd", ["x"] * 3, [3, 0, 0], "__import__('os')"]
META = {
    "model": "test_resnet",
    "embedding_size": 0,
    "mean": [0.5, 0.5, 0.5],
    "std": [0.2, 0.2, 0.2],
    "loss": "softmax",
    "loss_options": {"class_dim": 4, "embedding_size": 8},
    "class_names": ["a", "b"],
    "flags": {"image_shape": [3, 32, 32], "dataset": "folder"},
}


def changed_value(value, rng):
    """Replace, remove or double something somewhere in lists and dicts."""
    value = copy.deepcopy(value)
    holder, key = {"": value}, ""
    while isinstance(holder[key], dict | list) and holder[key] and rng.random() < 0.8:
        holder = holder[key]
        key = rng.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
        if rng.random() < 0.1:
            break
    if holder is not value and key == "":
        return copy.deepcopy(rng.choice(ODD))
    if rng.random() < 0.2:
        del holder[key]
    else:
        holder[key] = copy.deepcopy(rng.choice(ODD))
    return value


def changed_bytes(content, rng):
    """Flip, cut, insert or double some bytes."""
    content = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8))):
        place = rng.randrange(len(content) + 1)
        end = min(len(content), place + rng.choice((1, 1, 4, 64)))
        new = rng.choice(
            (
                b"",
                rng.randbytes(end - place),
                content[place:end] * 2,
                b"\0",
                b"\xff",
                b"\n",
                b"9" * 20,
            )
        )
        content[place:end] = new
    return bytes(content[: rng.randrange(1, len(content) + 1)] if rng.random() < 0.1 else content)


def changed_json(value, rng):
    """Change the value of a JSON text, or its bytes."""
    if rng.random() < 0.6:
        return json.dumps(changed_value(value, rng)).encode()
    return changed_bytes(json.dumps(value).encode(), rng)


def write_config(file, rng):
    lines = ["model: ResNet18", "lr: 0.1", "seed: 3", "lr_steps: [3, 4]", "run_name: no"]
    lines += rng.choices(
        [
            "a: &x [*x]",
            "lr: *x",
            "? [lr]",
            "!!python/name:os.system : 1",
            "lr: {a: [[[[1]]]]}",
            "---",
        ],
        k=rng.choice((0, 1)),
    )
    rng.shuffle(lines)
    text = "\n".join(lines).encode()
    file.write_bytes(changed_bytes(text, rng) if rng.random() < 0.7 else text)


def write_stats(file, rng):
    records = [{"kind": "train", "step": n, "loss": 0.5, "recall": 0.1} for n in range(4)]
    records.append({"kind": "test", "step": 4, "recall@1": 0.5})
    chosen = rng.randrange(len(records))
    lines = [json.dumps(record).encode() for record in records]
    lines[chosen] = changed_json(records[chosen], rng)
    file.write_bytes(b"\n".join(lines) + b"\n")


def write_array(file, rng):
    content = io.BytesIO()
    np.save(content, rng.choice((np.eye(4, dtype=np.float32), np.arange(4), np.eye(2) * np.nan)))
    data = content.getvalue()
    head = changed_bytes(data[:128], rng) + data[128:]
    file.write_bytes(rng.choice((head, changed_bytes(data, rng))))


def write_dump(folder, rng):
    """Write a folder of features, one file of which is changed."""
    folder.mkdir()
    paths = [f"{n}.png" for n in range(4)]
    meta = {"images": 4, "dimensions": 4, "flags": {"dataset": "folder", "split": "test"}}
    contents = {
        "paths.txt": "".join(f"{path}\n" for path in paths).encode(),
        "labels.txt": b"0\n0\n1\n1\n",
        "meta.json": json.dumps(meta).encode(),
    }
    np.save(folder / "features.npy", np.eye(4, dtype=np.float32))
    chosen = rng.choice((*contents, "features.npy"))
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    if chosen == "features.npy":
        write_array(folder / chosen, rng)
    elif chosen == "meta.json":
        (folder / chosen).write_bytes(changed_json(meta, rng))
    else:
        (folder / chosen).write_bytes(changed_bytes(contents[chosen], rng))


def write_index(file, rng, metadata=None):
    """Write a search index whose header is changed, and sometimes its bytes."""
    rows = np.eye(4, 8, dtype=np.float32)
    paths = [f"{n}.png" for n in range(4)]
    index = indexes.build_index(rows, paths, labels=[0, 0, 1, 1], metadata=metadata)
    index.save(file)
    if rng.random() < 0.3:
        file.write_bytes(changed_bytes(file.read_bytes(), rng))
        return
    with zipfile.ZipFile(file) as archive:
        header, vectors = (archive.read(name) for name in (indexes.HEADER, indexes.VECTORS))
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(indexes.HEADER, changed_json(json.loads(header), rng))
        archive.writestr(indexes.VECTORS, vectors)


def write_list(file, rng):
    lines = "".join(f"class_{n // 4}/{n % 4}.png {n // 4}\n" for n in range(8))
    file.write_bytes(changed_bytes(lines.encode(), rng))


def write_csv(file, rng):
    rows = "".join(f"class_{n // 4}/{n % 4}.png,c{n // 4},{n % 2}\n" for n in range(8))
    file.write_bytes(changed_bytes(f"path,label,fold\n{rows}".encode(), rng))


def read_index(file):
    found = indexes.load_search_index(file)
    found.search(np.eye(1, found.embedding_size, dtype=np.float32), 1)
    [found.class_name(row) for row in range(len(found))]


def read_metadata(file, rng):
    own_metadata(changed_value(META, rng), file)


READERS = {
    "config": (write_config, read_config),
    "stats": (write_stats, read_records),
    "array": (write_array, lambda file: open_array(file, "it")),
    "dump": (write_dump, open_features),
    "index": (write_index, read_index),
    "metadata": (lambda file, rng: file.write_text(str(rng.random())), None),
}


@pytest.mark.parametrize("kind", READERS)
def test_readers_refuse_what_they_do_not_expect(kind, tmp_path):
    if kind == "index":
        pytest.importorskip("faiss")
    write, read = READERS[kind]
    num_refused = 0
    for seed in range(NUM_QUICK):
        rng, file = random.Random(seed), tmp_path / str(seed)
        write(file, rng)
        try:
            read(file) if read else read_metadata(file, rng)
        except (ValueError, OSError) as error:
            assert str(error)
            num_refused += 1
    assert num_refused


def test_values_that_hold_themselves_are_refused(tmp_path):
    looped = {**META}
    looped["flags"] = {"a": looped}
    many = []
    many.extend([many] * 6000)
    for wrong in (looped, {**META, "flags": {"a": many}}, {**META, "std": [1, 0, 1]}):
        with pytest.raises(ValueError, match="is damaged: expected"):
            own_metadata(wrong, tmp_path)
    assert own_metadata({"model": {}, "embedding_size": 3}, tmp_path) is None
    assert own_metadata(META, tmp_path) == META


def changed_words(words, rng):
    """Change some flags of a command line."""
    words = list(words)
    for _ in range(rng.choice((1, 2))):
        place = rng.randrange(len(words))
        name, _, value = words[place].partition("=")
        odd = rng.choice(
            ("", " ", "-1", "1e9", "nan", "9" * 400, "\udcff", "a\nb", "[", "1,2", value)
        )
        words[place] = rng.choice(
            (f"{name}={odd}", f"{name}x={value}", name, odd, f"{name}={value}")
        )
        if rng.random() < 0.2:
            words.append(words[place])
    return words


@pytest.mark.parametrize("script", [train_elem, train_pair, eval_script, infer])
def test_flags_that_were_made_up_are_one_line(script, capsys, monkeypatch):
    monkeypatch.setattr(common_flags, "_refuse_repeated", REFUSE_REPEATED)
    words = ["--lr=0.1", "--model=ResNet18", "--image_shape=3,32,32", "--use_gpu=False", "--seed=1"]
    for seed in range(NUM_QUICK):
        capsys.readouterr()
        try:
            with user_errors():
                parse_flags("", script.FLAGS, changed_words(words, random.Random(seed)))
        except SystemExit as stop:
            assert stop.code == 2 and capsys.readouterr().err.count("\n") == 1


class HungError(BaseException):
    """A case took too long; no script catches it."""


def raise_hung(*_):
    raise HungError


class Stranger:
    """A pickle of it would run code."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.mkdir, (str(self.file),)


def write_checkpoint(file, rng, trained):
    """Write a checkpoint whose values, bytes or objects are changed."""
    way = rng.random()
    if way < 0.3:
        file.write_bytes(changed_bytes(trained.read_bytes(), rng))
        return
    content = torch.load(trained, weights_only=True)
    if way < 0.4:
        content[rng.choice(list(content))] = Stranger(file.with_suffix(".executed"))
        with file.open("wb") as opened:
            torch.save(content, opened) if rng.random() < 0.5 else pickle.dump(content, opened)
        return
    part = rng.choice(("meta", "meta", "meta", "best", "step", "optimizer", "criterion"))
    content[part] = changed_value(content[part], rng)
    torch.save(content, file)


@pytest.fixture(scope="module")
def trained(toy_flags, tmp_path_factory):
    """A small run, with features and an index of its checkpoint."""
    folder = tmp_path_factory.mktemp("runs")
    words = [*toy_flags, "--model=test_resnet", "--train_batch_size=6", "--total_iter_num=1"]
    run = train_elem.main([*words, "--test_iter_step=0", f"--model_save_dir={folder}"])
    weights = [f"--pretrained_model={run / 'last.pt'}", "--use_gpu=False", "--num_workers=0"]
    infer.main([*weights, f"--output_dir={run / 'features'}"])
    infer.main([*weights, f"--index={run / 'a.index'}"])
    return run


def slow_case(kind, rng, folder, run, toy_tree, toy_flags):
    """Write a file of a kind, and return the command that reads it."""
    machine = ["--use_gpu=False", "--num_workers=0"]
    file = folder / "it.pt"
    short = ["--model=test_resnet", "--train_batch_size=6", "--total_iter_num=1"]
    short += [f"--model_save_dir={folder}", "--image_shape=3,32,32", *machine, "--test_iter_step=0"]
    weights = f"--pretrained_model={run / 'last.pt'}"
    data = [f"--train_list={file}", f"--test_list={file}", f"--data_dir={toy_tree / 'train'}"]
    if kind == "list":
        write_list(file, rng)
        return train_elem.main, ["--dataset=list", *data, *short]
    if kind == "csv":
        write_csv(file, rng)
        data = [f"--csv={file}", "--fold=0", f"--data_dir={toy_tree / 'train'}"]
        return train_elem.main, ["--dataset=csv", *data, *short]
    if kind == "config":
        write_config(file, rng)
        return train_elem.main, [f"--config={file}", *short, "--dataset=folder", data[-1]]
    if kind == "checkpoint":
        write_checkpoint(file, rng, run / "last.pt")
        script = rng.choice((eval_script, infer, train_elem))
        if script is train_elem:
            return script.main, [f"--checkpoint={file}", "--total_iter_num=2", *machine]
        more = [f"--output_dir={folder / 'out'}"] if script is infer else []
        return script.main, [f"--pretrained_model={file}", *machine, *more]

    copied = shutil.copytree(run, folder / "run")
    if kind == "stats":
        write_stats(copied / "stats.jsonl", rng)
        return report.main, [str(copied), *machine]
    if kind == "args":
        (copied / "args.json").write_bytes(
            changed_json(json.loads((run / "args.json").read_text()), rng)
        )
        return train_elem.main, [f"--checkpoint={copied / 'last.pt'}", "--total_iter_num=2"]
    if kind == "dump":
        shutil.rmtree(copied / "features")
        write_dump(copied / "features", rng)
        return report.main, [f"--features={copied / 'features'}", "--use_gpu=False"]
    if kind == "array":
        write_array(copied / "features" / "features.npy", rng)
        (copied / "run.json").write_bytes(changed_json({"recall@1": 0.5, "evaluated": {}}, rng))
        return summary.main, [str(copied), "run"]
    if kind == "index":
        metadata = indexes.load_search_index(run / "a.index").metadata
        write_index(file, rng, metadata)
        query = f"--query={toy_tree / 'test' / 'class_6' / '0.png'}"
        return infer.main, [weights, f"--index={file}", query, "--topk=1", *machine]
    return rng.choice((train_elem, eval_script, infer)).main, changed_words(
        [*toy_flags, *short], rng
    )


KINDS = ("list", "csv", "config", "checkpoint", "stats", "args", "dump", "array", "index", "flags")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_scripts_answer_in_one_line(
    kind, trained, toy_tree, toy_flags, tmp_path, capsys, monkeypatch
):
    if kind == "flags":
        monkeypatch.setattr(common_flags, "_refuse_repeated", REFUSE_REPEATED)
    signal.signal(signal.SIGALRM, raise_hung)
    num_refused = 0
    for seed in range(NUM_SLOW):
        folder = tmp_path / str(seed)
        folder.mkdir()
        monkeypatch.chdir(folder)
        main, words = slow_case(kind, random.Random(seed), folder, trained, toy_tree, toy_flags)
        capsys.readouterr()
        signal.alarm(PATIENCE)
        try:
            main(words)
        except SystemExit as stop:
            error = capsys.readouterr().err
            assert stop.code in (0, 2), (kind, seed, error)
            assert stop.code == 0 or error.splitlines()[-1].startswith("error: "), (kind, seed)
            assert "Traceback" not in error, (kind, seed, error)
            num_refused += stop.code == 2
        except Exception as error:
            raise AssertionError(f"{kind} {seed}: {words}") from error
        finally:
            signal.alarm(0)
        assert not list(folder.rglob("*.executed")), (kind, seed)
    assert num_refused
