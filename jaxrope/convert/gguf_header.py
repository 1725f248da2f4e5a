"""The header of a GGUF file, which may come from anywhere.

Every length in it is compared with the file's, and nothing is read that is not asked for: neither
the vocabulary, nor weights. Versions 2 and 3, little-endian.
"""

import dataclasses
import math
import mmap
import os
import stat
import struct
from pathlib import Path

import numpy as np

from jaxrope.errors import InputError

MAGIC = b"GGUF"
_SCALARS = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}  # of struct
_STRING, _ARRAY = 8, 9
_DTYPES = {0: np.dtype("<f4"), 1: np.dtype("<f2")}  # of tensors; others are quantised
# The largest vocabularies and their merges have 800,000 strings and 16 MB.
_MOST_ITEMS, _MOST_BYTES = 1 << 21, 1 << 25


@dataclasses.dataclass(frozen=True)
class Header:
    """What a file says of itself.

    Attributes:
      values: metadata by key; of an array its first item, None for an empty one.
      tensors: those that were asked for, by name, one row each.
    """

    values: dict[str, str | int | float | bool | None]
    tensors: dict[str, np.ndarray]


def read(path: Path, names: tuple[str, ...]) -> Header:
    """Returns the metadata and the tensors `names`.

    Raises:
      InputError: no whole GGUF.
    """
    try:
        with open(path, "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ValueError("no regular file")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as raw:
                return _Reader(raw).header(names)
    except (ValueError, OSError, struct.error, OverflowError) as error:
        raise InputError(f"{path}: is not a whole GGUF file ({error}). Convert it again.") from None


class _Reader:
    """Goes through a file once."""

    def __init__(self, raw: mmap.mmap):
        self._raw, self._at, self._items = raw, 0, 0
        self._end = min(len(raw), _MOST_BYTES)

    def header(self, names: tuple[str, ...]) -> Header:
        """Returns the header."""
        magic, version, num_tensors, num_keys = self._unpack("4sIQQ")
        if magic != MAGIC or version not in (2, 3):
            raise ValueError(f"{magic!r}, version {version}")
        values: dict = {}
        for _ in self._times(num_keys):
            key = self._string()
            if key in values:
                raise ValueError(f"it gives {key} twice")
            values[key] = self._value(*self._unpack("I"))
        places = {}
        for _ in self._times(num_tensors):
            name = self._string()
            shape = self._unpack(f"{min(*self._unpack('I'), 9)}Q")
            kind, offset = self._unpack("IQ")
            if name in names:
                places[name] = shape, kind, offset
        alignment = values.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1:
            raise ValueError(f"general.alignment is {alignment}")
        start = -(-self._at // alignment) * alignment
        return Header(values, {name: self._tensor(start, *of) for name, of in places.items()})

    def _tensor(self, start: int, shape: tuple[int, ...], kind: int, offset: int) -> np.ndarray:
        dtype = _DTYPES.get(kind)
        if dtype is None:
            raise ValueError(f"rope factors of type {kind}, which is quantised")
        count, begin = math.prod(shape), start + offset
        if begin + count * dtype.itemsize > len(self._raw):
            raise ValueError("it ends before its tensors")
        return np.frombuffer(self._raw[begin : begin + count * dtype.itemsize], dtype)

    def _value(self, kind: int, depth: int = 0):
        """Returns a value, or the first one of an array."""
        if kind in _SCALARS:
            return self._unpack(_SCALARS[kind])[0]
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY or depth > 2:
            raise ValueError(f"a value of type {kind}")
        kind, count = self._unpack("IQ")
        if count == 0:
            return None
        first = self._value(kind, depth + 1)
        if kind in _SCALARS:
            self._skip((count - 1) * struct.calcsize(f"<{_SCALARS[kind]}"))
            return first
        for _ in self._times(count - 1):
            if kind == _STRING:
                self._skip(*self._unpack("Q"))
            else:
                self._value(kind, depth + 1)
        return first

    def _times(self, count: int) -> range:
        self._items += count
        if self._items > _MOST_ITEMS:
            raise ValueError(f"it has {self._items} items")
        return range(count)

    def _unpack(self, layout: str) -> tuple:
        begin = self._at
        self._skip(struct.calcsize(f"<{layout}"))
        return struct.unpack_from(f"<{layout}", self._raw, begin)

    def _string(self) -> str:
        (size,) = self._unpack("Q")
        begin = self._at
        self._skip(size)
        return self._raw[begin : self._at].decode("utf-8", "replace")

    def _skip(self, size: int) -> None:
        if size > self._end - self._at:
            raise ValueError(f"its header exceeds {self._end} bytes")
        self._at += size
