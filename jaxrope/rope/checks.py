"""Rules for numbers of any origin: a file's, a caller's, numpy's."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxrope.errors import InputError

MOST_TOKENS = 2**31 - 1  # positions are int32
LEAST, MOST = 1e-30, 1e30  # of what becomes float32


def finite(value: Any) -> bool:
    """Returns whether a value is a number that a float holds; True and False are none."""
    is_number = isinstance(value, int | float | np.integer | np.floating)
    # whole numbers can be too large for a float, and NaN is below nothing
    return is_number and not isinstance(value, bool) and bool(abs(value) <= 1e300)


def positive(value: Any) -> bool:
    """Returns whether a value is a number above 0 that float32 holds."""
    return finite(value) and bool(LEAST <= value <= MOST)


def whole(value: Any, least: int, most: int = MOST_TOKENS) -> bool:
    """Returns whether a value is a whole number of a range; True and False are none."""
    is_whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    return is_whole and bool(least <= value <= most)


def is_list(value: Any) -> bool:
    """Returns whether a value is a list, a tuple or an array, and no text."""
    return isinstance(value, Sequence | np.ndarray) and not isinstance(value, str)


def factors(path: str, values: Any, *, num_pairs: int = 0, least: float = LEAST) -> np.ndarray:
    """Returns factors as float64, [R] or [L, R].

    Args:
      path: of the factors, for messages.
      values: numbers, or rows of them.
      num_pairs: R; 0: any, the same in all rows.
      least: of each.

    Raises:
      InputError: they are no such numbers.
    """
    if hasattr(values, "__array__"):
        values = np.asarray(values)
    if not is_list(values) or not any(map(is_list, values)):
        return _row(path, values, num_pairs, least)
    rows = []
    for layer, row in enumerate(values):
        rows.append(_row(f"{path}[{layer}]", row, num_pairs, least))
        num_pairs = num_pairs or len(rows[0])
    return np.stack(rows)


def require(holds: bool, path: str, rule: str, actual: Any) -> None:
    """Raises the InputError "path must rule, got actual." unless `holds`."""
    if not holds:
        text = str(actual)
        text = text if len(text) <= 60 else f"{text[:57]}..."
        raise InputError(f"{path} must {rule}, got {text}.")


def _row(path: str, values: Any, num_pairs: int, least: float) -> np.ndarray:
    numbers = np.zeros(0)
    if is_list(values) and not any(isinstance(v, bool) or is_list(v) for v in values):
        numbers = np.asarray(values)
    is_row = numbers.ndim == 1 and len(numbers) and numbers.dtype.kind in "iuf"
    require(is_row, path, "be a list of numbers", repr(values))
    same = num_pairs in (0, len(numbers))
    require(same, path, f"hold {num_pairs} numbers (rotary_dim / 2)", len(numbers))
    bad = np.flatnonzero(~((numbers >= least) & (numbers <= MOST)))
    rule = (
        "all be finite and above 0" if least == LEAST else f"all be finite and at least {least:g}"
    )
    require(not len(bad), path, rule, len(bad) and f"{numbers[bad[0]]} at index {bad[0]}")
    return numbers.astype(np.float64)
