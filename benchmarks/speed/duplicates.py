"""Measure the search for near duplicates on features that stand in for a network's.

OMP_NUM_THREADS=1 python -m benchmarks.speed.duplicates --num_images=1000000 --kind=clustered

Every hundredth feature has a copy with a little noise, of a cosine about 0.98. `random` features
are uniform on the sphere, which is the hardest case; `clustered` ones lie around the centres of
classes of 50 images, at cosines of about 0.7 within a class, and their variance falls from
dimension to dimension as that of trained embeddings does. With `--search=both` faiss's inverted
file looks for pairs, and its recall of the exact pairs is measured.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.common import clocks, machine, memory, seconds_of, versions
from metric_learning.common.cli import user_errors
from metric_learning.common.flags import Flag, fraction, parse_flags, positive
from metric_learning.retrieval.near_pairs import Pairs, find_near_pairs

KINDS = ("random", "clustered")
SEARCHES = ("exact", "ivf", "both")
FLAGS = (
    Flag("num_images", positive, 200_000, "features, copies among them"),
    Flag("dim", positive, 64, "dimensions of a feature"),
    Flag("kind", str, "clustered", "what the features are like", KINDS),
    Flag("threshold", fraction, 0.95, "least cosine of near duplicates"),
    Flag("search", str, "exact", "how pairs are looked for", SEARCHES),
    Flag("ivf_queries", positive, None, "features that ask the inverted file; default: all"),
)
CLASS_SIZE = 50  # images of a class
WITHIN = 0.7  # share of a feature's squared length that its class gives
COPIED = 100  # every so many features have a copy
NOISE = 0.2  # length of the noise of a copy, beside a feature of length 1


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Print a JSON object per search and what was measured on; return the last one's."""
    with user_errors():
        flags = parse_flags(__doc__, FLAGS, argv)
        features, copied = make_features(flags.num_images, flags.dim, flags.kind)
        exact: Pairs | None = None
        chosen = features if flags.ivf_queries is None else features[: flags.ivf_queries]
        searches = ("exact", "ivf") if flags.search == "both" else (flags.search,)
        found: dict[str, Any] = {}

        for search in searches:
            started = clocks()
            asking, most = (features, len(features)) if search == "exact" else (chosen, 0)
            against = None if asking is features else features
            pairs = find_near_pairs(asking, against, flags.threshold, most_exact=most)
            found = {"search": search, **seconds_of(clocks() - started), "pairs": len(pairs.rows)}
            found["planted_found"] = share_found(pairs, copied[copied[:, 0] < len(asking)])
            found["peak_gib"] = memory("VmHWM") / 2**30
            if search == "exact":
                exact = pairs
            elif exact is not None:
                expected = np.stack(exact[:2], 1)
                found["recall"] = share_found(pairs, expected[expected[:, 0] < len(asking)])
            print(json.dumps(found), flush=True)
        print(machine(), versions(), sep="\n")
        return found


def make_features(num_images: int, dim: int, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Return features (N, D) float32 of length 1, and the pairs (M, 2) int64 that were planted."""
    rng = np.random.default_rng(0)
    spread = np.ones(dim) if kind == "random" else np.arange(1, dim + 1) ** -0.5
    spread = (spread / np.linalg.norm(spread)).astype(np.float32)
    features = rng.standard_normal((num_images, dim), np.float32) * spread
    if kind == "clustered":
        centres = rng.standard_normal((-(-num_images // CLASS_SIZE), dim), np.float32) * spread
        classes = rng.integers(0, len(centres), num_images)
        features *= (1 - WITHIN) ** 0.5
        for start in range(0, num_images, 2**16):
            part = slice(start, start + 2**16)
            features[part] += centres[classes[part]] * WITHIN**0.5

    features /= np.linalg.norm(features, axis=1, keepdims=True)
    num_copies = num_images // COPIED
    firsts = rng.choice(num_images - num_copies, num_copies, replace=False)
    noise = rng.standard_normal((num_copies, dim), np.float32) * (NOISE * spread)
    features[num_images - num_copies :] = features[firsts] + noise
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    return features, np.stack([firsts, np.arange(num_images - num_copies, num_images)], 1)


def share_found(pairs: Pairs, expected: np.ndarray) -> float:
    """Return the share of expected pairs (M, 2) that are among those that were found."""
    size = 1 + int(max(expected.max(initial=0), pairs.others.max(initial=0)))
    numbers = expected[:, 0] * size + expected[:, 1]
    return float(np.isin(numbers, pairs.rows * size + pairs.others).mean())


if __name__ == "__main__":
    main()
