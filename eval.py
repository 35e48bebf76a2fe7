"""Evaluate a checkpoint: Recall@K and the other retrieval metrics of a data set.

python eval.py --pretrained_model=output/ResNet50_eml/best.pt
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.cli import user_errors
from engine.devices import choose_amp, choose_device
from engine.flags import DATA_FLAGS, MACHINE_FLAGS, MODEL_FLAGS, with_defaults
from engine.inference import embed_index, evaluate_index, load_embedder, load_split, refuse_flags
from engine.parsing import Flag, integers, parse_flags, path, positive
from engine.run import log, versions
from models.atomic import write_atomically

FLAGS = (
    *MODEL_FLAGS,
    Flag("batch_size", positive, 10, "images per batch"),
    Flag("ks", integers, (), "K of Recall@K beside 1,10,100,1000, e.g. 2,4,8"),
    Flag("split", str, "test", "images to evaluate", ("test", "train")),
    Flag("json", path, None, "file to write the metrics to"),
    Flag("display_iter_step", positive, 10, "batches between log lines"),
    *DATA_FLAGS,
    *with_defaults(MACHINE_FLAGS, amp="off"),
)


def prepare_json(file: Path) -> None:
    """Make the folder of a result file, so that a wrong path is an error before the work.

    Raises:
        ValueError: the file cannot be written.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--json={file} cannot be written: {error.strerror}") from error
    if file.is_dir():
        raise ValueError(f"--json={file}: expected a file to write, found a folder")


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Evaluate and return the metrics with what was evaluated."""
    with user_errors():
        args, given = parse_flags(__doc__, FLAGS, argv)
        other_split = "train" if args.split == "test" else "test"
        unused = (f"{other_split}_classes", f"{other_split}_list")
        refuse_flags(given, unused, f"with --split={args.split}")
        if args.json:
            prepare_json(Path(args.json))
        device = choose_device(args, log)
        embedder = load_embedder(args, given, device)
        log(embedder.source)
        index = load_split(args, args.split)
        log(f"{args.split}: {args.dataset}, {len(index)} images of {index.num_classes} classes")
        embeddings = embed_index(
            embedder.model,
            index,
            embedder.preprocessing,
            batch_size=args.batch_size,
            num_workers=args.num_workers,
            device=device,
            amp_dtype=choose_amp(args.amp, device),
            log=log,
            log_every=args.display_iter_step,
        )
        metrics = evaluate_index(index, embeddings, device, args.ks)
        log(", ".join(f"{name} {value:.5f}" for name, value in metrics.items() if "@" in name))
        log(
            f"r_precision {metrics['r_precision']:.5f}, queries {metrics['queries']}, "
            f"without a positive {metrics['queries_without_positive']}"
        )
        log(f"End test {len(index)}, test_recall {metrics['recall@1']:.5f}")
        evaluated = {"flags": vars(args), "images": len(index), "versions": versions()}
        result = {**metrics, "evaluated": evaluated}
        if args.json:
            text = json.dumps(result, indent=2) + "\n"
            write_atomically(Path(args.json), lambda file: file.write_text(text, encoding="utf-8"))
        return result


if __name__ == "__main__":
    main()
