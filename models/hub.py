"""Models by the name of a hub or of a folder, which stand for a name in timm and weights."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import try_to_load_from_cache

from metric_learning.models.weights.hub_folder import CONFIG, facts_in, is_hub_folder, weights_in

HUB, LOCAL = "hf-hub:", "local-dir:"  # as in timm


def is_hub_name(name: str) -> bool:
    """Whether a name says that it is of a hub, or of a folder."""
    return name.startswith((HUB, LOCAL))


def split_hub_name(name: str) -> tuple[str, str | None]:
    """Split `hf-hub:ORG/NAME@REVISION` into repository and revision, or raise ValueError."""
    repository, _, revision = name.removeprefix(HUB).partition("@")
    parts = repository.split("/")
    if len(parts) != 2 or not all(parts):
        raise ValueError(f"expected {HUB}ORG/NAME, found {name}")
    return repository, revision or None


def find_folder(name: str) -> Path | None:
    """Return the folder of a model of a hub, or a folder itself; None where a name is of neither.

    Nothing is fetched. Raises ValueError where the model was not fetched, FileNotFoundError where
    there is no such folder, or none of a model.
    """
    if name.startswith(HUB):
        repository, revision = split_hub_name(name)
        found = try_to_load_from_cache(repository, CONFIG, revision=revision)
        if not isinstance(found, str):
            raise ValueError(
                f"{name} is not on this machine, and is fetched on request alone: run "
                f"metric-learning fetch-weights --model={name}"
            )
        return Path(found).parent

    folder = Path(name.removeprefix(LOCAL)).expanduser()
    if is_hub_folder(folder):
        return folder
    if name.startswith(LOCAL) or (folder.is_dir() and folder != Path(folder.name)):
        raise FileNotFoundError(f"{folder} holds no {CONFIG}: expected the folder of a model")
    return None


def resolve_model(name: str, weights: str | None = None) -> tuple[str, str | None]:
    """Return a model's name in timm, and its weights: those given, else those beside it.

    Other names, and weights of them, are returned as they are. Weights may be named as models are.
    """
    if weights is not None and is_hub_name(weights):
        weights = str(find_folder(weights))
    folder = find_folder(name)
    if folder is None:
        return name, weights
    if weights is None:
        weights_in(folder)
    return str(facts_in(folder)["model"]), weights or str(folder)
