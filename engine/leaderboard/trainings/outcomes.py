"""What a training of a board has come to: a file in its run folder, written last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from metric_learning.common.atomic import write_json
from metric_learning.common.schema import (
    Field,
    check_fields,
    is_finite,
    is_object,
    is_text,
    read_json,
)

RESULT = "result.json"
DEAD = 2.0  # times chance: a Recall@1 below is that of a training that did not start
FIELDS = (
    Field("metrics", "numbers", lambda value: is_object(value, is_finite)),
    Field("minutes", "a number", is_finite),
    Field("memory_mib", "a number", is_finite),
    Field("images", "a number", is_finite),
    Field("host", "a name", is_text),
    Field("failure", "a reason", is_text, is_needed=False),
)


@dataclass(frozen=True)
class Outcome:
    """What a training has come to.

    Attributes:
        metrics: of its only test, as fractions; empty where it has failed.
        minutes: that it took, its test included, in all its starts.
        memory_mib: most memory that it took, of the GPU if it had one.
        images: that it was trained on, each as often as it came.
        host: the machine, and the device.
        failure: why there is no result, in one line; None: there is one.
    """

    metrics: Mapping[str, float] = field(default_factory=dict)
    minutes: float = 0.0
    memory_mib: float = 0.0
    images: float = 0.0
    host: str = ""
    failure: str | None = None

    @property
    def is_dead(self) -> bool:
        """Whether its Recall@1 is near that of chance."""
        chance = self.metrics.get("recall@1_chance", 0.0)
        return self.metrics.get("recall@1", 0.0) < min(DEAD * chance, 0.5 * (1 + chance))

    def save(self, folder: Path) -> None:
        """Write it to a run folder."""
        values = {name: value for name, value in asdict(self).items() if value is not None}
        write_json(folder / RESULT, values)


def read_outcome(folder: Path, needed: Sequence[str] = ()) -> Outcome | None:
    """Read the outcome of a run folder, None where there is none.

    Raises ValueError where it is damaged, or lacks metrics that are `needed`.
    """
    path = folder / RESULT
    if not path.exists():
        return None
    try:
        found = check_fields(read_json(path, str(path)), FIELDS, str(path))
    except ValueError as error:
        raise ValueError(f"{error}: delete it, and the training is done again") from error
    if found.get("failure") is None and not found["metrics"].keys() >= set(needed):
        raise ValueError(
            f"{path}: expected {', '.join(needed)}: delete it, and the training is done again"
        )
    return Outcome(**{each.name: found[each.name] for each in FIELDS if each.name in found})
