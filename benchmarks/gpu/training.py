"""Both stages in every way that a GPU offers; torch.compile, resuming, waits, gradient caching."""

from __future__ import annotations

import contextlib
import time
import warnings
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch._dynamo.utils import counters

from benchmarks.gpu.runs import (
    Stepper,
    demo_words,
    first_stage,
    losses_of,
    photo_words,
    second_stage,
    summary_of,
    train_quietly,
)
from benchmarks.gpu.section import Section, relative
from metric_learning import eval as evaluation
from metric_learning import infer

RERANKINGS = ("qe:k=5,alpha=3", "kreciprocal:k1=10,k2=4,lambda=0.3")


def stages(section: Section) -> None:
    """Train both stages in every way, then evaluate on the device and on the CPU."""
    section.images()
    plain, long = section.own / "1_plain" / "last.pt", section.size(100, 2)
    chunk = f"--chunk_size={section.size(16, 4)}"
    first = {
        "1 plain": [f"--total_iter_num={long}", f"--test_iter_step={long}"],
        "1 float32": ["--amp=off"],
        "1 float32 again": ["--amp=off"],
        "1 cache": [f"--cache={section.own / 'cache'}"],
        "1 augment_on=device": ["--augment_on=device"],
        "1 decode_on=device": section.size(["--decode_on=device"], []),
        "1 float16": ["--amp=float16"],
        "1 with_mem_opt": section.size(["--with_mem_opt=True"], []),
        "1 ema adamw clip": ["--ema_decay=0.9", "--optimizer=adamw", "--lr=0.001"]
        + ["--clip_grad_norm=5"],
        "1 accumulation": ["--accumulation_steps=2"],
    }
    second = {
        "2 plain": [],
        "2 chunk": [chunk],
        "2 chunk decode_on=device": [chunk, *section.size(["--decode_on=device"], [])],
        "2 batch_triplet xbm": ["--loss_name=batch_triplet", "--xbm_size=400"],
        "2 alpha": ["--alpha=0.5"],
    }
    for name, more in first.items():
        words = first_stage(section, run_name_of(name), *more)
        section.attempt(name, lambda words=words: summary_of(train_quietly(1, words)), needs=6)  # type: ignore[misc]
    for name, more in second.items():
        words = second_stage(section, run_name_of(name), plain, *more)
        section.attempt(name, lambda words=words: summary_of(train_quietly(2, words)), needs=6)  # type: ignore[misc]

    weights = section.own / "2_plain" / "last.pt"
    section.attempt("eval differs from the CPU", lambda: compare_devices(section, weights), 8)
    section.attempt("infer", lambda: dump(section, weights), needs=5)


def run_name_of(name: str) -> str:
    """Return the name of a finding as that of a folder."""
    return name.replace(" ", "_").replace("=", "_")


def compare_devices(section: Section, weights: Path) -> dict[str, float]:
    """Evaluate a checkpoint on the device and on the CPU; return the metrics that differ."""
    words = [f"--pretrained_model={weights}", "--batch_size=50", "--num_workers=0"]
    ways = {"": ["--verification=True", "--precision_ks=5"]}
    ways |= {f"{way}: ": [f"--rerank={way}"] for way in RERANKINGS}
    found: dict[str, float] = {}
    for name, more in ways.items():
        here = evaluation.main([*words, *more, f"--device={section.device}"])
        there = evaluation.main([*words, *more, "--use_gpu=False"])
        numbers = [key for key, value in there.items() if isinstance(value, float)]
        found |= {f"{name}{k}": here[k] - there[k] for k in numbers if here[k] != there[k]}
    return found


def dump(section: Section, weights: Path) -> str:
    """Write the features of the demo data set."""
    words = [f"--pretrained_model={weights}", "--batch_size=50", f"--device={section.device}"]
    words += [f"--output_dir={section.own / 'features'}", "--num_workers=0"]
    with (section.own / "infer.txt").open("w") as file, contextlib.redirect_stdout(file):
        infer.main(words)
    return "done"


def compiled(section: Section) -> None:
    """Train with --compile=True, with a test and chunks; count graphs and breaks."""
    section.images()
    weights = section.own / "compiled" / "last.pt"
    chunk = f"--chunk_size={section.size(16, 4)}"
    cases = {
        "1 compile": (1, first_stage(section, "compiled", "--compile=True")),
        "2 compile chunk": (
            2,
            second_stage(section, "chunks", weights, "--compile=True", chunk, steps=10),
        ),
    }
    for name, (stage, words) in cases.items():

        def count(stage: int = stage, words: list[str] = words) -> dict[str, Any]:
            torch._dynamo.reset()
            counters.clear()
            begin = time.monotonic()
            row = summary_of(train_quietly(stage, words))
            breaks = sum(counters["graph_break"].values())
            graphs = {"graphs": counters["stats"]["unique_graphs"], "breaks": breaks}
            return row | graphs | {"seconds": time.monotonic() - begin}

        section.attempt(name, count, needs=20)


