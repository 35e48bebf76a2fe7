"""Makes a data set of a folder of images: python -m data.prepare COMMAND [--flag=value ...] PATH.

python -m data.prepare scan photos                             # writes photos/scanned.csv
python -m data.prepare filter photos/scanned.csv --threshold=4 # photos/filtered.csv
python -m data.prepare split photos/filtered.csv --val_share=0.1 # photos/split.csv
python -m data.prepare folds photos/filtered.csv --k=5         # photos/folds.csv

Each command reads the file of an earlier one; --help behind a command lists its flags.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from metric_learning.common.cli import refuse_torchrun, user_errors
from metric_learning.common.flags import (
    Flag,
    boolean,
    fraction,
    natural,
    parse_flags,
    path,
    positive,
)
from metric_learning.common.outputs import Kind, csv_kind, prepare_output
from metric_learning.data.prepare import commands
from metric_learning.data.prepare.scan import SCAN_COLUMNS
from metric_learning.data.prepare.ties import DEFAULT_THRESHOLD, NONE
from metric_learning.reader.sets.image_files import DEFAULT_WORKERS
from metric_learning.reader.sets.image_set import MAX_PIXELS


@dataclass(frozen=True)
class Command:
    """One step of the preparation.

    `run` gets what is read, the output file, of a `kind`, and a value per flag by its name. By
    default the file is named `output`, in the folder that what is read is or lies in.
    """

    run: Callable[..., None]
    help: str
    source: Flag
    output: str
    kind: Kind
    flags: tuple[Flag, ...]


def list_kind(command: str, *columns: str, others: Sequence[str] = ()) -> Kind:
    """Return the kind of a list that a command writes, with some columns beside those of scan.

    A list that was made without scan cannot be told from the user's own, and is never replaced.
    """
    return csv_kind(f"a list that '{command}' wrote", (*SCAN_COLUMNS, *columns), others)


def bits_or_none(text: str) -> int | str:
    """Parse a number of bits, or the word `none`."""
    return NONE if text.strip().lower() == NONE else natural(text)


SEED = Flag("random_seed", natural, 0, "another seed, another division")
GROUP = Flag(
    "group",
    str,
    None,
    "column whose images stay on one side; default: group, where there is one; none: no column",
)
THRESHOLD = Flag(
    "threshold",
    bits_or_none,
    None,
    "bits by which hashes of near duplicates differ at most; they stay on one side. Default: "
    f"{DEFAULT_THRESHOLD} in a list of scan; none: they are divided as others",
)
ON_BAD_IMAGE = Flag(
    "on_bad_image",
    str,
    "skip",
    "what is done at an image that scan found broken. skip: leave it out, and say so; error: stop",
    ("skip", "error"),
)
COLUMNS = tuple(
    Flag(f"{name}_column", str, None, f"what FILE calls the column {name}")
    for name in ("path", "label")
)
READING = (
    Flag("num_workers", natural, DEFAULT_WORKERS, "processes that read; 0: this one alone"),
    Flag("max_pixels", positive, MAX_PIXELS, "most pixels of an image, in millions"),
)
FILE = Flag("path", path, None, "CSV file of an earlier command")
COMMANDS: dict[str, Command] = {
    "scan": Command(
        commands.scan,
        "Describe every image of a folder of classes in a CSV file.",
        Flag("path", path, None, "folder with one folder of images per class"),
        "scanned.csv",
        list_kind("scan", others=["fold"]),
        (
            Flag("class_levels", natural, 1, "folders that name a class; 0: the whole path"),
            *READING,
        ),
    ),
    "filter": Command(
        commands.filter_images,
        "Remove broken images, wrong sizes and near duplicates.",
        FILE,
        "filtered.csv",
        list_kind("filter"),
        (
            Flag("min_size", natural, 0, "least pixels of the short side"),
            Flag("max_size", natural, 0, "most pixels of the long side; 0: no limit"),
            Flag("threshold", natural, None, "bits by which hashes of duplicates differ at most"),
            Flag("duplicates", path, None, "list of retrieval.duplicates whose images go"),
            Flag("report", path, None, "CSV of what was removed; default: OUTPUT_removed.csv"),
            Flag("data_dir", path, None, "folder of the images; default: that of the list"),
            Flag("verify", boolean, False, "read all images again, not the changed files alone"),
            *READING,
        ),
    ),
    "split": Command(
        commands.split,
        "Divide the images into train, val and test.",
        FILE,
        "split.csv",
        list_kind("split", "split", others=["fold"]),
        (
            Flag("test_share", fraction, None, "share of the classes for the test; default: 0.3"),
            Flag("val_share", fraction, None, "share of them for tests in training; default: 0"),
            Flag("closed", boolean, False, "shares of the images of each class instead"),
            GROUP,
            THRESHOLD,
            ON_BAD_IMAGE,
            SEED,
            *COLUMNS,
            Flag(
                "min_n_samples",
                natural,
                None,
                "instead of shares: classes of at least so many images are for training",
            ),
            Flag("max_n_samples", natural, None, "and of at most so many; 0: no limit"),
        ),
    ),
    "folds": Command(
        commands.folds,
        "Divide the training images into folds.",
        FILE,
        "folds.csv",
        list_kind("folds", "fold"),
        (
            Flag("k", positive, 5, "number of folds, at least 2"),
            Flag("open_set", boolean, False, "a class is in one fold, not a share of it in each"),
            GROUP,
            THRESHOLD,
            ON_BAD_IMAGE,
            SEED,
            *COLUMNS,
        ),
    ),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command."""
    with user_errors():
        arguments = list(sys.argv[1:] if argv is None else argv)
        name = arguments.pop(0) if arguments else "nothing"
        if name in ("-h", "--help"):
            print(__doc__)
            return
        if name not in COMMANDS:
            raise ValueError(f"expected a command, one of {', '.join(COMMANDS)}, found {name}")

        command = COMMANDS[name]
        help_text = f"CSV file to write; default: {command.output} in the folder of what is read"
        table = (*command.flags, Flag("output", path, None, help_text))
        prog = f"python -m data.prepare {name}"
        flags = parse_flags(command.help, table, arguments, command.source, prog)
        refuse_torchrun()
        source = check_source(flags.path)
        output = choose_output(source, flags.output, command)
        command.run(
            source, output, **{flag.name: flags.values[flag.name] for flag in command.flags}
        )


def check_source(path: str | None) -> Path:
    """Return the file or folder to read; FileNotFoundError or ValueError where there is none."""
    if not path:
        raise ValueError("expected a path behind the command; --help tells more")
    if not Path(path).exists():
        raise FileNotFoundError(f"no file or folder {path}")
    return Path(path)


def choose_output(source: Path, output: str | None, command: Command) -> Path:
    """Return the file to write, by default beside what is read; ValueError where it cannot be."""
    folder = source if source.is_dir() else source.parent
    file = output or str(folder / command.output)
    if os.path.realpath(file) == os.path.realpath(source):
        raise ValueError(f"--output={file} is what is read: choose another name")
    return prepare_output("output", file, command.kind)


if __name__ == "__main__":
    main()
