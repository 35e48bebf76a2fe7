"""What the tests of the report report on, and a reader of its page."""

from html.parser import HTMLParser

import numpy as np

from metric_learning.engine.report.data import Subject

RECORDS = [
    {"kind": "train", "step": 1, "loss": 2.0, "recall": 0.25},
    {"kind": "train", "step": 2, "loss": 1.0, "recall": 0.5},
    {"kind": "test", "step": 2, "recall@1": 0.75, "recall@10": 1.0},
]


def make_subject(num_images=60, num_classes=8, roles=None, seed=0) -> Subject:
    """Clustered embeddings whose images show their class as a colour."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, num_classes, num_images) * 3 + 5
    embeddings = rng.normal(size=(num_images, 6))
    embeddings += rng.normal(size=(3 * num_classes + 5, 6))[labels]
    is_query, is_gallery = roles or (np.ones(num_images, bool), np.ones(num_images, bool))
    return Subject(
        title="a <b>bold</b> model",
        facts=[("Model", "a model")],
        flags={"lr": 0.1, "lr_steps": [], "checkpoint": None},
        records=RECORDS,
        embeddings=embeddings.astype(np.float32),
        labels=labels,
        class_names={label: f"class <{label}> & co" for label in labels.tolist()},
        is_query=is_query,
        is_gallery=is_gallery,
        read_image=lambda row: np.full((20, 30, 3), 7 * labels[row], np.uint8),
    )


def split_roles(num_images: int, num_queries: int):
    is_query = np.arange(num_images) < num_queries
    return is_query, ~is_query


class Page(HTMLParser):
    """Elements of a page with their attributes, and the texts of headings."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.headings: list[str] = []
        self.text = ""
        self._tag = ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self._tag = self._tag if tag == "wbr" else tag  # which stands within a text
        self.elements.append((tag, dict(attrs)))
        if tag in ("h1", "h2", "h3"):
            self.headings.append("")

    def handle_endtag(self, tag):
        self._tag = ""

    def handle_data(self, data):
        if self._tag in ("h1", "h2", "h3"):
            self.headings[-1] += data
        if self._tag not in ("style", "script"):
            self.text += data
