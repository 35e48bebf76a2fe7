"""Command-line flags of all scripts: tables of names, types, defaults and help.

Nothing heavy is imported here, so that a wrong flag is answered at once. What a flag may be is
written out for that reason; a test holds it against the tables of models, reader and retrieval.
"""

from __future__ import annotations

from collections.abc import Mapping

from metric_learning.common.flags import (
    Flag,
    amp,
    aspect_range,
    boolean,
    color_jitter,
    factor,
    fraction,
    grouped,
    image_shape,
    integers,
    natural,
    non_negative,
    path,
    positive,
    rand_augment,
    resize_ratio,
    run_file,
    scale,
    scales,
    short_side_or_both,
    some_of,
    unknown_threshold,
    whitening,
)

POOLINGS = ("own", "avg", "max", "avg_max", "gem")
FEATURE_NORMS = ("none", "layernorm", "bnneck")
TRANSFORMS = ("reference", "standard", "v1")
TEST_RESIZES = ("short_side", "squash")
TRAIN_CROPS = ("random_resized", "random")
DATASETS = (
    *("sop", "demo", "glyphs", "cub200_2011", "cub200_2010", "cars196", "inshop"),
    *("market1501", "veri776"),
    *("cifar10", "omniglot", "folder", "list", "csv"),
)
TIES = ("pessimistic", "expected")
DISTANCES = ("cosine", "euclidean")
OPTIMIZERS = ("sgd", "adam", "adamw")
LR_STRATEGIES = ("piecewise_decay", "cosine_decay", "constant", "reduce_on_plateau")
SAMPLERS = ("random", "hierarchical")
PLACES = ("workers", "device")
TRAINABLE = ("all", "norm", "head")
BAD_IMAGE_POLICIES = ("error", "skip")
ACCEPT = "accept"
AUTO, OFF = "auto", "off"  # of --unknown_threshold
CHANGED_DATA_POLICIES = ("error", ACCEPT)
ON_COLLAPSE = ("warn", "stop")
SPLITS = ("train", "val", "test", "all")
INDEX_TYPES = ("exact", "ivf", "ivfpq", "hnsw")
FEATURE_DTYPES = ("float32", "float16", "int8")
TRACKERS = ("tensorboard", "wandb", "mlflow", "trackio")
EXPORT_FORMS = ("onnx", "torchscript", "safetensors", "hub")

