"""How flags are parsed: types of values, one-line errors, YAML config files."""

from __future__ import annotations

import argparse
import difflib
import math
import os
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import yaml

from metric_learning.common.cli import fail
from metric_learning.engine.parallel.devices import AMP_CHOICES

# Flags that mean the same: one on the command line replaces the other of a config file.
ALTERNATIVES = ({"num_epochs", "total_iter_num"},)


def boolean(text: str) -> bool:
    """Parse True/False, yes/no, on/off or 1/0."""
    word = text.strip().lower()
    if word in ("true", "yes", "on", "1"):
        return True
    if word in ("false", "no", "off", "0"):
        return False
    raise argparse.ArgumentTypeError(f"expected True or False, found {text!r}")


def positive(text: str) -> int:
    """Parse an integer of at least 1."""
    return _at_least(1, text)


def natural(text: str) -> int:
    """Parse an integer of at least 0."""
    return _at_least(0, text)


def non_negative(text: str) -> float:
    """Parse a finite number of at least 0."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and number >= 0):
        raise argparse.ArgumentTypeError(f"expected a number of at least 0, found {text!r}")
    return number


def fraction(text: str) -> float:
    """Parse a number of at least 0 and below 1."""
    number = non_negative(text)
    if number >= 1:
        raise argparse.ArgumentTypeError(f"expected a number of 0 to below 1, found {text!r}")
    return number


def path(text: str) -> str:
    """Parse a path; ~ is expanded, which shells do not do behind `=`."""
    return os.path.expanduser(text)


def image_shape(text: str) -> tuple[int, int, int]:
    """Parse `3,S,S`: channels, height and width in pixels, square only."""
    sizes = _integers(text)
    if len(sizes) != 3 or sizes[0] != 3 or sizes[1] != sizes[2] or sizes[1] < 1:
        raise argparse.ArgumentTypeError(f"expected 3,SIZE,SIZE (square), found {text!r}")
    return 3, sizes[1], sizes[2]


def integers(text: str) -> tuple[int, ...]:
    """Parse comma-separated integers of at least 1."""
    numbers = _integers(text)
    if not numbers or min(numbers) < 1:
        raise argparse.ArgumentTypeError(f"expected integers of at least 1, found {text!r}")
    return numbers


def whitening(text: str) -> int:
    """Parse a number of dimensions of at least 1; 0 for `all`."""
    if text.strip().lower() == "all":
        return 0
    try:
        return positive(text)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(
            f"expected a number of dimensions or all, found {text!r}"
        ) from None


def amp(text: str) -> str:
    """Parse the precision of the forward pass; True is bfloat16, False is off."""
    word = text.strip().lower()
    if word in AMP_CHOICES:
        return word
    try:
        return "bfloat16" if boolean(word) else "off"
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(
            f"expected one of {', '.join(AMP_CHOICES)}, True, False, found {text!r}"
        ) from None


def _at_least(low: int, text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = low - 1
    if not low <= number < 2**63:
        raise argparse.ArgumentTypeError(f"expected an integer of at least {low}, found {text!r}")
    return number


def _integers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in str(text).strip("()[] ").split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected comma-separated integers: {text!r}") from None


@dataclass(frozen=True)
class Flag:
    """One flag: `--name`, how its value is parsed, its default and its help.

    With `num_values` it takes so many values behind its name, `--name A B`. If it `repeats`, it may
    be given several times, and its value is the list of them. `alias` is another name of it.
    """

    name: str
    parse: Callable[[str], Any]
    default: Any
    help: str
    choices: Sequence[str] | None = None
    num_values: int | None = None
    alias: str | None = None
    repeats: bool = False


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        if message.startswith("unrecognized arguments: --"):
            wrong = message.split()[2].split("=")[0]
            names = [option for action in self._actions for option in action.option_strings]
            close = difflib.get_close_matches(wrong, names, n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            message = f"unknown flag {wrong}: {hint}--help lists all"
        fail(message)
        raise AssertionError("fail does not return")


def parse_flags(
    description: str | None,
    flags: Sequence[Flag],
    argv: Sequence[str] | None,
    positional: Flag | None = None,
    prog: str | None = None,
) -> tuple[Namespace, set[str]]:
    """Parse the command line, and below it the YAML file of --config.

    Args:
        description: shown by --help.
        flags: the flags of the script; `--config` is added.
        argv: arguments, None for those of the process.
        positional: an argument without `--name=`, which may be left out.
        prog: what --help calls the script; None: its file name.

    Returns:
        A value per flag, and the names of the flags that were given by the user.

    Raises:
        SystemExit: with status 2 after one line on stderr, where a flag or value is wrong.
        ValueError: the config file is wrong.
    """
    parser = _build_parser(description, flags, positional, prog)
    given: dict[str, Any] = {}
    # Plain parse_args finds no optional positional behind a flag before Python 3.12.
    named = vars(parser.parse_intermixed_args(_without_blanks(argv)))
    if "config" in named:
        given |= vars(parser.parse_args(_config_arguments(named["config"], flags)))
        for alternatives in ALTERNATIVES:
            if alternatives & set(named):
                given = {name: value for name, value in given.items() if name not in alternatives}
    given |= named
    described = (*flags, positional) if positional else flags
    return Namespace(**{flag.name: flag.default for flag in described} | given), set(given)


def _build_parser(
    description: str | None, flags: Sequence[Flag], positional: Flag | None, prog: str | None
) -> _Parser:
    parser = _Parser(
        prog=prog,
        description=description,
        usage="%(prog)s [--flag=value ...]" + (f" {positional.name.upper()}" if positional else ""),
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    config_flag = Flag("config", path, None, "YAML file of flags; the command line wins")
    for flag in (*flags, config_flag):
        default = "" if flag.default in (None, ()) else f" (default {_shown(flag.default)})"
        parser.add_argument(
            *(f"--{name}" for name in (flag.name, flag.alias) if name),
            action="append" if flag.repeats else "store",
            type=flag.parse,
            choices=flag.choices,
            nargs=flag.num_values,
            default=argparse.SUPPRESS,
            metavar=None if flag.choices else flag.name.upper(),
            help=(flag.help + default).replace("%", "%%"),
        )
    if positional:
        parser.add_argument(
            positional.name,
            type=positional.parse,
            nargs="?",
            default=argparse.SUPPRESS,
            metavar=positional.name.upper(),
            help=positional.help.replace("%", "%%"),
        )
    return parser


def _without_blanks(argv: Sequence[str] | None) -> list[str] | None:
    # The reference's README has a blank behind a line's backslash, which arrives as an argument.
    return [argument for argument in (sys.argv[1:] if argv is None else argv) if argument.strip()]


def _shown(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _config_arguments(path: str, flags: Sequence[Flag]) -> list[str]:
    with open(path, encoding="utf-8") as file:
        try:
            settings = yaml.safe_load(file)
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"config {path} is not YAML: {error}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"config {path}: expected lines of `flag: value`")
    named = [(flag.name, flag.alias) for flag in flags if flag.num_values is None]
    names = [name for pair in named for name in pair if name]
    unknown = [str(name) for name in settings if name not in names]
    if unknown:
        close = difflib.get_close_matches(unknown[0], names, n=1)
        hint = f", did you mean {close[0]}?" if close else ""
        raise ValueError(f"config {path}: unknown flag {', '.join(unknown)}{hint}")
    repeated = [flag.name for flag in flags if flag.repeats]
    return [
        f"--{name}={_shown(tuple(value) if isinstance(value, list) else value)}"
        for name, values in settings.items()
        for value in (values if name in repeated and isinstance(values, list) else [values])
        if value is not None
    ]
