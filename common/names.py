"""Names of files and classes on lines of text: one line each, whatever they hold."""

from __future__ import annotations

import json
import unicodedata

# Control characters, and the separators of lines and paragraphs, of which no line may have one.
BREAKING = ("Cc", "Zl", "Zp")
# Marks that change the direction of what follows, so that a line reads as another one.
TURNING = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
QUOTE = '"'


def to_line(name: str) -> str:
    """Write a name as one line that `from_line` reads back.

    It is the name itself, unless it holds a line end, another control character, a mark of
    direction or a backslash, or begins with a quotation mark: then it is a JSON string, in ASCII.
    Bytes that are not UTF-8 stay as Python has them in file names (surrogateescape).
    """
    is_plain = name.isascii() and name.isprintable()  # as most are, of which there are millions
    is_breaking = not is_plain and any(map(_is_breaking, name))
    return json.dumps(name) if is_breaking or "\\" in name or name[:1] == QUOTE else name


def to_cell(name: str) -> str:
    """Write a name as a cell of a UTF-8 CSV file, from which `from_line` reads it back.

    It is the name itself, unless its bytes are not UTF-8, or it begins with a quotation mark: then
    it is a JSON string, in ASCII, so that every program can read the file.
    """
    is_utf8 = not any("\ud800" <= character <= "\udfff" for character in name)
    return name if is_utf8 and name[:1] != QUOTE else json.dumps(name)


def from_line(line: str) -> str:
    """Read a name that `to_line` or `to_cell` wrote; of an older file, the line is the name."""
    if line[:1] != QUOTE:
        return line
    try:
        name = json.loads(line)
    except (ValueError, RecursionError):
        return line
    return name if isinstance(name, str) else line


def printable(line: str, encoding: str | None = None) -> str:
    """Return a line with escapes for what would break, colour or turn it, such as line ends.

    With an `encoding` there are escapes for what it has not, such as odd bytes of a path.
    """
    if line.isascii() and line.isprintable():  # as lines of features, which are long, are
        return line
    shown = "".join(
        character.encode("unicode_escape").decode() if _is_breaking(character) else character
        for character in line
    )
    return shown.encode(encoding, "backslashreplace").decode(encoding) if encoding else shown


def _is_breaking(character: str) -> bool:
    return unicodedata.category(character) in BREAKING or character in TURNING
