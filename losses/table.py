"""The tables of losses by name, and how one is built.

A new loss is one file in this folder, an import here and a row in a table below; its flags, help
and contract tests follow from the signature and the docstring of its class. A loss that lies
elsewhere needs neither: its name is `module:Class`, and its class says in an attribute `stage`
which contract it keeps.
"""

from __future__ import annotations

import inspect
from typing import Any, Literal, Protocol, runtime_checkable

from torch import Tensor, nn

from metric_learning.losses.adacosloss import AdaCosLoss
from metric_learning.losses.adafaceloss import AdaFaceLoss
from metric_learning.losses.arcmarginloss import ArcMarginLoss
from metric_learning.losses.batchtripletloss import BatchTripletLoss
from metric_learning.losses.centerloss import CenterLoss
from metric_learning.losses.chenquadrupletloss import ChenQuadrupletLoss
from metric_learning.losses.circleloss import CircleLoss
from metric_learning.losses.combinedloss import CombinedLoss
from metric_learning.losses.contextualloss import ContextualLoss
from metric_learning.losses.contrastiveloss import ContrastiveLoss
from metric_learning.losses.cosfaceloss import CosFaceLoss
from metric_learning.losses.curricularfaceloss import CurricularFaceLoss
from metric_learning.losses.elasticfaceloss import ElasticArcLoss, ElasticCosLoss
from metric_learning.losses.emlloss import EmlLoss
from metric_learning.losses.hyperbolicloss import HyperbolicLoss
from metric_learning.losses.liftedstructureloss import LiftedStructureLoss
from metric_learning.losses.magfaceloss import MagFaceLoss
from metric_learning.losses.multisimilarityloss import MultiSimilarityLoss
from metric_learning.losses.normsoftmaxloss import NormSoftmaxLoss
from metric_learning.losses.npairsloss import NpairsLoss
from metric_learning.losses.ownloss import find_own, options_of, put_labels_beside
from metric_learning.losses.pmlloss import PREFIX, PmlLoss, pml_options
from metric_learning.losses.proxyanchorloss import ProxyAnchorLoss
from metric_learning.losses.proxyncaloss import ProxyNcaLoss
from metric_learning.losses.quadrupletloss import QuadrupletLoss
from metric_learning.losses.recallloss import RecallLoss
from metric_learning.losses.roadmaploss import RoadmapLoss
from metric_learning.losses.siameseloss import SiameseLoss
from metric_learning.losses.smoothaploss import SmoothApLoss
from metric_learning.losses.softmaxloss import SoftmaxLoss
from metric_learning.losses.softtripleloss import SoftTripleLoss
from metric_learning.losses.spherefaceloss import SphereFaceLoss
from metric_learning.losses.subcenterloss import SubCenterLoss
from metric_learning.losses.supconloss import SupConLoss
from metric_learning.losses.tripletloss import TripletLoss
from metric_learning.losses.v1losses import EmlV1Loss, QuadrupletV1Loss, TripletV1Loss
from metric_learning.losses.vplloss import VplLoss
from metric_learning.losses.xbmcontrastiveloss import XbmContrastiveLoss

# Stage 1: look at one image at a time; `loss, logits = criterion(embeddings, labels)`, with a
# parameter `weight` (C, D), from the options class_dim and embedding_size.
ELEM_LOSSES: dict[str, type[nn.Module]] = {
    "softmax": SoftmaxLoss,
    "arcmargin": ArcMarginLoss,
    "cosface": CosFaceLoss,
    "sphereface": SphereFaceLoss,
    "combined": CombinedLoss,
    "normsoftmax": NormSoftmaxLoss,
    "adacos": AdaCosLoss,
    "subcenter": SubCenterLoss,
    "curricularface": CurricularFaceLoss,
    "adaface": AdaFaceLoss,
    "elastic_arc": ElasticArcLoss,
    "elastic_cos": ElasticCosLoss,
    "proxy_nca": ProxyNcaLoss,
    "proxy_anchor": ProxyAnchorLoss,
    "soft_triple": SoftTripleLoss,
    "vpl": VplLoss,
    "magface": MagFaceLoss,
    "center": CenterLoss,
}

