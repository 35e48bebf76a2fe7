"""Settles what evaluation, inference and report work on, and what they are to do with it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from metric_learning.common.flags import Flags
from metric_learning.common.log import log
from metric_learning.common.outputs import (
    Kind,
    csv_kind,
    json_kind,
    prepare_output,
    refuse_same,
)
from metric_learning.common.schema import read_json
from metric_learning.engine.options.parts import DataOptions, MachineOptions, ModelOptions, pick
from metric_learning.engine.options.tables import DATA_FLAGS, MACHINE_FLAGS, MODEL_FLAGS
from metric_learning.engine.options.training import (
    EARLIER,
    PIPELINE,
    VIEW_NAMES,
    default_transform,
    facts_of_model,
    plain,
)
from metric_learning.engine.parallel.devices import (
    choose_amp,
    choose_device,
    embedding_batch,
    reading_workers,
)
from metric_learning.engine.parallel.world import World, join_world
from metric_learning.models import MODEL_OPTIONS, image_size_of, read_metadata, resolve_model
from metric_learning.models.weights.fingerprint import RANDOM
from metric_learning.reader.sets.plain_images import STDIN
from metric_learning.retrieval.indexes import SearchIndex, load_search_index
from metric_learning.retrieval.milvus import MilvusIndex, open_milvus_index
from metric_learning.retrieval.milvus_client import is_milvus
from metric_learning.retrieval.rerank import parse_rerank
from metric_learning.retrieval.tables import COLUMNS

READING_NAMES = ("batch_size", "num_workers", "display_iter_step")  # what a dump has no use for
DATA_NAMES = tuple(DataOptions.__dataclass_fields__)
# What eval.py writes, by the flags that name the files.
RESULTS = {
    "json": json_kind("a result of eval.py", "evaluated"),
    "class_table": csv_kind("a table of classes", COLUMNS),
}
# Whether kept features are ours, and those of this model, the file beside them tells later.
KEPT_FEATURES = Kind("features", lambda path: None)
ABOUT_FEATURES = json_kind("what tells of features", "weights", "images")
# What embeddings depend on beside the weights; a query has to be embedded as its index was.
EMBEDDING_NAMES = (
    *("model", "embedding_size", "pooling", "last_stride", "feature_norm"),
    *PIPELINE,
)


@dataclass(frozen=True)
class AverageOptions:
    """An average with the weights `start`, which have a `share`; their `digest`, where known."""

    share: float
    start: str
    digest: str | None


@dataclass(frozen=True)
class EmbeddingOptions:
    """Which model embeds which images, and where.

    `meta` is what the weights file says of itself, empty for those of others; `flags` has a value
    per flag, as results tell them. A `class_dim` is that of weights from elsewhere.
    """

    model: ModelOptions
    data: DataOptions
    machine: MachineOptions
    split: str
    batch_size: int
    class_dim: int | None
    display_iter_step: int
    meta: Mapping[str, Any]
    flags: Mapping[str, Any]
    average: AverageOptions | None = None

    @property
    def origin(self) -> str:
        """Where the weights come from, for people."""
        if self.average is None:
            return self.weights
        return f"{self.weights} averaged with {self.average.share:g} of {self.average.start}"

    @property
    def weights(self) -> str:
        """The weights file, or RANDOM."""
        assert self.model.pretrained_model is not None
        return self.model.pretrained_model

    def say(self, line: str) -> None:
        """Log a line, on one of the processes that share the work."""
        if self.machine.world.is_main:
            log(line)

    def of_data(self, other: EmbeddingOptions) -> EmbeddingOptions:
        """Return the same model on the data of others."""
        names = (*DATA_NAMES, "split")
        flags = {**self.flags, **{name: other.flags[name] for name in names}}
        return replace(self, data=other.data, split=other.split, flags=flags)


@dataclass(frozen=True)
class MetricOptions:
    """What is measured beside Recall@1, 10, 100 and 1000; see the flags of these names."""

    ks: tuple[int, ...]
    precision_ks: tuple[int, ...]
    ties: str
    distance: str
    whiten: int | None
    rerank: str | None
    verification: bool
    clustering: bool
    open_set: float = 0.0

    @property
    def compares_directions(self) -> bool:
        """Whether nothing that is measured depends on the lengths of features."""
        return self.distance == "cosine" and self.whiten is None


@dataclass(frozen=True)
class EvaluationOptions:
    """What eval.py does: measure one checkpoint, or compare the second with the first.

    `dumps` has, per checkpoint that is compared, the folder of its features or None.
    """

    works: tuple[EmbeddingOptions, ...]
    dumps: tuple[str | None, ...]
    metrics: MetricOptions
    features: str | None
    verify: bool
    class_table: str | None
    json: str | None


@dataclass(frozen=True)
class DumpOptions:
    """What a dump of features holds and prints; see the flags of these names."""

    shard_size: int | None
    print_features: bool
    feature_dtype: str
    normalize: bool
    parquet: bool


@dataclass(frozen=True)
class InferenceOptions:
    """What infer.py does: dump features, build or search an index, or export the model.

    Instead of the images of `work` there may be `images`: files, folders or lists of them.
    """

    work: EmbeddingOptions
    search_index: SearchIndex | MilvusIndex | None
    verify: bool
    on_changed_data: str
    images: tuple[str, ...]
    on_bad_image: str
    output_dir: str
    dump: DumpOptions
    features: str | None
    index: str | None
    index_type: str
    index_options: str
    query: str | None
    query_text: tuple[str, ...]
    add: tuple[str, ...]
    remove: tuple[str, ...]
    topk: int
    unknown_threshold: str | float | None
    json: str | None
    html: str | None
    export: str | None
    output: str | None
    normalize: bool
    figures: str | None

    @property
    def changes_index(self) -> bool:
        """Whether an index that is there grows or shrinks."""
        return bool(self.add or self.remove)


def described_by(
    meta: Mapping[str, Any], dataset: str | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what a weights file says of its model, and of the images it was trained on.

    If the user gave another `dataset` than that of the file, they have nothing in common.
    """
    facts = facts_of_model(meta)
    model = {name: value for name, value in facts.items() if name not in PIPELINE}
    others = {name: facts[name] for name in PIPELINE if name in facts}
    found = ({"dataset": meta["dataset"]} if "dataset" in meta else {}) | meta.get("flags", {})
    if dataset in (None, found.get("dataset")):
        others |= {name: plain(found[name]) for name in DATA_NAMES if name in found}
    return model, others


