"""HTML pages that open offline: templates whose texts are escaped, whatever they hold."""

from __future__ import annotations

import re
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

SHARED = Path(__file__).with_name("templates")


def templates_of(*folders: Path) -> Environment:
    """Return the templates of folders and those of all pages; of one name the first one counts.

    Their filters are `percent`, of a fraction, and `breakable`, of a long name.
    """
    environment = Environment(
        loader=FileSystemLoader([*folders, SHARED]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = lambda fraction: f"{100 * fraction:.2f}"
    environment.filters["breakable"] = breakable
    return environment


def breakable(name: str) -> Markup:
    """Let a long name break after its punctuation."""
    return Markup(re.sub(r"([_./-])(?=[\w(])", r"\1<wbr>", str(escape(name))))
