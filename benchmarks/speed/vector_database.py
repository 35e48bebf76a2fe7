"""Measure Milvus Lite beside the exact index: time, memory, and whether they find the same.

python -m benchmarks.speed.vector_database --images=1000000 --dim=128
python -m benchmarks.speed.vector_database --features=features --queries=1000

Random vectors, or those of a dump that infer.py wrote, are indexed and searched by one thread, each
way in a process of its own. The queries of a dump are images of it, which find themselves too.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks import common
from metric_learning.common.cli import user_errors
from metric_learning.common.flags import Flag, parse_flags, path, positive
from metric_learning.engine.embed.dump.opened import open_features
from metric_learning.retrieval.indexes import build_index, load_search_index
from metric_learning.retrieval.milvus import open_milvus_index, write_milvus_index

WAYS = ("exact", "milvus")
K = 10
FLAGS = (
    Flag("images", positive, 1000000, "random vectors"),
    Flag("dim", positive, 128, "their dimensions"),
    Flag("features", path, None, "a dump of features, instead of random ones"),
    Flag("queries", positive, 1000, "vectors to search for"),
    Flag("way", str, None, "measure this way alone, in this process", WAYS),
    Flag("folder", path, None, "where it leaves what it finds"),
)


def main(argv: Sequence[str] | None = None) -> None:
    """Print a table in Markdown."""
    with user_errors():
        flags = parse_flags(__doc__, FLAGS, argv)
        if flags.way:
            features, queries = vectors_of(flags.features, flags.images, flags.dim, flags.queries)
            measure(flags.way, features, queries, Path(flags.folder))
            return

        words = [f"--{name}={value}" for name, value in flags.values.items() if value is not None]
        with tempfile.TemporaryDirectory() as folder:
            for way in WAYS:
                command = [sys.executable, "-m", __spec__.name, *words, f"--way={way}"]
                environment = os.environ | {"OMP_NUM_THREADS": "1"}
                subprocess.run([*command, f"--folder={folder}"], check=True, env=environment)
            print_table(Path(folder))


def vectors_of(
    dump: str | None, num_images: int, dim: int, num_queries: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return vectors (N, D) float32 to index, and (Q, D) to search for."""
    if dump is not None:
        features = np.asarray(open_features(dump).embeddings, np.float32)
        rows = np.random.default_rng(0).choice(len(features), num_queries, replace=False)
        return features, features[np.sort(rows)]
    rng = np.random.default_rng(0)
    features = rng.standard_normal((num_images, dim), np.float32)
    return features, rng.standard_normal((num_queries, dim), np.float32)


def measure(way: str, features: np.ndarray, queries: np.ndarray, folder: Path) -> None:
    """Index and search one way, and leave the neighbours and what it took in a folder."""
    paths = [f"images/{row:07}.jpg" for row in range(len(features))]
    start = time.perf_counter()
    if way == "exact":
        build_index(features, paths).save(folder / "exact.index")
    else:
        write_milvus_index(f"milvus:{folder}/milvus.db#images", features, paths, "exact")
    built = time.perf_counter() - start
    del features

    is_exact = way == "exact"
    index = (
        load_search_index(folder / "exact.index")
        if is_exact
        else open_milvus_index(f"milvus:{folder}/milvus.db#images")
    )
    start = time.perf_counter()
    rows, cosines = index.search(queries, K)
    found = {
        "vectors": len(index),
        "dim": index.embedding_size,
        "queries": len(queries),
        "built": built,
        "searched": time.perf_counter() - start,
        "peak": common.memory("VmHWM"),
    }
    np.savez(folder / f"{way}.npz", rows=rows, cosines=cosines)
    (folder / f"{way}.json").write_text(json.dumps(found))


def print_table(folder: Path) -> None:
    """Print what both ways took, and how many of their neighbours are the same."""
    facts = {way: json.loads((folder / f"{way}.json").read_text()) for way in WAYS}
    rows = {way: np.load(folder / f"{way}.npz")["rows"] for way in WAYS}
    cosines = {way: np.load(folder / f"{way}.npz")["cosines"] for way in WAYS}
    same = [
        len(set(a) & set(b)) / K
        for a, b in zip(*map(np.ndarray.tolist, rows.values()), strict=True)
    ]
    print(f"{facts['exact']['vectors']:,} vectors of {facts['exact']['dim']} dimensions")
    print("| way | index, s | search, ms a query | peak, GiB |\n|---|--:|--:|--:|")
    for way, found in facts.items():
        milliseconds = 1000 * found["searched"] / found["queries"]
        peak = found["peak"] / 2**30
        print(f"| {way} | {found['built']:.1f} | {milliseconds:.2f} | {peak:.2f} |")
    print(
        f"recall of Milvus: {np.mean(same):.4f} of the exact {K} nearest; "
        f"{np.mean(np.array(same) == 1):.2%} of {len(same)} queries have the same {K}; the cosines "
        f"differ by {np.abs(cosines['exact'] - cosines['milvus']).max():.1e} at most"
    )


if __name__ == "__main__":
    main()
