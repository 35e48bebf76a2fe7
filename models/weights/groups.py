"""Finds the dicts of tensors in a file of unknown make."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
import torch

from metric_learning.common.array_pickle import PickledArray
from metric_learning.common.inert_pickle import Stranger
from metric_learning.models.weights.torch_file import Oddity

Group = dict[str, torch.Tensor]

OPTIMIZER = "optim"  # how the names of dicts begin that hold moments, not weights
DEEPEST = 32  # dicts in each other
CONTAINERS = (dict, list, tuple, Stranger)
PARAMETERS, BUFFERS, MODULES = "_parameters", "_buffers", "_modules"  # of a module of torch


def find_groups(content: Any) -> tuple[dict[str, Group], dict[str, str]]:
    """Find all dicts that hold tensors by name, also in lists, and pickled modules, top downwards.

    Returns the dicts by their place, the keys that lead to them joined by dots, and what holds no
    numbers that weights could be, by place and name.
    """
    groups: dict[str, Group] = {}
    oddities: dict[str, str] = {}
    waiting, seen = deque([("", content, 0)]), set()
    while waiting:
        place, value, depth = waiting.popleft()
        if id(value) in seen or depth > DEEPEST:  # a dict may hold itself
            continue
        seen.add(id(value))

        tensors = {}
        for key, item in _items(value).items():
            name = f"{place}.{key}" if place else str(key)
            item = _as_tensor(item)
            if isinstance(item, CONTAINERS):
                if str(key).startswith(OPTIMIZER):
                    continue
                waiting.append((name, item, depth + 1))
            elif isinstance(item, Oddity):
                oddities[name] = item.kind
            elif isinstance(key, str) and isinstance(item, torch.Tensor):
                tensors[key] = item

        if tensors:
            groups[place] = tensors
    return groups, oddities


def _items(value: Any) -> dict[Any, Any]:
    """Return the items of a dict, of a kind of dict, or of a module, as its state dict has them.

    Those of a list are named by their numbers; tensors right in it have no names.
    """
    if isinstance(value, dict):
        return value
    if isinstance(value, list | tuple):
        return {str(i): item for i, item in enumerate(value) if isinstance(item, CONTAINERS)}
    if not isinstance(value, Stranger):
        return {}
    return _flatten(value) if _is_module(value) else value.content


def _is_module(value: Any) -> bool:
    state = value.state if isinstance(value, Stranger) else None
    return isinstance(state, dict) and {PARAMETERS, BUFFERS, MODULES} <= set(state)


def _flatten(module: Stranger) -> dict[str, Any]:
    """Return the tensors of a pickled module and of those in it, by their paths."""
    found: dict[str, Any] = {}
    waiting, seen = [("", module)], set()
    while waiting:
        path, module = waiting.pop()
        if id(module) in seen or path.count(".") > DEEPEST:
            continue
        seen.add(id(module))

        for part in (PARAMETERS, BUFFERS, MODULES):
            inside = module.state[part]
            for name, value in inside.items() if isinstance(inside, dict) else ():
                if part == MODULES and _is_module(value):
                    waiting.append((f"{path}{name}.", value))
                elif part != MODULES:
                    found[f"{path}{name}"] = value
    return found


def _as_tensor(value: Any) -> Any:
    """Return an array of NumPy's as a tensor, or None where torch lacks its type."""
    array = value.array if isinstance(value, PickledArray) else value
    if not isinstance(array, np.ndarray):
        return array
    try:
        return torch.from_numpy(np.array(array, array.dtype.newbyteorder("="), order="C"))
    except TypeError:
        return None
