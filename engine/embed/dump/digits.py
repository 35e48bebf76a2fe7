"""The text that NumPy makes of float32 vectors, a block of them at a time.

`np.array2string` takes 3 microseconds a number, which is more than a network takes for it. The same
text comes here from whole arrays of digits: the shortest decimal that is read back as the same
float32, as Dragon4 finds it. Where rounding in float64 could decide otherwise, NumPy is asked.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

MOST_WIDTH = 10**9  # characters of a line
SUMMARISED = 1000  # numbers above which NumPy leaves out the inner ones, and is asked itself
LEAST_DIGITS, MOST_DIGITS = 6, 9  # every decimal of 6 digits is read back from float32; 9 suffice
PLACES = 8  # behind the point: NumPy's default precision
# NumPy writes exponents below and above these, or where the ratio is larger. From 2.3 on it does so
# from 1e6 on; between the two it is asked.
SMALLEST, LARGEST_SURE, LARGEST, RATIO = 1e-4, 1e6, 1e8, 1e3
NEAR = 1e-5  # relative distance of a limit at which NumPy is asked
TIE = 1e-6  # distance of a half at which it is
SLACK = 2e-15  # relative error of what is computed in float64
SMALLEST_NORMAL = float(np.finfo(np.float32).tiny)
POWERS = np.array([float(f"1e{n}") for n in range(56)])
ZERO, SPACE, MINUS, PLUS, POINT, EXPONENT = (ord(sign) for sign in "0 -+.e")


class Written(NamedTuple):
    """Numbers of N vectors as characters, with room for a sign before each."""

    characters: np.ndarray  # (N, D, W) uint8 of ASCII
    is_shown: np.ndarray  # (N, W) bool, which of the W any number of the vector needs
    is_sure: np.ndarray  # (N,) bool, whether NumPy would write the same


def to_texts(vectors: np.ndarray) -> list[str]:
    """Write vectors (N, D) float32 as `np.array2string` does on one line, D numbers in brackets."""
    if not 0 < vectors.shape[1] <= SUMMARISED or vectors.dtype != np.float32:
        return [to_text(vector) for vector in vectors]
    sizes = np.abs(vectors).astype(np.float64)
    is_usual = np.isfinite(sizes) & ((sizes >= SMALLEST_NORMAL) | (sizes == 0))
    sizes[~is_usual] = 1.0
    with np.errstate(divide="ignore", invalid="ignore"):
        form = _choose_form(np.where(sizes > 0, sizes, np.inf).min(1), sizes.max(1))
    digits, exponents, is_sure = _shortest(sizes)
    form[~(is_usual & is_sure).all(1)] = 0

    texts = [""] * len(vectors)
    for number, write in ((1, _scientific), (2, _positional)):
        rows = np.flatnonzero(form == number)
        if len(rows):
            written = write(sizes[rows], digits[rows], exponents[rows])
            _join(texts, rows, written, np.signbit(vectors[rows]))
            form[rows[~written.is_sure]] = 0
    for row in np.flatnonzero(form == 0):
        texts[row] = to_text(vectors[row])
    return texts


def to_text(vector: np.ndarray) -> str:
    """Write one vector (D,) on one line, as NumPy does."""
    return np.array2string(vector, max_line_width=MOST_WIDTH, separator=" ")


def _choose_form(smallest: np.ndarray, largest: np.ndarray) -> np.ndarray:
    """Say of each vector how it is written, (N,): 1 with exponents, 2 without, 0 NumPy knows."""
    ratios = largest / smallest
    is_scientific = (smallest < SMALLEST) | (ratios > RATIO) | (largest >= LARGEST)
    form = np.where(is_scientific, 1, np.where(largest < LARGEST_SURE, 2, 0))
    for values, limit in ((smallest, SMALLEST), (ratios, RATIO), (largest, LARGEST)):
        form[np.abs(values / limit - 1) < NEAR] = 0
    form[np.abs(largest / LARGEST_SURE - 1) < NEAR] = 0
    form[largest == 0] = 2
    return form


def _shortest(sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find the shortest decimals of float32 numbers that are not negative, given as float64.

    Returns their digits as integers of MOST_DIGITS digits, the exponents of the first digit, and
    whether that is sure; each of the shape of `sizes`. Zero has no digits and exponent 0.
    """
    is_zero = sizes == 0
    wanted = np.where(is_zero, 1.0, sizes)
    exponents = np.floor(np.log10(wanted)).astype(np.int64)
    exponents += _scaled(wanted, -exponents) >= 10
    exponents -= _scaled(wanted, -exponents) < 1

    as_float32 = wanted.astype(np.float32)
    mantissas = as_float32.view(np.int32) & 0x7FFFFF
    is_sure = mantissas != 0  # a power of two, whose neighbours are not equally near
    found = np.zeros(sizes.shape, np.int64)
    is_open = np.ones(sizes.shape, bool)
    for num_digits in range(LEAST_DIGITS, MOST_DIGITS + 1):
        scaled = _scaled(wanted, num_digits - 1 - exponents)
        rounded = np.rint(scaled)
        decimal = _scaled(rounded, exponents - num_digits + 1)
        low, high = (
            (decimal * (1 + error)).astype(np.float32) == as_float32 for error in (-SLACK, SLACK)
        )
        is_sure &= ~is_open | ((low == high) & (np.abs(np.abs(scaled - rounded) - 0.5) > TIE))
        is_here = is_open & low & high
        found[is_here] = (rounded[is_here] * 10 ** (MOST_DIGITS - num_digits)).astype(np.int64)
        is_open &= ~is_here

    is_sure &= ~is_open
    has_carried = found >= 10**MOST_DIGITS
    found[has_carried] //= 10
    exponents[has_carried] += 1
    found[is_zero], exponents[is_zero], is_sure[is_zero] = 0, 0, True
    return found, exponents, is_sure


