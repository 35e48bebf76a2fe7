"""Both stages in every way that a GPU offers; torch.compile, resuming, waits, gradient caching."""

from __future__ import annotations

import json
import statistics
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.utils import counters

from benchmarks.gpu.section import Section, relative
from metric_learning import eval as evaluation
from metric_learning import infer, train_elem, train_pair
from metric_learning.common.flags import last_of_each
from metric_learning.engine.options.training_table import ELEM, PAIR, parse_training
from metric_learning.engine.parallel.devices import casting
from metric_learning.engine.parallel.world import World
from metric_learning.engine.run.signals import StopRequest
from metric_learning.engine.train.stages import ELEM as ELEM_PARTS
from metric_learning.engine.train.stages import PAIR as PAIR_PARTS
from metric_learning.engine.train.start import start_run
from metric_learning.engine.train.step import Step
from metric_learning.engine.train.train import set_train_mode

STAGES = {1: (train_elem, ELEM, ELEM_PARTS), 2: (train_pair, PAIR, PAIR_PARTS)}


def demo_words(section: Section, run_name: str, *more: str) -> list[str]:
    """Return flags of a training on the drawn demo data set."""
    size, workers = section.size((64, min(4, section.workers)), (32, 0))
    return [
        *("--dataset=demo", f"--data_dir={section.work / 'demo'}", "--min_crop_area=0.3"),
        *(section.size("--model=ResNet18", "--model=test_resnet"), "--display_iter_step=1"),
        *(f"--image_shape=3,{size},{size}", f"--num_workers={workers}"),
        *(*shared_words(section), f"--run_name={run_name.replace(' ', '_')}", *more),
    ]


def stage_words(section: Section, stage: int, name: str, *more: str, steps: int = 25) -> list[str]:
    """Return flags of a training of a stage on it, with one test at its end."""
    steps = section.size(steps, 2)
    own = [f"--total_iter_num={steps}", f"--test_iter_step={steps}"]
    if stage == 1:
        own += ["--loss_name=arcmargin", "--arc_scale=16", "--arc_margin=0.1", "--lr=0.1"]
        own += ["--lr_head_mult=10", "--lr_strategy=cosine_decay"]
    else:
        own += ["--loss_name=eml", "--samples_each_class=2", "--lr=0.02"]
    own += [f"--train_batch_size={section.size(40 * stage, 8)}"]
    return demo_words(section, name, *own, *more)


def photo_words(section: Section, batch: int, *more: str) -> list[str]:
    """Return flags of a training of stage 2 on the drawn photographs."""
    size = section.size(224, 32)
    return [
        *("--dataset=list", f"--train_list={section.images}/train.txt", "--loss_name=eml"),
        *(section.size("--model=ResNet50", "--model=test_resnet"), "--samples_each_class=4"),
        *(f"--image_shape=3,{size},{size}", f"--num_workers={section.workers}"),
        *(f"--train_batch_size={batch}", "--test_iter_step=0", *shared_words(section), *more),
    ]


def shared_words(section: Section) -> list[str]:
    """Return the flags of all trainings."""
    own = [f"--device={section.device}", f"--model_save_dir={section.own}"]
    return ["--transform=standard", "--save_iter_step=0", *own]


def train(stage: int, words: Sequence[str]) -> Path:
    """Run a training script and return the folder of its run."""
    return STAGES[stage][0].main(last_of_each(words))


def records_of(folder: Path, kind: str, what: str) -> list[Any]:
    """Return one of the values that a run wrote at its steps (train) or tests (test)."""
    records = [json.loads(line) for line in (folder / "stats.jsonl").read_text().splitlines()]
    return [record[what] for record in records if record["kind"] == kind]


def train_and_sum_up(stage: int, words: Sequence[str]) -> dict[str, Any]:
    """Run a training script; return its losses, tests, and images per second.

    In float16 the first steps are skipped, and so may be all of very few.
    """
    folder = train(stage, words)
    losses, rates = (records_of(folder, "train", what) for what in ("loss", "images_per_second"))
    row: dict[str, Any] = {name: records_of(folder, "test", name) for name in ("recall@1", "map@r")}
    row |= {"steps": len(losses)}
    if not losses:
        return row
    return row | {"first": losses[0], "last": losses[-1], "images/s": statistics.median(rates)}


