"""What infer.py --export=hub writes: a folder that timm reads back, ready to upload."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
from safetensors.torch import save
from torch import nn

from metric_learning.common.atomic import write_text
from metric_learning.common.log import log
from metric_learning.common.outputs import Kind, prepare_folder, replaced_folder
from metric_learning.common.schema import check_fields, is_number, read_json
from metric_learning.common.sizes import sides
from metric_learning.engine.embed.embedder import Embedder
from metric_learning.engine.embed.export import TOLERANCE, describe, largest_difference
from metric_learning.engine.options.evaluation import EmbeddingOptions
from metric_learning.engine.run.chosen import describe_choice
from metric_learning.engine.run.records import read_records
from metric_learning.models import changed_options, merged_state, timm_name
from metric_learning.models.clip import is_clip
from metric_learning.models.weights import checksum
from metric_learning.models.weights.fingerprint import RANDOM
from metric_learning.models.weights.hub_folder import CONFIG, OWN, WEIGHTS, read_config
from metric_learning.reader.preprocessing import Preprocessing

CARD = "README.md"
KEPT = (".git", ".gitattributes", "LICENSE", "LICENSE.md")  # of a clone of the hub's repository
SHOWN = ("recall@1", "recall@10", "map@r", "r_precision", "map")
INTERPOLATIONS = {"standard": "bicubic", "v1": "bilinear", "reference": "lanczos"}


def export_hub(work: EmbeddingOptions, output: str | None, figures: str | None) -> Path:
    """Write the folder of a model and return it; ValueError where timm has no such model.

    It gets its name only when timm, and this project, read it back and give the same embeddings.
    `figures` is a file that eval.py --json wrote of these weights.
    """
    if output is None:
        raise ValueError("--export=hub needs a folder to write: --output=FOLDER")
    _check_model(work)
    folder = prepare_folder("output", output, Kind("an export for a hub", find_foreign))
    embedder = Embedder.of(work)
    log(embedder.source)
    if not all(tensor.isfinite().all() for tensor in embedder.model.state_dict().values()):
        raise ValueError(f"{work.weights} holds NaN or infinity: the model diverged")
    measured = read_figures(figures, embedder.depends_on["weights"]) if figures else {}

    embedder.model.eval().requires_grad_(False)
    config = describe_for_timm(embedder)
    with replaced_folder(folder, keep=KEPT) as new:
        (new / WEIGHTS[0]).write_bytes(weights_for_timm(embedder))
        write_text(new / CONFIG, json.dumps(config, indent=2) + "\n")
        write_text(new / CARD, model_card(embedder, config, measured, folder.name))
        difference = _compare(embedder, new)
    log(
        f"{work.model.model} for a hub, {embedder.model.embedding_size} dimensions, in {folder}; "
        f"read by timm, embeddings differ by at most {difference:.1e} of the largest value"
    )
    return folder


def find_foreign(folder: Path) -> str | None:
    """Return the name of a file in a folder that no export for a hub wrote, if any."""
    names = {CONFIG, WEIGHTS[0], CARD, *KEPT}
    foreign = next((path.name for path in folder.iterdir() if path.name not in names), None)
    is_ours = not (folder / CONFIG).exists() or OWN in read_config(folder / CONFIG)
    return foreign or (None if is_ours else CONFIG)


def _check_model(work: EmbeddingOptions) -> None:
    """Raise ValueError where timm could not build the model."""
    name, changed = work.model.model, changed_options(work.model.head)
    if is_clip(name):
        raise ValueError(f"--export=hub writes models of timm, {name} is one of open_clip")
    if changed:
        listed = ", ".join(f"--{option}={value}" for option, value in changed.items())
        raise ValueError(
            f"--export=hub: timm builds no {name} with {listed}: choose --export=safetensors or "
            "--export=onnx"
        )


def describe_for_timm(embedder: Embedder) -> dict[str, Any]:
    """Return the config.json: what timm builds, the images it takes, and all that is known here."""
    model, preprocessing = embedder.model, embedder.preprocessing
    cfg: Any = model.backbone.pretrained_cfg
    height, width = sides(preprocessing.crop_size)
    has_layer = isinstance(model.embedding, nn.Linear)

    if has_layer and not isinstance(cfg.get("classifier"), str):
        raise ValueError(
            f"--export=hub: {model.name} has no single class layer in timm, whose place the "
            "embedding layer could take: choose --export=safetensors"
        )
    config: dict[str, Any] = {
        "architecture": timm_name(model.name).partition(".")[0],
        "num_classes": model.embedding_size if has_layer else 0,
        "num_features": model.feature_size,
        "pretrained_cfg": {
            "input_size": [3, height, width],
            "fixed_input_size": bool(cfg.get("fixed_input_size")),
            "interpolation": INTERPOLATIONS[preprocessing.transform],
            "crop_pct": height / preprocessing.covered[0],
            "crop_mode": "squash" if preprocessing.is_squashed else "center",
            "mean": list(preprocessing.mean),
            "std": list(preprocessing.std),
            "num_classes": model.embedding_size if has_layer else 0,
            "pool_size": cfg.get("pool_size"),
            "first_conv": cfg.get("first_conv"),
            "classifier": cfg.get("classifier"),
        },
    }

    if cfg.get("fixed_input_size") and [height, width] != list(cfg["input_size"][1:]):
        config["model_args"] = {"img_size": height if height == width else [height, width]}
    return config | {OWN: describe(embedder, is_normalized=False)}


def weights_for_timm(embedder: Embedder) -> bytes:
    """Return the weights by timm's names as safetensors; the embedding layer is its class layer."""
    model = embedder.model
    cfg: Any = model.backbone.pretrained_cfg
    names = {"backbone.": "", "embedding.": f"{cfg.get('classifier')}."}
    tensors = {}
    for key, tensor in merged_state(model).items():
        start = next(each for each in names if key.startswith(each))
        name = names[start] + key.removeprefix(start)
        tensors[name] = tensor.detach().cpu().contiguous().clone()
    return checksum.with_checksum(save(tensors, {"format": "pt", checksum.NAME: checksum.ZEROS}))


