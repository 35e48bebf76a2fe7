"""Finds JPEG files whose data have a hole, though they end as they should.

Decoders fill in what is missing, or take what comes next for it, with a warning or without: libjpeg
is silent about one hole of 512 zeros in eight. Here the codes of the image data are read again,
without making pixels of them, and all must be as an encoder leaves it: codes are known,
coefficients lie in their block and in the range of 8-bit pixels, a scan has as many blocks as the
image, and no scan is missing. What lies between a whole scan and the next marker is harmless.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from metric_learning.reader.sets.jpeg_head import EOI, FRAME_MARKERS, SOS, segments

SEQUENTIAL, PROGRESSIVE = (0xC0, 0xC1), 0xC2  # kinds of frames with Huffman codes
DHT, DQT, DRI = 0xC4, 0xDB, 0xDD
BLOCK = 64  # coefficients
# A coefficient times its step is up to 1024. The rest is for encoders that go beyond white on
# purpose, and a step for rounding.
MOST = 1300
MOST_EQUAL = 47  # coefficients in a row that are not 0; zeros that overwrite codes give 63
WHOLE, CUT, BAD_CODE, MISPLACED, OUT_OF_RANGE, EQUAL, LEFT_OVER = range(7)
REASONS = {
    CUT: "image data are missing",
    BAD_CODE: "an unknown code in the image data",
    MISPLACED: "a coefficient outside of its block",
    OUT_OF_RANGE: "a coefficient out of range",
    EQUAL: "coefficients that are all equal",
    LEFT_OVER: "image data are left over",
}
MOST_PADDING = 64  # bytes behind a scan that may be anything; more of them are all the same
PADDING = 16  # zero bytes behind the image data, so that reading beyond them is no fault


class _Unknown(Exception):
    """A kind of JPEG that is not looked into."""


class _Component(NamedTuple):
    """A colour of the image."""

    columns: int  # blocks in a unit of all colours
    rows: int
    width: int  # blocks that hold pixels
    height: int
    stride: int  # blocks per row, with those that fill up the last unit
    offset: int  # number of its first block
    steps: int  # number of its table of steps


def find_damage(data: bytes) -> str:
    """Say what is wrong with the image data of a JPEG; empty where nothing is, or it is unknown.

    Arithmetic codes, more than 8 bits and other rarities are not looked into.
    """
    check = compile_check()
    if check is None:
        return ""
    try:
        return _Check(data, check).run()
    except _Unknown:
        return ""
    except (IndexError, KeyError, ValueError):
        return "its segments contradict each other"


class _Check:
    """The reading of one file, segment by segment."""

    def __init__(self, data: bytes, check_scan: Callable[..., int]) -> None:
        self._data, self._check_scan = data, check_scan
        self._tables = np.zeros((8, 1 << 16), np.int32)  # those for DC, then those for AC
        self._has_table = np.zeros(8, bool)
        self._steps = np.zeros((4, BLOCK), np.int64)  # in zigzag order, as all coefficients here
        self._interval = 0  # units between restart markers, 0: there are none
        self._components: dict[int, _Component] = {}

    def run(self) -> str:
        """Read all segments up to the end of the image; return what is wrong."""
        found = list(segments(self._data))
        nexts = [start - (2 if marker == EOI else 4) for marker, start, _ in found[1:]]
        for (marker, start, end), place in zip(found, [*nexts, len(self._data)], strict=True):
            content = self._data[start:end]
            if marker in FRAME_MARKERS:
                self._read_frame(marker, content)
            elif marker == DHT:
                self._read_codes(content)
            elif marker == DQT:
                self._read_steps(content)
            elif marker == DRI:
                self._interval = int.from_bytes(content[:2], "big")
            elif marker == SOS:
                reason = self._read_scan(content, self._data[end:place])
                if reason:
                    return reason

        return "" if self._components and not self._low.any() else "a scan is missing"

    def _read_frame(self, marker: int, content: bytes) -> None:
        """Note how large the image is and what its colours are."""
        height, width = int.from_bytes(content[1:3], "big"), int.from_bytes(content[3:5], "big")
        is_known = marker in (*SEQUENTIAL, PROGRESSIVE) and content[0] == 8 and height and width
        if not is_known or self._components:
            raise _Unknown
        self._is_progressive = marker == PROGRESSIVE

        parts = [content[place : place + 3] for place in range(6, 6 + 3 * content[5], 3)]
        factors = [(part[1] >> 4, part[1] & 15) for part in parts]
        most_columns, most_rows = (max(values) for values in zip(*factors, strict=True))
        self._units = -(-width // (8 * most_columns)), -(-height // (8 * most_rows))

        num_blocks = 0
        for part, (columns, rows) in zip(parts, factors, strict=True):
            own_width = -(-width * columns // (8 * most_columns))
            own_height = -(-height * rows // (8 * most_rows))
            stride = self._units[0] * columns
            self._components[part[0]] = _Component(
                columns, rows, own_width, own_height, stride, num_blocks, part[2]
            )
            num_blocks += stride * self._units[1] * rows

        self._numbers = {name: number for number, name in enumerate(self._components)}
        # Lowest bit of each coefficient that is known, -1: none.
        self._low = np.full((len(parts), BLOCK), -1)
        # Whether a coefficient is known not to be 0.
        self._history = np.zeros((num_blocks if self._is_progressive else 1, BLOCK), np.bool_)

    def _read_codes(self, content: bytes) -> None:
        """Note tables of Huffman codes."""
        while content:
            number = 4 * (content[0] >> 4) + (content[0] & 15)
            size = 17 + sum(content[1:17])
            self._tables[number] = _code_table(content[1:size])
            self._has_table[number] = True
            content = content[size:]

    def _read_steps(self, content: bytes) -> None:
        """Note tables of the steps in which coefficients are counted."""
        while content:
            kind = np.dtype(">u2" if content[0] >> 4 else "u1")
            size = 1 + BLOCK * kind.itemsize
            self._steps[content[0] & 15] = np.frombuffer(content[1:size], kind)
            content = content[size:]

    def _read_scan(self, content: bytes, codes: bytes) -> str:
        """Read the codes of a scan, as they are in the file; return what is wrong."""
        count = content[0]
        first, last, bits = content[1 + 2 * count : 4 + 2 * count]
        spectrum = first, last, bits >> 4, bits & 15
        if not self._is_progressive:
            spectrum = 0, BLOCK - 1, 0, 0
        names, tables = content[1 : 1 + 2 * count : 2], content[2 : 2 + 2 * count : 2]
        if not all(self._is_next(name, spectrum) for name in names):
            return "a scan is missing"

        layout = []
        for name, table in zip(names, tables, strict=True):
            part = self._components[name]
            columns, rows = (part.columns, part.rows) if count > 1 else (1, 1)
            dc_table, ac_table = table >> 4, 4 + (table & 15)
            self._require_tables(dc_table, ac_table, spectrum)
            place = columns, rows, part.stride, part.offset
            layout.append((*place, dc_table, ac_table, part.steps))

        units = self._units if count > 1 else (part.width, part.height)
        return self._check_codes(codes, np.array(layout), units, spectrum)

    def _is_next(self, name: int, spectrum: tuple[int, int, int, int]) -> bool:
        """Whether a scan goes on where the last one left a component; notes that it is there."""
        first, last, high, low = spectrum
        known = self._low[self._numbers[name], first : last + 1]
        is_next = bool((np.maximum(known, 0) == high).all())
        known[:] = low
        return is_next

    def _require_tables(
        self, dc_table: int, ac_table: int, spectrum: tuple[int, int, int, int]
    ) -> None:
        """Raise _Unknown where the file lacks a table: decoders have some of their own."""
        first, last, high, _ = spectrum
        needs_dc = first == 0 and high == 0
        if (needs_dc and not self._has_table[dc_table]) or (last and not self._has_table[ac_table]):
            raise _Unknown

    def _check_codes(
        self,
        codes: bytes,
        layout: np.ndarray,
        units: tuple[int, int],
        spectrum: tuple[int, int, int, int],
    ) -> str:
        """Check the codes of a scan of so many units; return what is wrong."""
        values, starts = _split(np.frombuffer(codes, np.uint8))
        num_units = units[0] * units[1]
        if len(starts) - 1 != (math.ceil(num_units / self._interval) if self._interval else 1):
            return REASONS[CUT]

        state = self._check_scan(
            values,
            starts,
            self._interval or num_units,
            units,
            layout,
            self._tables,
            self._steps,
            self._history,
            spectrum,
            self._is_progressive,
        )
        return REASONS.get(state, "")


@lru_cache(32)
def _code_table(content: bytes) -> np.ndarray:
    """Return (65536,) int32: by the next 16 bits, 256 x the length of their code + its symbol."""
    table = np.zeros(1 << 16, np.int32)
    code, place = 0, 16
    for length in range(1, 17):
        for symbol in content[place : place + content[length - 1]]:
            table[code << (16 - length) : (code + 1) << (16 - length)] = length << 8 | symbol
            code += 1
        place += content[length - 1]
        code <<= 1
    return table


def _split(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the codes without stuffing and markers, and where the parts between restarts start.

    A last start is where the last part ends. Raises ValueError where restarts are out of order.
    """
    follows_ff = np.zeros(len(codes), bool)
    follows_ff[1:] = codes[:-1] == 0xFF
    is_restart = follows_ff & (codes >= 0xD0) & (codes <= 0xD7)
    restarts = np.flatnonzero(is_restart)
    if not np.array_equal(codes[restarts] - 0xD0, np.arange(len(restarts)) % 8):
        raise ValueError("restart markers out of order")

    # What was stuffed behind 0xFF, both bytes of a restart marker, and 0xFF as filling.
    is_left_out = is_restart | (follows_ff & (codes == 0))
    is_left_out[restarts - 1] = True
    is_left_out[:-1] |= follows_ff[1:] & (codes[1:] == 0xFF)
    if len(codes) and codes[-1] == 0xFF:
        is_left_out[-1] = True

    kept = np.cumsum(~is_left_out)
    ends = [*kept[restarts], len(codes) - is_left_out.sum()]
    values = np.concatenate([codes[~is_left_out], np.zeros(PADDING, np.uint8)])
    return values, np.array([0, *ends], np.int64)


