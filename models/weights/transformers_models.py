"""Which of timm's models a config.json of transformers describes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import timm

# Width and depth of the models, by which their sizes are told, and the names of these.
DINO_SIZES = {(384, 12): "small", (768, 12): "base", (1024, 24): "large", (1536, 40): "giant"}
DINOV3_SIZES = {
    (384, 12, False): "small",
    (384, 12, True): "small_plus",
    (768, 12, False): "base",
    (1024, 24, False): "large",
    (1280, 32, True): "huge_plus",
}
CONVNEXT_SIZES = {
    (96, (3, 3, 9, 3)): "tiny",
    (96, (3, 3, 27, 3)): "small",
    (128, (3, 3, 27, 3)): "base",
    (192, (3, 3, 27, 3)): "large",
}
SIGLIP_SIZES = {
    (768, 12): "base",
    (1024, 24): "large",
    (1152, 27): "so400m",
    (1536, 40): "giantopt",
}
KNOWN = "DINOv2, DINOv3 and SigLIP (1 and 2, at a fixed size)"


def architecture_of(config: Mapping[str, Any], file: str) -> tuple[str, int | None]:
    """Return timm's name of a model, and the side of its images in pixels, where it is told.

    Raises ValueError where timm has no such model, or this project does not know its names.
    """
    kind = config.get("model_type")
    vision = config.get("vision_config") or config
    sizes = vision.get("hidden_size", 0), vision.get("num_hidden_layers", 0)
    patch, image = vision.get("patch_size"), vision.get("image_size")
    name = None

    if kind in ("dinov2", "dinov2_with_registers") and sizes in DINO_SIZES:
        registers = "_reg4" if kind == "dinov2_with_registers" else ""
        name = f"vit_{DINO_SIZES[sizes]}_patch{patch}{registers}_dinov2"
    elif kind == "dinov3_vit":
        found = DINOV3_SIZES.get((*sizes, bool(config.get("use_gated_mlp"))))
        name = found and f"vit_{found}_patch{patch}_dinov3_qkvb"
    elif kind == "dinov3_convnext":
        widths, depths = config.get("hidden_sizes") or [0], config.get("depths") or []
        found = CONVNEXT_SIZES.get((widths[0], tuple(depths)))
        name = found and f"convnext_{found}.dinov3_lvd1689m"
    elif kind in ("siglip", "siglip_vision_model") and sizes in SIGLIP_SIZES:
        name = f"vit_{SIGLIP_SIZES[sizes]}_patch{patch}_siglip_{image}"

    if name is None or not timm.is_model(name):
        raise ValueError(
            f"{file}: a model of the type {kind} in this size is not known; of transformers' are "
            f"{KNOWN}; others are read in timm's form (hf-hub:timm/NAME)"
        )
    return name, image if isinstance(image, int) else None
