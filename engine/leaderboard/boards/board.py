"""Boards: what is compared, on which data, by which protocol and with which budget.

A board is a YAML file, see configs/boards/:

    title: what it is about
    data: {dataset: demo}                  # flags of the data
    images: {train: 400, test: 400}        # their numbers, for --dry_run without the data
    flags: {model: ResNet18, lr: 0.01}     # flags of all trainings
    protocol: {folds: 4, trials: 8, reserve: 4, seeds: 3, baseline: softmax}
    search: {lr: [log, 0.001, 0.1]}        # what all rows search; left out: by loss
    smoke: {image_shape: "3,32,32"}        # flags of --budget=smoke
    rows:
      softmax: {flags: {loss_name: softmax, num_epochs: 10}}
      softmax, eml:
        start: softmax                     # the row whose network it goes on with
        flags: {loss_name: eml, num_epochs: 5}
        search: {lr: [log, 0.0001, 0.01]}  # beside or instead of the board's
        config: configs/recipes/stage2_eml.yaml  # a file of flags, which those of the row replace
        published: {recall@1: 79.32, source: "..."}

A flag that is `none` in a row or in smoke is left out there.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from metric_learning.common.config import Tree, read_config, read_tree
from metric_learning.common.flags import TRUE_WORDS
from metric_learning.engine.leaderboard.boards.lengths import (
    count,
    longer,
    scaled,
    shortest,
    text_of,
)
from metric_learning.engine.leaderboard.boards.space import Parameter, parse_parameter
from metric_learning.engine.options.signatures import losses_of_table, options_of
from metric_learning.engine.options.training_table import ELEM, PAIR

SEARCHES = ("sobol", "grid", "tpe")
KEYS = ("title", "data", "images", "flags", "protocol", "search", "smoke", "rows")
ROW_KEYS = ("flags", "config", "search", "start", "seed", "frozen", "published")
OF_ITS_OWN_RUN = ("dataset", "data_dir", "model_save_dir", "run_name")  # of a row's file, left out
# The options of losses that a row searches where it does not say what: the first that the loss has.
SCALES = ("arc_scale", "scale", "circle_scale")
TEMPERATURES = ("temperature", "nca_temperature", "rank_temperature")
MARGINS = (
    *("margin", "cos_margin", "arc_margin", "negative_margin", "lifted_margin", "anchor_margin"),
    *("ada_margin", "ms_epsilon"),
)
RATE_REACH = 8.0  # by which a rate is searched below and above that of the row
CLASS_RATES = (1.0, 100.0)  # of lr_loss_mult
SCALE_RANGE, LENGTH_RANGE = (4.0, 80.0), (1.0, 10.0)
LONGEST_SLUG = 50  # letters, of up to 4 bytes; 255 are the most that a name of a folder has
SMOKE: dict[str, Any] = {"trials": 1, "reserve": 1, "seeds": 2}


@dataclass(frozen=True)
class Protocol:
    """How settings are chosen, and what is reported.

    Attributes:
        folds: parts of the training images, each held out once for every trial.
        trials: settings that every row tries at first.
        reserve: settings that every row tries afterwards, around the best or beyond its edge.
        seeds: trainings with the chosen settings on all training images.
        search: one of SEARCHES.
        baseline: the row that the others are compared with, beside the best.
        closed: the test classes are those of training: folds and intervals are of images.
        validates_all: rows without anything to choose are measured on the folds too.
    """

    folds: int = 4
    trials: int = 8
    reserve: int = 4
    seeds: int = 3
    search: str = "sobol"
    baseline: str | None = None
    closed: bool = False
    validates_all: bool = False


@dataclass(frozen=True)
class Row:
    """A method: the flags of its last training, and the row that it starts from, if any.

    Attributes:
        flags: flag -> its text, those of the board among them.
        space: what its trials search.
        start: the row whose network it goes on with, None: that of --pretrained_model.
        seed: what its trials and trainings are drawn from, beside the number of each.
        is_frozen: nothing is trained; the weights are measured as they are.
        length_of: the row of two stages beside which this one is trained for as many images.
        published: metric -> its figure in percent, and `source`.
    """

    name: str
    flags: Mapping[str, str]
    space: tuple[Parameter, ...] = ()
    start: str | None = None
    seed: int = 0
    is_frozen: bool = False
    length_of: str | None = None
    published: Mapping[str, str] = field(default_factory=dict)

    @property
    def slug(self) -> str:
        """The name of its folder."""
        return re.sub(r"[^\w.+-]+", "_", self.name).strip("_.")[:LONGEST_SLUG] or "row"

    @property
    def script(self) -> str:
        """The script that trains it."""
        is_elem = self.flags["loss_name"] in losses_of_table(ELEM)
        return "train_elem.py" if is_elem else "train_pair.py"


@dataclass(frozen=True)
class Board:
    """A comparison: its rows, those that others start from before these.

    `num_images` is how many the splits have, as its file says, for those who lack the data.
    """

    name: str
    title: str
    data: Mapping[str, str]
    protocol: Protocol
    rows: tuple[Row, ...]
    num_images: Mapping[str, int] = field(default_factory=dict)

    def row(self, name: str) -> Row:
        """Return a row by its name."""
        return next(row for row in self.rows if row.name == name)


def read_board(path: str, changes: Changes | None = None) -> Board:
    """Read a board, with the changes of the command line.

    Raises ValueError, with the name of the file and what is wrong in it, or OSError.
    """
    found = read_tree(path, "board")
    try:
        return build_board(Path(path).stem, found, changes or Changes())
    except ValueError as error:
        raise ValueError(f"board {path}: {error}") from error


@dataclass(frozen=True)
class Changes:
    """What the command line changes of a board.

    Attributes:
        data: flags of the data, of which those of the board count where this names no data set.
        flags: flags of all trainings.
        protocol: fields of Protocol.
        rows: names of those that are wanted; None: all.
        budget: factor of the lengths of all trainings; None: the smallest that runs at all.
    """

    data: Mapping[str, str] = field(default_factory=dict)
    flags: Mapping[str, str] = field(default_factory=dict)
    protocol: Mapping[str, Any] = field(default_factory=dict)
    rows: Sequence[str] | None = None
    budget: float | None = 1.0


def build_board(name: str, found: Mapping[str, Tree], changes: Changes) -> Board:
    """Build a board from what its file holds; ValueError where something is wrong."""
    _check_keys(found, KEYS, "the board")
    protocol = _read_protocol(_mapping(found, "protocol"))
    data = dict(changes.data)
    if "dataset" not in data:
        data = _texts(_mapping(found, "data"), "data") | data
    common = _texts(_mapping(found, "flags"), "flags")
    shared = _mapping(found, "search") if "search" in found else None
    smoke = _texts(_mapping(found, "smoke"), "smoke")

    named = _mapping(found, "rows")
    rows = {row: _read_row(row, _mapping(named, row), common, shared) for row in named}
    if not rows:
        raise ValueError("expected rows, found none")
    rows = choose_rows(rows, changes.rows)
    if changes.budget is None:
        protocol = replace(protocol, **SMOKE)
        rows = {key: replace(row, flags=with_smoke(row.flags, smoke)) for key, row in rows.items()}
    elif changes.budget != 1:
        rows = {key: _scaled(row, changes.budget) for key, row in rows.items()}
    own = {key: replace(row, flags={**row.flags, **changes.flags}) for key, row in rows.items()}

    protocol = replace(protocol, **changes.protocol)
    if protocol.baseline is not None and protocol.baseline not in own:
        if changes.rows is None:
            raise ValueError(f"protocol: no row {protocol.baseline}, the baseline")
        protocol = replace(protocol, baseline=None)
    whole = in_order(with_long_rows(own))
    _check_slugs(whole)
    title = found.get("title", name)
    images = _texts(_mapping(found, "images"), "images")
    return Board(
        name,
        title if isinstance(title, str) else name,
        data,
        protocol,
        tuple(whole),
        {split: count(images, split) for split in images} if "dataset" not in changes.data else {},
    )


def _scaled(row: Row, factor: float) -> Row:
    with _naming(f"row {row.name}"):
        return replace(row, flags=scaled(row.flags, factor))


def with_smoke(texts: Mapping[str, str], smoke: Mapping[str, str]) -> dict[str, str]:
    """Return the flags of the shortest training, with those of the board."""
    own = {name: text for name, text in smoke.items() if name in texts or text != "none"}
    return without_none({**shortest(texts), **own})


def without_none(texts: Mapping[str, str]) -> dict[str, str]:
    """Leave out flags that are `none`: a row, or the smallest budget, is without them."""
    return {name: text for name, text in texts.items() if text != "none"}


def _read_protocol(found: Mapping[str, Tree]) -> Protocol:
    names = {each.name: each.type for each in fields(Protocol)}
    _check_keys(found, names, "protocol")
    values: dict[str, Any] = {}

    for name, text in _texts(found, "protocol").items():
        if names[name] == "int":
            least = {"folds": 2, "reserve": 0}.get(name, 1)
            if not text.isdecimal() or int(text) < least:
                raise ValueError(f"protocol: {name}: expected at least {least}, found {text}")
            values[name] = int(text)
        elif names[name] == "bool":
            values[name] = text.lower() in TRUE_WORDS
        else:
            values[name] = text
    if values.get("search", "sobol") not in SEARCHES:
        raise ValueError(f"protocol: search: expected one of {', '.join(SEARCHES)}")
    return Protocol(**values)


def _read_row(
    name: str,
    found: Mapping[str, Tree],
    common: Mapping[str, str],
    shared: Mapping[str, Tree] | None,
) -> Row:
    what = f"row {name}"
    if not name.isprintable() or not name.strip():
        raise ValueError(f"{what!r}: expected a name of printable letters in one line")
    _check_keys(found, ROW_KEYS, what)
    texts = {key: value for key, value in found.items() if isinstance(value, str)}
    is_frozen = texts.get("frozen", "").lower() in TRUE_WORDS
    own = _config_flags(texts.get("config"), what) | _texts(_mapping(found, "flags"), what)
    flags = without_none({**common, **own})
    if is_frozen:
        flags = {"loss_name": "softmax", **flags, "total_iter_num": "0"}
        flags.pop("num_epochs", None)
    if "loss_name" not in flags:
        raise ValueError(f"{what}: expected a loss_name among its flags")

    space: tuple[Parameter, ...] = ()
    wanted = {**(shared or {}), **_mapping(found, "search")}
    with _naming(f"{what}: search"):
        if not is_frozen and shared is None and "search" not in found:
            space = default_space(flags)
        elif not is_frozen:
            space = tuple(parse_parameter(key, _list(wanted, key)) for key in wanted)
    seed = texts.get("seed", "0")
    if not seed.isdecimal():
        raise ValueError(f"{what}: seed: expected a number, found {seed}")
    published = _texts(_mapping(found, "published"), what)
    return Row(name, flags, space, texts.get("start"), int(seed), is_frozen, None, published)


def _config_flags(path: str | None, what: str) -> dict[str, str]:
    """Return the flags of a row's file, but those that say where the data and a run are."""
    if path is None:
        return {}
    try:
        found: Mapping[str, Any] = read_config(path)
    except OSError as error:
        raise ValueError(f"{what}: config {path}: {error.strerror}") from error
    return _texts({name: found[name] for name in found if name not in OF_ITS_OWN_RUN}, what)


