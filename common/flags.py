"""How flags are parsed: types of values, and one-line errors."""

from __future__ import annotations

import argparse
import difflib
import math
import os
import sys
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from types import MappingProxyType
from typing import Any, NoReturn

from metric_learning import __version__
from metric_learning.common.cli import fail
from metric_learning.common.config import Value, read_config
from metric_learning.common.places import without_latest

AMP_CHOICES = ("auto", "off", "tf32", "bfloat16", "float16")
# Flags that mean the same: one on the command line replaces the other of a config file.
ALTERNATIVES = ({"num_epochs", "total_iter_num"}, {"lr", "lr_of_start"})
TRUE_WORDS, FALSE_WORDS = ("true", "yes", "on", "1"), ("false", "no", "off", "0")
# What other tools call a flag, where the spelling alone would suggest another one.
OTHER_NAMES = {
    **dict.fromkeys(("learning_rate", "base_lr", "init_lr"), ("lr",)),
    **dict.fromkeys(("epochs", "max_epochs", "num_train_epochs", "epoch"), ("num_epochs",)),
    **dict.fromkeys(("iterations", "max_iter", "max_steps", "steps"), ("total_iter_num",)),
    **dict.fromkeys(("batch", "bs", "batchsize"), ("train_batch_size", "batch_size")),
    **dict.fromkeys(("arch", "backbone", "net", "network", "model_name"), ("model",)),
    **dict.fromkeys(("weights", "pretrained", "init_from"), ("pretrained_model",)),
    **dict.fromkeys(("ckpt", "resume"), ("checkpoint", "pretrained_model")),
    **dict.fromkeys(("loss", "criterion"), ("loss_name",)),
    **dict.fromkeys(("data", "data_path", "root", "data_root"), ("data_dir",)),
    **dict.fromkeys(("img_size", "image_size", "input_size", "size"), ("image_shape",)),
    **dict.fromkeys(("workers", "j", "num_threads"), ("num_workers",)),
    **dict.fromkeys(("gpu", "gpus", "gpu_id", "cuda"), ("device",)),
    **dict.fromkeys(("wd", "l2"), ("weight_decay",)),
    **dict.fromkeys(("dim", "embed_dim", "emb_dim"), ("embedding_size",)),
    **dict.fromkeys(("out", "output_path", "save_dir", "outdir"), ("output", "model_save_dir")),
    **dict.fromkeys(("k", "num_neighbours", "num_neighbors", "top_k"), ("topk", "ks")),
    **dict.fromkeys(("scheduler", "lr_scheduler", "lr_schedule"), ("lr_strategy",)),
    **dict.fromkeys(("fp16", "bf16", "precision"), ("amp",)),
}


@dataclass(frozen=True)
class Flags:
    """What the user asked for, read as attributes, `flags.lr`. Nothing changes it.

    Attributes:
        values: flag -> value, given or default.
        given: names of the flags that stood on the command line or in the config file.
        table: the flags by name, as far as values of files are to be held against them.
    """

    values: Mapping[str, Any]
    given: frozenset[str] = frozenset()
    table: Mapping[str, Flag] = field(default_factory=dict)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in ("values", "given", "table") or name not in self.values:
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

        Raises ValueError where a given flag contradicts one of the `fixed` values, or a value is
        none that the flag takes; `others` yield.
        """
        fixed, others = self._of_file(source, fixed), self._of_file(source, others)
        for name, value in fixed.items():
            if name in self.given and self.values[name] != value:
                raise ValueError(
                    f"{source} was made with --{name}={shown(value)}, found "
                    f"--{name}={shown(self.values[name])}: leave the flag out"
                )
        free = {name: value for name, value in others.items() if name not in self.given}
        return self.replaced(**{**free, **fixed})

    def _of_file(self, source: str, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return values of a file as their flags parse them; those of no flag are left out."""
        if not self.table:
            return dict(values)
        known = {name: value for name, value in values.items() if name in self.table}
        return {name: self.table[name].parse_stored(value, source) for name, value in known.items()}

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


def factor(text: str) -> float:
    """Parse a number above 0 and at most 1."""
    number = non_negative(text)
    if not 0 < number <= 1:
        raise argparse.ArgumentTypeError(f"expected a number above 0, at most 1, found {text!r}")
    return number


def path(text: str) -> str:
    """Parse a path; ~ is expanded, which shells do not do behind `=`."""
    return os.path.expanduser(text)