def default_flags(**values: Any) -> Flags:
    """Return the flags of a model, its data and the machine, all as by default but some."""
    table = (*MODEL_FLAGS, *DATA_FLAGS, *MACHINE_FLAGS)
    defaults = {flag.name: flag.default for flag in table} | {"split": "test", "amp": "off"}
    return Flags(defaults | values, frozenset(values), {flag.name: flag for flag in table})


def settle_embedding(flags: Flags, world: World, is_quiet: bool = False) -> EmbeddingOptions:
    """Settle which model embeds which images, and where, with no log line per batch if `is_quiet`.

    Raises ValueError where no weights were named, or they contradict the flags.
    """
    name, path = resolve_model(flags.model, flags.pretrained_model)
    flags = flags.replaced(model=name, pretrained_model=path)
    if not path:  # a program may give an empty name, which would be the working directory
        raise ValueError(
            "expected --pretrained_model=CHECKPOINT (or --pretrained_model=random for untrained "
            "weights)"
        )
    device = choose_device(flags.device, flags.use_gpu, world)

    meta = {} if path == RANDOM else read_metadata(path) or {}
    if meta:
        dataset = flags.dataset if "dataset" in flags.given else None
        flags = flags.adopted(path, *described_by(meta, dataset))
    share, start = flags.values.get("average_with_start"), flags.values.get("start")
    average = settle_average(share or 0.0, start, path, meta)
    if average is not None:
        flags.refuse(["class_dim"], "--average_with_start has no class layer")
    flags = flags.replaced(
        image_shape=flags.image_shape or (3, *image_size_of(flags.model)),
        transform=flags.transform or default_transform(flags.model),
        num_workers=reading_workers(flags.num_workers, device),
        batch_size=embedding_batch(flags.batch_size, "batch_size" in flags.given, device),
    )

    return pick(
        EmbeddingOptions,
        flags,
        model=pick(ModelOptions, flags, drop_path=0.0),
        data=pick(DataOptions, flags),
        machine=pick(
            MachineOptions,
            flags,
            world=world,
            device=device,
            amp_dtype=choose_amp(flags.amp, device, world),
            tf32=flags.amp == "tf32",
            **dict.fromkeys(("recompute", "compile", "sync_bn"), False),
        ),
        class_dim=getattr(flags, "class_dim", None),
        display_iter_step=0 if is_quiet else flags.display_iter_step,
        meta=meta,
        flags=flags.values,
        average=average,
    )


