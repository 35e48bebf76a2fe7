"""What infer.py --export writes: the model in one file, for who runs it without this project."""

from __future__ import annotations

import json
import warnings
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from metric_learning.common.atomic import write_atomically
from metric_learning.common.log import log, versions
from metric_learning.common.optional import import_optional
from metric_learning.common.outputs import kind_of_file, prepare_output
from metric_learning.common.sizes import sides
from metric_learning.engine.embed.embedder import Embedder
from metric_learning.engine.options.evaluation import (
    EMBEDDING_NAMES,
    AverageOptions,
    EmbeddingOptions,
)
from metric_learning.models import save_weights
from metric_learning.models.weights.files import identify
from metric_learning.models.weights.fingerprint import RANDOM, hash_weights

INPUT, OUTPUT = "images", "embeddings"
METADATA = "metadata"  # the name under which every form holds the description, as JSON
OPSET = 17  # of ONNX: the first with layer norm, so that old runtimes read the file
ONNX_LIMIT = 2_000_000_000  # bytes of weights; with all else an ONNX file holds 2**31
TRACED_BATCH = 2  # images that the network is recorded with; it takes any number
COMPARED_BATCHES = (1, 5)
TOLERANCE = 1e-4  # of the embeddings' values, as a fraction of the largest
SMALLEST = 1e-30  # stands for the largest value where all are zero
DESCRIPTION_BYTES = 2**22
DESCRIPTION = ("preprocessing", "fingerprint")  # what only an export tells
# What a checkpoint says of its training and nobody needs to use the model; it may hold paths.
TRAINING_FACTS = ("flags", "given", "depends_on", "loss_options", "versions")

Network = Callable[[Tensor], Tensor]


class UnitEmbeddings(nn.Module):
    """Divides the embeddings (B, D) of a model by their Euclidean norms."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Return unit embeddings (B, D) of images (B, 3, H, W)."""
        return functional.normalize(self.model(images))


def export_model(
    work: EmbeddingOptions, form: str, output: str | None, is_normalized: bool
) -> Path:
    """Write the model in the form of --export, and return the file; ValueError where it has none.

    A file that runs by itself gets its name only when it gives the embeddings that torch gives.
    """
    file = check_output(form, output, work.weights)
    embedder = Embedder.of(work)
    log(embedder.source)
    if not all(tensor.isfinite().all() for tensor in embedder.model.state_dict().values()):
        raise ValueError(f"{work.weights} holds NaN or infinity: the model diverged")

    model = UnitEmbeddings(embedder.model) if is_normalized else embedder.model
    model.eval().requires_grad_(False)
    metadata = describe(embedder, is_normalized)
    write_atomically(file, partial(write_and_compare, form, model, metadata))
    size = file.stat().st_size / 2**20
    log(
        f"{work.model.model} as {form}, {embedder.model.embedding_size} dimensions, "
        f"{size:.1f} MiB, in {file}"
    )
    return file


def check_output(form: str, output: str | None, weights: str) -> Path:
    """Return the file of --output; ValueError where it cannot be that of this form."""
    if form == "onnx":
        import_optional("onnx", "--export=onnx", "onnx onnxruntime")  # the second to check the file
    suffix = FORMS[form].suffix
    if output is None:
        raise ValueError(f"--export={form} needs a file to write: --output=NAME{suffix}")
    if Path(output).suffix != suffix:  # others may be a checkpoint's
        raise ValueError(f"--output={output}: expected a name that ends in {suffix}")
    if Path(output).exists() and weights != RANDOM and Path(output).samefile(identify(weights)[0]):
        raise ValueError(f"--output={output} is what is exported: choose another name")
    return prepare_output("output", output, kind_of_file(f"an export as {form}", is_export))


def is_export(file: Path) -> bool:
    """Whether a file was written by --export, by the description that every form holds.

    Its bytes lie at the beginning of safetensors, elsewhere near the end or uncompressed in a zip.
    """
    with file.open("rb") as opened:
        head = opened.read(DESCRIPTION_BYTES)
        opened.seek(max(0, file.stat().st_size - DESCRIPTION_BYTES))
        ends = head + opened.read()
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            extra = [name for name in archive.namelist() if name.endswith(f"/extra/{METADATA}")]
            ends = b"".join(archive.read(name) for name in extra)
    return all(f'"{name}'.encode() in ends.replace(b"\\", b"") for name in DESCRIPTION)


def describe(embedder: Embedder, is_normalized: bool) -> dict[str, Any]:
    """Say what is needed to use the exported model or to rebuild it, and what it comes from.

    Beside the model's flags, `preprocessing` has the steps from an image file to the input in words
    and numbers, and `weights` and `fingerprint` the file that was exported and its tensors.
    """
    work, preprocessing = embedder.work, embedder.preprocessing
    shape = [3, *sides(preprocessing.crop_size)]
    flags = {name: work.flags[name] for name in EMBEDDING_NAMES} | {"image_shape": shape}
    known = {name: value for name, value in work.meta.items() if name not in TRAINING_FACTS}

    return {
        **known,
        **flags,
        "flags": flags,  # where a checkpoint has them, so that the weights can be loaded again
        "mean": list(preprocessing.mean),
        "std": list(preprocessing.std),
        "preprocessing": preprocessing.steps(),
        "input": {"name": INPUT, "shape": ["batch", *shape], "type": "float32"},
        "output": {
            "name": OUTPUT,
            "shape": ["batch", embedder.model.embedding_size],
            "type": "float32",
            "normalized": is_normalized,
        },
        "weights": Path(work.weights).name,
        **describe_average(work.average),
        "fingerprint": embedder.depends_on["weights"],
        "versions": versions(),
    }


