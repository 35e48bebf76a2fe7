"""Parameters written as `name=value,name=value`."""

from __future__ import annotations

import math
from collections.abc import Mapping


def parse_options(
    text: str, types: Mapping[str, type[int] | type[float]], what: str
) -> dict[str, float]:
    """Parse `name=value,name=value` into the parameters that were given, of those of `types`.

    Raises ValueError where one is unknown, given twice, or not a finite number of its type.
    """
    options: dict[str, float] = {}
    for part in filter(None, map(str.strip, text.split(","))):
        name, _, value = (word.strip() for word in part.partition("="))
        if name not in types:
            known = ", ".join(types) or "none"
            raise ValueError(f"{what} has no parameter {name!r}: its parameters are {known}")
        if name in options:
            raise ValueError(f"{what}: {name} is given twice")

        try:
            number = types[name](value)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            kind = "an integer" if types[name] is int else "a number"
            raise ValueError(f"{what}: expected {name} to be {kind}, found {value!r}")
        options[name] = number
    return options