def resume(section: Section) -> None:
    """Resume checkpoints of one device on another: how far the last loss is from a whole run's."""
    section.images()
    here = [f"--device={section.device}", f"--use_gpu={section.is_cuda}"]
    there = ["--device=cpu", "--use_gpu=False"]
    ways = {"cpu to gpu": (there, here), "gpu to cpu": (here, there), "gpu to gpu": (here, here)}
    for optimizer in ("sgd", "adamw"):
        for way, (first, then) in ways.items():
            name = f"{optimizer} {way}"

            def compare(
                name: str = name,
                kind: str = f"--optimizer={optimizer}",
                first: list[str] = first,
                then: list[str] = then,
            ) -> float:
                more = [kind, "--lr=0.001", "--num_workers=0", "--amp=off"]
                more += ["--train_batch_size=8", "--lr_strategy=constant"]
                whole_name, half_name = run_name_of(f"{name} whole"), run_name_of(name)
                four, two = (
                    [*more, f"--total_iter_num={steps}", "--test_iter_step=0"] for steps in (4, 2)
                )
                whole = train_quietly(1, first_stage(section, whole_name, *four, *then))
                train_quietly(1, first_stage(section, half_name, *two, *first))
                checkpoint = f"--checkpoint={section.own / half_name / 'last.pt'}"
                words = ["--loss_name=arcmargin", checkpoint, "--total_iter_num=4", *then]
                return abs(losses_of(train_quietly(1, words))[-1] / losses_of(whole)[-1] - 1)

            section.attempt(name, compare, needs=4)


def syncs(section: Section) -> None:
    """Count where the host waits for the GPU in one step, as CUDA itself says."""
    section.images()
    batch_of_triples = f"--train_batch_size={section.size(36, 6)}"
    chunk = f"--chunk_size={section.size(10, 4)}"
    cases = {
        "arcmargin": (1, []),
        "adaface": (1, []),
        "triplet": (2, [batch_of_triples]),
        "eml": (2, []),
        "npairs": (2, []),
        "batch_triplet": (2, ["--mining=semihard"]),
        "batch_triplet distance": (2, ["--mining=distance"]),
        "smooth_ap": (2, []),
        "multi_similarity": (2, ["--xbm_size=200"]),
        "eml chunk augment_on=device": (2, [chunk, "--augment_on=device"]),
    }
    for name, (stage, more) in cases.items():
        own = [f"--loss_name={name.split()[0]}", f"--train_batch_size={section.size(40, 8)}"]
        own += ["--total_iter_num=9", "--test_iter_step=0"]
        words = demo_words(section, run_name_of(name), *own, *more)
        section.attempt(name, partial(count_waits, section, stage, words), needs=3)


def count_waits(section: Section, stage: int, words: list[str]) -> dict[str, Any]:
    """Make one step after three of warm-up; return how often it waits, and where."""
    stepper = Stepper(stage, words)
    for _ in range(3):
        stepper()
    batch, step = next(stepper.batches), stepper.run.step
    section.sync()

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if section.is_cuda:
            torch.cuda.set_sync_debug_mode("warn")
        stepper.update(batch, step)
        if section.is_cuda:
            torch.cuda.set_sync_debug_mode("default")
    places = Counter(
        f"{Path(warning.filename).parent.name}/{Path(warning.filename).name}:{warning.lineno}"
        for warning in caught
        if "synchroniz" in str(warning.message)
    )
    return {"waits": sum(places.values()), "places": dict(places)}


def big_batch(section: Section) -> None:
    """Gradient caching: equal to the plain step on a small batch; seconds of a batch of 4096."""
    images = section.images()
    section.attempt("differs from the plain step", lambda: compare_chunks(section, images), 8)
    big = section.size(4096, 32)
    for chunk in section.size((256, 128), (8,)):

        def measure(chunk: int = chunk) -> dict[str, Any]:
            section.fresh_memory()
            more = [f"--chunk_size={chunk}", "--total_iter_num=4", f"--cache={section.own / 'c'}"]
            more += section.size(["--amp=bfloat16", "--samples_each_class=64"], ["--amp=off"])
            stepper = Stepper(2, photo_words(section, images, big, *more))
            seconds = section.seconds_of(stepper, 2, warm_up=1)
            return {"seconds": seconds, "images/s": big / seconds, **section.memory()}

        section.attempt(f"{big} in chunks of {chunk}", measure, needs=14)


def compare_chunks(section: Section, images: Path) -> dict[str, float]:
    """Return how far one update in chunks is from the plain one, and how far that is from itself.

    Convolutions in full float32.
    """
    size, chunk = section.size((64, 16), (16, 4))
    more = ["--freeze_bn=True", "--amp=off", "--total_iter_num=1", "--lr=0.01"]
    ways = {"plain": [], "chunks": [f"--chunk_size={chunk}"], "plain again": []}
    updates = {}
    with torch.backends.cudnn.flags(allow_tf32=False):
        for name, chunks in ways.items():
            stepper = Stepper(2, photo_words(section, images, size, *more, *chunks))
            start = stepper.weights()
            stepper()
            updates[name] = stepper.weights() - start
    return {name: relative(update, updates["plain"]) for name, update in updates.items()}
