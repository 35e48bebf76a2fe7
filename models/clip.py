"""Image towers of CLIP models, built by open_clip, whose embeddings compare with those of texts."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from metric_learning.common.optional import import_optional
from metric_learning.common.sizes import Size, sides, size_text

PREFIX = "open_clip:"
# How keys begin, in weights of both towers, that belong to the text tower (under `text` in newer
# models), or to neither.
TEXT_PARTS = (
    *("transformer", "token_embedding", "positional_embedding", "ln_final", "text_projection"),
    "text",
)
OPENAI_PARTS = ("input_resolution", "context_length", "vocab_size")  # in OpenAI's own weights
NEITHER_PARTS = ("logit_scale", "logit_bias", "attn_mask", "text_decoder", *OPENAI_PARTS)
# The smallest text tower; open_clip builds one beside the image tower.
NO_TEXTS = {"context_length": 1, "vocab_size": 1, "width": 1, "heads": 1, "layers": 1}


@dataclass(frozen=True)
class Clip:
    """How the two towers of a model are built, and what images they expect."""

    architecture: str  # open_clip's name of it
    config: dict[str, Any]  # open_clip's description of it
    quick_gelu: bool  # whether the activation is x sigmoid(1.702 x), as in OpenAI's weights
    mean: tuple[float, ...]  # per channel, of images in 0..1, as is std
    std: tuple[float, ...]
    image_size: tuple[int, int]  # height and width of the images in pixels
    is_squashed: bool = False  # whether images are resized to that whatever their proportions


class ImageTower(nn.Module):
    """The image tower of one of open_clip's models, with its projection to `num_features`, D.

    What images the published weights expect is in `pretrained_cfg`, as timm's models say it.

    Args:
        name: the model, see `find_clip`.
        image_size: side of the images in pixels, or height and width; None for the
            architecture's own.

    Shape:
        images: (B, 3, H, W) float.
        returns: (B, D) float, not normalised.

    Raises:
        ValueError: as `find_clip`, or the tower cannot be had for that size.
    """

    def __init__(self, name: str, image_size: Size | None = None) -> None:
        super().__init__()
        clip = find_clip(name)
        size = sides(image_size or clip.image_size)
        # Its ResNets know squares alone, by one number.
        side = size[0] if size[0] == size[1] else size
        config = {**clip.config["vision_cfg"], "image_size": side, "timm_model_pretrained": False}
        self.visual = build_towers(clip, config, NO_TEXTS).visual

        self.num_features: int = clip.config["embed_dim"]
        self.pretrained_cfg = {
            "input_size": (3, *clip.image_size),
            "mean": clip.mean,
            "std": clip.std,
            "crop_mode": "squash" if clip.is_squashed else "center",
        }
        self.quick_gelu = clip.quick_gelu

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the embeddings (B, D) of images (B, 3, H, W)."""
        return without_tokens(self.visual(images))

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Compute activations again in the backward pass; an AttributeError if the tower cannot."""
        if hasattr(self.visual, "trunk"):  # a timm model
            self.visual.trunk.set_grad_checkpointing(enable)
        else:  # open_clip's ResNets have no transformer; their own method does nothing
            self.visual.transformer.grad_checkpointing = enable


def is_clip(name: str) -> bool:
    """Whether a model's name is that of an open_clip model."""
    return name.startswith(PREFIX)


def find_clip(name: str) -> Clip:
    """Describe the model of a name, from open_clip's lists alone.

    Args:
        name: `open_clip:NAME` with a name of `open_clip.list_models()`, or `open_clip:NAME.TAG`,
            where TAG names published weights of it. These differ in activation, mean and std:
            without a tag the activation is the architecture's, and mean and std are those of all
            its weights, where they agree, else OpenAI's. Its images are squashed to squares where
            all these weights' are.

    Raises:
        ValueError: open_clip is not installed, or does not know the name or tag.
    """
    # The architecture, and the tag of its weights.
    open_clip = import_open_clip()
    known = open_clip.list_models()
    architecture, tag = name.removeprefix(PREFIX), ""
    if architecture not in known:
        architecture, _, tag = architecture.rpartition(".")
    if architecture not in known:
        close = difflib.get_close_matches(name.removeprefix(PREFIX), known, n=4)
        hint = f"close to it: {', '.join(close)}; " if close else ""
        raise ValueError(
            f"unknown model {name}; {hint}expected {PREFIX}NAME with a name of "
            "open_clip.list_models()"
        )
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if tag and tag not in tags:
        raise ValueError(
            f"unknown model {name}: the weights of {architecture} are {', '.join(tags) or 'none'}"
        )

    # The images and the activation that these weights need.
    weights = [open_clip.get_pretrained_cfg(architecture, one) for one in tags if tag in ("", one)]
    norms = {(tuple(config["mean"]), tuple(config["std"])) for config in weights}
    openai = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
    mean, std = norms.pop() if len(norms) == 1 else openai
    is_squashed = {config.get("resize_mode") for config in weights} == {"squash"}
    config = open_clip.get_model_config(architecture)
    needs_quick_gelu = bool(tag) and weights[0].get("quick_gelu", False)
    quick_gelu = config.get("quick_gelu", False) or needs_quick_gelu
    image_size = open_clip.CLIPVisionCfg(**config["vision_cfg"]).image_size
    return Clip(architecture, config, quick_gelu, mean, std, sides(image_size), is_squashed)


def build_towers(clip: Clip, vision: dict[str, Any], text: dict[str, Any]) -> Any:
    """Build `visual` and `text` with random weights, as the configs say; or ValueError."""
    kind = import_open_clip().CustomTextCLIP
    size = sides(vision["image_size"])
    try:
        towers = kind(clip.config["embed_dim"], vision, text, quick_gelu=clip.quick_gelu)
        if size != clip.image_size and hasattr(towers.visual, "set_input_size"):  # a timm model
            towers.visual.set_input_size(size)
        return towers
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"cannot build model {PREFIX}{clip.architecture} for images of {size_text(size)}: "
            f"{reason}"
        ) from error


def without_tokens(output: Any) -> torch.Tensor:
    """Return the embeddings of a tower's output; CoCa's has those of all tokens behind them."""
    embeddings: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return embeddings


def import_open_clip() -> Any:
    """Import open_clip; ValueError where it is not installed."""
    return import_optional("open_clip", f"a model {PREFIX}NAME", "open_clip_torch")