def settle_average(
    share: float, start: str | None, path: str, meta: Mapping[str, Any]
) -> AverageOptions | None:
    """Settle the average of weights with those that their training started from, if any.

    `meta` is what the file at `path` says of itself. Raises ValueError where it does not say what
    the start was, and none is given, or it had none.
    """
    if not share:
        if start is not None:
            raise ValueError("--start is not used (without --average_with_start): leave it out")
        return None

    kept, remembered = meta.get("depends_on"), meta.get("flags", {}).get("pretrained_model")
    if kept is not None and remembered is None:
        raise ValueError(
            f"--average_with_start: the training of {path} started from random weights: leave the "
            "flag out"
        )
    if start is None and remembered is None:
        raise ValueError(
            f"--average_with_start: {path} does not say what its training started from: give the "
            "run's .pt or .safetensors, or --start=FILE"
        )
    return AverageOptions(share, str(start or remembered), (kept or {}).get("start"))


def settle_evaluation(flags: Flags, world: World) -> EvaluationOptions:
    """Settle what eval.py does; ValueError where a flag is wrong, or nothing would use it."""
    if flags.split == "all":
        flags.refuse(("train_classes", "test_classes"), "--split=all takes all classes")
    if flags.compare:
        alone = ("pretrained_model", "features", "class_dim", "average_with_start", "start")
        more = ("verification", "clustering", "class_table", "open_set")
        flags.refuse((*alone, *more), "with --compare")
    if flags.distance != "cosine":
        by_cosine = ("whiten", "rerank", "verification", "clustering", "open_set")
        flags.refuse(by_cosine, f"--distance={flags.distance}: they compare directions")
    if flags.rerank is not None:
        parse_rerank(flags.rerank)
    refuse_same(**{name: getattr(flags, name) for name in (*RESULTS, "features")})
    for name, kind in RESULTS.items():
        if getattr(flags, name) is not None:
            prepare_output(name, getattr(flags, name), kind)
    if flags.features is None:
        flags.refuse(["verify"], "without --features nothing is kept that it could be about")
    else:
        check_features(flags.features)
        if Path(flags.features).is_dir():
            unused = ("verify", *READING_NAMES)
            flags.refuse(unused, "the folder of --features holds all features, always compared")

    compared = flags.compare or ()
    dumps = tuple(file if Path(file).is_dir() else None for file in compared)
    if dumps and None not in dumps:
        flags.refuse(READING_NAMES, "the folders of --compare hold all features")
    files = [weights_of_dump(file) if Path(file).is_dir() else file for file in compared]
    files = files or [flags.pretrained_model]
    works = [settle_embedding(flags.replaced(pretrained_model=file), world) for file in files]
    return pick(
        EvaluationOptions,
        flags,
        works=tuple(work.of_data(works[0]) for work in works),
        dumps=dumps,
        metrics=pick(MetricOptions, flags),
    )


def weights_of_dump(folder: str) -> str:
    """Return which weights made the features in a folder; ValueError where it does not say so."""
    file = Path(folder) / "meta.json"
    if not file.is_file():
        raise ValueError(f"{folder} holds no meta.json: expected a checkpoint, or whole features")
    meta = read_json(file, str(file))
    flags = meta.get("flags") if isinstance(meta, dict) else None
    weights = flags.get("pretrained_model") if isinstance(flags, dict) else None
    if not isinstance(weights, str):
        raise ValueError(f"{file} does not say which weights made the features")
    return weights


def check_features(file: str) -> None:
    """Raise ValueError, before the work, where features cannot be kept in a file and beside it."""
    if Path(file).is_dir():
        return  # a dump, which is read alone
    if not file.endswith(".npy"):
        raise ValueError(
            f"--features={file}: expected a name that ends in .npy, or a folder of features"
        )
    prepare_output("features", file, KEPT_FEATURES)
    if not Path(file).exists():
        prepare_output("features", f"{file}.json", ABOUT_FEATURES)


