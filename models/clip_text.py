"""Texts as embeddings, by the text tower of one of open_clip's models."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike

import numpy as np
import torch
from torch import nn

from metric_learning.models.clip import (
    PREFIX,
    TEXT_PARTS,
    Clip,
    build_towers,
    find_clip,
    import_open_clip,
    is_clip,
    without_tokens,
)
from metric_learning.models.weights.files import read_weights

WRAPPERS = ("module.", "_orig_mod.")
# The smallest image tower; open_clip builds one beside the text tower.
NO_IMAGES = {"image_size": 1, "patch_size": 1, "width": 1, "head_width": 1, "layers": 1}
NUM_MARKS = 2  # tokens that mark start and end of a text


def embed_texts(
    name: str, path: str | PathLike[str], texts: Sequence[str], device: str | torch.device = "cpu"
) -> np.ndarray:
    """Embed T texts by the text tower of a weights file: (T, D) float32, not normalised.

    The model is named as for `models.clip.find_clip`, the file as open_clip or OpenAI save it.

    Raises:
        ValueError: the model has no text tower that can be used, the file holds none or that of
            another model, or a text is too long.
        OSError: the file cannot be read.
    """
    clip = clip_of(name)
    tokens = tokenize(clip, texts)
    return embed_tokens(build_text_tower(clip, name, path, device), tokens)


class TextEncoder:
    """The text tower of a weights file, which is read once; see `embed_texts`, also for errors."""

    def __init__(
        self, name: str, path: str | PathLike[str], device: str | torch.device = "cpu"
    ) -> None:
        self._clip = clip_of(name)
        tokenize(self._clip, ["a word"])  # before the file, which may be large
        self._tower = build_text_tower(self._clip, name, path, device)

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Embed T texts: (T, D) float32, not normalised; ValueError where one is too long."""
        return embed_tokens(self._tower, tokenize(self._clip, texts))


def clip_of(name: str) -> Clip:
    """Return the CLIP model of a name; ValueError where it is none."""
    if not is_clip(name):
        raise ValueError(
            f"{name} embeds images alone: to search with texts, build the index with "
            f"--model={PREFIX}NAME and weights of both towers, as open_clip saves them"
        )
    return find_clip(name)


def build_text_tower(
    clip: Clip, name: str, path: str | PathLike[str], device: str | torch.device
) -> nn.Module:
    """Return the text tower of a weights file on a device, see `load_text_tower` for errors."""
    tower: nn.Module = build_towers(clip, NO_IMAGES, clip.config["text_cfg"]).text
    load_text_tower(tower, name, path)
    return tower.eval().to(device)


def embed_tokens(tower: nn.Module, tokens: torch.Tensor) -> np.ndarray:
    """Embed tokens (T, L) int64 by a text tower: (T, D) float32."""
    device = next(tower.parameters()).device
    with torch.inference_mode():
        embeddings = without_tokens(tower(tokens.to(device)))
    return embeddings.cpu().numpy()


def tokenize(clip: Clip, texts: Sequence[str]) -> torch.Tensor:
    """Return the tokens (T, L) int64 of T texts; ValueError where it cannot or one is too long."""
    config = clip.config["text_cfg"]
    if config.get("hf_tokenizer_name") or config.get("hf_model_name"):
        raise ValueError(
            f"{PREFIX}{clip.architecture} needs a vocabulary from the network, and none is "
            "fetched: search with --query, or use a model with CLIP's vocabulary, such as "
            f"{PREFIX}ViT-B-32"
        )

    open_clip = import_open_clip()
    options = config.get("tokenizer_kwargs") or {}
    length = open_clip.CLIPTextCfg(**config).context_length
    tokenizer = open_clip.SimpleTokenizer(context_length=length, **options)
    for text in texts:
        num_tokens = len(tokenizer.encode(text))
        if num_tokens > length - NUM_MARKS:  # the tokenizer would cut the text
            raise ValueError(
                f"a text has {num_tokens} tokens, {PREFIX}{clip.architecture} reads at most "
                f"{length - NUM_MARKS}: shorten {text!r}"
            )
    tokens: torch.Tensor = tokenizer(list(texts))
    return tokens


def load_text_tower(tower: nn.Module, name: str, path: str | PathLike[str]) -> None:
    """Fill a text tower from weights of both towers; ValueError if they are not of this model."""
    file = read_weights(path)
    tensors: dict[str, torch.Tensor] = {}
    for key, tensor in file.tensors.items():
        for wrapper in WRAPPERS:
            key = key.removeprefix(wrapper)
        if key.partition(".")[0] in TEXT_PARTS:
            tensors[key.removeprefix("text.")] = tensor

    if not tensors:
        raise ValueError(
            f"{file.path} holds no text tower (a checkpoint of this project has the image tower "
            "alone): build the index, and search it, with weights of both, as open_clip saves them"
        )

    own = tower.state_dict()
    wrong = [key for key in own if key not in tensors or tensors[key].shape != own[key].shape]
    if wrong:
        raise ValueError(
            f"{file.path}: its text tower is that of another model than {name}: {len(wrong)} "
            f"tensors are missing or of another shape, such as {wrong[0]}"
        )
    tower.load_state_dict({key: tensors[key] for key in own})
