"""Fetch ImageNet weights, or convert a weights file, into this project's bare weights file."""

from __future__ import annotations

import json
import logging
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from safetensors import safe_open
from torchvision.models import get_model_weights

if not __package__:  # run as a file
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from metric_learning.common.cli import user_errors
from metric_learning.common.download import checksum_of, download
from metric_learning.common.flags import Flag, natural, parse_flags, path
from metric_learning.common.log import show
from metric_learning.common.outputs import kind_of_file, prepare_output
from metric_learning.models import (
    REFERENCE_MODELS,
    EmbeddingModel,
    build_model,
    changed_options,
    load_weights,
    options_of,
    read_metadata,
    save_weights,
    timm_name,
)
from metric_learning.models.hub import HUB, split_hub_name
from metric_learning.models.weights.files import identify
from metric_learning.models.weights.hub_folder import CONFIG, PREPROCESSOR, WEIGHTS, facts_in

FOLDER = Path("pretrained")
TORCHVISION_MODELS = ("ResNet18", "ResNet34", "ResNet50", "ResNet101", "ResNet152")
FLAGS = (
    Flag("model", str, None, "reference or timm model name, or hf-hub:ORG/NAME"),
    Flag("convert", path, None, "convert this file instead of fetching one"),
    Flag("embedding_size", natural, 0, "size of the embedding layer in the file to convert"),
    Flag("sha256", str, None, "expected sha256 of the file that is fetched or converted"),
    Flag("output", path, None, "file to write; default: pretrained/NAME.safetensors"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    with user_errors():
        args = parse_flags(__doc__, FLAGS, argv)
        if not args.model:
            raise ValueError("expected --model=NAME, a reference or timm model")
        if args.model.startswith(HUB):
            others = ("convert", "embedding_size", "sha256", "output")
            args.refuse(others, "a model of a hub is fetched as it is, into the hub's own cache")
            show(f"fetched {fetch_hub(args.model)}; use it with --model={args.model}")
            return 0

        if args.embedding_size and args.convert is None:
            raise ValueError(
                "--embedding_size belongs to --convert; ImageNet weights have no such layer"
            )
        output = choose_output(args.output, args.model, args.convert)
        if args.convert is not None:
            convert(args.model, Path(args.convert), args.embedding_size, args.sha256, output)
        else:
            fetch(args.model, args.sha256, output)

        show(f"wrote {output}; use it with --model={args.model} --pretrained_model={output}")
    return 0


def choose_output(output: str | None, name: str, source: str | None) -> Path:
    """Return the file to write; ValueError, before the work, where it cannot be written."""
    converted = None if source is None else identify(source)[0]
    stem = f"{name}_imagenet" if converted is None else converted.name.partition(".")[0]
    file = Path(output or FOLDER / f"{stem}.safetensors")
    if converted is not None and file.exists() and file.samefile(converted):
        raise ValueError(f"{file} is the file to convert; pass another --output")
    return prepare_output("output", file, kind_of_file("a weights file", is_bare))


def is_bare(file: Path) -> bool:
    """Whether this command wrote a file, by what stands beside the weights."""
    with safe_open(file, framework="pt") as weights:
        found = json.loads((weights.metadata() or {})["metadata"])
    return "source" in found and "flags" not in found


def fetch(name: str, sha256: str | None, output: Path) -> None:
    """Fetch ImageNet weights and write them."""
    model = build_model(name)
    if name in TORCHVISION_MODELS:
        source = fetch_torchvision(model, sha256)
    elif sha256:
        raise ValueError(f"--sha256 is for --convert and {', '.join(TORCHVISION_MODELS)} only")
    else:
        source = fetch_timm(model)
    write(model, output, source)


def fetch_hub(name: str) -> str:
    """Fetch a model of a hub into the cache of huggingface_hub, try it, and say what it is."""
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it reports every retry
    config = fetch_file(name, CONFIG)
    if config is None:
        raise ValueError(f"{name} holds no {CONFIG}: it is no model of images")
    fetch_file(name, PREPROCESSOR)
    model = build_model(str(facts_in(config.parent)["model"]))  # before gigabytes come

    if not any(fetch_file(name, file) for file in WEIGHTS):
        raise ValueError(f"{name} holds neither {' nor '.join(WEIGHTS)}: weights of other forms")
    report = load_weights(model, config.parent)
    size = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    return f"{model.name}, {size:.1f} million parameters{report.remarks}, in {config.parent}"


def fetch_file(name: str, file: str) -> Path | None:
    """Fetch a file of a model of a hub; None where it has no such."""
    repository, revision = split_hub_name(name)
    try:
        return Path(hf_hub_download(repository, file, revision=revision))
    except Exception as error:  # its errors are of many kinds
        is_missing = isinstance(error, EntryNotFoundError)
        if is_missing and not isinstance(error, LocalEntryNotFoundError):  # which is no network
            return None
        raise OSError(
            f"cannot fetch {name} ({_reason(error)}); check its name and the network, or give a "
            f"folder with {CONFIG} and {WEIGHTS[0]} as --model=FOLDER"
        ) from error


def _reason(error: Exception) -> str:
    """Return the first line of an error, or of the one behind it, which names the cause."""
    while error.__cause__ is not None and isinstance(error.__cause__, Exception):
        error = error.__cause__
    return str(error).strip().partition("\n")[0] or type(error).__name__


def fetch_torchvision(model: EmbeddingModel, sha256: str | None) -> str:
    """Load torchvision's published weights, whose file name carries their sha256's beginning."""
    url = get_model_weights(REFERENCE_MODELS[model.name])["IMAGENET1K_V1"].url
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / Path(url).name
        try:
            download([url], file)
        except ConnectionError as error:
            raise OSError(f"{error}; {offline_hint(model)}") from error

        if not checksum_of(file, "sha256").startswith(Path(url).stem.rpartition("-")[2]):
            raise ValueError(f"{url} arrived damaged; run the command again")
        check_sha256(file, sha256)
        load_weights(model, file)
    return url


def fetch_timm(model: EmbeddingModel) -> str:
    """Load the weights that timm publishes for the model."""
    name = timm_name(model.name)
    if not timm.is_model_pretrained(name):
        raise ValueError(f"timm has no pretrained weights for {name}; convert a file of your own")
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it reports every retry
    try:
        backbone = timm.create_model(name, pretrained=True, num_classes=0)
    except Exception as error:  # the error of a failed download depends on the hub's client
        reason = str(error).partition("\n")[0]
        raise OSError(
            f"cannot fetch timm's weights of {name} ({reason}); {offline_hint(model)}"
        ) from error
    model.backbone.load_state_dict(backbone.state_dict())
    return f"timm {name}"


def offline_hint(model: EmbeddingModel) -> str:
    """Say what to do without a network."""
    return (
        "check the network, or fetch the file elsewhere and pass "
        f"--model={model.name} --convert=FILE"
    )


def convert(name: str, file: Path, embedding_size: int, sha256: str | None, output: Path) -> None:
    """Convert a readable weights file."""
    source, _ = identify(file)  # the file is one with a part, or without its ending
    check_sha256(source, sha256)
    options = options_of(read_metadata(file) or {})
    model = build_model(name, embedding_size, **options)
    report = load_weights(model, file)
    if report.missing:
        raise ValueError(f"{file}: has no embedding layer; leave --embedding_size out")
    if report.unexpected:
        show(f"left out: {', '.join(report.unexpected)}")

    write(model, output, file.name)


def write(model: EmbeddingModel, output: Path, source: str) -> None:
    """Write the bare weights file with the facts that rebuild its model."""
    has_layer = isinstance(model.embedding, torch.nn.Linear)
    config: Any = model.backbone.pretrained_cfg
    is_squashed = config.get("crop_mode") == "squash"
    metadata = {
        "model": model.name,
        "embedding_size": model.embedding_size if has_layer else 0,
        **changed_options(model.options),
        "mean": model.mean,
        "std": model.std,
        **({"test_resize": "squash"} if is_squashed else {}),
        "source": source,
    }
    save_weights(model, output, metadata)


def check_sha256(path: Path, expected: str | None) -> None:
    """Raise ValueError unless the file has the expected sha256; None checks nothing."""
    if expected is None:
        return
    if path.is_dir():
        raise ValueError(f"--sha256 checks a file, {path} is a folder; leave the flag out")
    digest = checksum_of(path, "sha256")
    if digest != expected.lower():
        raise ValueError(f"{path}: sha256 is {digest}, expected {expected}; fetch it again")


if __name__ == "__main__":
    sys.exit(main())
