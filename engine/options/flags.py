"""Command-line flags of all scripts: tables of names, types, defaults and help."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from metric_learning.common.flags import (
    Flag,
    amp,
    boolean,
    image_shape,
    integers,
    natural,
    path,
    positive,
    whitening,
)
from metric_learning.models.feature_norm import FEATURE_NORMS
from metric_learning.models.pooling import POOLINGS
from metric_learning.reader import DATASETS
from metric_learning.reader.transforms import TRANSFORMS
from metric_learning.retrieval.scores import TIES

MODEL_FLAGS = (
    Flag(
        "model",
        str,
        "ResNet50",
        "ResNet18/34/50/101/152, SE_ResNeXt50_32x4d, Xception, a timm name or open_clip:NAME",
    ),
    Flag("embedding_size", natural, 0, "size of a linear layer on the feature; 0: the feature"),
    Flag(
        "pooling",
        str,
        "own",
        "what makes a feature of the feature map: avg, max, avg_max (their sum), gem (generalised "
        "mean, its exponent learned from 3) or own, the backbone's",
        ("own", *POOLINGS),
    ),
    Flag(
        "last_stride",
        positive,
        2,
        "1: the last stage of a ResNet keeps the size of its feature map, which costs time; 2: as "
        "the model has it",
    ),
    Flag(
        "feature_norm",
        str,
        "none",
        "between the pooling and the embedding layer: layernorm (without weights), bnneck (batch "
        "norm whose bias stays zero) or none",
        tuple(FEATURE_NORMS),
    ),
    Flag(
        "image_shape",
        image_shape,
        None,
        "network input: channels, height, width; default: 3,224,224 for reference models, the "
        "size of their published weights for others",
    ),
    Flag(
        "transform",
        str,
        None,
        "image pipeline: reference (Lanczos without antialiasing; default for reference models) or "
        "standard (torchvision, antialiased; default for timm models)",
        tuple(TRANSFORMS),
    ),
    Flag("pretrained_model", path, None, "weights to start from: a file or folder of any kind"),
)
CLASS_FLAGS = (
    Flag(
        "class_dim",
        positive,
        None,
        "classes of the class layer: of weights from elsewhere, one of that size is used for "
        "scores and accuracy; that of a checkpoint is used anyway, and checked",
    ),
    Flag(
        "with_mem_opt",
        boolean,
        False,
        "as in v1; changes nothing here: it is training that keeps activations",
    ),
)
DATA_FLAGS = (
    Flag("dataset", str, "sop", "data set", tuple(DATASETS)),
    Flag("data_dir", path, None, "its folder; default: its usual place under data/"),
    Flag("train_classes", str, None, "training classes by number, e.g. 1-25 or 1-10,15"),
    Flag("test_classes", str, None, "test classes by number, e.g. 26-50"),
    Flag("train_list", path, None, "file of `path label` lines (--dataset=list)"),
    Flag("test_list", path, None, "file of `path label` lines (--dataset=list)"),
    Flag("csv", path, None, "file of images, from python -m data.prepare (--dataset=csv)"),
    Flag("fold", natural, None, "fold of the file to test on, others train (--dataset=csv)"),
)
MACHINE_FLAGS = (
    Flag("use_gpu", boolean, True, "use a GPU if there is one"),
    Flag("device", str, "auto", "auto, cpu, cuda, cuda:1, ...; auto follows --use_gpu"),
    Flag(
        "amp",
        amp,
        "auto",
        "precision of the forward pass: off (float32), bfloat16, float16 (training scales the "
        "loss), or auto (bfloat16 on a GPU that has it)",
    ),
    Flag("num_workers", natural, 2, "processes that read images; 0: none beside the main one"),
    Flag(
        "seed", natural, 0, "seed of all that is random: weights, sampling, augmentation, bootstrap"
    ),
)
METRIC_FLAGS = (
    Flag("ks", integers, (), "K of Recall@K beside 1,10,100,1000, e.g. 2,4,8"),
    Flag("precision_ks", integers, (), "K of precision@K, e.g. 1,5,10"),
    Flag("ties", str, "pessimistic", "how negatives that tie with a positive count", TIES),
    Flag(
        "whiten",
        whitening,
        None,
        "PCA whitening learned on the training split: dimensions to keep, or all",
    ),
    Flag(
        "rerank",
        str,
        None,
        "re-ranking of the neighbours: qe, dba or kreciprocal, with parameters such as "
        "qe:k=10,alpha=3 or kreciprocal:k1=20,k2=6,lambda=0.3",
    ),
    Flag("verification", boolean, False, "also ROC AUC, TAR at FAR and EER over all pairs"),
    Flag("clustering", boolean, False, "also NMI, AMI, ARI and F1 of k-means clusters"),
    Flag("class_table", path, None, "CSV file to write the scores of each class to"),
)


def with_defaults(flags: Iterable[Flag], **defaults: Any) -> tuple[Flag, ...]:
    """Return the flags with some defaults replaced, by name."""
    return tuple(
        replace(flag, default=defaults[flag.name]) if flag.name in defaults else flag
        for flag in flags
    )
