"""Fetch ImageNet weights, or convert a weights file, into this project's bare weights file."""

from __future__ import annotations

import argparse
import hashlib
import logging
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from urllib.error import URLError

import timm
import torch
from torchvision.models import get_model_weights

FOLDER = Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER.parent))

from metric_learning.models import (  # noqa: E402
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

TORCHVISION_MODELS = ("ResNet18", "ResNet34", "ResNet50", "ResNet101", "ResNet152")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    args = parse_args(argv)
    try:
        output = fetch(args) if args.convert is None else convert(args)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {output}; use it with --model={args.model} --pretrained_model={output}")
    return 0


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="reference or timm model name")
    parser.add_argument("--convert", type=Path, metavar="FILE", help="convert this file instead")
    parser.add_argument(
        "--embedding_size", type=int, default=0, help="size of the embedding layer in FILE"
    )
    parser.add_argument("--sha256", help="expected sha256 of the fetched file or of FILE")
    parser.add_argument("--output", type=Path, help="default: pretrained/NAME.safetensors")
    return parser.parse_args(argv)


def fetch(args: argparse.Namespace) -> Path:
    """Fetch ImageNet weights and write them; return the file."""
    if args.embedding_size:
        raise ValueError(
            "--embedding_size belongs to --convert; ImageNet weights have no such layer"
        )
    model = build_model(args.model)
    output = args.output or FOLDER / f"{args.model}_imagenet.safetensors"
    if args.model in TORCHVISION_MODELS:
        source = fetch_torchvision(model, args.sha256)
    elif args.sha256:
        raise ValueError(f"--sha256 is for --convert and {', '.join(TORCHVISION_MODELS)} only")
    else:
        source = fetch_timm(model)
    return write(model, output, source)


def fetch_torchvision(model: EmbeddingModel, sha256: str | None) -> str:
    """Load torchvision's published weights, whose file name carries their sha256's beginning."""
    url = get_model_weights(REFERENCE_MODELS[model.name])["IMAGENET1K_V1"].url
    prefix = Path(url).stem.rpartition("-")[2]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / Path(url).name
        try:
            torch.hub.download_url_to_file(url, str(path), hash_prefix=prefix)
        except (URLError, TimeoutError, ConnectionError) as error:
            raise OSError(f"cannot fetch {url} ({error}); {offline_hint(model)}") from error
        except RuntimeError as error:
            raise ValueError(f"{url} arrived damaged ({error}); run the command again") from error
        check_sha256(path, sha256)
        load_weights(model, path)
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


def convert(args: argparse.Namespace) -> Path:
    """Convert a readable weights file; return the file written."""
    check_sha256(args.convert, args.sha256)
    options = options_of(read_metadata(args.convert) or {})
    model = build_model(args.model, args.embedding_size, **options)
    report = load_weights(model, args.convert)
    if report.missing:
        raise ValueError(f"{args.convert}: has no embedding layer; leave --embedding_size out")
    if report.unexpected:
        print(f"left out: {', '.join(report.unexpected)}")
    name = args.convert.name.partition(".")[0]
    output = args.output or FOLDER / f"{name}.safetensors"
    if output.exists() and output.samefile(args.convert):
        raise ValueError(f"{output} is the file to convert; pass another --output")
    return write(model, output, args.convert.name)


def write(model: EmbeddingModel, output: Path, source: str) -> Path:
    """Write the bare weights file with the facts that rebuild its model."""
    has_layer = isinstance(model.embedding, torch.nn.Linear)
    metadata = {
        "model": model.name,
        "embedding_size": model.embedding_size if has_layer else 0,
        **changed_options(model.options),
        "mean": model.mean,
        "std": model.std,
        "source": source,
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    save_weights(model, output, metadata)
    return output


def check_sha256(path: Path, expected: str | None) -> None:
    """Raise ValueError unless the file has the expected sha256; None checks nothing."""
    if expected is None:
        return
    if path.is_dir():
        raise ValueError(f"--sha256 checks a file, {path} is a folder; leave the flag out")
    with path.open("rb") as file:
        digest = hashlib.sha256(file.read()).hexdigest()
    if digest != expected.lower():
        raise ValueError(f"{path}: sha256 is {digest}, expected {expected}; fetch it again")


if __name__ == "__main__":
    sys.exit(main())
