"""Trackers of runs: what they get, that a resumed run goes on in them, and that none ends a run."""

import json
import os
import sqlite3
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train_pair
from metric_learning.common.optional import import_optional
from metric_learning.engine.evaluate.neighbours import picture_of_neighbours
from metric_learning.engine.run import tracking
from metric_learning.engine.run.run_folder import RunFolder
from metric_learning.reader import load_image_set
from metric_learning.reader.sets.image_set import Decoding


class Recording:
    """A stand-in with the methods of wandb and trackio, and of their runs."""

    def __init__(self, fails_at=""):
        self.calls, self.fails_at, self.id = [], fails_at, "run 7"

    def _note(self, call, /, *args, **options):
        if call == self.fails_at:
            raise RuntimeError(f"no {call}\nhere")
        self.calls.append((call, args, options))

    def init(self, **options):
        self._note("init", **options)
        return self

    def define_metric(self, *args, **options):
        self._note("define_metric", *args, **options)

    def log(self, values, **options):
        self._note("log", values, **options)

    def finish(self, **options):
        self._note("finish", **options)

    @staticmethod
    def Image(picture):
        return SimpleNamespace(shape=picture.shape)

    @staticmethod
    def Settings(**options):
        return options

    def logged(self):
        found = {}
        for name, args, _ in self.calls:
            if name == "log":
                found |= {key: args[0][key] for key in args[0] if key != "step"}
        return found


class Client:
    """A stand-in for mlflow.MlflowClient."""

    def __init__(self):
        self.params, self.metrics, self.images, self.ends, self.runs = {}, {}, [], [], 0

    def get_experiment_by_name(self, name):
        return None

    def create_experiment(self, name):
        return f"experiment {name}"

    def create_run(self, experiment, run_name):
        assert experiment == "experiment metric-learning"
        self.runs += 1
        return SimpleNamespace(info=SimpleNamespace(run_id=f"id {self.runs}"))

    def update_run(self, identity, status):
        self.ends.append((identity, status))

    def log_param(self, identity, name, value):
        self.params[name] = value

    def log_metric(self, identity, name, value, step):
        assert "@" not in name
        self.metrics[name] = identity, value, step

    def log_image(self, identity, picture, key, step):
        self.images.append((identity, picture.shape, key, step))

    def set_terminated(self, identity, status):
        self.ends.append((identity, status))


@pytest.fixture
def stand_in(monkeypatch):
    """Put a stand-in in the place of a package."""
    return lambda name, package: monkeypatch.setitem(sys.modules, name, package)


FLAGS = {"lr": 0.1, "ks": (1, 2), "csv": None, "amp": "off"}
PICTURE = np.zeros((4, 5, 3), np.uint8)


def write(folder, *log_to, step=0):
    """A run folder that gets two records and a picture."""
    with RunFolder(folder, FLAGS, step=step, log_to=log_to) as run:
        run.record("train", step + 1, loss=2.0)
        run.record("test", step + 2, **{"recall@1": 0.5})
        run.show(step + 2, "neighbours", lambda: PICTURE)


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_tracker_gets_flags_figures_and_pictures(name, stand_in, tmp_path):
    package = Recording()
    stand_in(name, package)
    write(tmp_path / "run", name)
    (start, _, options), *others = package.calls
    assert start == "init" and options["config"] == {"lr": 0.1, "ks": "1,2", "amp": "off"}
    assert options["project"] == "metric-learning" and options["resume"] == "allow"
    logged = package.logged()
    assert logged["train/loss"] == 2.0 and logged["test/recall@1"] == 0.5
    assert logged["neighbours"].shape == (4, 5, 3)
    assert others[-1][0] == "finish"

    write(tmp_path / "run", name, step=2)
    inits = [options for call, _, options in package.calls if call == "init"]
    kept = json.loads((tmp_path / "run" / "trackers.json").read_text())[name]
    again = inits[1]["id" if name == "wandb" else "name"]
    assert again == kept and len(inits) == 2
    if name == "trackio":
        assert inits[0]["name"] == kept and kept.startswith("run-")


