"""Makes a data set of a folder of images: python -m data.prepare COMMAND [--flag=value ...] PATH.

python -m data.prepare scan photos                             # writes photos/scanned.csv
python -m data.prepare filter photos/scanned.csv --threshold=4 # photos/filtered.csv
python -m data.prepare split photos/filtered.csv               # photos/split.csv
python -m data.prepare folds photos/filtered.csv --k=5         # photos/folds.csv

Each command reads the file of an earlier one; --help behind a command lists its flags.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from metric_learning.common.cli import user_errors
from metric_learning.common.flags import Flag, boolean, natural, parse_flags, path, positive
from metric_learning.common.outputs import prepare_output
from metric_learning.data.prepare import commands
from metric_learning.reader.sets.image_files import DEFAULT_WORKERS
from metric_learning.reader.sets.image_set import MAX_PIXELS


@dataclass(frozen=True)
class Command:
    """One step of the preparation.

    `run` gets what is read, the output file and a value per flag by its name. By default the file
    is named `output`, in the folder that what is read is or lies in.
    """

    run: Callable[..., None]
    help: str
    source: Flag
    output: str
    flags: tuple[Flag, ...]


FILE = Flag("path", path, None, "CSV file of an earlier command")
COMMANDS: dict[str, Command] = {
    "scan": Command(
        commands.scan,
        "Describe every image of a folder of classes in a CSV file.",
        Flag("path", path, None, "folder with one folder of images per class"),
        "scanned.csv",
        (
            Flag("num_workers", natural, DEFAULT_WORKERS, "processes that read; 0: this one alone"),
            Flag("max_pixels", positive, MAX_PIXELS, "most pixels of an image, in millions"),
        ),
    ),
    "filter": Command(
        commands.filter_images,
        "Remove broken images, wrong sizes and near duplicates.",
        FILE,
        "filtered.csv",
        (
            Flag("min_size", natural, 0, "least pixels of the short side"),
            Flag("max_size", natural, 0, "most pixels of the long side; 0: no limit"),
            Flag("threshold", natural, None, "bits by which hashes of duplicates differ at most"),
            Flag("report", path, None, "CSV of what was removed; default: OUTPUT_removed.csv"),
        ),
    ),
    "split": Command(
        commands.split,
        "Divide the classes into train and test by their number of images.",
        FILE,
        "split.csv",
        (
            Flag("min_n_samples", natural, 3, "least images of a training class"),
            Flag("max_n_samples", natural, 50, "most images of a training class; 0: no limit"),
        ),
    ),
    "folds": Command(
        commands.folds,
        "Divide the training images into folds.",
        FILE,
        "folds.csv",
        (
            Flag("k", positive, 5, "number of folds, at least 2"),
            Flag("open_set", boolean, False, "a class is in one fold, not a share of it in each"),
            Flag("random_seed", natural, 0, "another seed, other folds"),
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
        source = check_source(flags.path)
        output = choose_output(source, flags.output, command.output)
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


def choose_output(source: Path, output: str | None, default: str) -> Path:
    """Return the file to write, by default beside what is read; ValueError where it cannot be."""
    folder = source if source.is_dir() else source.parent
    file = prepare_output("output", output or str(folder / default))
    if not os.access(file.parent, os.W_OK):
        raise ValueError(f"cannot write into {file.parent}: choose another --output")
    return file


if __name__ == "__main__":
    main()
