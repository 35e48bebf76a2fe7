"""What the process of a section does: import, wait for the word to go, work."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

from benchmarks.gpu.section import Section, described
from benchmarks.gpu.table import SECTIONS


def main() -> None:
    """Run the section NAME on a DEVICE in the folder WORK; what it finds goes to FINDINGS."""
    name, device, work, findings = sys.argv[1:]
    module, _, function = SECTIONS[name].place.partition(":")
    work_of = getattr(import_module(f"benchmarks.gpu.{module}"), function)

    limit = float(sys.stdin.readline())  # seconds that it has, once it is told to go
    section = Section(name, device, Path(work), Path(findings), limit)
    try:
        work_of(section)
    except Exception as error:
        section.note(error=described(error))
        raise


if __name__ == "__main__":
    main()
