"""Measure Milvus Lite beside the exact index: time, memory, and whether they find the same.

python -m benchmarks.speed.vector_database --images=1000000 --dim=128
python -m benchmarks.speed.vector_database --features=features --queries=1000

Random vectors, or those of a dump that infer.py wrote, are indexed and searched by one thread, each
way builds in one process and searches in another one, as infer.py does. The queries of a dump are
images of it, which find themselves too.
"""

from __future__ import annotations

import itertools
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
from metric_learning.common.fingerprint import STATE
from metric_learning.common.flags import Flag, parse_flags, path, positive
from metric_learning.engine.embed.dump.opened import open_features
from metric_learning.retrieval.indexes import build_index, load_search_index
from metric_learning.retrieval.milvus import open_milvus_index, write_milvus_index

WAYS = ("exact", "milvus")
STAGES = ("build", "search")
K = 10
FLAGS = (
    Flag("images", positive, 1000000, "random vectors"),
    Flag("dim", positive, 128, "their dimensions"),
    Flag("features", path, None, "a dump of features, instead of random ones"),
    Flag("queries", positive, 1000, "vectors to search for"),
    Flag("way", str, None, "measure this way alone, in this process", WAYS),
    Flag("stage", str, None, "and this part of it", STAGES),
    Flag("folder", path, None, "where it leaves what it finds"),
)


def main(argv: Sequence[str] | None = None) -> None:
    """Print a table in Markdown."""
    with user_errors():
        flags = parse_flags(__doc__, FLAGS, argv)
        if flags.way:
            chosen = flags.features, flags.images, flags.dim, flags.queries
            run = build if flags.stage == "build" else search
            run(flags.way, chosen, Path(flags.folder))
            return

        words = [f"--{name}={value}" for name, value in flags.values.items() if value is not None]
        with tempfile.TemporaryDirectory() as folder:
            for way, stage in itertools.product(WAYS, STAGES):
                command = [sys.executable, "-m", __spec__.name, *words, f"--way={way}"]
                environment = os.environ | {"OMP_NUM_THREADS": "1"}
                command += [f"--stage={stage}", f"--folder={folder}"]
                subprocess.run(command, check=True, env=environment)
            print_table(Path(folder))


Chosen = tuple[str | None, int, int, int]  # the flags of these names


def vectors_of(chosen: Chosen, is_query: bool) -> np.ndarray:
    """Return the vectors (N, D) float32 that are indexed, or those that are searched for."""
    dump, num_images, dim, num_queries = chosen
    if dump is None:
        count = num_queries if is_query else num_images
        return np.random.default_rng(int(is_query)).standard_normal((count, dim), np.float32)
    features = np.asarray(open_features(dump).embeddings, np.float32)
    rows = np.random.default_rng(0).choice(len(features), num_queries, replace=False)
    return features[np.sort(rows)] if is_query else features


def place_of(way: str, folder: Path) -> str:
    """Return where the index of a way lies."""
    return str(folder / "exact.index") if way == "exact" else f"milvus:{folder}/milvus.db#images"


def build(way: str, chosen: Chosen, folder: Path) -> None:
    """Index the vectors one way, and leave in a folder what it took."""
    features = vectors_of(chosen, is_query=False)
    paths = [f"images/{row:07}.jpg" for row in range(len(features))]
    start = time.perf_counter()
    if way == "exact":
        build_index(features, paths).save(place_of(way, folder))
    else:
        states = np.zeros(len(paths), STATE)
        states["mtime"] = states["ctime"] = time.time_ns()  # digits that real files have too
        write_milvus_index(place_of(way, folder), features, paths, "exact", states=states)
    facts = {"seconds": time.perf_counter() - start, "peak": common.memory("VmHWM")}
    facts |= {"vectors": len(features), "dim": features.shape[1]}
    (folder / f"{way}-build.json").write_text(json.dumps(facts))


def search(way: str, chosen: Chosen, folder: Path) -> None:
    """Search one way, and leave in a folder the neighbours and what it took."""
    place = place_of(way, folder)
    index = load_search_index(place) if way == "exact" else open_milvus_index(place)
    queries = vectors_of(chosen, is_query=True)
    start = time.perf_counter()
    rows, cosines = index.search(queries, K)
    seconds = (time.perf_counter() - start) / len(queries)
    np.savez(folder / f"{way}.npz", rows=rows, cosines=cosines)
    facts = {"seconds": seconds, "peak": common.memory("VmHWM")}
    (folder / f"{way}-search.json").write_text(json.dumps(facts))


def print_table(folder: Path) -> None:
    """Print what both ways took, and how many of their neighbours are the same."""
    facts = {
        way: [json.loads((folder / f"{way}-{stage}.json").read_text()) for stage in STAGES]
        for way in WAYS
    }
    rows = {way: np.load(folder / f"{way}.npz")["rows"] for way in WAYS}
    cosines = {way: np.load(folder / f"{way}.npz")["cosines"] for way in WAYS}
    same = [
        len(set(a) & set(b)) / K
        for a, b in zip(*map(np.ndarray.tolist, rows.values()), strict=True)
    ]
    whole = facts["exact"][0]
    print(f"{whole['vectors']:,} vectors of {whole['dim']} dimensions")
    print("| way | build, s | peak, GB | search, ms a query | peak, GB |\n|---|--:|--:|--:|--:|")
    for way, (built, searched) in facts.items():
        peaks = [f"{found['peak'] / 1e9:.2f}" for found in (built, searched)]
        cells = (
            way,
            f"{built['seconds']:.1f}",
            peaks[0],
            f"{1000 * searched['seconds']:.2f}",
            peaks[1],
        )
        print(f"| {' | '.join(cells)} |")
    print(
        f"recall of Milvus: {np.mean(same):.4f} of the exact {K} nearest; "
        f"{np.mean(np.array(same) == 1):.2%} of {len(same)} queries have the same {K}; the cosines "
        f"differ by {np.abs(cosines['exact'] - cosines['milvus']).max():.1e} at most"
    )


if __name__ == "__main__":
    main()