def default_space(texts: Mapping[str, str]) -> tuple[Parameter, ...]:
    """Return what a row searches: its rate, that of class weights, and one option of its loss.

    That is its scale or temperature, or else its margin; of a loss that takes raw embeddings their
    length, where the row normalises them.
    """
    name, rate = texts["loss_name"], _rate_of(texts)
    is_elem = name in losses_of_table(ELEM)
    places = losses_of_table(ELEM if is_elem else PAIR)
    options = options_of(places[name]) if name in places else {}
    space = [Parameter("lr", "log", rate / RATE_REACH, rate * RATE_REACH)]
    if is_elem:
        space.append(Parameter("lr_loss_mult", "log", *CLASS_RATES))

    if texts.get("normalize_embeddings", "").lower() in TRUE_WORDS:
        return (*space, Parameter("embedding_scale", "log", *LENGTH_RANGE))
    for own in (*SCALES, *TEMPERATURES, *MARGINS):
        if own not in options:
            continue
        value = float(options[own].default)
        if own in SCALES:
            space.append(Parameter(own, "log", *SCALE_RANGE))
        elif own in TEMPERATURES:
            space.append(Parameter(own, "log", value / 4, value * 4))
        else:
            space.append(Parameter(own, "linear", 0.0, 2.5 * value))
        break
    return tuple(space)