def describe_average(average: AverageOptions | None) -> dict[str, Any]:
    """Say which weights an average was taken with, if any, and the fingerprint of these."""
    if average is None:
        return {}
    start = {"weights": Path(average.start).name, "fingerprint": hash_weights(average.start)}
    return {"average_with_start": {"share": average.share, **start}}


def write_and_compare(form: str, model: nn.Module, metadata: dict[str, Any], file: Path) -> None:
    """Write a file of a form, run it, and compare its embeddings; ValueError where they differ."""
    _, write, load = FORMS[form]
    try:
        with warnings.catch_warnings():  # that TorchScript is deprecated, that shapes are fixed
            warnings.simplefilter("ignore")
            write(model, file, metadata)
            network = None if load is None else load(file)
            if network is None:
                return
            difference = largest_difference(model, network, metadata["image_shape"])
    except OSError:
        raise
    except Exception as error:  # exporters and runtimes raise many types
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ValueError(
            f"{metadata['model']} cannot be exported as {form} ({reason}): choose another form"
        ) from error

    if not difference <= TOLERANCE:  # so that NaN is too much
        raise ValueError(
            f"{metadata['model']} as {form} gives embeddings that differ from torch's by "
            f"{difference:.1e} of the largest value, more than {TOLERANCE:g}: nothing was written, "
            "choose another form"
        )
    batches = " and ".join(map(str, COMPARED_BATCHES))
    log(
        f"embeddings differ from torch's by at most {difference:.1e} of the largest value, "
        f"in batches of {batches} images"
    )


def largest_difference(model: nn.Module, network: Network, image_shape: list[int]) -> float:
    """Return by how much two networks differ on random images, a fraction of the largest value."""
    generator = torch.Generator().manual_seed(0)
    differences = []
    for batch in COMPARED_BATCHES:
        images = torch.randn(batch, *image_shape, generator=generator)
        with torch.inference_mode():
            expected, found = model(images), network(images)
        largest = expected.abs().max().clamp_min(SMALLEST)
        differences.append((found - expected).abs().max() / largest)
    return float(torch.stack(differences).max())


def write_onnx(model: nn.Module, file: Path, metadata: dict[str, Any]) -> None:
    """Write a network as ONNX with the description in its metadata, by torch's older exporter.

    The newer one takes ten times as long and one more package, and that of torch 2.6 fails on
    ResNets and fixes the batch of vision transformers.
    """
    import onnx

    size = sum(tensor.nbytes for tensor in model.state_dict().values())
    if size >= ONNX_LIMIT:
        raise ValueError(f"its weights have {size / 1e9:.1f} GB, an ONNX file holds 2")

    torch.onnx.export(
        model,
        (_example(metadata),),
        str(file),
        input_names=[INPUT],
        output_names=[OUTPUT],
        dynamic_axes={INPUT: {0: "batch"}, OUTPUT: {0: "batch"}},
        opset_version=OPSET,
        dynamo=False,
    )

    graph = onnx.load(file)
    onnx.helper.set_model_props(graph, {METADATA: json.dumps(metadata)})
    onnx.save(graph, file)


def load_onnx(file: Path) -> Network | None:
    """Load an ONNX file in onnxruntime, on the CPU; None where that is not installed."""
    try:
        import onnxruntime
    except ImportError:
        log("not compared with torch: onnxruntime is not installed")
        return None
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run([OUTPUT], {INPUT: images.numpy()})[0])


def write_torchscript(model: nn.Module, file: Path, metadata: dict[str, Any]) -> None:
    """Write a network as TorchScript with the description as an extra file in it."""
    script = torch.jit.trace(model, _example(metadata), check_trace=False)
    with file.open("wb") as opened:
        torch.jit.save(script, opened, _extra_files={METADATA: json.dumps(metadata)})


def _example(metadata: dict[str, Any]) -> Tensor:
    return torch.zeros(TRACED_BATCH, *metadata["image_shape"])


class Form(NamedTuple):
    """How a model is written: the suffix of its file, and what writes that and loads it.

    `load` gives None where the file cannot be run here, and is None for weights alone.
    """

    suffix: str
    write: Callable[[Any, Path, dict[str, Any]], None]
    load: Callable[[Path], Network | None] | None


FORMS = {
    "onnx": Form(".onnx", write_onnx, load_onnx),
    "torchscript": Form(
        ".torchscript", write_torchscript, partial(torch.jit.load, map_location="cpu")
    ),
    "safetensors": Form(".safetensors", save_weights, None),
}
