"""Cross-batch memory (XBM): a loss that also compares a batch with the batches before it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from metric_learning.losses.functional import full_precision, sent
from metric_learning.losses.pairs import LabelLoss, pairs_with

ON_HOST = ("labels", "num_batches", "num_remembered")  # buffers that no device ever holds


class CrossBatchMemory(nn.Module):
    """A loss of pairs by label inside the batch, plus the same loss against remembered embeddings.

    L = loss(batch, batch) + loss(batch, memory). The memory is a ring of the newest embeddings, the
    present batch among them, without gradient; an image is not compared with its own entry. It is a
    buffer and so part of the state dict: a resumed run goes on with it. An embedding that is not
    finite is remembered as 0, whose cosine with all others is 0.
    Cross-Batch Memory for Embedding Learning (Wang et al. 2020), section 3.2 and the authors' code,
    https://arxiv.org/abs/1912.06798.

    Args:
        loss: a loss of pairs by label.
        embedding_size: dimension D of the embeddings.
        size: embeddings that the memory holds.
        start: batches before it is filled and used, while embeddings still drift fast.

    Shape:
        embeddings: (B, D) float.
        labels: (B,) int64, in any order.
        returns: () float32.

    Raises:
        ValueError: a batch is larger than the memory.
    """

    is_alike = True  # on all ranks, each of which sees the whole batch

    embeddings: Tensor
    labels: Tensor
    num_batches: Tensor
    num_remembered: Tensor

    def __init__(self, loss: LabelLoss, embedding_size: int, size: int, start: int = 0) -> None:
        super().__init__()
        self.loss = loss
        self.start = start
        self.register_buffer("embeddings", torch.zeros(size, embedding_size))
        self.register_buffer("labels", torch.zeros(size, dtype=torch.int64))
        self.register_buffer("num_batches", torch.zeros((), dtype=torch.int64))
        self.register_buffer("num_remembered", torch.zeros((), dtype=torch.int64))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> CrossBatchMemory:
        """Move to another device or type, but for what the host asks: labels and counts."""
        on_host = {name: self._buffers[name] for name in ON_HOST}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._buffers.update(on_host)
        return self

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Remember the batch and return its loss inside itself plus that against the memory."""
        loss: Tensor = self.loss(embeddings, labels)
        self.num_batches += 1
        if self.num_batches <= self.start:
            return loss
        labels = labels.cpu()  # where the memory's labels are; those of a training are there
        own = self._remember(full_precision(embeddings.detach()), labels)
        count = min(int(self.num_remembered), len(self.labels))
        remembered = self.embeddings[:count], self.labels[:count]
        pairs = pairs_with(embeddings, labels, *remembered, own, self.loss.place)
        return loss + self.loss.compare(pairs)

    def _remember(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Write a batch over the oldest entries and return its rows in the memory, (B,) int64."""
        size = len(self.labels)
        if len(labels) > size:
            raise ValueError(
                f"a batch of {len(labels)} images does not fit a memory of {size}: raise --xbm_size"
            )
        own = (self.num_remembered + torch.arange(len(labels))) % size
        is_finite = embeddings.isfinite().all(1, keepdim=True)
        rows = torch.where(is_finite, embeddings, 0.0).to(self.embeddings.dtype)
        self.embeddings[sent(own, rows.device)] = rows
        self.labels[own] = labels
        self.num_remembered += len(labels)
        return own
