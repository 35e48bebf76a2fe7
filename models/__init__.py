"""Networks that map images (B, 3, H, W) to embeddings (B, D), and their weights in and out."""

from metric_learning.models.build import build_model, timm_name
from metric_learning.models.embedder import REFERENCE_MODELS, EmbeddingModel
from metric_learning.models.options import MODEL_OPTIONS, changed_options, options_of
from metric_learning.models.weights.load import (
    WeightsReport,
    load_classifier,
    load_weights,
    read_metadata,
    save_weights,
)

__all__ = [
    "MODEL_OPTIONS",
    "REFERENCE_MODELS",
    "EmbeddingModel",
    "WeightsReport",
    "build_model",
    "changed_options",
    "load_classifier",
    "load_weights",
    "options_of",
    "read_metadata",
    "save_weights",
    "timm_name",
]
