"""All commands under one name: metric-learning COMMAND [--flag=value ...].

`python -m metric_learning COMMAND` is the same. `--help` behind a command lists its flags.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence
from importlib import import_module

from metric_learning import __version__
from metric_learning.common.names import printable

# Command -> the module whose `main` it is, and what it does.
COMMANDS = {
    "train-elem": ("train_elem", "stage 1: train with a loss on single images"),
    "train-pair": ("train_pair", "stage 2: fine-tune with a loss on the images of a batch"),
    "eval": ("eval", "Recall@K and the other retrieval metrics of a checkpoint"),
    "infer": ("infer", "dump features, build and search an index, export the model"),
    "leaderboard": ("leaderboard", "compare methods by a fair protocol, in one command"),
    "serve": ("engine.serve.__main__", "a page that searches an index by a photo or by words"),
    "report": ("engine.report.__main__", "an HTML page on a run"),
    "summary": ("engine.report.summary", "several evaluations side by side"),
    "check": ("reader.check", "read every image of a data set, and list what is wrong"),
    "prepare": ("data.prepare.__main__", "make a data set of a folder of images"),
    "make-demo": ("data.make_demo", "draw the demo data set"),
    "make-glyphs": ("data.make_glyphs", "draw a data set of characters in typefaces"),
    "download": ("data.download", "fetch a public data set"),
    "fetch-weights": ("pretrained.fetch_weights", "fetch or convert pretrained weights"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if words[0] == "--version":
        print(f"metric-learning {__version__}")
        return 0

    name = words[0].replace("_", "-")
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        print(f"error: no command {printable(words[0])}: {hint}--help lists all", file=sys.stderr)
        return 2
    result = import_module(f"metric_learning.{COMMANDS[name][0]}").main(words[1:])
    return result if isinstance(result, int) else 0


def usage() -> str:
    """Return the list of commands."""
    rows = [f"  {name:15}{does}" for name, (_, does) in COMMANDS.items()]
    return f"{__doc__}\ncommands:\n" + "\n".join(rows)


def run() -> None:
    """Run the command of the process: what `metric-learning` calls."""
    sys.exit(main())


if __name__ == "__main__":
    run()