class Stepper:
    """A training of a stage whose steps are made one by one, each by a call."""

    def __init__(self, stage: int, words: Sequence[str]) -> None:
        script, table, parts = STAGES[stage]
        world = World()
        flags = parse_training("", table, script.FLAGS, last_of_each(words))
        self.run = run = start_run(flags, parts, world, StopRequest(world))
        options, sight = run.options, run.preprocessing
        settled = options.batches, options.machine, options.optimizer
        self.update = Step(run.learner, parts.loss, sight, *settled)
        set_train_mode(run.learner.model, options.optimizer.freeze_bn)
        self.batches, self.waited = iter(run.batches()), 0.0

    def __call__(self) -> None:
        """Make a step."""
        begin = time.perf_counter()
        batch = next(self.batches)
        self.waited += time.perf_counter() - begin
        self.update(batch, self.run.step)
        self.run.step += 1

    def weights(self) -> Tensor:
        """Return all weights of the network as they are now, in one vector on the CPU."""
        parameters = self.run.learner.model.parameters()
        return torch.cat([parameter.detach().flatten().cpu() for parameter in parameters])


DECODE = ["--decode_on=device"]
WAYS = {  # name of the run -> its flags, those of a GPU alone left out
    "1 float32": ["--amp=off"],
    "1 float32 again": ["--amp=off"],
    "1 augment_on_device": ["--augment_on=device"],
    "1 float16": ["--amp=float16"],
    "1 ema": ["--ema_decay=0.9", "--optimizer=adamw", "--lr=0.001", "--clip_grad_norm=5"],
    "1 accumulation": ["--accumulation_steps=2"],
    "2 plain": [],
    "2 chunk": ["--chunk_size=4"],
    "2 xbm": ["--loss_name=batch_triplet", "--xbm_size=400"],
    "2 alpha": ["--alpha=0.5"],
}
GPU_WAYS = {
    "1 decode_on_device": DECODE,
    "1 with_mem_opt": ["--with_mem_opt=True"],
    "2 chunk decode_on_device": ["--chunk_size=16", *DECODE],
}
EVALUATIONS = (
    "--verification=True",
    "--rerank=qe:k=5,alpha=3",
    "--rerank=kreciprocal:k1=10,k2=4,lambda=0.3",
)
STEPPED = {  # loss and what is done with it -> stage, flags
    "arcmargin": (1, []),
    "adaface": (1, []),
    "triplet": (2, ["--train_batch_size=36"]),
    "eml": (2, []),
    "npairs": (2, []),
    "batch_triplet": (2, ["--mining=semihard"]),
    "batch_triplet distance": (2, ["--mining=distance"]),
    "smooth_ap": (2, []),
    "multi_similarity xbm": (2, ["--xbm_size=200"]),
    "eml in chunks, augment_on": (2, ["--chunk_size=4", "--augment_on=device"]),
}


def stages(section: Section) -> None:
    """Train both stages in every way, then evaluate on the device and on the CPU."""
    words = stage_words(section, 1, "1 plain", steps=100)
    section.attempt("1 plain", train_and_sum_up, 1, words)
    start = f"--pretrained_model={section.own / '1_plain' / 'last.pt'}"
    cached = {"1 cache": [f"--cache={section.own / 'cache'}"]}
    for name, more in {**cached, **WAYS, **section.size(GPU_WAYS, {})}.items():
        stage = int(name[0])
        words = stage_words(section, stage, name, *([start] if stage == 2 else []), *more)
        section.attempt(name, train_and_sum_up, stage, words)

    own = [f"--pretrained_model={section.own / '2_plain' / 'last.pt'}", "--batch_size=50"]
    own += ["--num_workers=0", f"--device={section.device}"]
    for flag in EVALUATIONS:
        section.attempt(f"eval {flag} differs from the CPU", compare_devices, [*own, flag])
    section.attempt("infer", infer.main, [*own, f"--output_dir={section.own / 'features'}"])


def compare_devices(words: list[str]) -> dict[str, float]:
    """Evaluate a checkpoint on the device and on the CPU; return the metrics that differ."""
    here, there = (
        evaluation.main(last_of_each([*words, *more])) for more in ([], ["--device=cpu"])
    )
    numbers = [key for key, value in there.items() if isinstance(value, float)]
    return {key: here[key] - there[key] for key in numbers if here[key] != there[key]}


def compiled(section: Section) -> None:
    """Train with --compile=True, with a test and chunks; count graphs and breaks.

    On a CPU, where each graph takes a minute, without test and chunks.
    """
    weights = f"--pretrained_model={section.own / 'compiled' / 'last.pt'}"
    more = ["--compile=True", *section.size([], ["--test_iter_step=0"])]
    words = stage_words(section, 1, "compiled", *more)
    section.attempt("stage 1", count_graphs, 1, words)
    if section.is_cuda:
        words = stage_words(section, 2, "chunks", *more, "--chunk_size=4", weights, steps=10)
        section.attempt("stage 2 in chunks", count_graphs, 2, words)


def count_graphs(stage: int, words: list[str]) -> dict[str, Any]:
    """Train; return what became of it, its seconds, and how many graphs were compiled."""
    torch._dynamo.reset()
    counters.clear()
    begin = time.monotonic()
    row = train_and_sum_up(stage, words) | {"seconds": time.monotonic() - begin}
    row["breaks"] = sum(counters["graph_break"].values())
    return row | {"graphs": counters["stats"]["unique_graphs"]}


