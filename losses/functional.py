"""Functions that several losses share: precision, scores, distances and checks of a batch.

Labels may lie in the host's memory while embeddings lie on a GPU: what is asked of labels (checks,
positions of pairs) is asked where they lie, and so nothing in a training step waits for the GPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

# PaddlePaddle's softmax raises every logit to at least this much below the largest of its row.
PADDLE_LOGIT_FLOOR = -64.0


def full_precision(tensor: Tensor) -> Tensor:
    """Return half-precision tensors as float32 and leave float32 and float64 as they are."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def normalised(embeddings: Tensor) -> Tensor:
    """Put rows (B, D) on the unit sphere, in float32 at least."""
    return F.normalize(full_precision(embeddings))


def cross_entropy(
    logits: Tensor, labels: Tensor, label_smoothing: float = 0.0, floor: float = -math.inf
) -> Tensor:
    """Mean softmax cross-entropy: (B, C), (B,) -> ().

    With label smoothing e the one-hot target is 1 - e + e / C at the label and e / C elsewhere.
    Logits further than the `floor`, which is negative, below their row's largest count as so much
    below it; with PADDLE_LOGIT_FLOOR, as PaddlePaddle 1.8 has it, one image costs at most
    64 + log C. The gradient is softmax minus one-hot all the same.
    """
    shifted = logits - logits.detach().amax(1, keepdim=True)
    raised = shifted.detach().clamp(min=floor) - shifted.detach()
    return F.cross_entropy(shifted + raised, labels, label_smoothing=label_smoothing)


