"""Finds where in a weights file a network's tensors lie, whatever its author put around them.

Every tensor of the backbone is looked for behind the same prefix, in every dict of the file. So a
wrapper, a trainer and the name of an attribute need not be known.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from metric_learning.models.embedder import EmbeddingModel
from metric_learning.models.weights.files import PART, WeightsFile
from metric_learning.models.weights.groups import Group

BACKBONE = "backbone."  # before the names of a backbone in this project
COUNTERS = "num_batches_tracked"  # of batch norm: files may lack them
POSITIONS = ("positional_embedding", "pos_embed")  # how open_clip's and timm's names of them end
AVERAGE = "_ema"  # behind the name of a dict: a moving average of the one of that name
LONGEST_KEY = 1000  # characters


@dataclass(frozen=True)
class Place:
    """Where a network may lie in a file.

    Attributes:
        group: the place of the dict in the file.
        prefix: what stands there before the names of the backbone, with a dot at its end.
        tensors: all tensors of that dict.
        num_named: of how many of the backbone's tensors the names are there.
    """

    group: str
    prefix: str
    tensors: Group
    num_named: int = 0

    @property
    def name(self) -> str:
        """Group and prefix, for people; empty where both are."""
        return ".".join(part for part in (self.group, self.prefix.rstrip(".")) if part)

    def key_of(self, own: str) -> str:
        """Return the file's name of one of the model's tensors; it may not be there."""
        if own.startswith(BACKBONE):
            return self.prefix + own.removeprefix(BACKBONE)
        beside = self.prefix.removesuffix(BACKBONE) + own
        return beside if beside in self.tensors else self.prefix + own

    def bare(self, key: str) -> str:
        """Return a key without the parts that it shares with the prefix."""
        for part in self.prefix.split(".")[:-1]:
            if not key.startswith(f"{part}."):
                break
            key = key.removeprefix(f"{part}.")
        return key


def find_place(model: EmbeddingModel, file: WeightsFile, groups: Mapping[str, Group]) -> Place:
    """Find the place where the whole backbone fits, or the most of its names are.

    Of several that fit, equal ones are one, and a moving average goes before its source, as in
    timm. Raises ValueError where other ones are left.
    """
    needed = needed_of(model)
    places = [place for place in _find_places(needed, groups) if file.is_meant(place.name)]
    if file.part and not places:
        names = ", ".join(filter(None, groups)) or "one dict of tensors"
        raise ValueError(f"{file.path}: holds nothing under {PART}{file.part}; it holds {names}")

    whole = [place for place in places if _fits(place, needed)]
    chosen: list[Place] = []
    for place in whole:
        if not any(_are_equal(place, other, needed) for other in chosen):
            chosen.append(place)
    averaged = {p.group.removesuffix(AVERAGE) for p in whole if p.group.endswith(AVERAGE)}
    chosen = [p for p in chosen if p.group not in averaged] or chosen

    if len(chosen) > 1:
        names = ", ".join(f"{place.name or 'the top'}" for place in chosen)
        raise ValueError(
            f"{file.path}: holds several networks that {model.name} fits ({names}): choose one, as "
            f"in {file.path}{PART}{chosen[0].name or chosen[1].name}"
        )
    if chosen:
        return chosen[0]
    start = max(groups, key=lambda group: len(groups[group]))
    first = Place(start, "", groups[start])
    return max([first, *places], key=lambda place: place.num_named)


def needed_of(model: EmbeddingModel) -> Group:
    """Return the tensors of a backbone that weights must have, by their names in it."""
    new = tuple(f"{path}." for path in model.new_parts())
    return {
        key.removeprefix(BACKBONE): tensor
        for key, tensor in model.state_dict().items()
        if key.startswith(BACKBONE) and not key.startswith(new) and not key.endswith(COUNTERS)
    }


def is_usable(tensor: torch.Tensor, own: torch.Tensor) -> bool:
    """Whether a tensor has the shape and kind of number of one of a model; 8 bits are too few."""
    is_float = tensor.is_floating_point()
    is_coarse = is_float and tensor.dtype.itemsize < 2
    return tensor.shape == own.shape and is_float == own.is_floating_point() and not is_coarse


def _find_places(needed: Group, groups: Mapping[str, Group]) -> Iterator[Place]:
    """Yield every prefix of every group behind which some name of the backbone is."""
    for group, tensors in groups.items():
        counts: Counter[str] = Counter()
        for key in tensors:
            start = 0 if len(key) <= LONGEST_KEY else -1
            while start >= 0:
                if key[start:] in needed:
                    counts[key[:start]] += 1
                start = key.find(".", start) + 1 or -1
        for prefix, count in counts.items():
            yield Place(group, prefix, tensors, count)


def _fits(place: Place, needed: Group) -> bool:
    """Whether a whole backbone is there; absolute positions may be those of another image size."""
    return place.num_named == len(needed) and all(
        name.endswith(POSITIONS) or is_usable(place.tensors[place.prefix + name], own)
        for name, own in needed.items()
    )


def _are_equal(one: Place, other: Place, needed: Group) -> bool:
    pairs = ((one.tensors[one.prefix + n], other.tensors[other.prefix + n]) for n in needed)
    return all(a is b or (a.shape == b.shape and torch.equal(a, b)) for a, b in pairs)
