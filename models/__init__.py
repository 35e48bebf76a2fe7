"""Networks that map images (B, 3, H, W) to embeddings (B, D), and their weights in and out.

- build: a model by its name, from timm or open_clip; begin here.
- hub: models by the name of a hub or of a folder.
- embedder: a model is a backbone, the options of its head, and an embedding layer. pooling,
  last_stride and feature_norm are what these options choose, options their defaults.
- trainable: which weights train, and which are frozen. averaging: weights between two trainings.
  lora: low-rank adapters.
- clip, clip_text: image towers of CLIP models as backbones, and texts embedded by text towers.
- weights: files of weights of any origin, read without running code.
"""

from metric_learning.models.averaging import average_with
from metric_learning.models.build import build_model, image_size_of, timm_name
from metric_learning.models.embedder import REFERENCE_MODELS, EmbeddingModel
from metric_learning.models.hub import resolve_model
from metric_learning.models.lora import add_lora, has_lora, merged_state
from metric_learning.models.options import MODEL_OPTIONS, changed_options, options_of
from metric_learning.models.trainable import choose_trainable
from metric_learning.models.weights.files import read_metadata
from metric_learning.models.weights.load import (
    WeightsReport,
    load_classifier,
    load_weights,
    save_weights,
)

__all__ = [
    "MODEL_OPTIONS",
    "REFERENCE_MODELS",
    "EmbeddingModel",
    "WeightsReport",
    "add_lora",
    "average_with",
    "build_model",
    "changed_options",
    "choose_trainable",
    "has_lora",
    "image_size_of",
    "load_classifier",
    "load_weights",
    "merged_state",
    "options_of",
    "read_metadata",
    "resolve_model",
    "save_weights",
    "timm_name",
]
