"""Measure the memory of opening a long list of paths, and of identifying it as a dump does.

OMP_NUM_THREADS=1 python -m benchmarks.speed.paths --num_images=10000000
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import machine, memory_of, versions
from metric_learning.common.cli import user_errors
from metric_learning.common.flags import Flag, parse_flags, positive
from metric_learning.engine.embed.dump.plan import digest_of_list
from metric_learning.reader import ImageSet
from metric_learning.reader.sets.plain_images import join_plain_images

FLAGS = (Flag("num_images", positive, 10_000_000, "paths of the list, of 43 letters each"),)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Print a JSON object, and what was measured on; return the object."""
    with user_errors(), tempfile.TemporaryDirectory() as folder:
        flags = parse_flags(__doc__, FLAGS, argv)
        listed = Path(folder) / "paths.txt"
        with listed.open("w") as file:
            for number in range(flags.num_images):
                file.write(f"/data/catalogue/shelf-{number // 1000:07}/{number:09}.jpg\n")
        found: dict[str, Any] = {"file_gib": listed.stat().st_size / 2**30}
        opened: list[ImageSet] = []

        found["open"] = memory_of(lambda: opened.append(join_plain_images([str(listed)])))
        found["digest"] = memory_of(lambda: digest_of_list(opened[0]))
        print(json.dumps(found), machine(), versions(), sep="\n")
        return found


if __name__ == "__main__":
    main()
