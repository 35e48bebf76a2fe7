"""What this project writes beside weights, checked before any of it is used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from metric_learning.common.schema import (
    Field,
    check_fields,
    is_count,
    is_finite,
    is_list_of,
    is_object,
    is_text,
)

CHANNELS = 3
FIELDS = (
    Field("model", "a name", is_text),
    Field("embedding_size", "a number of dimensions", is_count),
    Field("mean", "three numbers", lambda value: _is_per_channel(value), is_needed=False),
    Field("std", "three numbers above 0", lambda value: _is_deviation(value), is_needed=False),
    Field("pooling", "a name", is_text, is_needed=False),
    Field("last_stride", "a number", is_count, is_needed=False),
    Field("feature_norm", "a name", is_text, is_needed=False),
    Field("dataset", "a name", is_text, is_needed=False),
    Field("loss", "a name", is_text, is_needed=False),
    Field("loss_options", "options by name", is_object, is_needed=False),
    Field("kept_loss", "a loss and its options", lambda value: _is_loss(value), is_needed=False),
    Field("class_names", "a list of names", is_list_of(is_text), is_needed=False),
    Field("step", "a number of steps", is_count, is_needed=False),
    Field("flags", "flags by name", is_object, is_needed=False),
    Field("versions", "versions by name", is_object, is_needed=False),
)


def own_metadata(found: Any, path: Path) -> dict[str, Any] | None:
    """Return the facts that this project wrote beside weights, None for those of other projects.

    Raises ValueError where it wrote them and they are damaged.
    """
    if not isinstance(found, dict):
        return None
    is_own = is_text(found.get("model")) and isinstance(found.get("embedding_size"), int)
    return check_fields(found, FIELDS, f"{path}: what it says of its model") if is_own else None


def _is_loss(value: Any) -> bool:
    return is_object(value) and is_text(value.get("loss")) and is_object(value.get("options"))


def _is_deviation(value: Any) -> bool:
    return _is_per_channel(value) and min(value) > 0


def _is_per_channel(value: Any) -> bool:
    return is_list_of(is_finite)(value) and len(value) == CHANNELS