def _compare(embedder: Embedder, folder: Path) -> float:
    """Return how far timm's reading of a folder differs; ValueError where that is too much."""
    model = embedder.model
    try:
        network = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        size = sides(embedder.preprocessing.crop_size)
        difference = largest_difference(model, network, [3, *size])

    except Exception as error:  # what timm raises where a folder is wrong
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ValueError(
            f"{model.name} cannot be exported for a hub, timm {timm.__version__} does not read it "
            f"back ({reason}): choose --export=safetensors"
        ) from error
    if not difference <= TOLERANCE:  # so that NaN is too much
        raise ValueError(
            f"{model.name} as timm reads it differs by {difference:.1e} of the largest value, more "
            f"than {TOLERANCE:g}: nothing was written, choose --export=safetensors"
        )
    return difference


def read_figures(file: str, fingerprint: str | int) -> dict[str, Any]:
    """Read a result of eval.py; ValueError where it is of other weights."""
    result = check_fields(read_json(Path(file), file), (), file)
    about = result.get("evaluated")
    weights = about.get("depends_on", {}).get("weights") if isinstance(about, dict) else None
    if weights != fingerprint:
        raise ValueError(
            f"--figures={file}: expected what eval.py --json wrote of these weights, found "
            f"{'one of others' if weights else 'none that says what it is of'}: evaluate them"
        )
    return result


def model_card(
    embedder: Embedder, config: Mapping[str, Any], measured: Mapping[str, Any], name: str
) -> str:
    """Return the README.md of a model: what it is, how to use it, its data and its figures."""
    own = config[OWN]
    loss = f" with the loss `{own['loss']}`" if own.get("loss") else ""
    data = own.get("dataset")
    trained = (
        f"Trained{loss} on `{data}`, {own.get('step', 0):,} steps."
        if data
        else ("Nothing is known of its training.")
    )
    classes = own.get("class_names") or []

    lines = [
        *("---", "library_name: timm", "pipeline_tag: image-feature-extraction"),
        *("tags:", "- timm", "- image-retrieval", "- metric-learning", "---", ""),
        f"# {name}",
        "",
        f"`{config['architecture']}`, {embedder.model.embedding_size}-dimensional embeddings of "
        "images: those of one class lie close to each other by cosine similarity.",
        *("", "## Training data", "", trained),
        *([f"{len(classes):,} training classes."] if classes else []),
        *("", "## Figures", "", *_figures(embedder, measured)),
        *("", "## Use", "", "```python", *_use(name), "```", ""),
        "or with metric-learning: `infer.py --model=FOLDER`, `eval.py --model=FOLDER`.",
        *("", "## Preprocessing", "", *_preprocessing(embedder.preprocessing)),
        *("", "Versions: " + ", ".join(f"{key} {text}" for key, text in own["versions"].items())),
    ]
    return "\n".join(lines) + "\n"


def _figures(embedder: Embedder, measured: Mapping[str, Any]) -> list[str]:
    """The table of what was measured: a result of eval.py, else the test of the run."""
    work = embedder.work
    if measured:
        flags = measured["evaluated"].get("flags", {})
        about = f"On the {flags.get('split')} split of `{flags.get('dataset')}`, by eval.py"
        _, warnings = describe_choice(work.weights, work.meta, [], flags)
        return [f"{about}:", "", *_table(measured), *(["", *warnings] if warnings else [])]

    stats, step = Path(work.weights).parent / "stats.jsonl", work.meta.get("step")
    records = read_records(stats) if work.weights != RANDOM and stats.is_file() else []
    tests = [each for each in records if each["kind"] == "test" and each["step"] == step]
    if not tests:
        return ["None were measured: `eval.py --json=FILE`, then `--export=hub --figures=FILE`."]
    said, _ = describe_choice(work.weights, work.meta, records, {})
    return [f"In the test of the run at this step. {said}.", "", *_table(tests[-1])]


def _table(figures: Mapping[str, Any]) -> list[str]:
    rows = []
    for name in SHOWN:
        if is_number(figures.get(name)):
            chance = figures.get(f"{name}_chance", "")
            of_chance = f"{100 * chance:.2f}" if is_number(chance) else ""
            rows.append(f"| {name} | {100 * figures[name]:.2f} | {of_chance} |")
    return ["| metric | % | chance, % |", "|---|--:|--:|", *rows]


def _use(name: str) -> list[str]:
    return [
        "import timm",
        "import torch",
        "from PIL import Image",
        "",
        f'model = timm.create_model("hf-hub:ORG/{name}", pretrained=True).eval()',
        "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))",
        'image = transform(Image.open("photo.jpg").convert("RGB"))[None]',
        "with torch.inference_mode():",
        "    embedding = torch.nn.functional.normalize(model(image))",
    ]


def _preprocessing(preprocessing: Preprocessing) -> list[str]:
    """The steps to the network's input, and how far timm's own transform is from them."""
    steps = [f"{number}. {step}" for number, step in enumerate(preprocessing.steps(), start=1)]
    return [
        *steps,
        "",
        "timm's transform is close to these steps, not equal; metric-learning takes them as they "
        "are.",
    ]
