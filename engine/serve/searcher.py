"""The index that is served, and the model of it: answers and thumbnails."""

from __future__ import annotations

import threading
from functools import lru_cache
from typing import Any

import numpy as np

from metric_learning.common.fingerprint import state_of
from metric_learning.common.log import log
from metric_learning.common.pictures import small_jpeg
from metric_learning.engine.embed.embedder import Embedder
from metric_learning.engine.options.evaluation import open_index
from metric_learning.engine.options.tables import OFF
from metric_learning.engine.search.search import check_model
from metric_learning.engine.search.threshold import is_none, threshold_of
from metric_learning.models.clip import is_clip
from metric_learning.models.clip_text import TextEncoder
from metric_learning.models.weights.fingerprint import RANDOM
from metric_learning.reader.sets.image_set import decode_file
from metric_learning.retrieval.indexes import SearchIndex
from metric_learning.retrieval.milvus import MilvusIndex

SIZES = {"small": 256, "large": 768}  # pixels of a thumbnail's longer side
MOST_KEPT = 2000  # thumbnails
LARGEST_ROW = 2**63 - 1


class Searcher:
    """Answers queries from an index, and from what that becomes while it is served.

    Args:
        file: the index; where it is replaced, answers are of the new one.
        search_index: what the file held.
        embedder: the model that it was built with.
        unknown_threshold: as of infer.py, see `threshold_of`.
        with_names: whether answers tell the names of files; never their folders.

    Raises:
        ValueError: the index is asked for a threshold, and holds none.
    """

    def __init__(
        self,
        file: str,
        search_index: SearchIndex | MilvusIndex,
        embedder: Embedder,
        unknown_threshold: str | float | None = None,
        with_names: bool = False,
    ) -> None:
        threshold_of(search_index, unknown_threshold)
        self.file, self.with_names = file, with_names
        self._asked_threshold = unknown_threshold
        self._embedder = embedder
        self._index, self._state, self._version = search_index, state_of(file), 1
        self._lock = threading.Lock()
        self._thumbnail = lru_cache(MOST_KEPT)(self._make_thumbnail)
        self._encode_text = self._text_encoder()

    def _text_encoder(self) -> TextEncoder | None:
        """Return the text tower of the weights, or None where they have none."""
        work = self._embedder.work
        if not is_clip(work.model.model) or work.weights == RANDOM:
            return None
        try:
            return TextEncoder(work.model.model, work.weights, work.machine.device)
        except ValueError as error:
            log(f"no search by words: {error}")
            return None

    def about(self) -> dict[str, Any]:
        """Say what is served: `images`, `classes`, and whether `words` can be searched for."""
        index = self._index
        names = set(index.classes())
        return {
            "images": len(index),
            "classes": sorted(names, key=lambda name: (name.lower(), name)),
            "words": self._encode_text is not None,
        }

    def search_image(self, pixels: np.ndarray, k: int, class_name: str | None) -> dict[str, Any]:
        """Find the images nearest to one (H, W, 3) uint8, see `_answer`."""
        with self._lock:  # one image at a time has all threads
            features = self._embedder([pixels])
        return self._answer(features, k, class_name, self._asked_threshold)

    def search_words(self, text: str, k: int, class_name: str | None) -> dict[str, Any]:
        """Find the images nearest to words, see `_answer`; ValueError where it cannot."""
        if self._encode_text is None:
            raise ValueError("this index is not of a CLIP model with its text tower: send an image")
        with self._lock:
            features = self._encode_text([text])
        # The threshold of an index is of images.
        given = self._asked_threshold if isinstance(self._asked_threshold, float) else OFF
        return self._answer(features, k, class_name, given)

    def _answer(
        self, features: np.ndarray, k: int, class_name: str | None, threshold: str | float | None
    ) -> dict[str, Any]:
        """Return `neighbours`, nearest first, k or as many as there are, with their thumbnails.

        They are of a class alone, if it is not None. `none` says that the nearest one is below the
        `threshold`, which None is where there is none. ValueError where there is no such class.
        """
        with self._lock:
            index, version = self._renewed()
        num_searched = len(index) if class_name is None else index.num_of_class(class_name)
        if not num_searched:
            raise ValueError("this index has no such class")

        device = self._embedder.work.machine.device
        rows, cosines = index.search(features, min(k, num_searched), device, class_name)
        least = threshold_of(index, threshold)
        return {
            "none": is_none(float(cosines[0, 0]), least),
            "threshold": least,
            "neighbours": [
                {
                    "rank": n + 1,
                    "class_name": entry.class_name,
                    "cosine": round(float(cosine), 6),
                    "thumbnail": f"/api/images/{version}/{row}",
                    **({} if entry.box is None else {"box": entry.box}),
                    **({"name": entry.path.rpartition("/")[2]} if self.with_names else {}),
                }
                for n, (row, cosine, entry) in enumerate(
                    zip(rows[0].tolist(), cosines[0], index.entries(rows[0]), strict=True)
                )
            ],
        }

    def _renewed(self) -> tuple[SearchIndex | MilvusIndex, int]:
        """Return the index and the number of its version, read again where its file has changed."""
        state = state_of(self.file)
        if state != self._state:
            self._state = state
            try:
                found = open_index(self.file, 1)
                check_model(self.file, found, self._embedder)
            except (ValueError, OSError) as error:
                log(f"the index has changed and is not taken: {error}")
            else:
                self._index, self._version = found, self._version + 1
                self._thumbnail.cache_clear()
                log(f"the index has changed: {len(found)} images")
        return self._index, self._version

    def thumbnail(self, version: int, row: int, size: str) -> bytes:
        """Return a small JPEG of an image of the index, `size` a key of SIZES.

        Of a part of a photo it shows that part, as the model saw it. Raises ImageError where it
        cannot be read, LookupError where there is no such image.
        """
        if version != self._version or not 0 <= row <= LARGEST_ROW:
            raise LookupError("there is no such image any more")
        return self._thumbnail(row, size)

    def _make_thumbnail(self, row: int, size: str) -> bytes:
        entry = self._index.entries(np.array([row], np.int64))[0]
        image = decode_file(entry.path, self._embedder.preprocessing.decoding, entry.box)
        return small_jpeg(image, SIZES[size])
