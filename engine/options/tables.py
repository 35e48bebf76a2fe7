"""Command-line flags of all scripts: tables of names, types, defaults and help.

Nothing heavy is imported here, so that a wrong flag is answered at once. What a flag may be is
written out for that reason; a test holds it against the tables of models, reader and retrieval.
"""

from __future__ import annotations

from metric_learning.common.flags import (
    Flag,
    amp,
    boolean,
    fraction,
    grouped,
    image_shape,
    integers,
    natural,
    non_negative,
    path,
    positive,
    whitening,
)

POOLINGS = ("own", "avg", "max", "avg_max", "gem")
FEATURE_NORMS = ("none", "layernorm", "bnneck")
TRANSFORMS = ("reference", "standard")
DATASETS = (
    *("sop", "demo", "cub200_2011", "cub200_2010", "cars196", "inshop"),
    *("cifar10", "omniglot", "folder", "list", "csv"),
)
TIES = ("pessimistic", "expected")
OPTIMIZERS = ("sgd", "adam", "adamw")
LR_STRATEGIES = ("piecewise_decay", "cosine_decay", "constant")
PLACES = ("workers", "device")
BAD_IMAGE_POLICIES = ("error", "skip")
SPLITS = ("test", "train")
INDEX_TYPES = ("exact", "ivf", "ivfpq", "hnsw")
EXPORT_FORMS = ("onnx", "torchscript", "safetensors")