def test_mlflow_gets_flags_figures_and_pictures_in_one_run(stand_in, tmp_path):
    client = Client()
    stand_in("mlflow", SimpleNamespace(MlflowClient=lambda: client))
    write(tmp_path / "run", "mlflow")
    write(tmp_path / "run", "mlflow", step=2)
    assert client.runs == 1 and client.params == {"lr": 0.1, "ks": "1,2", "amp": "off"}
    assert client.metrics["test/recall_at_1"] == ("id 1", 0.5, 4)
    assert client.images == [("id 1", (4, 5, 3), "neighbours", step) for step in (2, 4)]
    ends = [status for _, status in client.ends]
    assert ends == ["FINISHED", "RUNNING", "FINISHED"]
    with pytest.raises(KeyError), RunFolder(tmp_path / "run", FLAGS, step=4, log_to=["mlflow"]):
        raise KeyError("of a training")
    assert client.ends[-1] == ("id 1", "FAILED")


def test_tensorboard_gets_pictures_only_where_it_is_asked_for(tmp_path):
    for name, log_to in (("plain", ()), ("asked", ("tensorboard",))):
        write(tmp_path / name, *log_to)
        events = EventAccumulator(str(tmp_path / name / "tensorboard"))
        events.Reload()
        assert events.Scalars("test/recall@1")[0].value == 0.5
        assert events.Tags()["images"] == (["neighbours"] if log_to else [])
        assert ("_hparams_/session_start_info" in events.summary_metadata) == bool(log_to)
        assert not (tmp_path / name / "trackers.json").exists()


@pytest.mark.parametrize("fails_at", ["init", "define_metric", "log", "finish"])
def test_a_tracker_that_fails_is_a_line_and_the_run_goes_on(fails_at, stand_in, tmp_path, capsys):
    stand_in("wandb", Recording(fails_at))
    write(tmp_path / "run", "wandb")
    out = capsys.readouterr().out
    assert out.count(f"--log_to=wandb fails (no {fails_at} here): the run goes on without it") == 1
    records = (tmp_path / "run" / "stats.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in records] == [1, 2]


def test_a_picture_that_cannot_be_drawn_ends_no_run(stand_in, tmp_path, capsys):
    stand_in("wandb", Recording())
    with RunFolder(tmp_path / "run", FLAGS, log_to=["wandb"]) as run:
        run.show(1, "neighbours", lambda: 1 / 0)
        run.record("train", 1, loss=2.0)
    assert "fails (division by zero)" in capsys.readouterr().out


def test_other_processes_than_the_first_open_no_tracker(stand_in, tmp_path):
    package = Recording()
    stand_in("wandb", package)
    with RunFolder(tmp_path / "run", FLAGS, is_main=False, log_to=["wandb"]) as run:
        run.record("train", 1, loss=2.0)
        run.show(1, "neighbours", lambda: PICTURE)
    assert package.calls == [] and not (tmp_path / "run").exists()


def tiny(toy_flags, folder, *flags):
    words = [flag for flag in toy_flags if not flag.startswith("--model=")]
    words += ["--model=test_resnet", "--loss_name=eml", "--train_batch_size=8", "--lr=0.001"]
    words += ["--test_iter_step=1", "--display_iter_step=1", f"--model_save_dir={folder}"]
    return [*words, "--run_name=run", *flags]


def test_a_resumed_training_goes_on_in_the_same_tracked_run(stand_in, toy_flags, tmp_path):
    package = Recording()
    stand_in("wandb", package)
    log_to, auto = "--log_to=wandb", "--checkpoint=auto"
    train_pair.main(tiny(toy_flags, tmp_path, "--total_iter_num=1", log_to, auto))
    train_pair.main(tiny(toy_flags, tmp_path, "--total_iter_num=2", log_to, auto))
    inits = [options for call, _, options in package.calls if call == "init"]
    assert [each["id"] for each in inits] == [None, "run 7"]
    assert inits[0]["config"]["loss_name"] == "eml" and inits[0]["name"] == "run"
    logged = package.logged()
    assert {"train/loss", "test/recall@1", "test/recall@1_chance", "neighbours"} <= set(logged)
    assert min(logged["neighbours"].shape[:2]) > 300


# A package wandb that notes, in a file for each call, which process of torchrun made it.
NOTING = """
import os, tempfile


def note(call):
    rank = os.environ["RANK"]
    tempfile.mkstemp(prefix=f"{rank} {call} ", dir=os.environ["NOTES"])


class Run:
    id = "run 7"

    def define_metric(self, *args, **options):
        note("define_metric")

    def log(self, values):
        for name in values:
            note("log " + name.replace("/", "_"))

    def finish(self, exit_code):
        note(f"finish {exit_code}")


def init(**options):
    note("init")
    return Run()


def Settings(**options):
    return options


def Image(picture):
    return picture.shape
"""


def test_of_two_processes_the_first_alone_writes_to_trackers(
    toy_flags, torchrun, tmp_path, monkeypatch
):
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "wandb.py").write_text(NOTING)
    (tmp_path / "notes").mkdir()
    monkeypatch.setenv("NOTES", str(tmp_path / "notes"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "packages"), prepend=os.pathsep)
    flags = tiny(toy_flags, tmp_path, "--total_iter_num=2", "--log_to=tensorboard,wandb")
    torchrun([Path(train_pair.__file__), *flags])

    notes = Counter(file.name.rsplit(" ", 1)[0] for file in (tmp_path / "notes").iterdir())
    assert {note.partition(" ")[0] for note in notes} == {"0"}
    once = ("0 init", "0 finish 0")
    assert [notes[name] for name in once] == [1, 1]
    twice = ("train_loss", "test_recall@1", "neighbours")  # of as many steps
    assert [notes[f"0 log {name}"] for name in twice] == [2, 2, 2]
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2]
    assert [event.step for event in events.Images("neighbours")] == [1, 2]


