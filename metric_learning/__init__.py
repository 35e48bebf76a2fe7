"""Two-stage deep metric learning: train, evaluate and serve image embeddings.

The folders of a checkout are the rooms of this package. In a checkout they are links here; where
links were lost on the way, the checkout itself is searched.
"""

from pathlib import Path

__version__ = "0.2.0"

if not (Path(__file__).parent / "losses").is_dir():
    __path__.append(str(Path(__file__).parent.parent))
