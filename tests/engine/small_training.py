"""Trainings of a linear network on random rows, by one process or by several under torchrun.

`torchrun ... tests/engine/small_training.py FILE` does all of them and writes what rank 0 found.
"""

import sys
from copy import deepcopy
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.distributed as dist
from torch import nn

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from metric_learning.engine.parallel.collectives import (
    average,
    gather_batch,
    over_all_ranks,
    wrap,
)
from metric_learning.engine.parallel.sharded_head import (
    ShardedHead,
    build_sharded_loss,
    collect_state,
    own_state,
)
from metric_learning.engine.parallel.world import join_world, leave_world
from metric_learning.engine.train.optimizers import restore_optimizer
from metric_learning.losses import PAIR_LOSSES, build_loss

BATCH, INPUT, SIZE, CLASSES, STEPS = 36, 7, 5, 11, 5
PAIRS = (*PAIR_LOSSES, "weighted")
HEADS = {
    "softmax": {"loss": "softmax"},
    "arcmargin": {"loss": "arcmargin", "arc_scale": 16.0},
    # Logits further apart than the limit of `losses.functional.cross_entropy`.
    "limited": {"loss": "arcmargin", "arc_scale": 200.0, "arc_easy_margin": True},
    "unlimited": {"loss": "cosface", "scale": 200.0},
    "replicated": {"loss": "arcmargin", "arc_scale": 16.0},  # every rank has the whole layer
}
OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, 0.05, momentum=0.9, weight_decay=0.01),
    "adam": lambda parameters: torch.optim.Adam(parameters, 0.01),
}
CPU = torch.device("cpu")


class WeightedLoss(nn.Module):
    """Compares all rows with all, and has a weight of its own."""

    def __init__(self):
        super().__init__()
        self.centre = nn.Parameter(torch.ones(SIZE))

    def forward(self, embeddings, labels):
        products = (embeddings - self.centre) @ (embeddings - self.centre).T
        return products.square().mean()


def share_of_batch(step, layout, world):
    """Rows and labels of this rank in the global batch of a step."""
    rng = torch.Generator().manual_seed(step)
    rows = torch.randn(BATCH, INPUT, generator=rng)
    places = torch.arange(BATCH)
    labels = {
        "blocks": places // 2,
        "triples": places // 3 + (places % 3 == 2),
        "pairs": torch.where(places // 2 % 2 == 0, places // 2, places),
        "labels": torch.randint(CLASSES, (BATCH,), generator=rng),
    }[layout]
    return rows.chunk(world.size)[world.rank], labels.chunk(world.size)[world.rank]


def new_network():
    torch.manual_seed(0)
    return nn.Linear(INPUT, SIZE)


def train_pairs(name, world):
    """Compare the rows of all ranks; return the losses, the labels they saw, and the weights."""
    network = new_network()
    criterion = WeightedLoss() if name == "weighted" else build_loss(name)
    parameters = [*network.parameters(), *criterion.parameters()]
    optimizer = torch.optim.SGD(parameters, 0.01)
    compute_loss = over_all_ranks(lambda loss, *batch: (loss(*batch), {"labels": batch[1]}), world)
    replica, wrapped = wrap(network, world), wrap(criterion, world)
    layout = getattr(criterion, "layout", "blocks")
    losses, seen = [], []
    for step in range(STEPS):
        rows, labels = share_of_batch(step, layout, world)
        loss, figures = compute_loss(wrapped, replica(rows), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
        seen.append(figures["labels"])
    return {"losses": losses, "labels": seen, "weights": [part.detach() for part in parameters]}


def start_head(name, optimizer_name, world, seed):
    """Build what `train_head` trains: a network, a stage-1 loss and an optimizer."""
    network = new_network()
    torch.manual_seed(seed)
    options = {"class_dim": CLASSES, "embedding_size": SIZE} | HEADS[name]
    build = build_loss if name == "replicated" else partial(build_sharded_loss, world)
    criterion = build(options.pop("loss"), **options)
    optimizer = OPTIMIZERS[optimizer_name]([*network.parameters(), *criterion.parameters()])
    replica = wrap(network, world)
    wrapped = wrap(criterion, world)
    return SimpleNamespace(
        network=network,
        criterion=criterion,
        optimizer=optimizer,
        replica=replica,
        wrapped=wrapped,
        state=lambda: collect_state(criterion, optimizer),
    )


def resumed(training, name, optimizer_name, world):
    """Build everything anew, with other class weights, and restore what rank 0 collects."""
    state = [training.state()]
    if world.size > 1:
        dist.broadcast_object_list(state)
    again = start_head(name, optimizer_name, world, seed=9)
    again.network.load_state_dict(training.network.state_dict())
    criterion, *own = own_state(again.criterion, again.optimizer, *state[0])
    criterion.load_state_dict(own[0])
    restore_optimizer(again.optimizer, own[1])
    return again


def compute_loss(training, embeddings, labels, world):
    """The loss that is derived, that of the global batch, and the classes ahead of each own."""
    loss, result = training.wrapped(embeddings, labels)
    if isinstance(training.criterion, ShardedHead):
        return loss, loss, result
    logits, labels = gather_batch(result.detach(), labels, world)
    return loss, average(loss.detach(), world), (logits > logits.gather(1, labels[:, None])).sum(1)


def train_head(name, optimizer_name, world):
    """Train with a stage-1 loss, as a rule sharded over the ranks; resume halfway.

    Returns the loss of each step and the classes ahead of each image's own, the gradient of the
    embeddings in the first step, and the weights and the optimizer's state at the first and last.
    """
    training = start_head(name, optimizer_name, world, seed=1)
    found = {"first": deepcopy(training.state()[0]), "losses": [], "ahead": []}
    for step in range(2 * STEPS):
        if step == STEPS:
            training = resumed(training, name, optimizer_name, world)
        rows, labels = share_of_batch(step, "labels", world)
        embeddings = training.replica(rows)
        embeddings.retain_grad()
        loss, mean_loss, ahead = compute_loss(training, embeddings, labels, world)
        training.optimizer.zero_grad()
        loss.backward()
        if step == 0:
            found["gradient"] = gather_batch(embeddings.grad, labels, world)[0] / world.size
        training.optimizer.step()
        found["losses"].append(mean_loss.detach())
        found["ahead"].append(ahead)
    found["last"], found["optimizer"] = training.state()
    found["network"] = [part.detach() for part in training.network.parameters()]
    return found


def train_all(world):
    """Train everything; what was found by name."""
    found = {name: train_pairs(name, world) for name in PAIRS}
    for name in HEADS:
        for optimizer_name in OPTIMIZERS:
            found[f"{name} {optimizer_name}"] = train_head(name, optimizer_name, world)
    return found


if __name__ == "__main__":
    place = join_world()
    everything = train_all(place)
    if place.is_main:
        torch.save(everything, sys.argv[1])
    leave_world(place)
