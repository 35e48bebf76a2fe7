"""Options of a model beside its name and size, and what a weights file says of them."""

from __future__ import annotations

from typing import Any

# With these values a model is its backbone as timm has it, below the embedding layer.
MODEL_OPTIONS: dict[str, Any] = {"pooling": "own", "last_stride": 2, "feature_norm": "none"}


def options_of(metadata: dict[str, Any]) -> dict[str, Any]:
    """Return the options that a weights file settles.

    Args:
        metadata: what this project wrote beside the weights. Of a trained model it settles all
            options, also where it is older than some; of a converted file those that it names.
    """
    named = {name: metadata[name] for name in MODEL_OPTIONS if name in metadata}
    return MODEL_OPTIONS | named if "flags" in metadata else named


def changed_options(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options that differ from those of the backbone as timm has it."""
    return {name: value for name, value in options.items() if value != MODEL_OPTIONS[name]}
