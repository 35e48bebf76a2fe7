"""Frozen options, one part for each of those who need them; fields are named as the flags."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import torch

from metric_learning.common.flags import Flags
from metric_learning.engine.parallel.world import World
from metric_learning.models import MODEL_OPTIONS
from metric_learning.reader import ImageSet, load_image_set, splits_of
from metric_learning.reader.augment import Augmentation
from metric_learning.reader.batches.loader import Reading
from metric_learning.reader.sets.image_set import MAX_PIXELS

Part = TypeVar("Part")


@dataclass(frozen=True)
class ModelOptions:
    """What a network is, and how images become its input, 3, S, T in pixels.

    Attributes:
        transform: a key of `reader.transforms.TRANSFORMS`.
        pretrained_model: weights to start from, or None.
        resize_ratio: what a test image covers by its crop's sides; None: the transform's own.
        test_resize: whether a test image keeps its proportions, see `reader.preprocessing`.
        tta_flip: whether the embedding of a test image is the mean with that of its mirror image.
        tta_scales: scales of a test image whose embeddings are averaged; empty: it is as it is.
        drop_path: of training alone.
    """

    model: str
    embedding_size: int
    pooling: str
    last_stride: int
    feature_norm: str
    image_shape: tuple[int, int, int]
    transform: str
    pretrained_model: str | None
    resize_ratio: float | None = None
    test_resize: str = "short_side"
    tta_flip: bool = False
    tta_scales: tuple[float, ...] = ()
    drop_path: float = 0.0

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the inputs in pixels."""
        return self.image_shape[1:]

    @property
    def head(self) -> dict[str, Any]:
        """The options of `build_model` beside name and sizes."""
        return {name: getattr(self, name) for name in MODEL_OPTIONS}


@dataclass(frozen=True)
class DataOptions:
    """Which images: the arguments of `reader.load_image_set`."""

    dataset: str
    data_dir: str | None
    train_classes: str | None
    test_classes: str | None
    train_list: str | None
    test_list: str | None
    csv: str | None
    fold: int | None
    path_column: str | None
    label_column: str | None
    split_column: str | None
    group_column: str | None
    val_fold: str | None

    def load(self, split: str) -> ImageSet:
        """List the images of a split."""
        return load_image_set(split=split, **vars(self))

    @property
    def splits(self) -> tuple[str, ...]:
        """Which of train, val and test there are."""
        return splits_of(**vars(self))


@dataclass(frozen=True)
class ReadingOptions:
    """How training images are read and augmented, or which features are kept of them."""

    num_workers: int
    min_crop_area: float
    horizontal_flip: bool
    crop_aspect: tuple[float, float]
    train_crop: str
    resize_first: tuple[int, ...]
    color_jitter: tuple[float, ...]
    rand_augment: tuple[int, ...]
    random_erasing: float
    cache: str | None
    cache_size: int
    augment_on: str
    decode_on: str
    on_bad_image: str
    prefetch: int
    verify: bool
    on_changed_data: str
    views: int
    features_dir: str | None

    @property
    def augmentation(self) -> Augmentation:
        """How training images are cropped, and what is done to their crops."""
        names = Augmentation.__dataclass_fields__
        return Augmentation(**{name: getattr(self, name) for name in names})

    @property
    def reading(self) -> Reading:
        """What workers do with training images."""
        hand_over = "images" if self.augment_on == "device" else "crops"
        if self.decode_on == "device":
            hand_over = "files"
        return Reading(hand_over, self.on_bad_image, self.prefetch)


@dataclass(frozen=True)
class BatchOptions:
    """What a batch is made of, and in which pieces it is computed; see the flags of these names.

    `layout` is that of `losses.layout_of`, None in stage 1, where without `samples_each_class`
    images are drawn whatever their class.
    """

    train_batch_size: int
    samples_each_class: int
    layout: str | None
    accumulation_steps: int
    chunk_size: int
    gather: bool
    sampler: str = "random"
    hard_classes: int = 0


@dataclass(frozen=True)
class ClassLayer:
    """A loss of stage 1 that a checkpoint has class weights of; options as in LossOptions."""

    loss_name: str
    options: Mapping[str, Any]