# What the file of --csv may call otherwise.
COLUMNS = {
    "path": "paths; default: path",
    "label": "labels; default: label, else identity",
    "split": "splits; default: split",
    "group": "groups, such as cameras; default: group, else sequence",
}
VERIFY = Flag(
    "verify", boolean, False, "compare kept things with every image by its content, not its times"
)
DATA_FLAGS = grouped(
    "data",
    Flag("dataset", str, "sop", "data set", DATASETS),
    Flag("data_dir", path, None, "its folder; default: its usual place under data/"),
    Flag("train_classes", str, None, "training classes by number, e.g. 1-25 or 1-10,15"),
    Flag("test_classes", str, None, "test classes by number, e.g. 26-50"),
    Flag("train_list", path, None, "file of `path label` lines (--dataset=list)"),
    Flag("test_list", path, None, "file of `path label` lines (--dataset=list)"),
    Flag("csv", path, None, "table of images, see docs/own-data.md (--dataset=csv)"),
    Flag("fold", natural, None, "fold of the file to test on, others train (--dataset=csv)"),
    *(
        Flag(f"{name}_column", str, None, f"its column of {what} (--dataset=csv)")
        for name, what in COLUMNS.items()
    ),
    Flag(
        "val_fold",
        str,
        None,
        "hold out a part of the training images as the val split. 0/5: the first of five folds of "
        "classes; 0/5:images: of images of all classes; none: nothing, and what the data set holds "
        "out itself is for training too",
    ),
)
READING_FLAGS = grouped(
    "data",
    Flag("class_dim", positive, None, "number of training classes; default: counted (SOP: 11318)"),
    Flag("total_images", positive, None, "number of training images; default: counted"),
    Flag("min_crop_area", non_negative, 0.08, "least area of a training crop, as a fraction"),
    Flag("horizontal_flip", boolean, True, "mirror every other training image"),
    Flag(
        "crop_aspect",
        aspect_range,
        (3 / 4, 4 / 3),
        "range of a crop's width by its height, by those of the network's input",
    ),
    Flag(
        "train_crop",
        str,
        "random_resized",
        "random: crops of the network's size, at any place of an image of --resize_first",
        TRAIN_CROPS,
    ),
    Flag(
        "resize_first",
        short_side_or_both,
        (),
        "size to resize training images to before they are cropped. 256: the short side; 256,256: "
        "height and width. Default: none",
    ),
    Flag(
        "color_jitter",
        color_jitter,
        (),
        "ranges of a training crop's brightness, contrast, saturation (factors of 1 - r to 1 + r) "
        "and hue (turns), as torchvision's ColorJitter, e.g. 0.25,0.25,0.25,0. Default: none",
    ),
    Flag(
        "rand_augment",
        rand_augment,
        (),
        "N random operations of strength M (0 to 30) on a training crop, as torchvision's "
        "RandAugment, e.g. 2,9. Default: none",
    ),
    Flag(
        "random_erasing",
        fraction,
        0.0,
        "share of the training crops of which a rectangle is filled with the mean colour, as "
        "torchvision's RandomErasing",
    ),
    Flag(
        "cache",
        path,
        None,
        "folder to keep decoded training images in. It is built by the first run (SOP: 15 GB) and "
        "read by later ones, which need no decoding; images that have changed are decoded again. "
        "Default: none, every image is decoded in every epoch",
    ),
    Flag("cache_size", positive, 256, "short side, in pixels, that larger images have in --cache"),
    Flag("augment_on", str, "workers", "where training images are cropped and mirrored", PLACES),
    Flag("decode_on", str, "workers", "where JPEG files are decoded; device: a CUDA GPU", PLACES),
    Flag(
        "on_bad_image",
        str,
        "error",
        "what a training does at an image that is missing or cannot be decoded. error: stop, with "
        "the run saved; skip: take another image of its class, and log it, up to 5 % of all",
        BAD_IMAGE_POLICIES,
    ),
    Flag("prefetch", positive, 2, "training batches that each worker prepares ahead"),
    VERIFY,
    Flag(
        "on_changed_data",
        str,
        "error",
        "other images or classes than those of --checkpoint: stop, or go on",
        CHANGED_DATA_POLICIES,
    ),
)
MODEL_FLAGS = grouped(
    "model",
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
        "how a feature map becomes one feature. own: as the backbone does it, by the mean in most; "
        "avg, max: the mean or maximum of each channel; avg_max: their sum; gem: the generalised "
        "mean, whose exponent begins at 3 and is trained",
        POOLINGS,
    ),
    Flag(
        "last_stride", positive, 2, "1: the last stage of a ResNet does not halve its feature map"
    ),
    Flag("feature_norm", str, "none", "between the pooling and the embedding layer", FEATURE_NORMS),
    Flag(
        "image_shape",
        image_shape,
        None,
        "channels, height and width of inputs in pixels, such as 3,224,224 or, for people on foot, "
        "3,256,128. Default: as the weights were trained, else as the model is made for",
    ),
    Flag(
        "transform",
        str,
        None,
        "how images are resized and cropped. reference: OpenCV's Lanczos without antialiasing, as "
        "the reference does, alpha is dropped; standard: antialiased, as torchvision does, "
        "transparent pixels become white; v1: Pillow's bilinear, tests crop the centre of 8/7 of "
        "the size. Default: as the weights were trained, else v1 with the losses of v1, reference "
        "for the reference's models, standard for all others",
        TRANSFORMS,
    ),
    Flag(
        "resize_ratio",
        resize_ratio,
        None,
        "how much larger than its central crop a test image is made, 1 or more: 1.143 is a short "
        "side of 256 for 224. Default: as the weights were trained, else 1, or 8/7 for v1",
    ),
    Flag(
        "test_resize",
        str,
        "short_side",
        "how a test image is resized before its central crop. short_side: in proportion, what "
        "the long side has beside the crop is cut off; squash: height and width each to its own, "
        "so that the whole image is seen, its proportions lost. Default: as the weights were "
        "trained, else short_side",
        TEST_RESIZES,
    ),
    Flag(
        "tta_flip",
        boolean,
        False,
        "the embedding of a test image is the mean of its own and its mirror image's",
    ),
    Flag(
        "tta_scales",
        scales,
        (),
        "scales of a test image whose embeddings are averaged, e.g. 0.8,1,1.25. Default: none",
    ),
    Flag("pretrained_model", run_file, None, "weights to start from: a file or folder of any kind"),
)
BATCH_NORM_FLAGS = grouped(
    "model",
    Flag("freeze_bn", boolean, False, "batch norm of the backbone keeps its statistics"),
    Flag("sync_bn", boolean, False, "batch norm takes its statistics over all processes (GPUs)"),
)
TRAINABLE_FLAGS = grouped(
    "model",
    Flag("lora_rank", natural, 0, "train low-rank matrices beside the backbone's linear layers"),
    Flag("drop_path", fraction, 0.0, "stochastic depth: most that a block is left out; timm's"),
    Flag(
        "trainable",
        str,
        "all",
        "which weights of the network train. norm: of the backbone, those of its normalisation "
        "layers alone, and all that lies behind it; head: the feature norm and the embedding layer "
        "on features of a frozen backbone, which are computed once and kept. The loss's always do",
        TRAINABLE,
    ),
    Flag(
        "views", positive, 8, "augmented views of each training image that --trainable=head keeps"
    ),
    Flag(
        "features_dir",
        path,
        None,
        "folder of the features that --trainable=head keeps, which runs of the same backbone "
        "share; default: frozen_features in --model_save_dir",
    ),
)
AVERAGE_FLAGS = grouped(
    "model",
    Flag(
        "average_with_start",
        fraction,
        0.0,
        "share of the weights that the training started from in an average with those that it "
        "ended with (WiSE-FT); 0: none",
    ),
    Flag("start", run_file, None, "these weights; default: where the training found them"),
)
CLASS_FLAGS = grouped(
    "model",
    Flag("class_dim", positive, None, "classes of the class layer; weights from elsewhere need it"),
    Flag("with_mem_opt", boolean, False, "as in v1; changes nothing here: it is for training"),
)
SHARD_FLAGS = grouped(
    "loss",
    Flag(
        "samples_each_class",
        natural,
        0,
        "K: batches of K images of each of their classes; 0: every image once an epoch",
    ),
    Flag("shard_head", boolean, False, "split the class weights over the processes of torchrun"),
)
PAIR_FLAGS = grouped(
    "loss",
    Flag(
        "sampler",
        str,
        "random",
        "classes of a batch. hierarchical: of two super classes, which sop has, all pairs in turn",
        SAMPLERS,
    ),
    Flag(
        "hard_classes",
        natural,
        0,
        "classes of a batch that are nearest to a random one, by the class weights of the stage-1 "
        "checkpoint in --pretrained_model; 0: all are random",
    ),
    Flag("gather", boolean, False, "compare the images of all processes of torchrun"),
    Flag("alpha", non_negative, 0.0, "weight of the cross-entropy of a class layer; 0: none"),
    Flag(
        "keep_loss", non_negative, 0.0, "weight of stage 1's own loss, class weights kept; 0: none"
    ),
    Flag(
        "class_dropout",
        fraction,
        None,
        "share of the feature that --alpha's layer does not see; default: SE-ResNeXt 0.5, else 0",
    ),
    Flag("xbm_size", natural, 0, "past embeddings that a batch is compared with too; 0: none"),
    Flag("xbm_start", natural, 0, "steps before the memory of --xbm_size is filled and used"),
    Flag("normalize_embeddings", boolean, False, "eml, npairs, hyperbolic: of one length"),
    Flag("embedding_scale", scale, None, "that length; default: auto, chosen at the start"),
    Flag("on_collapse", str, "warn", "embeddings shrink to one point: warn, or stop", ON_COLLAPSE),
    Flag("test_start", boolean, True, "test --pretrained_model first, to compare with the end"),
    Flag("loss_options", str, None, "numbers for a pml: loss, e.g. pos_eps=0.01,neg_eps=0.01"),
)
TEACHER_FLAGS = grouped(
    "loss",
    Flag("teacher", run_file, None, "checkpoint of a frozen network whose similarities are taught"),
    Flag("distill_weight", non_negative, 1.0, "weight of the divergence from --teacher"),
    Flag("distill_temperature", non_negative, 0.1, "what divides the cosines that it compares"),
)
OPTIMIZER_FLAGS = grouped(
    "optimizer",
    Flag("optimizer", str, "sgd", "optimizer", OPTIMIZERS),
    Flag("lr", non_negative, None, "initial learning rate"),
    Flag(
        "lr_of_start",
        non_negative,
        0.0,
        "instead of --lr: share of the rate with which --pretrained_model was trained, whose "
        "optimizer and rate factors go on; 0: none",
    ),
    Flag(
        "lr_head_mult", non_negative, 1.0, "rate factor of class and embedding layers, bnneck, gem"
    ),
    Flag(
        "lr_loss_mult", non_negative, None, "rate factor of the loss's weights; default: the head's"
    ),
    Flag("layer_decay", factor, 1.0, "rate factor of each layer of the backbone below the next"),
    Flag("warm_head_steps", natural, 0, "first steps, in which the backbone's weights rest"),
    Flag("momentum", non_negative, 0.9, "momentum of sgd"),
    Flag("nesterov", boolean, False, "Nesterov's momentum in sgd"),
    Flag("adam_eps", non_negative, 1e-8, "added to the root of adam's and adamw's second moment"),
    Flag("weight_decay", non_negative, 1e-4, "L2 of sgd and adam, decoupled decay of adamw"),
    Flag(
        "decay_norm_and_bias", boolean, True, "weight decay on norms and biases as in the reference"
    ),
    Flag("clip_grad_norm", non_negative, 0.0, "largest norm of all gradients; 0: no clipping"),
    Flag("clip_grad_value", non_negative, 0.0, "largest value in a gradient; 0: no clipping"),
    Flag("ema_decay", fraction, 0.0, "decay of a moving average of the weights; 0: none"),
)
SCHEDULE_FLAGS = grouped(
    "schedule",
    Flag(
        "train_batch_size", positive, None, "images per step over all devices", alias="batch_size"
    ),
    Flag("total_iter_num", natural, None, "number of steps"),
    Flag("num_epochs", positive, None, "instead of --total_iter_num: passes over the images"),
    Flag("lr_strategy", str, "piecewise_decay", "learning-rate schedule", LR_STRATEGIES),
    Flag("lr_steps", integers, None, "steps at which piecewise_decay lowers the rate"),
    Flag("lr_gamma", fraction, 0.1, "factor by which it then multiplies the rate"),
    Flag("plateau_patience", natural, 10, "tests that reduce_on_plateau lets pass, no better"),
    Flag("plateau_factor", fraction, 0.1, "factor by which it then lowers the rate"),
    Flag("patience", natural, 0, "tests in a row, no better, after which a run ends; 0: never"),
    Flag(
        "warmup_iter_num",
        natural,
        0,
        "first steps, in which the rate rises linearly",
        alias="warmup_steps",
    ),
    Flag(
        "accumulation_steps", positive, 1, "parts of a device's batch, each with a loss of its own"
    ),
    Flag("chunk_size", natural, 0, "most images in the network at once, the loss sees all; 0: all"),
)
RUN_FLAGS = grouped(
    "run",
    Flag("model_save_dir", path, "output", "folder of run folders"),
    Flag("run_name", str, None, "run folder below it; default: MODEL_LOSS, numbered if taken"),
    Flag("checkpoint", run_file, None, "checkpoint to resume; auto: the newest good one, or none"),
    Flag("display_iter_step", positive, 10, "steps between log lines"),
    Flag("test_iter_step", natural, None, "steps between tests; 0: never test"),
    Flag("save_iter_step", natural, None, "steps between checkpoints; 0: only at the end"),
    Flag("test_batch_size", positive, 50, "images per test batch"),
    Flag("log_epochs", boolean, False, "test and save after every epoch too, and log its means"),
    Flag("keep", natural, 3, "numbered checkpoints to keep; 0: all"),
    Flag(
        "log_to",
        some_of(TRACKERS),
        (),
        f"trackers that get flags, figures and pictures of each test: {', '.join(TRACKERS)}, "
        "separated by commas. Default: TensorBoard's curves alone",
    ),
)
MACHINE_FLAGS = grouped(
    "machine",
    Flag("use_gpu", boolean, True, "use a GPU if there is one"),
    Flag("device", str, "auto", "auto, cpu, cuda, cuda:1, ...; auto follows --use_gpu"),
    Flag("amp", amp, "auto", "precision of the forward pass; auto: bfloat16 on a GPU that has it"),
    Flag(
        "num_workers",
        natural,
        None,
        "processes that read images; 0: none beside the main one. Default: 2; for a GPU as many as "
        "this process has cores, 16 at most",
    ),
    Flag(
        "max_pixels",
        positive,
        128,
        "most pixels of an image, in millions (6 to 14 MB each)",
    ),
    Flag("seed", natural, 0, "seed of all that is random"),
)
TRAINING_MACHINE_FLAGS = grouped(
    "machine",
    Flag("with_mem_opt", boolean, False, "compute activations again instead of keeping them"),
    Flag("compile", boolean, False, "compile the network (torch.compile)"),
)
METRIC_FLAGS = grouped(
    "metrics",
    Flag("ks", integers, (), "K of Recall@K beside 1,10,100,1000, e.g. 2,4,8"),
    Flag("precision_ks", integers, (), "K of precision@K, e.g. 1,5,10"),
    Flag("ties", str, "pessimistic", "how negatives that tie with a positive count", TIES),
    Flag(
        "distance", str, "cosine", "what images are ranked by; euclidean: raw features", DISTANCES
    ),
    Flag("whiten", whitening, None, "PCA whitening by the training split: dimensions, or all"),
    Flag(
        "rerank",
        str,
        None,
        "a second pass over the neighbours, before the scores. qe:k=10,alpha=3: queries "
        "become means of their k nearest, weighted by cosine^alpha; dba:k=10,alpha=3: so does the "
        "gallery; kreciprocal:k1=20,k2=6,lambda=0.3: by shared k-reciprocal neighbours (Zhong et "
        "al. 2017). Parameters left out have these values. Default: none",
    ),
    Flag("verification", boolean, False, "also ROC AUC, TAR at FAR and EER over all pairs"),
    Flag("clustering", boolean, False, "also NMI, AMI, ARI and F1 of k-means clusters"),
    Flag(
        "open_set",
        fraction,
        0.0,
        "leave this share of the classes out of the gallery, and measure how well a threshold on "
        "the cosine tells their queries from others: AUROC, DIR at FAR, F1",
    ),
    Flag("class_table", path, None, "CSV file to write the scores of each class to"),
)
SEARCH_FLAGS = grouped(
    "search",
    Flag("index", path, None, "search index: built of the images, or searched by a query"),
    Flag(
        "add",
        path,
        (),
        "images to add to --index: a file, a folder or a list (.csv with boxes); those that "
        "changed are embedded again; may be given several times",
        repeats=True,
    ),
    Flag(
        "remove",
        path,
        (),
        "image, box of one as PATH (x_1,y_1,x_2,y_2), or folder to remove from --index; may be "
        "given several times",
        repeats=True,
    ),
    Flag("features", path, None, "dump of the same images that --index is built of"),
    Flag("index_type", str, "exact", "kind of index that is built", INDEX_TYPES),
    Flag("index_options", str, "", "its parameters, e.g. nlist=1000,nprobe=32"),
    Flag("query", path, None, "an image, a folder or a list to search for in --index"),
    Flag(
        "query_text",
        str,
        (),
        "words to search for in an --index of a CLIP model; may be given several times",
        repeats=True,
    ),
    Flag("topk", positive, 10, "neighbours per query"),
    Flag(
        "unknown_threshold",
        unknown_threshold,
        None,
        "cosine below which the nearest image is no answer. While --index is built, auto: "
        "chosen on the val split, or on the indexed images where there is none, and kept in "
        "the index; in a search auto: that of the index; off: none. Default: that of the "
        "index, if it has one",
    ),
    Flag("html", path, None, "page to write the answers to, with pictures, which opens offline"),
    VERIFY,
    Flag(
        "on_changed_data",
        str,
        "error",
        "images of --index that have changed since it was built: stop, or search it as it was",
        CHANGED_DATA_POLICIES,
    ),
)
EXPORT_FLAGS = grouped(
    "export",
    Flag("export", str, None, "write the model to --output, in this form", EXPORT_FORMS),
    Flag("output", path, None, "file, or with --export=hub folder, that --export writes"),
    Flag("normalize", boolean, False, "features, or those of what --export writes, have length 1"),
    Flag("figures", path, None, "what eval.py --json wrote of these weights, for --export=hub"),
)


# Flags that a script lacks and others have: name -> what has it. Those of a loss are left out.
TRAINING_LACKS: Mapping[str, str] = {
    **{flag.name: "eval.py" for flag in METRIC_FLAGS},
    **dict.fromkeys(("compare", "features", "split", "average_with_start", "start"), "eval.py"),
    **{flag.name: "infer.py" for flag in EXPORT_FLAGS},
    **dict.fromkeys(("images", "output_dir", "index", "query", "query_text", "topk"), "infer.py"),
}
_TRAINING_FLAGS = (
    *(*READING_FLAGS, *BATCH_NORM_FLAGS, *TRAINABLE_FLAGS, *SHARD_FLAGS, *PAIR_FLAGS),
    *TEACHER_FLAGS,
    *(*OPTIMIZER_FLAGS, *SCHEDULE_FLAGS, *RUN_FLAGS, *TRAINING_MACHINE_FLAGS),
)
OTHERS_LACK: Mapping[str, str] = {
    **{flag.name: "the training scripts" for flag in _TRAINING_FLAGS},
    **dict.fromkeys(("loss_name", "samples_each_class"), "the training scripts"),
}