@lru_cache(1)
def compile_check() -> Callable[..., int] | None:
    """Compile `_check_scan`; None where that cannot be."""
    try:
        import numba
        from numba.extending import register_jitable

        for function in (_peek, _receive, _read_dc, _read_ac, _refine_ac, _read_block, _finish):
            globals()[function.__name__] = register_jitable(function)
        check = numba.njit(nogil=True, cache=True)(_check_scan)

        # An empty scan has it compiled now.
        no_codes, starts = np.zeros(PADDING, np.uint8), np.zeros(2, np.int64)
        tables = np.zeros((8, 1 << 16), np.int32), np.zeros((4, BLOCK), np.int64)
        history, places = np.zeros((1, BLOCK), np.bool_), np.zeros((1, 7), np.int64)
        check(no_codes, starts, 1, (0, 0), places, *tables, history, (0, 0, 0, 0), False)
        return check
    except (ImportError, RuntimeError) as error:  # no numba, or no folder for what it compiles
        warnings.warn(f"damaged JPEG data are not looked for: {error}", stacklevel=2)
        return None


def _peek(values: Any, place: Any) -> Any:
    """Return the next 16 bits."""
    i = place >> 3
    word = (np.int64(values[i]) << 16) | (np.int64(values[i + 1]) << 8) | np.int64(values[i + 2])
    return (word >> (8 - (place & 7))) & 0xFFFF