def run_file(text: str) -> str:
    """Parse the path of a file of a run; `latest` becomes the run that it leads to now."""
    return without_latest(path(text))


def image_shape(text: str) -> tuple[int, int, int]:
    """Parse `3,H,W`: channels, height and width in pixels."""
    sizes = _integers(text)
    if len(sizes) != 3 or sizes[0] != 3 or min(sizes) < 1:
        raise argparse.ArgumentTypeError(
            f"expected 3,HEIGHT,WIDTH (channels, pixels), found {text!r}"
        )
    return 3, sizes[1], sizes[2]


def integers(text: str) -> tuple[int, ...]:
    """Parse comma-separated integers of at least 1."""
    numbers = _integers(text)
    if not numbers or min(numbers) < 1:
        raise argparse.ArgumentTypeError(f"expected integers of at least 1, found {text!r}")
    return numbers


def color_jitter(text: str) -> tuple[float, ...]:
    """Parse `B,C,S,H`: four numbers of at least 0, the last of at most 0.5; empty if all are 0."""
    ranges = _numbers(text)
    if len(ranges) != 4 or min(ranges) < 0 or ranges[3] > 0.5:
        raise argparse.ArgumentTypeError(
            "expected BRIGHTNESS,CONTRAST,SATURATION,HUE, numbers of at least 0 and a hue of at "
            f"most 0.5, found {text!r}"
        )
    return ranges if any(ranges) else ()


def rand_augment(text: str) -> tuple[int, int]:
    """Parse `N,M`: operations of at least 1, and their strength of 0 to 30."""
    numbers = _integers(text)
    if len(numbers) != 2 or numbers[0] < 1 or not 0 <= numbers[1] <= 30:
        raise argparse.ArgumentTypeError(
            f"expected N,M, operations of 1 or more and a strength of 0 to 30, found {text!r}"
        )
    return numbers[0], numbers[1]


def aspect_range(text: str) -> tuple[float, float]:
    """Parse `LOW,HIGH`: width by height, such as 3/4,4/3."""
    numbers = _numbers(text)
    if len(numbers) != 2 or not 0 < numbers[0] <= numbers[1]:
        raise argparse.ArgumentTypeError(
            f"expected LOW,HIGH of widths by heights above 0, such as 3/4,4/3, found {text!r}"
        )
    return numbers[0], numbers[1]


def short_side_or_both(text: str) -> tuple[int, ...]:
    """Parse a short side in pixels, or a height and a width."""
    numbers = _integers(text)
    if len(numbers) > 2 or min(numbers) < 1:
        raise argparse.ArgumentTypeError(
            f"expected a short side, or HEIGHT,WIDTH, in pixels, found {text!r}"
        )
    return numbers


def scales(text: str) -> tuple[float, ...]:
    """Parse comma-separated numbers above 0, none of them twice, and not 1 alone."""
    numbers = _numbers(text)
    if min(numbers) <= 0 or len(set(numbers)) < len(numbers) or numbers == (1.0,):
        raise argparse.ArgumentTypeError(
            "expected numbers above 0, each once, such as 0.8,1,1.25 (1 alone is the image as it "
            f"is), found {text!r}"
        )
    return numbers


