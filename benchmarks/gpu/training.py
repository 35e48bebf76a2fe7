"""Both stages in every way that a GPU offers; torch.compile, resuming, waits, gradient caching."""

from __future__ import annotations

import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch._dynamo.utils import counters

from benchmarks.gpu import runs
from benchmarks.gpu.section import Section, convolutions_in, relative
from metric_learning import eval as evaluation
from metric_learning import infer

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
    words = runs.stage_words(section, 1, "1 plain", steps=100)
    section.attempt("1 plain", runs.train_and_sum_up, 1, words)
    start = f"--pretrained_model={section.own / '1_plain' / 'last.pt'}"
    cached = {"1 cache": [f"--cache={section.own / 'cache'}"]}
    for name, more in {**cached, **WAYS, **section.size(GPU_WAYS, {})}.items():
        stage = int(name[0])
        words = runs.stage_words(section, stage, name, *([start] if stage == 2 else []), *more)
        section.attempt(name, runs.train_and_sum_up, stage, words)

    own = [f"--pretrained_model={section.own / '2_plain' / 'last.pt'}", "--batch_size=50"]
    own += ["--num_workers=0", f"--device={section.device}"]
    for flag in EVALUATIONS:
        section.attempt(f"eval {flag} differs from the CPU", compare_devices, [*own, flag])
    section.attempt("infer", infer.main, [*own, f"--output_dir={section.own / 'features'}"])


def compare_devices(words: list[str]) -> dict[str, float]:
    """Evaluate a checkpoint on the device and on the CPU; return the metrics that differ."""
    here, there = (evaluation.main([*words, *more]) for more in ([], ["--device=cpu"]))
    numbers = [key for key, value in there.items() if isinstance(value, float)]
    return {key: here[key] - there[key] for key in numbers if here[key] != there[key]}


def compiled(section: Section) -> None:
    """Train with --compile=True, with a test and chunks; count graphs and breaks.

    On a CPU, where each graph takes a minute, without test and chunks.
    """
    weights = f"--pretrained_model={section.own / 'compiled' / 'last.pt'}"
    more = ["--compile=True", *section.size([], ["--test_iter_step=0"])]
    words = runs.stage_words(section, 1, "compiled", *more)
    section.attempt("stage 1", count_graphs, 1, words)
    if section.is_cuda:
        words = runs.stage_words(section, 2, "chunks", *more, "--chunk_size=4", weights, steps=10)
        section.attempt("stage 2 in chunks", count_graphs, 2, words)


def count_graphs(stage: int, words: list[str]) -> dict[str, Any]:
    """Train; return what became of it, its seconds, and how many graphs were compiled."""
    torch._dynamo.reset()
    counters.clear()
    begin = time.monotonic()
    row = runs.train_and_sum_up(stage, words) | {"seconds": time.monotonic() - begin}
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

    whole = runs.train(1, runs.stage_words(section, 1, f"{name} whole", *more, four, places[then]))
    half = runs.train(1, runs.stage_words(section, 1, name, *more, two, places[first]))
    rest = [f"--checkpoint={half / 'last.pt'}", "--loss_name=arcmargin", four, places[then]]
    found, expected = (
        runs.records_of(folder, "train", "loss")[-1] for folder in (runs.train(1, rest), whole)
    )
    return relative(found, expected)


def syncs(section: Section) -> None:
    """Count where the host waits for the GPU in one step, as CUDA itself says."""
    for name, (stage, more) in STEPPED.items():
        own = [f"--loss_name={name.split()[0]}", f"--train_batch_size={section.size(40, 8)}"]
        own += ["--total_iter_num=9", "--test_iter_step=0"]
        words = runs.demo_words(section, name, *own, *more)
        section.attempt(name, count_waits, section, stage, words)


def count_waits(section: Section, stage: int, words: list[str]) -> dict[str, int]:
    """Make one step after three of warm-up; return where it waits, and how often."""
    stepper = runs.Stepper(stage, words)
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
    waits = [warning for warning in caught if "synchroniz" in str(warning.message)]
    return Counter(f"{Path(wait.filename).name}:{wait.lineno}" for wait in waits)


def big_batch(section: Section) -> None:
    """Gradient caching: equal to the plain step on a small batch; seconds of a batch of 4096."""
    section.attempt("differs from the plain step", compare_chunks, section)
    batch, more = section.size((4096, ["--amp=bfloat16", "--samples_each_class=64"]), (32, []))
    more = [*more, "--total_iter_num=4", f"--cache={section.own / 'cache'}"]
    for chunk in section.size((256, 128), (8,)):
        words = runs.photo_words(section, batch, *more, f"--chunk_size={chunk}")
        stepper = runs.Stepper(2, words)
        section.attempt(f"chunks of {chunk}", section.rate_of, stepper, batch, 2, 1)


def compare_chunks(section: Section) -> dict[str, float]:
    """Return how far an update in chunks is from the plain one, and how far that is from itself."""
    size, chunk = section.size((64, 16), (16, 4))
    more = ["--freeze_bn=True", "--amp=off", "--total_iter_num=1", "--lr=0.01"]
    ways = {"plain": [], "chunks": [f"--chunk_size={chunk}"], "plain again": []}
    updates = {}
    with convolutions_in("ieee"):
        for name, chunks in ways.items():
            stepper = runs.Stepper(2, runs.photo_words(section, size, *more, *chunks))
            start = stepper.weights()
            stepper()
            updates[name] = stepper.weights() - start
    return {name: relative(update, updates["plain"]) for name, update in updates.items()}