def _receive(values: Any, place: Any, size: Any) -> Any:
    """Return the next `size` bits as a coefficient: the upper half of them is positive."""
    if size == 0:
        return np.int64(0)
    value = _peek(values, place) >> (16 - size)
    return value if value >> (size - 1) else value - (1 << size) + 1


def _read_dc(values: Any, state: Any, table: Any, most: Any) -> Any:
    """Read a DC coefficient, as its difference to the one before.

    The state is the number of the next bit, of blocks that are known to have no more AC
    coefficients, and the DC coefficient.
    """
    entry = table[_peek(values, state[0])]
    size = entry & 255
    if entry == 0 or size > 15:
        return BAD_CODE
    state[0] += entry >> 8
    state[2] += _receive(values, state[0], size)
    state[0] += size
    return OUT_OF_RANGE if abs(state[2]) > most else WHOLE


def _read_ac(
    values: Any,
    state: Any,
    limit: Any,
    table: Any,
    steps: Any,
    history: Any,
    spectrum: Any,
    is_progressive: Any,
) -> Any:
    """Read the AC coefficients of a block for the first time."""
    if state[1] > 0:
        state[1] -= 1
        return WHOLE
    first, last, _, low = spectrum
    k, before, num_equal = max(first, 1), 0, 0

    while k <= last and state[0] <= limit:
        entry = table[_peek(values, state[0])]
        run, size = (entry >> 4) & 15, entry & 15
        if entry == 0 or (size == 0 and 0 < run < 15 and not is_progressive):
            return BAD_CODE
        state[0] += entry >> 8
        if size == 0 and run < 15:  # this block is complete, and some that follow
            state[1] = (1 << run) - 1 + (_peek(values, state[0]) >> (16 - run))
            state[0] += run
            break

        k += run
        if k > last:
            return MISPLACED
        if size > 0:
            value = _receive(values, state[0], size)
            state[0] += size
            if (abs(value) << low) * steps[k] > MOST + (steps[k] << low):
                return OUT_OF_RANGE
            num_equal = num_equal + 1 if value == before and run == 0 else 1
            before = value
            if num_equal > MOST_EQUAL:
                return EQUAL
            history[k] = True
        k += 1
    return WHOLE


