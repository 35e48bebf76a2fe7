"""How long the trainings of a board are, in the flags that say so."""

from __future__ import annotations

from collections.abc import Mapping

SMOKE_STEPS = 2
SIZE = "train_batch_size"
LENGTHS = ("num_epochs", "total_iter_num")


def count(texts: Mapping[str, str], name: str) -> int:
    """Return the whole number that a flag is given as, or ValueError."""
    return _whole(name, texts[name])


def _whole(name: str, text: str) -> int:
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
        sizes = [_whole(SIZE, flags.get(SIZE, "0")) for flags in (first, second)]
        if 0 in sizes:
            raise ValueError("expected the train_batch_size of both stages beside total_iter_num")
        added = -(-added * sizes[1] // sizes[0])
    length = count(first, name)
    if not length:
        raise ValueError(f"{name}: expected a first stage that is trained, found 0")
    return stretched(first, (length + added) / length) | {name: str(length + added)}


def stretched(texts: Mapping[str, str], factor: float) -> dict[str, str]:
    """Return flags whose steps of the schedule come later, or sooner, by a factor."""
    found = dict(texts)
    for name in ("lr_steps", "warmup_iter_num", "warm_head_steps"):
        if name in texts:
            least = 1 if name == "lr_steps" else 0
            numbers = [
                max(least, round(_whole(name, n.strip()) * factor)) for n in texts[name].split(",")
            ]
            found[name] = ",".join(map(str, numbers))
    return found


def scaled(texts: Mapping[str, str], factor: float) -> dict[str, str]:
    """Return the flags of a training of so many times the length, of one step or epoch at least."""
    found = stretched(texts, factor)
    for name in LENGTHS:
        if name in texts and count(texts, name):
            found[name] = str(max(1, round(count(texts, name) * factor)))
    return found


def shortest(texts: Mapping[str, str]) -> dict[str, str]:
    """Return the flags of a training of SMOKE_STEPS steps."""
    left_out = ("num_epochs", "lr_steps", "warmup_iter_num", "warm_head_steps", "xbm_start")
    steps = "0" if texts.get("total_iter_num") == "0" else str(SMOKE_STEPS)
    kept = {name: text for name, text in texts.items() if name not in left_out}
    return kept | {"total_iter_num": steps}


def text_of(texts: Mapping[str, str]) -> str:
    """Return the length of a training in words."""
    if "num_epochs" in texts:
        return f"{texts['num_epochs']} epochs"
    return f"{texts['total_iter_num']} steps"