def _rate_of(texts: Mapping[str, str]) -> float:
    try:
        rate = float(texts.get("lr", "0.01"))
    except ValueError:
        rate = 0.0
    if not 0 < rate < float("inf"):
        raise ValueError(
            f"lr: expected a number above 0, around which it is searched, found {texts['lr']}"
        )
    return rate


def choose_rows(rows: Mapping[str, Row], wanted: Sequence[str] | None) -> dict[str, Row]:
    """Return the wanted rows and those that they start from; ValueError where one is not there."""
    for row in rows.values():
        if row.start is not None and row.start not in rows:
            raise ValueError(f"row {row.name}: no row {row.start} to start from")
        if row.start is not None and (row.is_frozen or rows[row.start].is_frozen):
            raise ValueError(
                f"row {row.name}: starts from {row.start}, but one of them is frozen: leave out "
                "`start`, and give the weights as its pretrained_model"
            )
    needed = set(rows if wanted is None else wanted)
    unknown = sorted(needed - set(rows))
    if unknown:
        raise ValueError(f"no row {unknown[0]}: there are {', '.join(rows)}")

    while more := {rows[name].start for name in needed} - needed - {None}:
        needed |= {name for name in more if name is not None}
    return {name: row for name, row in rows.items() if name in needed}


def in_order(rows: Mapping[str, Row]) -> list[Row]:
    """Return rows, each behind the one that it starts from; ValueError where that is a circle."""
    placed: dict[str, Row] = {}
    while len(placed) < len(rows):
        ready = [
            r for r in rows.values() if r.name not in placed and (r.start or "") in (*placed, "")
        ]
        if not ready:
            circle = next(row for row in rows.values() if row.name not in placed)
            raise ValueError(f"row {circle.name}: starts, by way of others, from itself")
        placed |= {row.name: row for row in ready}
    return list(placed.values())