def some_of(words: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    """Return what parses some of these words, separated by commas, none of them twice."""

    def parse(text: str) -> tuple[str, ...]:
        found = tuple(part.strip().lower() for part in text.strip("()[] ").split(","))
        if not set(found) <= set(words) or len(set(found)) < len(found):
            raise argparse.ArgumentTypeError(
                f"expected some of {', '.join(words)}, each once, found {text!r}"
            )
        return found

    return parse


def resize_ratio(text: str) -> float:
    """Parse a number of 1 to 4."""
    number = non_negative(text)
    if not 1 <= number <= 4:
        raise argparse.ArgumentTypeError(f"expected a number of 1 to 4, found {text!r}")
    return number


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


def cosine(text: str, words: str = "") -> float:
    """Parse a cosine, of -1 to 1; an error names the `words` that are allowed beside it."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not -1 <= number <= 1:
        raise argparse.ArgumentTypeError(f"expected a cosine of -1 to 1{words}, found {text!r}")
    return number


def unknown_threshold(text: str) -> str | float:
    """Parse a cosine, of -1 to 1, or the words `auto` and `off`."""
    word = text.strip().lower()
    return word if word in ("auto", "off") else cosine(text, ", auto or off")


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
    run_file: "PATH",
    image_shape: "3,H,W",
    integers: "INT,...",
    color_jitter: "B,C,S,H",
    rand_augment: "N,M",
    aspect_range: "LOW,HIGH",
    short_side_or_both: "SIZE|H,W",
    scales: "NUMBER,...",
    resize_ratio: "NUMBER",
    whitening: "INT|all",
    scale: "NUMBER|auto",
    cosine: "COSINE",
    unknown_threshold: "COSINE|auto|off",
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


def _numbers(text: str) -> tuple[float, ...]:
    """Parse comma-separated finite numbers, or quotients of them such as 3/4."""
    try:
        return tuple(float(Fraction(part.strip())) for part in text.strip("()[] ").split(","))
    except (ValueError, ZeroDivisionError, OverflowError):
        raise argparse.ArgumentTypeError(f"expected comma-separated numbers: {text!r}") from None


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

    def parse_stored(self, value: Any, source: str) -> Any:
        """Parse a value that the file `source` holds; ValueError where the flag takes no such."""
        if value is None or (self.default == () and value in ((), [])):
            return self.default
        try:
            if self.num_values is not None or self.repeats:
                return [self.parse(str(each)) for each in value]
            parsed = self.parse(shown(tuple(value) if isinstance(value, list) else value))
        except (argparse.ArgumentTypeError, ValueError, TypeError) as error:
            raise ValueError(f"{source} is damaged, its {self.name}: {error}") from error

        if self.choices and parsed not in self.choices:
            expected = ", ".join(self.choices)
            raise ValueError(
                f"{source} is damaged, its {self.name}: expected one of {expected}, found {value}"
            )
        return parsed


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
    """An argument parser whose errors are one line.

    `source` stands before them; `elsewhere` maps flags of other scripts to what these are called.
    """

    source = ""
    elsewhere: Mapping[str, str] = MappingProxyType({})

    def error(self, message: str) -> NoReturn:
        if message.startswith("unrecognized arguments: --"):
            wrong = message.split()[2].split("=")[0]
            names = [option for action in self._actions for option in action.option_strings]
            hint = _hint(wrong[2:], names, self.elsewhere)
            message = f"unknown flag {wrong}: {hint}{' ' if hint else ''}--help lists all"
        fail(self.source + message)


def _hint(wrong: str, options: Sequence[str], elsewhere: Mapping[str, str]) -> str:
    """Say what the unknown flag `wrong` may have meant, where that can be guessed."""
    if wrong in elsewhere:
        return f"it belongs to {elsewhere[wrong]}, leave it out;"
    word = wrong.lower().replace("-", "_")
    known = [name for name in (word, *OTHER_NAMES.get(word, ())) if f"--{name}" in options]
    close = [name[2:] for name in difflib.get_close_matches(f"--{word}", options, n=1)]
    return "".join(f"did you mean --{name}?" for name in (known or close)[:1])


def parse_flags(
    description: str | None,
    table: Sequence[Flag],
    argv: Sequence[str] | None,
    positional: Flag | None = None,
    prog: str | None = None,
    elsewhere: Mapping[str, str] = MappingProxyType({}),
) -> Flags:
    """Parse the command line, and below it the YAML file of --config.

    Beside the flags of the `table` there may be one `positional` argument, without `--name=`, or a
    list of them where it `repeats`.
    `elsewhere` maps flags of other scripts to what these are called. A wrong flag or value, an
    empty one, or a flag that is given twice ends the process with status 2, after one line on
    stderr; a wrong config file is a ValueError.
    """
    parser = _build_parser(description, table, positional, prog)
    parser.elsewhere = elsewhere
    given: dict[str, Any] = {}

    # Plain parse_args finds no optional positional behind a flag before Python 3.12.
    named = vars(parser.parse_intermixed_args(words_of(table, argv)))
    if "config" in named:
        parser.source = f"config {named['config']}: "
        given |= vars(parser.parse_args(_config_arguments(named["config"], table, elsewhere)))
        for alternatives in ALTERNATIVES:
            if alternatives & set(named):
                given = {name: value for name, value in given.items() if name not in alternatives}
    given |= named

    described = (*table, positional) if positional else table
    values = {flag.name: flag.default for flag in described} | given
    by_name = {flag.name: flag for flag in described}
    return Flags(MappingProxyType(values), frozenset(given), MappingProxyType(by_name))


def words_of(table: Sequence[Flag], argv: Sequence[str] | None) -> list[str]:
    """Return the arguments of a command line, with `=True` behind a bare flag of yes or no.

    The reference's README has a blank behind a line's backslash, which arrives as an argument. An
    empty value, or a flag that is given twice, ends the process with status 2.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    switches = {word for flag in table if flag.parse is boolean for word in flag.options}
    _refuse_empty(given, switches)
    words = [word for word in given if word.strip()]
    _refuse_repeated(words, table)

    answers = (*TRUE_WORDS, *FALSE_WORDS)
    return [
        f"{word}=True" if word in switches and following.lower() not in answers else word
        for word, following in zip(words, [*words[1:], ""], strict=False)
    ]


def last_of_each(words: Iterable[object]) -> list[str]:
    """Leave out each `--flag=value` that is given again later, for who puts command lines together.

    The scripts refuse a flag that is given twice.
    """
    texts = [str(word) for word in words]
    last = {text.partition("=")[0]: number for number, text in enumerate(texts)}
    return [
        text
        for number, text in enumerate(texts)
        if not text.startswith("--") or last[text.partition("=")[0]] == number
    ]


def _refuse_empty(words: Sequence[str], switches: Container[str]) -> None:
    """End the process where a flag has an empty value, as of a shell variable that is not set."""
    flag, awaits_value = "", False
    for word in words:
        name, sign, value = word.partition("=")
        if name.startswith("--"):
            flag, awaits_value = name, not sign and name not in switches
            is_empty = bool(sign) and not value.strip()
        else:
            is_empty = not word or (awaits_value and not word.strip())
            awaits_value = False

        if is_empty:
            what = f"{flag} has an empty value" if flag else "an argument is empty"
            fail(f"{what} (is a variable not set?): give one, or leave it out")


def _refuse_repeated(words: Sequence[str], table: Sequence[Flag]) -> None:
    """End the process where a flag that does not repeat is given twice."""
    names = {option: flag.name for flag in table if not flag.repeats for option in flag.options}
    names["--config"] = "config"
    first: dict[str, str] = {}
    for word in words:
        name = names.get(word.partition("=")[0])
        if name in first:
            fail(f"{first[name]} and {word}: expected the flag once, found it twice")
        if name is not None:
            first[name] = word


def _build_parser(
    description: str | None, table: Sequence[Flag], positional: Flag | None, prog: str | None
) -> _Parser:
    parser = _Parser(
        prog=prog,
        description=description,
        usage=f"%(prog)s [--flag=value ...]{_usage(positional)}",
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
            nargs="*" if positional.repeats else "?",
            default=argparse.SUPPRESS,
            metavar=positional.name.upper(),
            help=positional.help.replace("%", "%%"),
        )
    return parser


def _usage(positional: Flag | None) -> str:
    if positional is None:
        return ""
    return f" {positional.name.upper()}{' ...' if positional.repeats else ''}"


def shown(value: Any) -> str:
    """Return a value as it is written behind its flag."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _config_arguments(path: str, table: Sequence[Flag], elsewhere: Mapping[str, str]) -> list[str]:
    """Return the arguments that a config file stands for; ValueError where it is wrong."""
    settings = read_config(path)
    named = [flag for flag in table if flag.num_values is None]
    names = {option[2:]: flag for flag in named for option in flag.options}

    unknown = [name for name in settings if name not in names]
    if unknown:
        hint = _hint(unknown[0], [f"--{name}" for name in names], elsewhere)
        raise ValueError(f"config {path}: unknown flag {', '.join(unknown)}: {hint.rstrip(';')}")
    for flag in named:
        if len(both := [option[2:] for option in flag.options if option[2:] in settings]) > 1:
            raise ValueError(f"config {path}: {' and '.join(both)} are the same flag: keep one")

    arguments = []
    for name, value in settings.items():
        for text in _texts(value, names[name].repeats):
            if not text.strip():
                raise ValueError(
                    f"config {path}: {name} has an empty value: give one, or leave it out"
                )
            arguments.append(f"--{name}={text}")
    return arguments


def _texts(value: Value, repeats: bool) -> list[str]:
    """Return the texts that a flag gets, one after the other if it repeats."""
    if isinstance(value, str):
        return [value]
    return value if repeats and value else [",".join(value)]
