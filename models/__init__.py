"""Networks that map images (B, 3, H, W) to embeddings (B, D), and their weights in and out."""

from models.embedder import REFERENCE_MODELS, EmbeddingModel, build_model
from models.weights import (
    WeightsReport,
    load_classifier,
    load_weights,
    read_metadata,
    save_weights,
)

__all__ = [
    "REFERENCE_MODELS",
    "EmbeddingModel",
    "WeightsReport",
    "build_model",
    "load_classifier",
    "load_weights",
    "read_metadata",
    "save_weights",
]
