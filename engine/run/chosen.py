"""How a checkpoint came to be the one of its run, and what its tests had to do with it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from metric_learning.engine.options.parts import DataOptions

DATA_NAMES = tuple(DataOptions.__dataclass_fields__)


def describe_choice(
    file: str | Path,
    meta: Mapping[str, Any],
    records: Sequence[Mapping[str, Any]],
    made_with: Mapping[str, Any],
) -> tuple[str, list[str]]:
    """Say which checkpoint a file is, and warn where the images at hand had a part in its choice.

    Args:
        file: the weights; a run names its own best, last and step_N.
        meta: what they say of themselves, empty for those of others.
        records: those of the run, as far as they are known.
        made_with: flags of the evaluation.
    """
    name, step = Path(file).name, meta.get("step")
    if step is None:
        return f"{name}; nothing says how it was chosen", []
    what, tests = f"{name}, step {step:,}", _describe_tests(meta, records)
    flags, kind = meta.get("flags", {}), Path(file).stem

    if kind == "best":
        said = f"{what}: the highest Recall@1 of {tests}"
        return said, _warn(name, "has the best of many figures", meta, made_with)
    if kind == "last":
        is_steered = flags.get("patience") or flags.get("lr_strategy") == "reduce_on_plateau"
        if is_steered:
            said = f"{what}: the end of the run, which {tests} decided"
            return said, _warn(name, "ended where they were good", meta, made_with)
        total = flags.get("total_iter_num", step)
        where = "the end of the run" if step >= total else f"where the run is, of {total:,} steps"
        return f"{what}: {where}; no test chose it", []
    if re.fullmatch(r"step_\d+", kind):
        return f"{what}: saved at a fixed step; who named it here may have looked at tests", []
    return f"{what}; its name does not say how it was chosen", []


def tested_split(meta: Mapping[str, Any]) -> str | None:
    """Return the split that the tests of a training were on; None where there were none."""
    kept = meta.get("depends_on", {})
    return next((split for split in ("val", "test") if split in kept), None)


def _describe_tests(meta: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> str:
    split = tested_split(meta)
    count = len({record["step"] for record in records if record["kind"] == "test"})
    tests = f"{count} {'test' if count == 1 else 'tests'}" if count else "the tests"
    return f"{tests} of the run on the {split} split" if split else f"{tests} of the run"


def _warn(name: str, why: str, meta: Mapping[str, Any], made_with: Mapping[str, Any]) -> list[str]:
    """Warn where the tests of a training were on the images that are evaluated now."""
    split, flags = tested_split(meta), meta.get("flags", {})
    is_same = made_with.get("split") in (split, "all") and all(
        _plain(flags.get(each)) == _plain(made_with.get(each)) for each in DATA_NAMES
    )
    if split is None or not is_same:
        return []
    return [
        f"warning: {name} was chosen by tests on these very images ({split} split) and {why}: new "
        "images would give lower figures. No test chooses the last.pt of a run of fixed length; "
        "--val_fold=0/5 holds out training classes to choose by"
    ]


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
