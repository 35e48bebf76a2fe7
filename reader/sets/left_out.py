"""The account of what a data set holds and nobody reads: counted in a line, listed by checks."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

NUM_SUFFIXES = 5  # that are counted one by one

NO_IMAGE, HIDDEN, LINK, SPECIAL = "no image", "hidden", "link", "special"
EMPTY, LOOSE, BESIDE = "empty", "loose", "beside"
NO_FOLD, NO_ROLE, JUNK = "no fold", "no role", "junk"
# Why something is left out -> what one and several of them are called.
REASONS = {
    NO_IMAGE: ("file that is no image", "files that are no images"),
    HIDDEN: ("hidden", "hidden"),
    LINK: ("link that leads back or nowhere", "links that lead back or nowhere"),
    SPECIAL: ("file that is no regular one", "files that are no regular ones"),
    EMPTY: ("empty class", "empty classes"),
    LOOSE: ("image in no class folder", "images in no class folder"),
    BESIDE: ("folder beside those of the splits", "folders beside those of the splits"),
    NO_FOLD: ("row in no fold", "rows in no fold"),
    JUNK: ("image of no class (-1 or unknown)", "images of no class (-1 or unknown)"),
    NO_ROLE: (
        "row that is neither query nor gallery",
        "rows that are neither query nor gallery",
    ),
}


@dataclass(frozen=True)
class LeftOut:
    """What is left out of a folder or a list: a key of REASONS -> the names, relative to it."""

    root: str = ""
    items: Mapping[str, list[str]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return any(self.items.values())

    def below(self, folder: str) -> LeftOut:
        """Return the account of a root that has this one's as the folder of a name in it."""
        items = {
            reason: [f"{folder}/{name}" for name in names] for reason, names in self.items.items()
        }
        return LeftOut(self.root, items)

    def describe(self) -> str:
        """Count in a line, e.g. "left out of photos: 12 files that are no images (.txt 12)"."""
        counts = []
        for reason, (one, several) in REASONS.items():
            names = self.items.get(reason, [])
            if names:
                kinds = f" ({count_suffixes(names)})" if reason == NO_IMAGE else ""
                counts.append(f"{len(names):,} {one if len(names) == 1 else several}{kinds}")
        return f"left out of {self.root}: {', '.join(counts)}"


def count_suffixes(names: Iterable[str]) -> str:
    """Count names by their suffixes, the most frequent first: ".txt 10, .xml 2"."""
    suffixes = (os.path.splitext(name)[1].lower() or "without suffix" for name in names)
    counts = Counter(suffixes).most_common()
    shown = [f"{suffix} {count:,}" for suffix, count in counts[:NUM_SUFFIXES]]
    rest = sum(count for _, count in counts[NUM_SUFFIXES:])
    return ", ".join([*shown, *([f"others {rest:,}"] if rest else [])])


def join_left_out(accounts: Sequence[LeftOut], root: str | None = None) -> LeftOut:
    """Put accounts together, under the root of the first or a given one; names are kept once."""
    items: dict[str, dict[str, None]] = {}
    for account in accounts:
        for reason, names in account.items.items():
            items.setdefault(reason, {}).update(dict.fromkeys(names))
    first = next((account.root for account in accounts if account), "")
    return LeftOut(
        first if root is None else root, {reason: list(names) for reason, names in items.items()}
    )
