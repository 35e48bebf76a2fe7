"""Two-stage deep metric learning: train, evaluate and serve image embeddings.

    model = metric_learning.load("last.pt")
    embeddings = model(["a.jpg", "b.jpg"])
    neighbours = metric_learning.open_index("a.index", model).search("a.jpg")
    features = metric_learning.open_features("features")

The folders of a checkout are the rooms of this package. In a checkout they are links here; where
links were lost on the way, the checkout itself is searched.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from metric_learning.engine.embed.dump.opened import open_features
    from metric_learning.engine.embed.embedder import Embedder, load
    from metric_learning.engine.search.open_index import open_index

__version__ = "0.2.0"
__all__ = ["Embedder", "load", "open_features", "open_index"]

WHERE = {
    "Embedder": ".engine.embed.embedder",
    "load": ".engine.embed.embedder",
    "open_features": ".engine.embed.dump.opened",
    "open_index": ".engine.search.open_index",
}

if not (Path(__file__).parent / "losses").is_dir():
    __path__.append(str(Path(__file__).parent.parent))


def __getattr__(name: str) -> Any:
    """Import what loads torch only when it is asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(WHERE[name], __name__), name)