DATA_FLAGS = grouped(
    "data",
    Flag("dataset", str, "sop", "data set", DATASETS),
    Flag("data_dir", path, None, "its folder; default: its usual place under data/"),
    Flag("train_classes", str, None, "training classes by number, e.g. 1-25 or 1-10,15"),
    Flag("test_classes", str, None, "test classes by number, e.g. 26-50"),
    Flag("train_list", path, None, "file of `path label` lines (--dataset=list)"),
    Flag("test_list", path, None, "file of `path label` lines (--dataset=list)"),
    Flag("csv", path, None, "file of images, from python -m data.prepare (--dataset=csv)"),
    Flag("fold", natural, None, "fold of the file to test on, others train (--dataset=csv)"),
)
READING_FLAGS = grouped(
    "data",
    Flag("class_dim", positive, None, "number of training classes; default: counted (SOP: 11318)"),
    Flag("total_images", positive, None, "number of training images; default: counted"),
    Flag(
        "min_crop_area",
        non_negative,
        0.08,
        "smallest area of a training crop, fraction of the image",
    ),
    Flag("horizontal_flip", boolean, True, "mirror every other training image"),
    Flag(
        "cache",
        path,
        None,
        "folder of decoded training images: built there once, about 15 GB for SOP, then trained "
        "from; test images are always read from their files",
    ),
    Flag(
        "cache_size",
        positive,
        256,
        "short side, in pixels, that larger images are reduced to in --cache",
    ),
    Flag(
        "augment_on",
        str,
        "workers",
        "where training images are cropped, resized and mirrored (device: --transform=standard)",
        PLACES,
    ),
    Flag(
        "decode_on",
        str,
        "workers",
        "where JPEG files of training images are decoded; device: on a CUDA GPU, which then "
        "augments them too",
        PLACES,
    ),
    Flag(
        "on_bad_image",
        str,
        "error",
        "unreadable training image: stop, or skip: draw another of its class, up to 5% of all "
        "images; an unreadable test image is always an error, else the scores would be of others",
        BAD_IMAGE_POLICIES,
    ),
    Flag("prefetch", positive, 2, "training batches that each worker prepares ahead"),
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
        "what makes a feature of the feature map: avg, max, avg_max (their sum), gem (generalised "
        "mean, its exponent learned from 3) or own, the backbone's",
        POOLINGS,
    ),
    Flag(
        "last_stride",
        positive,
        2,
        "1: the last stage of a ResNet keeps the size of its feature map, which costs time; 2: as "
        "the model has it",
    ),
    Flag(
        "feature_norm",
        str,
        "none",
        "between the pooling and the embedding layer: layernorm (without weights), bnneck (batch "
        "norm whose bias stays zero) or none",
        FEATURE_NORMS,
    ),
    Flag(
        "image_shape",
        image_shape,
        None,
        "network input: channels, height, width; default: 3,224,224 for reference models, the "
        "size of their published weights for others",
    ),
    Flag(
        "transform",
        str,
        None,
        "image pipeline: reference (Lanczos without antialiasing; default for reference models) or "
        "standard (torchvision, antialiased; default for timm models)",
        TRANSFORMS,
    ),
    Flag("pretrained_model", path, None, "weights to start from: a file or folder of any kind"),
)
BATCH_NORM_FLAGS = grouped(
    "model",
    Flag(
        "freeze_bn",
        boolean,
        False,
        "batch norm of the backbone keeps its statistics (small data sets)",
    ),
    Flag(
        "sync_bn",
        boolean,
        False,
        "batch norm takes its statistics over the images of all processes (torchrun, GPUs only)",
    ),
)
CLASS_FLAGS = grouped(
    "model",
    Flag(
        "class_dim",
        positive,
        None,
        "classes of the class layer: of weights from elsewhere, one of that size is used for "
        "scores and accuracy; that of a checkpoint is used anyway, and checked",
    ),
    Flag(
        "with_mem_opt",
        boolean,
        False,
        "as in v1; changes nothing here: it is training that keeps activations",
    ),
)
SHARD_FLAGS = grouped(
    "loss",
    Flag(
        "shard_head",
        boolean,
        False,
        "split the class weights over the processes of torchrun, for very many classes",
    ),
)
PAIR_FLAGS = grouped(
    "loss",
    Flag(
        "gather",
        boolean,
        False,
        "compare the images of all processes of torchrun, as one process with the whole batch "
        "would",
    ),
    Flag(
        "alpha",
        non_negative,
        0.0,
        "weight of the cross-entropy of a class layer that is added to the loss, as in v1; 0: none",
    ),
    Flag(
        "xbm_size",
        natural,
        0,
        "cross-batch memory: so many embeddings of past batches are compared with too; 0: none",
    ),
    Flag("xbm_start", natural, 0, "steps before the memory of --xbm_size is filled and used"),
    Flag(
        "loss_options",
        str,
        None,
        "options of a pml: loss, numbers (1 and 0 for yes and no): pos_eps=0.01,neg_eps=0.01",
    ),
)
OPTIMIZER_FLAGS = grouped(
    "optimizer",
    Flag("optimizer", str, "sgd", "optimizer", OPTIMIZERS),
    Flag("lr", non_negative, None, "initial learning rate"),
    Flag(
        "lr_head_mult",
        non_negative,
        1.0,
        "learning rate of class and embedding layers, bnneck and gem, as a factor",
    ),
    Flag(
        "lr_loss_mult",
        non_negative,
        None,
        "learning rate of the loss's own weights (class layer, proxies), as a factor; default: "
        "that of --lr_head_mult",
    ),
    Flag("momentum", non_negative, 0.9, "momentum of sgd"),
    Flag("nesterov", boolean, False, "Nesterov's momentum in sgd"),
    Flag("weight_decay", non_negative, 1e-4, "L2 of sgd and adam, decoupled decay of adamw"),
    Flag(
        "decay_norm_and_bias",
        boolean,
        True,
        "weight decay on biases and normalisation layers too, as in the reference",
    ),
    Flag("clip_grad_norm", non_negative, 0.0, "largest norm of all gradients; 0: no clipping"),
    Flag(
        "ema_decay",
        fraction,
        0.0,
        "decay of a moving average of the weights, which is tested and saved; 0: none",
    ),
)
SCHEDULE_FLAGS = grouped(
    "schedule",
    Flag(
        "train_batch_size", positive, None, "images per step over all devices", alias="batch_size"
    ),
    Flag("total_iter_num", natural, None, "number of steps"),
    Flag("num_epochs", positive, None, "instead of --total_iter_num: passes over the images"),
    Flag("lr_strategy", str, "piecewise_decay", "learning-rate schedule", LR_STRATEGIES),
    Flag("lr_steps", integers, None, "steps at which piecewise_decay divides the rate by 10"),
    Flag("warmup_iter_num", natural, 0, "first steps, in which the rate rises linearly"),
    Flag(
        "accumulation_steps",
        positive,
        1,
        "parts of a device's batch, each with a loss of its own; their gradients are averaged",
    ),
    Flag(
        "chunk_size",
        natural,
        0,
        "most images in the network at once; the loss sees the whole batch; 0: all",
    ),
)
RUN_FLAGS = grouped(
    "run",
    Flag("model_save_dir", path, "output", "folder of run folders"),
    Flag("run_name", str, None, "run folder below it; default: MODEL_LOSS, numbered if taken"),
    Flag(
        "checkpoint",
        path,
        None,
        "training checkpoint to resume: restores everything; auto: the newest good one of the "
        "run, from scratch where there is none",
    ),
    Flag("display_iter_step", positive, 10, "steps between log lines"),
    Flag("test_iter_step", natural, None, "steps between tests; 0: never test"),
    Flag("save_iter_step", natural, None, "steps between checkpoints; 0: only at the end"),
    Flag("test_batch_size", positive, 50, "images per test batch"),
    Flag(
        "log_epochs",
        boolean,
        False,
        "test and save at the end of every epoch too, and log the means over it: loss and accuracy "
        "of training and test",
    ),
    Flag("keep", natural, 3, "numbered checkpoints to keep; 0: all"),
)
MACHINE_FLAGS = grouped(
    "machine",
    Flag("use_gpu", boolean, True, "use a GPU if there is one"),
    Flag("device", str, "auto", "auto, cpu, cuda, cuda:1, ...; auto follows --use_gpu"),
    Flag(
        "amp",
        amp,
        "auto",
        "precision of the forward pass: off (float32), bfloat16, float16 (training scales the "
        "loss), or auto (bfloat16 on a GPU that has it)",
    ),
    Flag("num_workers", natural, 2, "processes that read images; 0: none beside the main one"),
    Flag(
        "seed", natural, 0, "seed of all that is random: weights, sampling, augmentation, bootstrap"
    ),
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
        "whiten",
        whitening,
        None,
        "PCA whitening learned on the training split: dimensions to keep, or all",
    ),
    Flag(
        "rerank",
        str,
        None,
        "re-ranking of the neighbours: qe, dba or kreciprocal, with parameters such as "
        "qe:k=10,alpha=3 or kreciprocal:k1=20,k2=6,lambda=0.3",
    ),
    Flag("verification", boolean, False, "also ROC AUC, TAR at FAR and EER over all pairs"),
    Flag("clustering", boolean, False, "also NMI, AMI, ARI and F1 of k-means clusters"),
    Flag("class_table", path, None, "CSV file to write the scores of each class to"),
)
EXPORT_FLAGS = grouped(
    "export",
    Flag("export", str, None, "write the model to --output, in this form", EXPORT_FORMS),
    Flag("output", path, None, "file that --export writes"),
    Flag("normalize", boolean, False, "the exported network's embeddings have length 1"),
)