@dataclass(frozen=True)
class LossOptions:
    """What a loss is, see `losses.build_loss`, and what lies around it.

    The `options` are its own, without those derived from data and model; `class_dim` is the number
    of training classes. Without an `embedding_scale` the start chooses it. With `keep_loss` there
    is a `kept` class layer. For the others see the flags of these names.
    """

    loss_name: str
    options: Mapping[str, Any]
    class_dim: int
    alpha: float
    class_dropout: float
    xbm_size: int
    xbm_start: int
    shard_head: bool
    normalize_embeddings: bool = False
    embedding_scale: float | None = None
    keep_loss: float = 0.0
    kept: ClassLayer | None = None


@dataclass(frozen=True)
class TeacherOptions:
    """A frozen network that a training learns from, if any; see the flags of these names."""

    teacher: str | None
    distill_weight: float
    distill_temperature: float


@dataclass(frozen=True)
class OptimizerOptions:
    """Which weights are updated, and how; see the flags of these names."""

    optimizer: str
    lr: float
    lr_head_mult: float
    lr_loss_mult: float | None
    momentum: float
    nesterov: bool
    weight_decay: float
    decay_norm_and_bias: bool
    clip_grad_norm: float
    ema_decay: float
    freeze_bn: bool
    trainable: str
    layer_decay: float = 1.0
    warm_head_steps: int = 0
    adam_eps: float = 1e-8
    clip_grad_value: float = 0.0
    lora_rank: int = 0

    def __post_init__(self) -> None:
        if self.nesterov and self.momentum == 0:
            raise ValueError("--nesterov needs a --momentum above 0")
        if self.clip_grad_norm and self.clip_grad_value:
            raise ValueError("expected --clip_grad_norm or --clip_grad_value, found both")

    @property
    def is_on_features(self) -> bool:
        """Whether what trains is computed from kept features of a frozen backbone."""
        return self.trainable == "head"


@dataclass(frozen=True)
class ScheduleOptions:
    """The learning rate of each step, and the number of steps; an epoch is `epoch_size` images."""

    lr: float
    lr_strategy: str
    lr_steps: tuple[int, ...]
    warmup_iter_num: int
    total_iter_num: int
    epoch_size: int
    lr_gamma: float = 0.1
    plateau_patience: int = 10
    plateau_factor: float = 0.1
    patience: int = 0


@dataclass(frozen=True)
class RunOptions:
    """Where a run writes, where it resumes, and what is due when, in steps; 0 is never."""

    model: str
    loss_name: str
    model_save_dir: str
    run_name: str | None
    checkpoint: str | None
    display_iter_step: int
    test_iter_step: int
    save_iter_step: int
    test_batch_size: int
    log_epochs: bool
    keep: int
    log_to: tuple[str, ...] = ()


@dataclass(frozen=True)
class WatchOptions:
    """Whether stage 2 tests the weights that it starts from, and stops where it ruins them."""

    test_start: bool = False
    on_collapse: str = "warn"


@dataclass(frozen=True)
class MachineOptions:
    """Where and in which precision a run computes; without `amp_dtype` in float32.

    With `tf32` float32 has 10 bits of mantissa in convolutions and products of the network. Images
    of more than `max_pixels` million pixels are refused. With `recompute` activations are computed
    again instead of kept, see --with_mem_opt.
    """

    world: World
    device: torch.device
    amp_dtype: torch.dtype | None
    seed: int
    num_workers: int
    max_pixels: int = MAX_PIXELS
    recompute: bool = False
    compile: bool = False
    sync_bn: bool = False
    tf32: bool = False

    @property
    def precision(self) -> str:
        """The precision of the network's forward pass, by which kept features are compared."""
        return "tf32" if self.tf32 else str(self.amp_dtype or torch.float32)


@dataclass(frozen=True)
class Options:
    """All that a training was told, settled; `flags` has a value per flag, as args.json."""

    model: ModelOptions
    data: DataOptions
    reading: ReadingOptions
    batches: BatchOptions
    loss: LossOptions
    teacher: TeacherOptions
    optimizer: OptimizerOptions
    schedule: ScheduleOptions
    run: RunOptions
    watch: WatchOptions
    machine: MachineOptions
    flags: Mapping[str, Any]


def pick(part: type[Part], flags: Flags, /, **others: Any) -> Part:
    """Build a part of the options from the flags of the names of its fields, and from `others`."""
    named = [field.name for field in fields(part) if field.name not in others]  # type: ignore[arg-type]
    return part(**{name: getattr(flags, name) for name in named}, **others)
