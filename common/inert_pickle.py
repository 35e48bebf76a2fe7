"""Reads pickles without ever running code that they name.

A pickle is a small program that may call whatever it can name. Here it gets nothing but the
functions and values that a reader hands it; for every other name it gets a Stranger, which does
nothing but keep what the pickle says of it. Nothing that lives longer than the read is changed.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from typing import IO, Any


class Stranger:
    """Stands for a function, a class or an object of it that is not known.

    Attributes:
        name: `module.name`, as the pickle has it.
        state: what the pickle wants its attributes to be, often a dict; None where it says nothing.
        content: its items, of an object that is a kind of dict.
    """

    __slots__ = ("content", "name", "state")

    def __init__(self, name: str) -> None:
        self.name = name
        self.state: Any = None
        self.content: dict[Any, Any] = {}


class Builder:
    """A function that a pickle may call."""

    __slots__ = ("function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function


class InertUnpickler(pickle._Unpickler):
    """Unpickles plain values and what `known` builds; all else becomes strangers.

    The interpreter is Python's own one in Python: that in C reserves memory for whatever number a
    pickle names. All steps of it that call a function or write to an object are replaced.

    Args:
        file: opened for reading in binary.
        known: `module.name` -> a Builder, or the value that the name stands for.
        encoding: of the text of Python 2; "bytes" leaves it as bytes.

    Attributes:
        strangers: the names that were asked for and are not known.
    """

    stack: list[Any]
    append: Callable[[Any], None]
    pop_mark: Callable[[], list[Any]]

    def __init__(self, file: IO[bytes], known: Mapping[str, Any], encoding: str = "latin1") -> None:
        super().__init__(file, encoding=encoding)
        self.known = known
        self.strangers: set[str] = set()

    def find_class(self, module: str, name: str) -> Any:
        """Return what a name stands for."""
        place = f"{module}.{name}"
        if place in self.known:
            return self.known[place]
        self.strangers.add(place)
        return Stranger(place)

    def get_extension(self, code: int) -> None:
        """Refuse a name of this process's own table."""
        raise pickle.UnpicklingError(f"it asks for extension {code}")

    def _called(self, function: Any, arguments: Any) -> Any:
        if isinstance(function, Builder) and isinstance(arguments, tuple):
            return function.function(*arguments)
        if isinstance(function, Stranger):
            return Stranger(function.name)
        raise pickle.UnpicklingError("it calls what is no function")

    def _instantiate(self, kind: Any, arguments: Any) -> None:
        self.append(self._called(kind, tuple(arguments)))

    def load_reduce(self) -> None:
        """Call a function."""
        arguments = self.stack.pop()
        self.stack[-1] = self._called(self.stack[-1], arguments)

    def load_newobj_ex(self) -> None:
        """Make an object with keyword arguments, which are for strangers alone."""
        self.stack.pop()
        self.load_reduce()

    def load_build(self) -> None:
        """Set the state of a stranger, or of an array; other objects have none that matters."""
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, Stranger):
            target.state = state
        elif isinstance(target, Stateful):
            target.set_state(state)

    def load_append(self) -> None:
        """Append to a list."""
        value = self.stack.pop()
        self._extend([value])

    def load_appends(self) -> None:
        """Append several values to a list."""
        self._extend(self.pop_mark())

    def _extend(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is list:
            target.extend(values)
        elif not isinstance(target, Stranger):
            raise pickle.UnpicklingError("it appends to what is no list")

    def load_setitem(self) -> None:
        """Set an item of a dict."""
        value, key = self.stack.pop(), self.stack.pop()
        self._update([key, value])

    def load_setitems(self) -> None:
        """Set several items of a dict."""
        self._update(self.pop_mark())

    def _update(self, items: list[Any]) -> None:
        target = self.stack[-1]
        target = target.content if isinstance(target, Stranger) else target
        if type(target) is not dict:
            raise pickle.UnpicklingError("it sets items of what is no dict")
        target.update(zip(checked_keys(items[::2]), items[1::2], strict=True))

    def load_additems(self) -> None:
        """Add to a set."""
        items = self.pop_mark()
        if type(self.stack[-1]) is not set:
            raise pickle.UnpicklingError("it adds to what is no set")
        self.stack[-1].update(checked_keys(items))

    def load_frozenset(self) -> None:
        """Make a frozen set."""
        self.append(frozenset(checked_keys(self.pop_mark())))

    def load_dict(self) -> None:
        """Make a dict of all items since the mark."""
        items = self.pop_mark()
        self.append({})
        self._update(items)

    dispatch = pickle._Unpickler.dispatch | {  # type: ignore[assignment]
        pickle.REDUCE[0]: load_reduce,
        pickle.NEWOBJ[0]: load_reduce,
        pickle.NEWOBJ_EX[0]: load_newobj_ex,
        pickle.BUILD[0]: load_build,
        pickle.APPEND[0]: load_append,
        pickle.APPENDS[0]: load_appends,
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
        pickle.ADDITEMS[0]: load_additems,
        pickle.FROZENSET[0]: load_frozenset,
        pickle.DICT[0]: load_dict,
    }


def checked_keys(keys: list[Any]) -> list[Any]:
    """Return what is to be hashed; UnpicklingError where that could take for ever.

    It could for a tuple that holds another one twice, which does so too, and so on.
    """
    parts = [part for key in keys for part in (key if type(key) is tuple else [key])]
    if any(type(part) in (tuple, frozenset) for part in parts):
        raise pickle.UnpicklingError("a key that is no name")
    return keys


class Stateful:
    """What a Builder makes that gets its content in a second step."""

    def set_state(self, state: Any) -> None:
        """Take the content."""
        raise NotImplementedError


def describe_strangers(names: set[str], limit: int = 3) -> str:
    """Join the first names that a pickle asks for, with dots where there are more."""
    shown = [*sorted(names)[:limit], *["..."] * (len(names) > limit)]
    return ", ".join(shown)
