"""The flags of the training scripts, those of the losses of a stage among them."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from metric_learning.common.config import read_config
from metric_learning.common.flags import (
    Flag,
    Flags,
    boolean,
    integers,
    non_negative,
    parse_flags,
    path,
    positive,
    with_defaults,
    words_of,
)
from metric_learning.engine.options import tables
from metric_learning.engine.options.signatures import Option, losses_of_table, options_of

ELEM, PAIR = "ELEM_LOSSES", "PAIR_LOSSES"  # the tables of losses.table, one a stage
OWN_FLAGS = {ELEM: tables.SHARD_FLAGS, PAIR: tables.PAIR_FLAGS}
SCRIPTS = {1: "train_elem.py", 2: "train_pair.py"}
PML = "pml:"
# Options of a loss that are derived from the data and the model instead of taken from flags.
DERIVED_OPTIONS = ("class_dim", "embedding_size")
PARSERS: dict[str, Callable[[str], Any]] = {
    "int": positive,
    "float": non_negative,
    "float | None": non_negative,
    "bool": boolean,
    "str": str,
    "tuple[int, ...]": integers,
}


def training_flags(stage: str, loss_name: str, **defaults: Any) -> tuple[Flag, ...]:
    """Return all flags of a training script of a stage, ELEM or PAIR, with its own defaults."""
    losses = losses_of_table(stage)
    names = ", ".join(losses)
    if stage == PAIR:
        names += ", pml:NAME, a loss of pytorch-metric-learning"

    table = (
        *(*tables.DATA_FLAGS, *tables.READING_FLAGS, *tables.MODEL_FLAGS, *tables.BATCH_NORM_FLAGS),
        *tables.TRAINABLE_FLAGS,
        Flag(
            "loss_name",
            partial(parse_loss_name, stage),
            loss_name,
            f"one of {names}, or my_module:MyLoss, a class of one's own",
            group="loss",
        ),
        *loss_flags({name: options_of(place) for name, place in losses.items()}),
        *OWN_FLAGS[stage],
        *tables.TEACHER_FLAGS,
        *(*tables.OPTIMIZER_FLAGS, *tables.SCHEDULE_FLAGS, *tables.RUN_FLAGS),
        *(*tables.MACHINE_FLAGS, *tables.TRAINING_MACHINE_FLAGS),
    )
    return with_defaults(table, **defaults)


def loss_flags(losses: Mapping[str, Mapping[str, Option]]) -> tuple[Flag, ...]:
    """Return the flags of all options of losses, by name; the chosen loss has their defaults."""
    found: dict[str, Option] = {}
    users: dict[str, list[str]] = {}
    for loss_name, options in losses.items():
        for name, option in options.items():
            if name in DERIVED_OPTIONS:
                continue
            found.setdefault(name, option)
            default = "its own" if option.default is None else option.default
            users.setdefault(name, []).append(f"{loss_name}: {default}")
            if option.type not in PARSERS:
                raise ValueError(
                    f"{loss_name}: {name} is annotated {option.type or 'as nothing'}, expected "
                    f"one of {', '.join(PARSERS)}"
                )

    return tuple(
        Flag(
            name,
            PARSERS[option.type],
            None,
            f"{option.help} (default {', '.join(users[name])})",
            group="loss",
        )
        for name, option in found.items()
    )


def parse_training(
    description: str | None, stage: str, table: Sequence[Flag], argv: Sequence[str] | None
) -> Flags:
    """Parse the command line of a training script, see `parse_flags`.

    A loss of one's own, --loss_name=module:Class, brings the flags of its options along; with
    --help, those of other losses than the named one are left out.
    """
    words = words_of(table, argv)
    loss_name = _value_of(words, "--loss_name")
    config = _value_of(words, "--config")
    if loss_name is None and config is not None:
        named = read_config(path(config)).get("loss_name")
        loss_name = named if isinstance(named, str) else None
        if loss_name is not None and is_own(loss_name):
            raise ValueError(
                f"config {config} names {loss_name}, a module of your own: give --loss_name on the "
                "command line, for no file may name a module to run"
            )
    places = losses_of_table(stage)
    if loss_name is not None and is_own(loss_name):
        places = {loss_name: loss_name}
        known = {flag.name for flag in table}
        own = loss_flags({loss_name: options_of(loss_name)})
        table = [*table, *(flag for flag in own if flag.name not in known)]

    if loss_name in places and {"-h", "--help"} & set(words):
        used = {*options_of(places[loss_name]), "samples_each_class"}
        others = {flag.name for flag in loss_flags(_all_options(stage))} - used
        table = [flag for flag in table if flag.name not in others]
    return parse_flags(description, table, words, elsewhere=tables.TRAINING_LACKS)


def _all_options(stage: str) -> dict[str, dict[str, Option]]:
    return {name: options_of(place) for name, place in losses_of_table(stage).items()}


def _value_of(words: Sequence[str], flag: str) -> str | None:
    """Return the value of a flag on a command line, None where it is not given."""
    for word, following in zip(words, [*words[1:], None], strict=False):
        name, sign, value = word.partition("=")
        if name == flag:
            return value if sign else following
    return None


def is_own(loss_name: str) -> bool:
    """Whether a name is `module:Class`, that of a loss of one's own."""
    return ":" in loss_name and not loss_name.startswith(PML)


def parse_loss_name(stage: str, text: str) -> str:
    """Parse the name of a loss of one stage; stage 2 also has `pml:` names."""
    losses = losses_of_table(stage)
    if text in losses or is_own(text):
        return text
    if stage == PAIR and text.startswith(PML):
        from metric_learning.losses import loss_options  # torch, which the package needs anyway

        try:
            loss_options(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        return text
    message = f"unknown loss {text!r}: choose from {', '.join(losses)}"
    other, number = (PAIR, 2) if stage == ELEM else (ELEM, 1)
    if text in losses_of_table(other):
        message += f"; {SCRIPTS[number]} has {text}"
    raise argparse.ArgumentTypeError(message)
