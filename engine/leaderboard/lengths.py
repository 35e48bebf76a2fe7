"""How long the trainings of a board are, in the flags that say so."""

from __future__ import annotations

from collections.abc import Mapping

SMOKE_STEPS = 2
LENGTHS = ("num_epochs", "total_iter_num")


def count(flags: Mapping[str, str], name: str) -> int:
    """Return the whole number that a flag is given as, or ValueError."""
    text = flags[name]
    if not text.isdecimal():
        raise ValueError(f"{name}: expected a whole number, found {text}")
    return int(text)


def longer(first: Mapping[str, str], second: Mapping[str, str]) -> dict[str, str]:
    """Return the flags of a training for as many images as two others see; its schedule stretches.

    Raises ValueError where one counts epochs and the other steps.
    """
    name = "num_epochs" if "num_epochs" in first else "total_iter_num"
    if name not in first or name not in second:
        raise ValueError("expected num_epochs of both stages, or total_iter_num of both")
    added = count(second, name)
    if name == "total_iter_num":
        sizes = [int(flags.get("train_batch_size", "0")) for flags in (first, second)]
        if 0 in sizes:
            raise ValueError("expected the train_batch_size of both stages beside total_iter_num")
        added = -(-added * sizes[1] // sizes[0])
    length = count(first, name)
    return stretched(first, (length + added) / length) | {name: str(length + added)}


def stretched(flags: Mapping[str, str], factor: float) -> dict[str, str]:
    """Return flags whose steps of the rate come later, or sooner, by a factor."""
    found = dict(flags)
    for name in ("lr_steps", "warmup_iter_num"):
        if name in flags:
            least = 1 if name == "lr_steps" else 0
            numbers = [max(least, round(int(n) * factor)) for n in flags[name].split(",")]
            found[name] = ",".join(map(str, numbers))
    return found


def scaled(flags: Mapping[str, str], factor: float) -> dict[str, str]:
    """Return the flags of a training of so many times the length, of one step or epoch at least."""
    found = stretched(flags, factor)
    for name in LENGTHS:
        if name in flags and count(flags, name):
            found[name] = str(max(1, round(count(flags, name) * factor)))
    return found


def shortest(flags: Mapping[str, str]) -> dict[str, str]:
    """Return the flags of a training of SMOKE_STEPS steps."""
    left_out = ("num_epochs", "lr_steps", "warmup_iter_num", "xbm_start")
    steps = "0" if flags.get("total_iter_num") == "0" else str(SMOKE_STEPS)
    kept = {name: text for name, text in flags.items() if name not in left_out}
    return kept | {"total_iter_num": steps}


def text_of(flags: Mapping[str, str]) -> str:
    """Return the length of a training in words."""
    if "num_epochs" in flags:
        return f"{flags['num_epochs']} epochs"
    return f"{flags['total_iter_num']} steps"