def _scaled(values: np.ndarray, powers: np.ndarray) -> np.ndarray:
    """Multiply by powers of ten, or divide, so that most of these are exact."""
    factors = POWERS[np.minimum(np.abs(powers), len(POWERS) - 1)]
    return np.where(powers >= 0, values * factors, values / factors)


def _decimals(numbers: np.ndarray, count: int) -> np.ndarray:
    """Write numbers (N, D) below 2^32 as so many digits, (N, D, count) uint8 of ASCII."""
    characters = np.empty((*numbers.shape, count), np.uint8)
    left = numbers.astype(np.uint32)  # which NumPy divides fastest
    for place in range(count - 1, -1, -1):
        shorter = left // np.uint32(10)
        characters[..., place] = left - shorter * np.uint32(10) + np.uint32(ZERO)
        left = shorter
    return characters


def _rounded(scaled: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Round numbers (N, D) to integers, and say of each vector, (N,), whether that is sure."""
    rounded = np.rint(scaled)
    is_tie = np.abs(np.abs(scaled - rounded) - 0.5) < TIE
    return rounded.astype(np.int64), ~is_tie.any(1)


def _scientific(sizes: np.ndarray, digits: np.ndarray, exponents: np.ndarray) -> Written:
    """Write numbers (N, D) with exponents: all of a vector with as many digits as one needs."""
    is_used = (_decimals(digits, MOST_DIGITS) != ZERO).any(1)  # NxMOST_DIGITS
    is_used = np.logical_or.accumulate(is_used[:, ::-1], 1)[:, ::-1]
    num_digits = np.maximum(is_used.sum(1), 1)[:, None]  # Nx1
    rounded, is_sure = _rounded(_scaled(sizes, num_digits - 1 - exponents))
    has_carried = rounded == 10**num_digits
    rounded = np.where(has_carried, rounded // 10, rounded) * 10 ** (MOST_DIGITS - num_digits)
    shown = _decimals(rounded, MOST_DIGITS)
    powers = exponents + has_carried

    end = 2 + MOST_DIGITS  # of the digits, behind the sign and with the point
    characters = np.full((*digits.shape, end + 4), SPACE, np.uint8)
    characters[..., 1], characters[..., 2] = shown[..., 0], POINT
    characters[..., 3:end] = shown[..., 1:]
    characters[..., end] = EXPONENT
    characters[..., end + 1] = np.where(powers < 0, MINUS, PLUS)
    characters[..., end + 2 :] = _decimals(np.abs(powers), 2)
    is_shown = np.ones((len(digits), end + 4), bool)
    is_shown[:, 3:end] = is_used[:, 1:]
    return Written(characters, is_shown, is_sure)


def _positional(sizes: np.ndarray, digits: np.ndarray, exponents: np.ndarray) -> Written:
    """Write numbers (N, D) without exponents, each with the digits that it needs.

    A decimal with more than PLACES is the exact value, rounded.
    """
    shift = exponents - (MOST_DIGITS - 1) + PLACES  # of the digits, to units of the last place
    divisor = 10 ** np.maximum(-shift, 0)
    whole = digits * 10 ** np.maximum(shift, 0)
    is_short = whole % divisor == 0
    rounded, is_sure = _rounded(np.where(is_short, 0.0, sizes * 10.0**PLACES))
    units, fractions = np.divmod(np.where(is_short, whole // divisor, rounded), 10**PLACES)

    count = len(str(int(LARGEST_SURE)))
    before, behind = _decimals(units, count), _decimals(fractions, PLACES)
    has_begun = np.logical_or.accumulate(before != ZERO, axis=2)
    has_begun[..., -1] = True
    goes_on = np.logical_or.accumulate((behind != ZERO)[..., ::-1], axis=2)[..., ::-1]
    characters = np.full((*digits.shape, 1 + count + 1 + PLACES), SPACE, np.uint8)
    characters[..., 1 : 1 + count] = np.where(has_begun, before, SPACE)
    characters[..., 1 + count] = POINT
    characters[..., 2 + count :] = np.where(goes_on, behind, SPACE)
    is_shown = np.ones((len(digits), characters.shape[2]), bool)
    is_shown[:, 2 + count :] = goes_on.any(1)
    return Written(characters, is_shown, is_sure)


def _join(texts: list[str], rows: np.ndarray, written: Written, is_negative: np.ndarray) -> None:
    """Put the signs before the numbers, and the texts of vectors into their places."""
    characters = written.characters
    first = (characters != SPACE).argmax(2) - is_negative
    where = np.nonzero(is_negative)
    characters[where[0], where[1], first[where]] = MINUS
    starts = first.min(1)
    for place, row in enumerate(rows):
        is_shown = written.is_shown[place].copy()
        is_shown[: starts[place]] = False
        line = np.full((characters.shape[1], int(is_shown.sum()) + 1), SPACE, np.uint8)
        line[:, :-1] = characters[place][:, is_shown]
        texts[row] = f"[{line.tobytes()[:-1].decode('ascii')}]"
