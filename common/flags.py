"""How flags are parsed: types of values, one-line errors, YAML config files."""

from __future__ import annotations

import argparse
import difflib
import math
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, NoReturn

import yaml

from metric_learning import __version__
from metric_learning.common.cli import fail

AMP_CHOICES = ("auto", "off", "bfloat16", "float16")
# Flags that mean the same: one on the command line replaces the other of a config file.
ALTERNATIVES = ({"num_epochs", "total_iter_num"},)
TRUE_WORDS, FALSE_WORDS = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


@dataclass(frozen=True)
class Flags:
    """What the user asked for, read as attributes, `flags.lr`. Nothing changes it.

    Attributes:
        values: flag -> value, given or default.
        given: names of the flags that stood on the command line or in the config file.
    """

    values: Mapping[str, Any]
    given: frozenset[str] = frozenset()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in ("values", "given") or name not in self.values:
            raise AttributeError(f"there is no flag {name}")
        return self.values[name]

    def replaced(self, **values: Any) -> Flags:
        """Return flags with other values."""
        return replace(self, values=MappingProxyType({**self.values, **values}))

    def giving(self, names: Iterable[str]) -> Flags:
        """Return flags of which these count as given too."""
        return replace(self, given=self.given | set(names))

    def adopted(
        self,
        source: str,
        fixed: Mapping[str, Any],
        others: Mapping[str, Any] = MappingProxyType({}),
    ) -> Flags:
        """Return flags with what a file says in place of what was not given.

        Raises ValueError where a given flag contradicts one of the `fixed` values; `others` yield.
        """
        for name, value in fixed.items():
            if name in self.given and self.values[name] != value:
                raise ValueError(
                    f"{source} was made with --{name}={shown(value)}, found "
                    f"--{name}={shown(self.values[name])}: leave the flag out"
                )
        free = {name: value for name, value in (others or {}).items() if name not in self.given}
        return self.replaced(**{**free, **fixed})

    def refuse(self, names: Iterable[str], reason: str) -> None:
        """Raise ValueError where the user gave a flag that nothing would use."""
        unused = [f"--{name}" for name in names if name in self.given]
        if unused:
            raise ValueError(f"{', '.join(unused)} is not used ({reason}): leave it out")


def boolean(text: str) -> bool:
    """Parse True/False, yes/no, on/off or 1/0."""
    word = text.strip().lower()
    if word in TRUE_WORDS:
        return True
    if word in FALSE_WORDS:
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


def scale(text: str) -> float | None:
    """Parse a number above 0; None for `auto`."""
    if text.strip().lower() == "auto":
        return None
    number = non_negative(text)
    if number == 0:
        raise argparse.ArgumentTypeError(f"expected a number above 0 or auto, found {text!r}")
    return number


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


