"""Write a report: a page, and the map of the embeddings as a picture."""

from __future__ import annotations

from pathlib import Path

import torch

from metric_learning.common.atomic import write_text
from metric_learning.common.log import log
from metric_learning.engine.evaluate.scoring import with_float64
from metric_learning.engine.report.data import Subject
from metric_learning.engine.report.page import render


def write_report(subject: Subject, folder: Path, device: torch.device, seed: int) -> Path:
    """Write index.html and map.png into a folder, and return the page."""
    log(f"{len(subject.labels)} embeddings; now the queries, the classes and the map")
    picture = folder / "map.png"
    picture.unlink(missing_ok=True)  # of an earlier report
    page = render(subject, with_float64(device), seed, picture)

    file = folder / "index.html"
    write_text(file, page)
    if picture.is_file():
        log(f"map of the embeddings: {picture}")
    log(f"report: {file}, {file.stat().st_size / 1e6:.1f} MB, opens in any browser")
    return file