def resume(section: Section) -> None:
    """Resume checkpoints of one device on another: how far the last loss is from a whole run's."""
    for optimizer in ("sgd", "adamw"):
        for first, then in (("cpu", "gpu"), ("gpu", "cpu"), ("gpu", "gpu")):
            name = f"{optimizer} {first} to {then}"
            section.attempt(name, compare_resumed, section, name, optimizer, first, then)


def compare_resumed(section: Section, name: str, optimizer: str, first: str, then: str) -> float:
    """Return how far the last loss of a run that moved is from one that did not, relatively."""
    places = {"gpu": f"--device={section.device}", "cpu": "--device=cpu"}
    more = [f"--optimizer={optimizer}", "--lr=0.001", "--num_workers=0", "--amp=off"]
    more += ["--train_batch_size=8", "--lr_strategy=constant", "--test_iter_step=0"]
    two, four = "--total_iter_num=2", "--total_iter_num=4"

    whole = train(1, stage_words(section, 1, f"{name} whole", *more, four, places[then]))
    half = train(1, stage_words(section, 1, name, *more, two, places[first]))
    rest = [f"--checkpoint={half / 'last.pt'}", "--loss_name=arcmargin", four, places[then]]
    found, expected = (
        records_of(folder, "train", "loss")[-1] for folder in (train(1, rest), whole)
    )
    return relative(found, expected)


def syncs(section: Section) -> None:
    """Count where the host waits for the GPU in one step, as CUDA itself says."""
    for name, (stage, more) in STEPPED.items():
        own = [f"--loss_name={name.split()[0]}", f"--train_batch_size={section.size(40, 8)}"]
        own += ["--total_iter_num=9", "--test_iter_step=0"]
        words = demo_words(section, name, *own, *more)
        section.attempt(name, count_waits, section, stage, words)


def count_waits(section: Section, stage: int, words: list[str]) -> dict[str, int]:
    """Make one step after three of warm-up; return where it waits, and how often."""
    stepper = Stepper(stage, words)
    section.seconds_of(stepper, 3)
    batch, step = next(stepper.batches), stepper.run.step
    section.sync()

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if section.is_cuda:
            torch.cuda.set_sync_debug_mode("warn")
        stepper.update(batch, step)
        if section.is_cuda:
            torch.cuda.set_sync_debug_mode("default")
    waits = [warning for warning in caught if "called a synchronizing" in str(warning.message)]
    return Counter(f"{Path(wait.filename).name}:{wait.lineno}" for wait in waits)


def big_batch(section: Section) -> None:
    """Gradient caching: equal to the plain step on a small batch; seconds of a batch of 4096."""
    section.attempt("differs from the plain step", compare_chunks, section)
    batch, more = section.size((4096, ["--amp=bfloat16", "--samples_each_class=64"]), (32, []))
    more = [*more, "--total_iter_num=4", f"--cache={section.own / 'cache'}"]
    for chunk in section.size((256, 128), (8,)):
        words = photo_words(section, batch, *more, f"--chunk_size={chunk}")
        stepper = Stepper(2, words)
        bare = partial(pass_chunks, stepper, chunk, batch // chunk)
        section.attempt(f"bare passes of {chunk}", section.rate_of, bare, batch, 2, 1)
        section.attempt(f"chunks of {chunk}", section.rate_of, stepper, batch, 2, 1)


def pass_chunks(stepper: Stepper, chunk: int, times: int) -> None:
    """Make the passes of gradient caching with the network alone: all forward, then all both."""
    model, machine = stepper.run.learner.model, stepper.run.options.machine
    size = stepper.run.options.model.image_size
    images = torch.randn(chunk, 3, *size, device=machine.device)
    images = images.contiguous(memory_format=torch.channels_last)
    for with_gradient in (False, True):
        for _ in range(times):
            casts = casting(machine.device, machine.amp_dtype, machine.tf32)
            with torch.set_grad_enabled(with_gradient), casts:
                embeddings = model(images)
            if with_gradient:
                embeddings.float().sum().backward()


def compare_chunks(section: Section) -> dict[str, float]:
    """Return how far an update in chunks is from the plain one, and how far that is from itself."""
    size, chunk = section.size((64, 16), (16, 4))
    more = ["--freeze_bn=True", "--amp=off", "--total_iter_num=1", "--lr=0.01"]
    ways = {"plain": [], "chunks": [f"--chunk_size={chunk}"], "plain again": []}
    updates = {}
    for name, chunks in ways.items():
        stepper = Stepper(2, photo_words(section, size, *more, *chunks))
        start = stepper.weights()
        stepper()
        updates[name] = stepper.weights() - start
    return {name: relative(update, updates["plain"]) for name, update in updates.items()}