def _refine_ac(values: Any, state: Any, limit: Any, table: Any, history: Any, spectrum: Any) -> Any:
    """Read one more bit of the AC coefficients of a block."""
    k, last = spectrum[0], spectrum[1]
    while state[1] == 0 and k <= last and state[0] <= limit:
        entry = table[_peek(values, state[0])]
        run, size = (entry >> 4) & 15, entry & 15
        if entry == 0 or size > 1:
            return BAD_CODE
        state[0] += (entry >> 8) + size
        if size == 0 and run < 15:
            state[1] = (1 << run) + (_peek(values, state[0]) >> (16 - run))
            state[0] += run
            break

        while k <= last and (history[k] or run > 0):
            if history[k]:
                state[0] += 1  # a bit for each coefficient that is not 0
            else:
                run -= 1
            k += 1
        if k > last:
            return MISPLACED
        if size == 1:
            history[k] = True
        k += 1

    if state[1] > 0:
        for i in range(k, last + 1):
            state[0] += history[i]
        state[1] -= 1
    return WHOLE


def _read_block(
    values: Any,
    state: Any,
    limit: Any,
    dc_codes: Any,
    ac_codes: Any,
    steps: Any,
    history: Any,
    spectrum: Any,
    is_progressive: Any,
) -> Any:
    """Read what a scan tells about a block."""
    first, last, high, low = spectrum
    found = WHOLE
    if first == 0 and high > 0:
        state[0] += 1
    elif first == 0:
        most = MOST // max(steps[0] << low, 1) + 1
        found = _read_dc(values, state, dc_codes, most)

    if found == WHOLE and last > 0 and high > 0:
        found = _refine_ac(values, state, limit, ac_codes, history, spectrum)
    elif found == WHOLE and last > 0:
        found = _read_ac(values, state, limit, ac_codes, steps, history, spectrum, is_progressive)
    return CUT if state[0] > limit else found


def _finish(values: Any, state: Any, limit: Any) -> Any:
    """Check that a part of a scan ends where its codes do: the bits that are left of a byte are 1.

    Where no bytes of padding follow, they may also be 0, as some encoders leave them.
    """
    if state[1] > 0:
        return CUT
    count = -state[0] & 7
    rest = np.int64(values[state[0] >> 3]) & ((1 << count) - 1)
    start, end = (state[0] + count) >> 3, limit >> 3
    if rest != (1 << count) - 1 and not (start == end and rest == 0):
        return LEFT_OVER

    if end - start > MOST_PADDING:
        for i in range(start, end):
            if values[i] != values[start]:
                return LEFT_OVER
    return WHOLE


def _check_scan(
    values: Any,
    starts: Any,
    interval: Any,
    units: Any,
    layout: Any,
    tables: Any,
    steps: Any,
    history: Any,
    spectrum: Any,
    is_progressive: Any,
) -> Any:
    """Check all blocks of a scan, unit after unit; what is wrong, or WHOLE."""
    state = np.zeros(3, np.int64)  # see `_read_dc`
    dcs = np.zeros(len(layout), np.int64)
    limit = np.int64(0)  # bit behind the codes up to the next restart
    for unit in range(units[0] * units[1]):
        if unit % interval == 0:
            part = unit // interval
            if part > 0:
                found = _finish(values, state, limit)
                if found != WHOLE:
                    return found
            state[0], state[1], limit = 8 * starts[part], 0, 8 * starts[part + 1]
            dcs[:] = 0

        row, column = unit // units[0], unit % units[0]
        for c in range(len(layout)):
            columns, rows, stride, offset, dc_table, ac_table, number = layout[c]
            codes = tables[dc_table], tables[ac_table]
            state[2] = dcs[c]
            for i in range(rows * columns):
                block = offset + (row * rows + i // columns) * stride + column * columns
                past = history[block + i % columns if is_progressive else 0]
                found = _read_block(
                    values, state, limit, *codes, steps[number], past, spectrum, is_progressive
                )
                if found != WHOLE:
                    return found
            dcs[c] = state[2]
    return _finish(values, state, limit)