def change_targets(scores: Tensor, labels: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply `change` to the score of each row's own class: (B, C), (B,) -> (B, C).

    Rows whose label is -1 stay as they are: their class is not among these. `change` maps scores
    (B, 1) to scores (B, 1), with a finite derivative everywhere.
    """
    columns = labels.clamp(min=0)[:, None]  # Bx1
    targets = scores.gather(1, columns)
    changed = torch.where(labels[:, None] >= 0, change(targets), targets)
    return scores.scatter(1, columns, changed)


def classes_ahead(scores: Tensor, labels: Tensor) -> Tensor:
    """Count the classes whose score is at least that of the image's own: (B, C), (B,) -> (B,).

    A score that ties or is NaN counts against the image.
    """
    targets = scores.gather(1, labels[:, None])  # Bx1
    return (~(scores < targets)).sum(1) - 1  # its own class is not ahead of itself


def accuracies(ahead: Tensor) -> dict[str, Tensor]:
    """Return `acc1` and `acc5`, () each, from `classes_ahead` of the images of a batch."""
    return {f"acc{k}": (ahead < k).float().mean() for k in (1, 5)}


def squared_distances(embeddings: Tensor) -> Tensor:
    """Squared Euclidean distances between all rows: (B, D) -> (B, B), symmetric to the last bit."""
    products = embeddings @ embeddings.T
    products = (products + products.T) / 2
    squares = products.diagonal()
    return squares[:, None] + squares[None, :] - 2 * products


def row_norms(embeddings: Tensor) -> Tensor:
    """Euclidean norm of each row, in float32 at least: (B, D) -> (B, 1)."""
    norms: Tensor = torch.linalg.vector_norm(full_precision(embeddings), dim=1, keepdim=True)
    return norms


def euclidean(squared: Tensor) -> Tensor:
    """Roots of squared distances, at least 1e-6, so that the gradient at 0 is 0 and not NaN."""
    return squared.clamp(min=1e-12).sqrt()


def rooted(squared: Tensor) -> Tensor:
    """Roots of squared distances, of any shape; 0 of 0, where the gradient is 0 and not NaN."""
    is_same = squared <= 0
    return torch.where(is_same, 0.0, torch.where(is_same, 1.0, squared).sqrt())


def mean_where(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of the values that a mask of their shape chooses; 0, with zero gradient, of none."""
    return torch.where(mask, values, 0.0).sum() / mask.sum().clamp(min=1)


def mean_or_zero(values: Tensor) -> Tensor:
    """Mean of values (N,), 0 with zero gradient where there are none."""
    return values.sum() / max(len(values), 1)


def log_sum_exp(values: Tensor, mask: Tensor) -> Tensor:
    """Log of the sum of exp over the masked entries of each row: (B, M), (B, M) -> (B,).

    Every row must have an entry in the mask.
    """
    return values.masked_fill(~mask, -torch.inf).logsumexp(1)


def log_one_plus_sum_exp(values: Tensor, mask: Tensor) -> Tensor:
    """Log of 1 + the sum of exp over the masked entries of each row: (B, M), (B, M) -> (B,)."""
    return F.pad(values.masked_fill(~mask, -torch.inf), (1, 0)).logsumexp(1)


def tied_max(values: Tensor, dim: int | tuple[int, ...]) -> Tensor:
    """Maximum over `dim` (kept) whose gradient reaches every tied entry in full.

    PaddlePaddle's reduce_max does so; torch.amax would share the gradient among the tied entries.
    """
    frozen = values.detach()
    peak = frozen.amax(dim, keepdim=True)
    carriers = torch.where(frozen == peak, values - frozen, 0.0)
    return peak + carriers.sum(dim, keepdim=True)


def tied_min(values: Tensor, dim: int | tuple[int, ...]) -> Tensor:
    """Minimum over `dim` (kept) whose gradient reaches every tied entry in full."""
    return -tied_max(-values, dim)


def check_batch(embeddings: Tensor, labels: Tensor) -> None:
    """Raise ValueError unless embeddings are (B, D) floats and labels (B,) integers."""
    if embeddings.ndim != 2 or not embeddings.is_floating_point():
        raise ValueError(
            "expected embeddings as a float tensor (B, D), "
            f"found {embeddings.dtype} {tuple(embeddings.shape)}"
        )
    if labels.shape != embeddings.shape[:1] or labels.is_floating_point():
        raise ValueError(
            f"expected {embeddings.shape[0]} integer labels, "
            f"found {labels.dtype} {tuple(labels.shape)}"
        )


def checked_classes(embeddings: Tensor, labels: Tensor, class_dim: int) -> Tensor:
    """Return the labels of a batch on the embeddings' device, see `sent`.

    Raises ValueError unless embeddings are (B, D) floats and labels (B,) class numbers in
    0..class_dim-1.
    """
    check_batch(embeddings, labels)
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= class_dim:
        raise ValueError(
            f"expected labels in 0..{class_dim - 1} (class_dim {class_dim}), found {low}..{high}"
        )
    return sent(labels, embeddings.device)


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on a device; from the host's memory without waiting for a GPU's queue."""
    if tensor.device.type == "cpu" and device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def check_above_zero(**options: float) -> None:
    """Raise ValueError for options, by name, that are not above zero: they divide."""
    for name, value in options.items():
        if value <= 0:
            raise ValueError(f"expected {name} above 0, found {value:g}")


def check_samples_each_class(samples_each_class: int) -> None:
    """Raise ValueError for fewer than two images per class: there would be no positives."""
    if samples_each_class < 2:
        raise ValueError(f"expected samples_each_class of at least 2, found {samples_each_class}")


def check_blocks(labels: Tensor, samples_each_class: int) -> None:
    """Raise ValueError unless labels are blocks of `samples_each_class`, each of its own class.

    At least two blocks are required: with one there are no negatives.
    """
    num_images = len(labels)
    if num_images % samples_each_class:
        raise ValueError(
            f"batch of {num_images} images is not divisible by samples_each_class "
            f"{samples_each_class}"
        )
    blocks = labels.view(-1, samples_each_class)
    if len(blocks) < 2:
        raise ValueError(f"expected at least 2 classes in a batch, found {len(blocks)}")
    if bool((blocks != blocks[:, :1]).any()) or len(set(blocks[:, 0].tolist())) < len(blocks):
        raise ValueError(
            f"expected blocks of {samples_each_class} images, each block of its own class, "
            f"found labels {shortened(labels)}"
        )


def block_columns(
    num_images: int, samples_each_class: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Columns of each image's positives (B, K-1) and negatives (B, B-K) in a batch of blocks.

    By position, ascending, int64: that asks nothing of the device, as masks would.
    """
    rows = torch.arange(num_images, device=device)[:, None]
    first = rows - rows % samples_each_class  # of the image's own block
    others = torch.arange(samples_each_class - 1, device=device) + first
    positives = others + (others >= rows)
    outside = torch.arange(num_images - samples_each_class, device=device)
    return positives, outside + samples_each_class * (outside >= first)


def shortened(labels: Tensor) -> str:
    """Show the first labels of a batch."""
    shown = ", ".join(str(label) for label in labels[:12].tolist())
    return f"[{shown}{', ...' if len(labels) > 12 else ''}]"
