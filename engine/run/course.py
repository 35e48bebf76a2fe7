"""What the tests of a run decide while it goes on: a lower rate, and an early end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau

from metric_learning.engine.options.parts import ScheduleOptions

# What torch's scheduler counts, beside its settings, which are flags.
COUNTED = ("best", "num_bad_epochs", "cooldown_counter", "last_epoch")


class Course:
    """The rate that tests lower, as torch's ReduceLROnPlateau does, and the end by --patience.

    Attributes:
        rate: the learning rate that the schedule begins with, until tests lower it.
        num_worse: tests in a row that were not better than the best before them.
        is_over: whether these are so many that the run is to end.
    """

    def __init__(self, schedule: ScheduleOptions) -> None:
        self.rate, self.num_worse, self.is_over = schedule.lr, 0, False
        self._schedule, self._best, self._num_tests = schedule, -1.0, 0
        # A scheduler lowers the rate of an optimizer; this one has nothing else to do.
        self._holder = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=schedule.lr)
        self._plateau = ReduceLROnPlateau(
            self._holder,
            mode="max",
            factor=schedule.plateau_factor,
            patience=schedule.plateau_patience,
        )

    @property
    def is_steered(self) -> bool:
        """Whether tests decide anything."""
        return self._is_lowered or self._schedule.patience > 0

    @property
    def _is_lowered(self) -> bool:
        return self._schedule.lr_strategy == "reduce_on_plateau"

    def note(self, recall: float) -> list[str]:
        """Take in the Recall@1 of a test, and say what follows from it."""
        if not self.is_steered:
            return []
        lines, before = [], self.rate
        self._count(0 if recall > self._best else self.num_worse + 1)
        self._best, self._num_tests = max(recall, self._best), self._num_tests + 1

        if self._is_lowered:
            self._plateau.step(recall)
            self.rate = self._holder.param_groups[0]["lr"]
        if self.rate < before:
            lines.append(f"lr {before:g} -> {self.rate:g}: the tests are on a plateau")
        if self.is_over:
            lines.append(
                f"stopping early: {self.num_worse} tests in a row were not better than "
                f"{self._best:.5f} (--patience={self._schedule.patience})"
            )
        return lines

    def _count(self, num_worse: int) -> None:
        self.num_worse = num_worse
        self.is_over = 0 < self._schedule.patience <= num_worse

    def state(self) -> dict[str, float]:
        """Return what a resumed run has to know; empty before the first test that counts."""
        if not self._num_tests:
            return {}
        counted = self._plateau.state_dict() if self._is_lowered else {}
        return {
            "lr": self._schedule.lr,
            "rate": self.rate,
            "best_recall": self._best,
            "num_worse": self.num_worse,
            "num_tests": self._num_tests,
            **{name: counted[name] for name in COUNTED if name in counted},
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned; with another --lr, from as large a part of it."""
        if not state or not self.is_steered:
            return
        self._best, self._num_tests = state["best_recall"], state["num_tests"]
        self._count(state["num_worse"])
        if self._is_lowered and "last_epoch" in state:
            is_same = state["lr"] == self._schedule.lr
            self.rate = state["rate"] if is_same else self.rate * state["rate"] / state["lr"]
            self._holder.param_groups[0]["lr"] = self.rate
            self._plateau.load_state_dict({name: state[name] for name in COUNTED})
