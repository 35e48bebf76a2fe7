"""Folders of a model as hubs have them: config.json beside the weights, by timm or transformers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm

from metric_learning.common.schema import is_object, read_json
from metric_learning.models.weights.groups import Group
from metric_learning.models.weights.metadata import FIELDS, own_metadata
from metric_learning.models.weights.transformers_models import architecture_of

CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # the first of them that is there
OWN = "metric_learning"  # in config.json: what this project says of a model that it exported
FREE_OPTIONS = ("img_size",)  # of timm's models: the size follows from the images


def is_hub_folder(path: Path) -> bool:
    """Whether a path is a folder of a model as hubs have them."""
    return path.is_dir() and (path / CONFIG).is_file()


def weights_in(folder: Path) -> Path:
    """Return the file of weights in such a folder; ValueError where there is none."""
    for name in WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    raise ValueError(
        f"{folder} holds {CONFIG} and neither {' nor '.join(WEIGHTS)}: fetch the weights "
        "too (those in several files are not read)"
    )


def facts_in(folder: Path) -> dict[str, Any]:
    """Return what such a folder says of its model, as this project writes it beside weights.

    That is the model's name in timm, mean and std, the size of its images, and whether they are
    squashed to it. Raises ValueError where this project cannot build such a model.
    """
    config = read_config(folder / CONFIG)
    if OWN in config:
        found = own_metadata(config[OWN], folder / CONFIG)
        if found is None:
            raise ValueError(f"{folder / CONFIG} is damaged, its {OWN}: export the model again")
        return found
    is_timm = "architecture" in config
    facts = _facts_of_timm(config, folder) if is_timm else _facts_of_transformers(config, folder)
    return {name: value for name, value in facts.items() if value is not None}


def own_names(tensors: Group, folder: Path) -> Group:
    """Return tensors by this project's names: an export has its embedding layer as class layer."""
    config = read_config(folder / CONFIG)
    classifier = (config.get("pretrained_cfg") or {}).get("classifier")
    if OWN not in config or not config.get("num_classes") or not isinstance(classifier, str):
        return tensors
    return {
        f"embedding.{key.removeprefix(f'{classifier}.')}"
        if key.startswith(f"{classifier}.")
        else key: tensor
        for key, tensor in tensors.items()
    }


def read_config(file: Path) -> dict[str, Any]:
    """Read a JSON object of a hub; ValueError where it is none."""
    found = read_json(file, str(file))
    if not is_object(found):
        raise ValueError(f"{file}: expected a JSON object, found something else")
    return dict(found)


def _facts_of_timm(config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    name, cfg = config["architecture"], config.get("pretrained_cfg") or {}
    if not isinstance(name, str) or not timm.is_model(name):
        raise ValueError(
            f"{folder / CONFIG}: timm {timm.__version__} has no model {name}: update timm, or "
            "choose another model"
        )
    options = config.get("model_args") or {}
    unknown = [f"{key}={value}" for key, value in options.items() if key not in FREE_OPTIONS]
    if unknown:
        raise ValueError(
            f"{folder / CONFIG}: {name} is changed by {', '.join(unknown)}, which cannot be built "
            "here: choose a model without model_args"
        )

    size = cfg.get("input_size")
    facts = {
        "model": name,
        "embedding_size": 0,
        "mean": cfg.get("mean"),
        "std": cfg.get("std"),
        "image_shape": list(size) if size and size[1] == size[2] else None,
        "test_resize": "squash" if cfg.get("crop_mode") == "squash" else None,
    }
    return _checked(facts, folder)


def _facts_of_transformers(config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    name, size = architecture_of(config, str(folder / CONFIG))
    preprocessor: dict[str, Any] = {}
    if (folder / PREPROCESSOR).is_file():
        preprocessor = read_config(folder / PREPROCESSOR)
    facts = {
        "model": name,
        "embedding_size": 0,
        "mean": preprocessor.get("image_mean"),
        "std": preprocessor.get("image_std"),
        "image_shape": None if size is None else [3, size, size],
        "test_resize": "squash" if _is_squashed(preprocessor) else None,
    }
    return _checked(facts, folder)


def _is_squashed(preprocessor: Mapping[str, Any]) -> bool:
    """Whether transformers resizes height and width each to its own, not the shortest edge."""
    size: Any = preprocessor.get("size")
    return is_object(size) and {"height", "width"} <= size.keys()


def _checked(facts: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return facts whose mean and std are such, or ValueError."""
    for field in FIELDS:
        value = facts.get(field.name)
        if value is not None and not field.is_right(value):
            raise ValueError(f"{folder}: expected {field.expected} as {field.name}, found {value}")
    return facts