def with_long_rows(rows: Mapping[str, Row]) -> dict[str, Row]:
    """Add, for each row of two stages, its first stage trained for as many images as both."""
    found = dict(rows)
    for row in rows.values():
        start = rows.get(row.start or "")
        if start is None or start.is_frozen:
            continue
        with _naming(f"row {row.name}, which starts from {start.name}"):
            flags = longer(start.flags, row.flags)
        name = f"{start.name}, for {text_of(flags)}"
        twin = next((other for other in found.values() if other.flags == flags), None)
        if twin is None and name in found:
            raise ValueError(f"row {name}: the first stage for as long has this name: rename yours")
        if twin is None:
            found[name] = replace(start, name=name, flags=flags, length_of=row.name, published={})
    return found


def _check_slugs(rows: Sequence[Row]) -> None:
    seen: dict[str, str] = {}
    for row in rows:
        other = seen.setdefault(row.slug.lower(), row.name)
        if other != row.name:
            raise ValueError(f"rows {other} and {row.name} would share a folder: rename one")


@contextlib.contextmanager
def _naming(what: str) -> Iterator[None]:
    """Put the name of a part of the board before a ValueError of the body."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from error


def _check_keys(found: Mapping[str, Tree], known: Any, what: str) -> None:
    unknown = [name for name in found if name not in known]
    if unknown:
        raise ValueError(f"{what}: unknown {unknown[0]}; expected {', '.join(known)}")


def _mapping(found: Mapping[str, Tree], name: str) -> Mapping[str, Tree]:
    value = found.get(name, {})
    if not isinstance(value, dict):
        raise ValueError(f"{name}: expected lines of `name: value`")
    return value


def _texts(found: Mapping[str, Tree], what: str) -> dict[str, str]:
    """Return texts by name, lists of them joined by commas."""
    texts = {}
    for name, value in found.items():
        if isinstance(value, dict):
            raise ValueError(f"{what}: {name}: expected a text, a number or a list of them")
        texts[name] = value if isinstance(value, str) else ",".join(map(str, value))
    return texts


def _list(found: Mapping[str, Tree], name: str) -> list[str]:
    value = found[name]
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise ValueError(f"{name}: expected a list such as [log, 0.001, 0.1]")
    return [text for text in value if isinstance(text, str)]
