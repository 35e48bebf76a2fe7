"""The answers to queries as one page, which opens offline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from metric_learning.common.atomic import write_text
from metric_learning.common.outputs import kind_of_file
from metric_learning.common.pages import templates_of
from metric_learning.common.pictures import data_uri, small_jpeg
from metric_learning.reader import ImageError
from metric_learning.reader.sets.boxes import name_part
from metric_learning.reader.sets.image_set import Decoding, decode_file

TEMPLATES = Path(__file__).with_name("templates")
GENERATOR = "metric-learning infer"
HEAD_BYTES = 2**12  # of a file, in which the mark stands
QUERY_PIXELS, NEIGHBOUR_PIXELS = 320, 192  # longer side; shown smaller


def is_page(path: Path) -> bool:
    """Whether a file is a page of answers."""
    with path.open("rb") as file:
        return f'<meta name="generator" content="{GENERATOR}">'.encode() in file.read(HEAD_BYTES)


ANSWER_PAGE = kind_of_file("a page of answers", is_page)


def write_page(
    file: Path, answers: Sequence[Mapping[str, Any]], index: str, decoding: Decoding
) -> None:
    """Write queries, their neighbours and pictures of both to an HTML file.

    A part of a photo is shown alone, as the model saw it. An image that cannot be read, such as on
    another machine, has no picture.
    """

    @cache
    def picture_of(path: str, box: tuple[int, ...] | None, pixels: int) -> str | None:
        try:
            image = decode_file(path, decoding, box)
        except ImageError:
            return None
        return data_uri(small_jpeg(image, pixels))

    def shown_image(image: Mapping[str, Any], pixels: int) -> dict[str, Any]:
        box = tuple(image["box"]) if "box" in image else None
        name = name_part(image["path"], box)
        return {"name": name, "picture": picture_of(image["path"], box, pixels)}

    shown = [
        {
            "text": answer.get("text"),
            "image": shown_image(answer, QUERY_PIXELS) if "path" in answer else None,
            "is_none": answer.get("is_none", False),
            "neighbours": [
                {**found, **shown_image(found, NEIGHBOUR_PIXELS)} for found in answer["neighbours"]
            ],
        }
        for answer in answers
    ]
    template = templates_of(TEMPLATES).get_template("answers.html")
    text = template.render(answers=shown, index=index, generator=GENERATOR)
    write_text(file, text, errors="backslashreplace")
