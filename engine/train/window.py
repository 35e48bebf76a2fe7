"""What a log line says of the steps since the last one, or of an epoch."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from metric_learning.engine.parallel.distributed import World, average


class Window:
    """Means of the loss and its figures over the steps since the last `flush`, and their time.

    Attributes:
        num_steps: those steps.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._sums: dict[str, Tensor] = {}
        self.num_steps = 0
        self._seconds = 0.0
        self._mark = time.perf_counter()

    def add(self, values: dict[str, Tensor]) -> None:
        """Add the scalars of one step; they stay on the device until `flush`."""
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, torch.zeros_like(value)) + value
        self.num_steps += 1
        self._count_time()

    def _count_time(self) -> None:
        now = time.perf_counter()
        self._seconds += now - self._mark
        self._mark = now

    def restart_clock(self) -> None:
        """Leave out the time since the last step: it was spent on tests and checkpoints."""
        self._mark = time.perf_counter()

    def state(self) -> dict[str, float]:
        """Return `num_steps` and the sums so far, averaged over all ranks, for `restore`.

        All ranks call it together. It is empty where there are no steps.
        """
        if not self.num_steps:
            return {}
        sums = average(torch.stack(list(self._sums.values())), self._world).tolist()
        return {"num_steps": self.num_steps, **dict(zip(self._sums, sums, strict=True))}

    def restore(self, state: dict[str, float], device: torch.device) -> None:
        """Go on from what `state` returned; the time is not restored."""
        sums = dict(state)
        self.num_steps = int(sums.pop("num_steps", 0))
        self._sums = {name: torch.tensor(value, device=device) for name, value in sums.items()}

    def flush(self) -> tuple[dict[str, float], float]:
        """Return the means over all ranks and the seconds per step, and begin anew."""
        sums = torch.stack(list(self._sums.values()))
        means = average(sums / self.num_steps, self._world).tolist()
        self._count_time()  # reading the sums waited for the device
        named = dict(zip(self._sums, means, strict=True))
        seconds = self._seconds / self.num_steps
        self._sums, self.num_steps, self._seconds = {}, 0, 0.0
        return named, seconds
