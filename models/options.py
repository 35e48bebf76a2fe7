"""Options of a model beside its name and size, and those that a weights file settles."""

from __future__ import annotations

from typing import Any

# With these values a model is its backbone as timm has it, below the embedding layer.
MODEL_OPTIONS: dict[str, Any] = {"pooling": "own", "last_stride": 2, "feature_norm": "none"}


def options_of(metadata: dict[str, Any]) -> dict[str, Any]:
    """Return the options that a weights file settles, by facts that this project wrote beside them.

    For a trained model all, also where it is older than some; for a converted file those it names.
    """
    named = {name: metadata[name] for name in MODEL_OPTIONS if name in metadata}
    return MODEL_OPTIONS | named if "flags" in metadata else named


def changed_options(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options that differ from those of the backbone as timm has it."""
    return {name: value for name, value in options.items() if value != MODEL_OPTIONS[name]}