# Stage 2: compare the images of a batch; `loss = criterion(embeddings, labels)`. Batches are blocks
# of K images per class, unless a class attribute says otherwise (`layout_of`).
PAIR_LOSSES: dict[str, type[nn.Module]] = {
    "triplet": TripletLoss,
    "quadruplet": QuadrupletLoss,
    "eml": EmlLoss,
    "npairs": NpairsLoss,
    "siamese": SiameseLoss,
    "contrastive": ContrastiveLoss,
    "batch_triplet": BatchTripletLoss,
    "chen_quadruplet": ChenQuadrupletLoss,
    "multi_similarity": MultiSimilarityLoss,
    "lifted_structure": LiftedStructureLoss,
    "supcon": SupConLoss,
    "circle": CircleLoss,
    "smooth_ap": SmoothApLoss,
    "recall_surrogate": RecallLoss,
    "roadmap": RoadmapLoss,
    "xbm_contrastive": XbmContrastiveLoss,
    "hyperbolic": HyperbolicLoss,
    "contextual": ContextualLoss,
    "tripletloss": TripletV1Loss,
    "quadrupletloss": QuadrupletV1Loss,
    "emlloss": EmlV1Loss,
}

# Losses of the reference's first version, under its names for them.
V1_LOSSES = ("tripletloss", "quadrupletloss", "emlloss")

# Losses whose authors' scale of 64 is for the tens of thousands of classes of faces: fewer classes
# need a smaller one, see `classes.fixed_scale`.
FACE_LOSSES = (
    *("cosface", "combined", "subcenter", "curricularface", "adaface"),
    *("elastic_arc", "elastic_cos", "vpl", "magface"),
)


def is_pml(name: str) -> bool:
    """Whether a name, such as `pml:NCALoss`, is that of a loss of pytorch-metric-learning."""
    return name.startswith(PREFIX)


def find_loss(name: str) -> type[nn.Module]:
    """Return the class of a loss; ValueError if there is none.

    Its name is a key of ELEM_LOSSES or PAIR_LOSSES; `module:Class`, a loss of one's own, see
    `ownloss.find_own`; or `pml:` and a class of pytorch-metric-learning, which PmlLoss looks for
    when it is built.
    """
    losses = ELEM_LOSSES | PAIR_LOSSES
    if name in losses:
        return losses[name]
    if is_pml(name):
        return PmlLoss
    if ":" in name:
        return find_own(name)
    raise ValueError(f"unknown loss {name!r}: choose from {', '.join(losses)}")


def stage_of(name: str) -> Literal[1, 2]:
    """Return the stage that a loss, found as by `find_loss`, is for, whose contract it keeps."""
    stage: Literal[1, 2] = getattr(find_loss(name), "stage", 1 if name in ELEM_LOSSES else 2)
    return stage


def layout_of(name: str) -> str:
    """Return how the batches of a stage-2 loss, found as by `find_loss`, are made up.

    `blocks`: K images of each class in a row; `labels`: the same, but in any order, since the
    loss looks at labels alone; `triples`: a p n a p n ...; `pairs`: a b a b ....
    """
    layout: str = getattr(find_loss(name), "layout", "blocks")
    return layout


def reads_raw(name: str) -> bool:
    """Whether a loss, found as by `find_loss`, reads embeddings as they are, not normalised."""
    return bool(getattr(find_loss(name), "reads_raw", False))


@runtime_checkable
class SplittableLoss(Protocol):
    """A stage-1 loss that can be built for a part of the classes, as `--shard_head` does.

    Its parameters and buffers have a row per class or are scalars, a logit depends on the image and
    the weights of that one class (and on the label, for the margin), and its value is
    `functional.cross_entropy` of the logits, with its attribute `logit_floor`, if it has one.
    """

    def logits(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Return the logits (B, C) that the loss compares, with margin and scale.

        Labels are -1 where the class of an image is not among these C.
        """

    def draw_weight(self, rows: Tensor, class_dim: int) -> None:
        """Fill rows (n, D) of the weight of `class_dim` classes with initial values.

        Rows drawn in blocks, from the first to the last, are the same as drawn at once.
        """


def loss_options(name: str) -> dict[str, inspect.Parameter]:
    """Return the options of a loss, found as by `find_loss`, in the order of its signature.

    The `annotation` of an option is its type, except for losses of pytorch-metric-learning.
    """
    return pml_options(name) if is_pml(name) else options_of(find_loss(name))


def build_loss(name: str, **options: Any) -> nn.Module:
    """Build a loss by name, as `find_loss` takes it, with options named as the command line flags.

    Raises:
        ValueError: unknown name, an option that the loss does not take, or one that it lacks.
    """
    known = loss_options(name)
    unknown = [option for option in options if option not in known]
    if unknown:
        raise ValueError(
            f"loss {name} does not use {', '.join(unknown)}: its options are {', '.join(known)}"
        )

    lacking = [
        option
        for option, parameter in known.items()
        if parameter.default is parameter.empty and option not in options
    ]
    if lacking:
        raise ValueError(f"loss {name} needs {', '.join(lacking)}")

    if is_pml(name):
        return PmlLoss(name, **options)
    loss = find_loss(name)(**options)
    if ":" in name:
        loss.register_forward_pre_hook(put_labels_beside)
    return loss
