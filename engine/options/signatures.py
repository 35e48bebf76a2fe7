"""Options of losses, read in their source: names, types and defaults of `__init__`, and its help.

Flags follow from them before anything is imported, so that a wrong flag is answered at once.
"""

from __future__ import annotations

import ast
import inspect
import os
import sys
from collections.abc import Iterator
from functools import cache
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

TABLE = "metric_learning.losses.table"


class Option(NamedTuple):
    """An option of a loss: its annotation as text, its default, and what its class says of it."""

    type: str
    default: Any
    help: str


@cache
def losses_of_table(table: str) -> dict[str, str]:
    """Return the rows of ELEM_LOSSES or PAIR_LOSSES: name of the loss -> `module:Class`."""
    module = _parsed(TABLE)
    for node in module.body:
        target = node.target if isinstance(node, ast.AnnAssign) else None
        if isinstance(target, ast.Name) and target.id == table:
            assert isinstance(node, ast.AnnAssign) and isinstance(node.value, ast.Dict)
            rows = zip(node.value.keys, node.value.values, strict=True)
            names = {key.value: value.id for key, value in rows}  # type: ignore[union-attr,attr-defined]
            imported = dict(_imports(module))
            return {name: f"{imported[kind]}:{kind}" for name, kind in names.items()}
    raise AssertionError(f"{TABLE} has no {table}")


@cache
def options_of(place: str) -> dict[str, Option]:
    """Return the options of a loss `module:Class` by name, in the order of its signature.

    The module is not imported. Raises ValueError where there is none, or no such class in it.
    """
    name, _, kind = place.partition(":")
    module = _parsed(name)
    found = [node for node in module.body if isinstance(node, ast.ClassDef) and node.name == kind]
    if not found:
        raise ValueError(f"module {name} has no class {kind}, which --loss_name={place} names")

    signature = [n for n in found[0].body if getattr(n, "name", "") == "__init__"]
    if not signature:  # inherited
        bases = [base.id for base in found[0].bases if isinstance(base, ast.Name)]
        own = [node.name for node in module.body if isinstance(node, ast.ClassDef)]
        imported = dict(_imports(module))
        places = [f"{name if base in own else imported.get(base)}:{base}" for base in bases]
        return options_of(places[0]) if places and "None:" not in places[0] else {}

    assert isinstance(signature[0], ast.FunctionDef)
    arguments = signature[0].args
    given = [*arguments.args[1:], *arguments.kwonlyargs]
    lacking = len(arguments.args) - 1 - len(arguments.defaults)
    defaults = [*[None] * lacking, *arguments.defaults, *arguments.kw_defaults]
    constants = _constants(module)
    text = inspect.cleandoc(ast.get_docstring(found[0]) or "")
    return {
        argument.arg: Option(
            ast.unparse(argument.annotation) if argument.annotation else "",
            None if default is None else _value(default, constants),
            _argument_help(text, argument.arg),
        )
        for argument, default in zip(given, defaults, strict=True)
    }


def _parsed(name: str) -> ast.Module:
    """Parse the source of a module; neither it nor the packages that it lies in are imported."""
    if os.getcwd() not in sys.path:  # as `losses.ownloss` does
        sys.path.append(os.getcwd())
    first, *others = name.split(".")
    try:
        spec = find_spec(first)
        for other in others:
            places = None if spec is None else spec.submodule_search_locations
            spec = PathFinder.find_spec(other, places) if places else None
    except (ImportError, ValueError):
        spec = None
    if spec is None or spec.origin is None:
        raise ValueError(f"there is no module {name}: expected --loss_name=module:Class")
    return ast.parse(Path(spec.origin).read_text("utf-8"))


def _imports(module: ast.Module) -> Iterator[tuple[str, str]]:
    """Yield the names that a module imports from others, and those."""
    for node in module.body:
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                yield alias.asname or alias.name, node.module


def _constants(module: ast.Module) -> dict[str, Any]:
    """Return the constants that a module assigns, by name."""
    found: dict[str, Any] = {}
    for node in module.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            try:
                found[node.targets[0].id] = ast.literal_eval(node.value)
            except ValueError:
                continue
    return found


def _value(node: ast.expr, constants: dict[str, Any]) -> Any:
    """Evaluate a default: a literal, a constant of the module, or a quotient of numbers."""
    if isinstance(node, ast.Name):
        return constants.get(node.id)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
        return _value(node.left, constants) / _value(node.right, constants)
    return ast.literal_eval(node)


def _argument_help(text: str, name: str) -> str:
    """What the Args section of a class docstring says of an argument."""
    lines = text.partition("Args:\n")[2].split("\n\n")[0].splitlines()
    sentence: list[str] = []
    for line in lines:
        if line.startswith(f"    {name}: "):
            sentence.append(line.partition(": ")[2])
        elif sentence and line.startswith(" " * 8):
            sentence.append(line.strip())
        elif sentence:
            break
    return " ".join(sentence).rstrip(".")
