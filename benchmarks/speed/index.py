"""Measure the memory of building a search index of features in a file, and of opening it.

OMP_NUM_THREADS=1 python -m benchmarks.speed.index --num_images=300000 --dim=512 --kind=exact
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import machine, memory_of, versions
from metric_learning.common.cli import user_errors
from metric_learning.common.flags import Flag, parse_flags, positive
from metric_learning.retrieval.index_kinds import INDEX_OPTIONS, import_faiss
from metric_learning.retrieval.indexes import build_index, load_search_index

FLAGS = (
    Flag("num_images", positive, 300_000, "features"),
    Flag("dim", positive, 512, "dimensions of a feature"),
    Flag("kind", str, "exact", "index that is built", tuple(INDEX_OPTIONS)),
)
PIECE = 2**14  # features that are drawn at once


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Print a JSON object, and what was measured on; return the object."""
    with user_errors(), tempfile.TemporaryDirectory() as folder:
        flags = parse_flags(__doc__, FLAGS, argv)
        import_faiss()
        features, index = Path(folder) / "features.npy", Path(folder) / "photos.index"
        draw(features, flags.num_images, flags.dim)
        paths = [f"{number}.jpg" for number in range(flags.num_images)]

        def build() -> None:
            mapped = np.load(features, mmap_mode="r")
            build_index(mapped, paths, flags.kind).save(index)

        found: dict[str, Any] = {"kind": flags.kind}
        found["features_gib"] = flags.num_images * flags.dim * 4 / 2**30
        found["build"] = memory_of(build)
        found["open"] = memory_of(lambda: load_search_index(index))
        print(json.dumps(found), machine(), versions(), sep="\n")
        return found


def draw(file: Path, num_images: int, dim: int) -> None:
    """Write random features (N, D) float32."""
    rng = np.random.default_rng(0)
    rows = np.lib.format.open_memmap(file, "w+", np.float32, (num_images, dim))
    for start in range(0, num_images, PIECE):
        piece = rows[start : start + PIECE]
        piece[:] = rng.standard_normal(piece.shape, np.float32)


if __name__ == "__main__":
    main()