# What --help calls the value of a flag, by what parses it.
METAVARS: dict[Callable[[str], Any], str] = {
    boolean: "BOOL",
    positive: "INT",
    natural: "INT",
    non_negative: "NUMBER",
    fraction: "FRACTION",
    path: "PATH",
    image_shape: "3,S,S",
    integers: "INT,...",
    whitening: "INT|all",
    scale: "NUMBER|auto",
    amp: "|".join(AMP_CHOICES),
}


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
    be given several times, and its value is the list of them. `alias` is another name of it, and
    `group` the heading that --help lists it under.
    """

    name: str
    parse: Callable[[str], Any]
    default: Any
    help: str
    choices: Sequence[str] | None = None
    num_values: int | None = None
    alias: str | None = None
    repeats: bool = False
    group: str = ""

    @property
    def options(self) -> list[str]:
        """The words by which it is given."""
        return [f"--{name}" for name in (self.name, self.alias) if name]


def grouped(group: str, *table: Flag) -> tuple[Flag, ...]:
    """Return flags under a heading of --help."""
    return tuple(replace(flag, group=group) for flag in table)


def with_defaults(table: Iterable[Flag], **defaults: Any) -> tuple[Flag, ...]:
    """Return flags with some defaults replaced, by name."""
    return tuple(
        replace(flag, default=defaults[flag.name]) if flag.name in defaults else flag
        for flag in table
    )


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


def parse_flags(
    description: str | None,
    table: Sequence[Flag],
    argv: Sequence[str] | None,
    positional: Flag | None = None,
    prog: str | None = None,
) -> Flags:
    """Parse the command line, and below it the YAML file of --config.

    Beside the flags of the `table` there may be one `positional` argument, without `--name=`. A
    wrong flag or value ends the process with status 2, after one line on stderr; a wrong config
    file is a ValueError.
    """
    parser = _build_parser(description, table, positional, prog)
    given: dict[str, Any] = {}

    # Plain parse_args finds no optional positional behind a flag before Python 3.12.
    named = vars(parser.parse_intermixed_args(words_of(table, argv)))
    if "config" in named:
        given |= vars(parser.parse_args(_config_arguments(named["config"], table)))
        for alternatives in ALTERNATIVES:
            if alternatives & set(named):
                given = {name: value for name, value in given.items() if name not in alternatives}
    given |= named

    described = (*table, positional) if positional else table
    values = {flag.name: flag.default for flag in described} | given
    return Flags(MappingProxyType(values), frozenset(given))


def words_of(table: Sequence[Flag], argv: Sequence[str] | None) -> list[str]:
    """Return the arguments of a command line, with `=True` behind a bare flag of yes or no.

    The reference's README has a blank behind a line's backslash, which arrives as an argument.
    """
    words = [word for word in (sys.argv[1:] if argv is None else argv) if word.strip()]
    switches = {word for flag in table if flag.parse is boolean for word in flag.options}
    answers = (*TRUE_WORDS, *FALSE_WORDS)
    return [
        f"{word}=True" if word in switches and following.lower() not in answers else word
        for word, following in zip(words, [*words[1:], ""], strict=False)
    ]


def _build_parser(
    description: str | None, table: Sequence[Flag], positional: Flag | None, prog: str | None
) -> _Parser:
    parser = _Parser(
        prog=prog,
        description=description,
        usage="%(prog)s [--flag=value ...]" + (f" {positional.name.upper()}" if positional else ""),
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )

    version = f"metric-learning {__version__}"
    parser.add_argument("--version", action="version", version=version)
    config_flag = Flag("config", path, None, "YAML file of flags; the command line wins")
    groups: dict[str, Any] = {"": parser}
    for flag in (*table, config_flag):
        if flag.group not in groups:
            groups[flag.group] = parser.add_argument_group(flag.group)
        default = "" if flag.default in (None, ()) else f" (default {shown(flag.default)})"
        groups[flag.group].add_argument(
            *flag.options,
            action="append" if flag.repeats else "store",
            type=flag.parse,
            choices=flag.choices,
            nargs=flag.num_values,
            default=argparse.SUPPRESS,
            metavar=None if flag.choices else METAVARS.get(flag.parse, "TEXT"),
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


def shown(value: Any) -> str:
    """Return a value as it is written behind its flag."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def read_config(path: str) -> dict[str, Any]:
    """Read the YAML file of --config: flag -> value; ValueError where it is none."""
    with open(path, encoding="utf-8") as file:
        try:
            settings = yaml.safe_load(file)
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"config {path} is not YAML: {error}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"config {path}: expected lines of `flag: value`")
    return settings


def _config_arguments(path: str, table: Sequence[Flag]) -> list[str]:
    settings = read_config(path)
    named = [(flag.name, flag.alias) for flag in table if flag.num_values is None]
    names = [name for pair in named for name in pair if name]

    unknown = [str(name) for name in settings if name not in names]
    if unknown:
        close = difflib.get_close_matches(unknown[0], names, n=1)
        hint = f", did you mean {close[0]}?" if close else ""
        raise ValueError(f"config {path}: unknown flag {', '.join(unknown)}{hint}")

    repeated = [flag.name for flag in table if flag.repeats]
    return [
        f"--{name}={shown(tuple(value) if isinstance(value, list) else value)}"
        for name, values in settings.items()
        for value in (values if name in repeated and isinstance(values, list) else [values])
        if value is not None
    ]