QUERY_NAMES = ("query", "query_text")
CHANGE_NAMES = ("add", "remove")
SOURCE_NAMES = ("split", *DATA_NAMES)
DUMP_NAMES = tuple(DumpOptions.__dataclass_fields__)
EMBEDDING_ALONE = ("batch_size", "num_workers", "on_bad_image")  # no use for features of a dump
# What makes an index or a dump, and no query uses.
BUILD_NAMES = (
    *("images", *SOURCE_NAMES, "output_dir", *DUMP_NAMES, "index_type", "index_options"),
    *("class_dim", "features"),
)
# What the export of a model uses; everything else is refused beside it.
UNUSED_BY_EXPORT = {"safetensors": ("normalize", "figures"), "hub": ("normalize",)}
EXPORT_NAMES = (
    *("config", "seed", "pretrained_model", *EMBEDDING_NAMES, "export", "output", "normalize"),
    *("average_with_start", "start", "figures"),
)


def settle_inference(flags: Flags) -> InferenceOptions:
    """Settle what infer.py does; ValueError where a flag is wrong, or nothing would use it."""
    queries = [name for name in QUERY_NAMES if name in flags.given]
    changes = [name for name in CHANGE_NAMES if name in flags.given]
    if flags.export is not None:
        flags = flags.replaced(device="cpu")
    elif queries:
        flags.refuse(changes, f"--{queries[0]} searches --index, which stays as it is")
        _check_queries(queries, flags.index, flags.query, flags.query_text, flags.pretrained_model)
        refuse_same(json=flags.json, html=flags.html, index=flags.index)
    elif changes:
        _check_changes(changes, flags.index, flags.add, flags.pretrained_model)
    for names, reason in _unused(flags.values, queries, changes):
        flags.refuse(names, reason)

    search_index = None
    if queries or changes:
        search_index = open_index(flags.index, flags.topk if queries else 1)
        made = _flags_of_index(search_index)
        flags = flags.adopted(flags.index, made).giving(made)
    if changes and not flags.add:  # which takes no model
        flags = flags.replaced(pretrained_model=RANDOM)
    if flags.split == "all":
        flags.refuse(("train_classes", "test_classes"), "--split=all takes all classes")
    builds_index = flags.index is not None and not queries  # or adds to it
    on_bad_image = flags.on_bad_image or ("skip" if builds_index else "error")
    repeated = {name: tuple(getattr(flags, name)) for name in ("query_text", *CHANGE_NAMES)}
    flags = flags.replaced(on_bad_image=on_bad_image, **repeated)
    images, dump = _check_images(flags.images or ()), pick(DumpOptions, flags)
    if len(images) == 1:  # told as it is in the results of earlier versions
        flags = flags.replaced(images=images[0])
    # The processes of torchrun join for what they share.
    world = World() if queries or changes or flags.export else join_world()
    work = settle_embedding(flags, world, is_quiet=True)
    return pick(
        InferenceOptions, flags, work=work, images=images, dump=dump, search_index=search_index
    )


def _unused(
    values: Mapping[str, Any], queries: Sequence[str], changes: Sequence[str]
) -> Iterator[tuple[Sequence[str], str]]:
    """Yield the flags of infer.py that nothing would use beside those with these values, and why.

    `queries` and `changes` are the flags of a search, and of a change of an index, that are given.
    """
    if values["export"] is not None:
        yield [name for name in values if name not in EXPORT_NAMES], "with --export"
        needless = UNUSED_BY_EXPORT.get(values["export"], ("figures",))
        yield needless, f"--export={values['export']} has no use for it"
        return
    yield ("output", "figures"), "without --export"

    if queries:
        yield BUILD_NAMES, f"--{queries[0]} searches the images of --index"
        if values["query"] is None:
            reading = ("batch_size", "num_workers", "amp", "on_bad_image", "max_pixels")
            yield reading, f"--{queries[0]} reads no images"
        return
    yield ("topk", "json", "html", "verify", "on_changed_data"), "without --query or --query_text"

    if changes:
        reason = f"--{changes[0]} changes the index that is there"
        yield (*BUILD_NAMES, "unknown_threshold"), reason
        if not values["add"]:
            yield ("pretrained_model", *EMBEDDING_ALONE, "max_pixels"), "--remove embeds no images"
        return
    if values["index"] is None:
        of_index = ("index_type", "index_options", "features", "unknown_threshold")
        yield of_index, "without --index"
    else:
        yield ("output_dir", "class_dim", *DUMP_NAMES), "--index is all that is written"
    if values["features"] is not None:
        yield EMBEDDING_ALONE, "--features holds what --index is built of"
    if values["images"] is not None:
        yield SOURCE_NAMES, "--images is used instead of a data set"