@pytest.mark.parametrize(
    ("log_to", "message"),
    [
        ("--log_to=comet", "expected some of tensorboard, wandb, mlflow, trackio, each once"),
        ("--log_to=wandb,wandb", "each once"),
        ("--log_to=wandb,trackio", "--log_to=wandb needs the package wandb: pip install wandb"),
    ],
)
def test_wrong_trackers_are_one_line_before_anything(
    log_to, message, toy_flags, tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(sys.modules, "wandb", None)  # an import of it fails
    with pytest.raises(SystemExit) as stop:
        train_pair.main(tiny(toy_flags, tmp_path, "--total_iter_num=1", log_to))
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1 and message in error
    assert not (tmp_path / "run").exists()


def test_the_picture_marks_what_is_wrong(toy_tree):
    images = load_image_set("folder", str(toy_tree), "test")
    embeddings = np.random.default_rng(0).normal(size=(len(images), 4)).astype(np.float32)
    picture = picture_of_neighbours(images, embeddings, Decoding(), 0)
    assert picture.dtype == np.uint8 and picture.shape[2] == 3
    for colour in ((0x1A, 0x7F, 0x37), (0xCF, 0x22, 0x2E), (0x57, 0x60, 0x6A)):
        assert (picture == colour).all(2).sum() > 100
    again = picture_of_neighbours(images, embeddings, Decoding(), 0)
    np.testing.assert_array_equal(picture, again)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["wandb", "mlflow", "trackio"])
def test_the_real_package_takes_it_offline(name, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.chdir(tmp_path)
    pytest.importorskip(name)  # trackio reads its folder when it is imported
    write(tmp_path / "run", name)
    write(tmp_path / "run", name, step=2)
    assert "fails" not in capsys.readouterr().out
    identity = json.loads((tmp_path / "run" / tracking.IDENTITIES).read_text())[name]
    if name == "wandb":
        found = list((tmp_path / "run" / "wandb").glob(f"offline-run-*-{identity}"))
        assert found and all(list(each.glob("*.wandb")) for each in found)
    if name == "mlflow":
        client = import_optional("mlflow", "this test").MlflowClient()
        found = client.get_run(identity)
        assert found.info.status == "FINISHED" and found.data.params["lr"] == "0.1"
        assert found.data.metrics["test/recall_at_1"] == 0.5
        assert [each.step for each in client.get_metric_history(identity, "train/loss")] == [1, 3]
        assert client.list_artifacts(identity, "images")
    if name == "trackio":
        with sqlite3.connect(tmp_path / "trackio" / "metric-learning.db") as kept:
            rows = kept.execute("select run_name, step from metrics").fetchall()
        assert {row[0] for row in rows} == {identity} and {row[1] for row in rows} == {1, 2, 3, 4}
        assert len(list((tmp_path / "trackio").glob("media/**/*.png"))) == 2
