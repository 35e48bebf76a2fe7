"""Trackers that a run also writes to: TensorBoard, Weights & Biases, MLflow, Trackio.

Each takes the flags, the figures of every record, and pictures. None of them may end a run: one
that fails is left out from there on, with a line.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from metric_learning.common.atomic import write_json
from metric_learning.common.flags import shown
from metric_learning.common.optional import import_optional
from metric_learning.common.schema import is_text, read_json

IDENTITIES = "trackers.json"  # in a run folder: tracker -> what it calls the run
PROJECT = "metric-learning"
LONGEST = 500  # characters of a hyper-parameter

Figures = Mapping[str, float]


class Tracker(Protocol):
    """A place that keeps what happens in a run."""

    identity: str | None

    def write_figures(self, step: int, figures: Figures) -> None:
        """Keep figures by name."""

    def write_picture(self, step: int, name: str, picture: np.ndarray) -> None:
        """Keep a picture (H, W, 3) uint8."""

    def close(self, has_failed: bool) -> None:
        """End the run, or say that it was broken off."""


class TensorBoard:
    """The hyper-parameters and pictures; the run folder writes the curves in any case."""

    identity: str | None = None

    def __init__(self, folder: Path, parameters: Mapping[str, Any], curves: SummaryWriter) -> None:
        self._curves = curves
        file: Any = curves.file_writer
        for part in hparams(dict(parameters), {"test/recall@1": 0.0}):
            file.add_summary(part)

    def write_figures(self, step: int, figures: Figures) -> None:
        """Do nothing: the curves are there."""

    def write_picture(self, step: int, name: str, picture: np.ndarray) -> None:
        """Keep a picture."""
        self._curves.add_image(name, picture, step, dataformats="HWC")

    def close(self, has_failed: bool) -> None:
        """Do nothing: the run folder closes the curves."""


class Wandb:
    """A run of Weights & Biases; WANDB_PROJECT, WANDB_MODE and so on mean what they do there."""

    def __init__(self, folder: Path, parameters: Mapping[str, Any], identity: str | None) -> None:
        self._package = import_optional("wandb", "--log_to=wandb")
        self._run = self._package.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=folder.name,
            dir=str(folder),
            id=identity,
            resume="allow",
            config=dict(parameters),
            settings=self._package.Settings(silent=True, console="off"),
        )
        # A resumed run repeats steps, which the own count of wandb would refuse.
        self._run.define_metric("*", step_metric="step")
        self.identity: str | None = self._run.id

    def write_figures(self, step: int, figures: Figures) -> None:
        """Keep figures."""
        self._run.log({**figures, "step": step})

    def write_picture(self, step: int, name: str, picture: np.ndarray) -> None:
        """Keep a picture."""
        self._run.log({name: self._package.Image(picture), "step": step})

    def close(self, has_failed: bool) -> None:
        """End the run."""
        self._run.finish(exit_code=int(has_failed))


class MLflow:
    """A run of MLflow, where MLFLOW_TRACKING_URI says; the experiment by MLFLOW_EXPERIMENT_NAME."""

    def __init__(self, folder: Path, parameters: Mapping[str, Any], identity: str | None) -> None:
        package = import_optional("mlflow", "--log_to=mlflow")
        self._client = package.MlflowClient()
        if identity is None:
            project = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
            found = self._client.get_experiment_by_name(project)
            number = found.experiment_id if found else self._client.create_experiment(project)
            identity = self._client.create_run(number, run_name=folder.name).info.run_id
            for name, value in parameters.items():
                self._client.log_param(identity, name, value)
        else:
            self._client.update_run(identity, status="RUNNING")
        self.identity: str | None = identity

    def write_figures(self, step: int, figures: Figures) -> None:
        """Keep figures, whose names may have no @."""
        for name, value in figures.items():
            self._client.log_metric(self.identity, name.replace("@", "_at_"), value, step=step)

    def write_picture(self, step: int, name: str, picture: np.ndarray) -> None:
        """Keep a picture."""
        self._client.log_image(self.identity, picture, key=name.replace("/", "_"), step=step)

    def close(self, has_failed: bool) -> None:
        """End the run."""
        self._client.set_terminated(self.identity, "FAILED" if has_failed else "FINISHED")


class Trackio:
    """A run of Trackio, in TRACKIO_PROJECT; it keeps runs by their names."""

    def __init__(self, folder: Path, parameters: Mapping[str, Any], identity: str | None) -> None:
        self._package = import_optional("trackio", "--log_to=trackio")
        self.identity: str | None = identity or f"{folder.name}-{os.urandom(3).hex()}"
        self._run = self._package.init(
            project=os.environ.get("TRACKIO_PROJECT", PROJECT),
            name=self.identity,
            config=dict(parameters),
            resume="allow",
            embed=False,
        )

    def write_figures(self, step: int, figures: Figures) -> None:
        """Keep figures."""
        self._run.log(dict(figures), step=step)

    def write_picture(self, step: int, name: str, picture: np.ndarray) -> None:
        """Keep a picture."""
        self._run.log({name: self._package.Image(picture)}, step=step)

    def close(self, has_failed: bool) -> None:
        """End the run."""
        self._run.finish()


SERVICES: dict[str, Callable[[Path, Mapping[str, Any], str | None], Tracker]] = {
    "wandb": Wandb,
    "mlflow": MLflow,
    "trackio": Trackio,
}


def check_trackers(names: Sequence[str]) -> None:
    """Raise ValueError, before the work, where the package of a tracker is not installed."""
    for name in names:
        if name in SERVICES:
            import_optional(name, f"--log_to={name}")


class Trackers:
    """The trackers of a run, as far as they work.

    Args:
        names: of TensorBoard and SERVICES, those that are wanted.
        folder: the run folder, which remembers what each calls the run: a resumed one goes on.
        parameters: the flags, as hyper-parameters.
        curves: the run folder's own TensorBoard.
        say: writes a line to the log.
    """

    def __init__(
        self,
        names: Sequence[str],
        folder: Path,
        parameters: Mapping[str, Any],
        curves: SummaryWriter,
        say: Callable[[str], object],
    ) -> None:
        self._say, self._open = say, dict[str, Tracker]()
        texts = {
            name: _as_parameter(value) for name, value in parameters.items() if value is not None
        }
        known = _read_identities(folder / IDENTITIES) if names else {}
        for name in names:
            with self._leaving_out(name):
                if name in SERVICES:
                    self._open[name] = SERVICES[name](folder, texts, known.get(name))
                else:
                    self._open[name] = TensorBoard(folder, texts, curves)

        found = {name: tracker.identity for name, tracker in self._open.items()}
        if known | found != known and any(found.values()):
            write_json(folder / IDENTITIES, known | {k: v for k, v in found.items() if v})

    def write_figures(self, kind: str, step: int, values: Figures) -> None:
        """Keep the figures of a record of a kind."""
        figures = {f"{kind}/{name}": value for name, value in values.items()}
        for name, tracker in list(self._open.items()):
            with self._leaving_out(name):
                tracker.write_figures(step, figures)

    def write_picture(self, step: int, name: str, draw: Callable[[], np.ndarray]) -> None:
        """Draw a picture and keep it, where there is a tracker."""
        picture: np.ndarray | None = None
        for tracker_name, tracker in list(self._open.items()):
            with self._leaving_out(tracker_name):
                picture = draw() if picture is None else picture
                tracker.write_picture(step, name, picture)

    def close(self, has_failed: bool) -> None:
        """End the run in all of them."""
        for name, tracker in list(self._open.items()):
            with self._leaving_out(name):
                tracker.close(has_failed)
        self._open.clear()

    @contextlib.contextmanager
    def _leaving_out(self, name: str) -> Iterator[None]:
        """Go on without a tracker where it raises an error, and say so."""
        try:
            yield
        except Exception as error:  # their errors are of many kinds
            self._open.pop(name, None)
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            self._say(f"warning: --log_to={name} fails ({reason}): the run goes on without it")


def _as_parameter(value: Any) -> str | int | float | bool:
    """Return a flag as a hyper-parameter: a number, yes or no, or text of a bounded length."""
    return value if isinstance(value, bool | int | float) else shown(value)[:LONGEST]


def _read_identities(file: Path) -> dict[str, str]:
    """Return what trackers call a run; empty where nothing, or nothing readable, says so."""
    try:
        found = read_json(file, str(file))
    except (OSError, ValueError):
        return {}
    return {k: v for k, v in found.items() if is_text(v)} if isinstance(found, dict) else {}