def _check_changes(
    changes: Sequence[str], index: str | None, add: Sequence[str], weights: str | None
) -> None:
    """Raise ValueError where a change of an index lacks something."""
    if index is None:
        raise ValueError(f"--{changes[0]} changes an index: give it as --index=FILE")
    if add and weights is None:
        raise ValueError(
            "expected --pretrained_model=CHECKPOINT, the weights that --index was built with"
        )


def _check_images(images: Sequence[str]) -> tuple[str, ...]:
    """Return where images are; ValueError where several processes would share standard input."""
    if STDIN in images and "WORLD_SIZE" in os.environ:
        raise ValueError("--images=- is read by one process: give those of torchrun a list file")
    return tuple(images)


def _flags_of_index(search_index: SearchIndex | MilvusIndex) -> dict[str, Any]:
    """Return the flags that say how the images of an index were embedded."""
    found = search_index.metadata.get("flags", {})
    made = MODEL_OPTIONS | EARLIER | found if found else {}
    names = (*EMBEDDING_NAMES, *VIEW_NAMES)
    return {name: plain(made[name]) for name in names if name in made}


def _check_queries(
    queries: Sequence[str],
    index: str | None,
    query: str | None,
    texts: Sequence[str],
    weights: str | None,
) -> None:
    """Raise ValueError where a search lacks something."""
    if len(queries) > 1:
        raise ValueError("expected --query or --query_text, found both: leave one of them out")
    if index is None:
        raise ValueError(f"--{queries[0]} searches an index: give it as --index=FILE")
    if query == "":  # would be the working directory
        raise ValueError("expected an image or a folder behind --query=, found nothing")
    if not all(text.strip() for text in texts):
        raise ValueError("expected words behind --query_text=, found nothing")
    if texts and weights in (None, RANDOM):
        raise ValueError(
            "expected --pretrained_model=FILE, weights of both towers of the CLIP model that "
            "--index was built with"
        )


def open_index(file: str, topk: int) -> SearchIndex | MilvusIndex:
    """Open a search index; ValueError where it does not say what it is of, or holds too few."""
    search_index = open_milvus_index(file) if is_milvus(file) else load_search_index(file)
    if topk > len(search_index):
        raise ValueError(
            f"--topk={topk}, but {file} holds {len(search_index)} images: lower --topk"
        )
    has_snapshot = is_milvus(file) or search_index.snapshot is not None
    if not search_index.depends_on or not has_snapshot:
        raise ValueError(
            f"{file} was built by an earlier version, which did not record what its embeddings "
            "depend on: build it again"
        )
    return search_index


def settle_queries(
    file: str, weights: str | None, **machine: Any
) -> tuple[SearchIndex | MilvusIndex, EmbeddingOptions]:
    """Open a search index, and settle how queries are embedded as its images were.

    Without `weights` they are those that the index was built with, where they are still there.
    `machine` are flags of where it computes. Raises ValueError as `settle_embedding` does.
    """
    search_index = open_index(file, 1)
    made = _flags_of_index(search_index)
    origin = str(search_index.metadata.get("weights"))
    if weights is None and origin != RANDOM and not Path(origin).is_file():
        raise ValueError(
            f"{file} was built with {origin}, which is not here: say where those weights are by "
            "--pretrained_model=CHECKPOINT"
        )
    flags = default_flags(pretrained_model=weights or origin, **machine)
    flags = flags.adopted(file, made).giving(made)
    return search_index, settle_embedding(flags, World(), is_quiet=True)
