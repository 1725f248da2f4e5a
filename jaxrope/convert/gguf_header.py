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
_MOST_DIMS = 4  # of ggml's tensors


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a tensor lies in a file.

    Attributes:
      shape: as of an array in C order, which is ggml's backwards.
      kind: ggml's number of its type.
      begin: its first byte.
    """

    shape: tuple[int, ...]
    kind: int
    begin: int


@dataclasses.dataclass(frozen=True)
class Header:
    """What a file says of itself.

    Attributes:
      values: metadata by key; of an array its first item, None for an empty one.
      arrays: those that were asked for, whole, by key.
      tensors: those that were asked for, by name, one row each.
      places: of every tensor, by name.
    """

    values: dict[str, str | int | float | bool | None]
    arrays: dict[str, list]
    tensors: dict[str, np.ndarray]
    places: dict[str, Place]


def read(path: Path, names: tuple[str, ...], arrays: tuple[str, ...] = ()) -> Header:
    """Returns the metadata, the tensors `names`, and the arrays of metadata under keys `arrays`.

    Raises:
      InputError: no whole GGUF.
    """
    try:
        with open(path, "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ValueError("no regular file")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as raw:
                return _Reader(raw, arrays).header(names)
    except (ValueError, OSError, struct.error, OverflowError) as error:
        raise InputError(f"{path}: is not a whole GGUF file ({error}). Convert it again.") from None


def decimal(value: float) -> float:
    """Returns the shortest decimal that rounds to this float32, as which a file holds it."""
    return float(str(np.float32(value)))


class _Reader:
    """Goes through a file once."""

    def __init__(self, raw: mmap.mmap, arrays: tuple[str, ...]):
        self._raw, self._at, self._items = raw, 0, 0
        self._end = min(len(raw), _MOST_BYTES)
        self._wanted, self._arrays = arrays, {}

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
            (kind,) = self._unpack("I")
            if kind == _ARRAY and key in self._wanted:
                items = self._arrays[key] = self._whole_array()
                values[key] = items[0] if items else None
            else:
                values[key] = self._value(kind)
        places = dict(self._place() for _ in self._times(num_tensors))
        if len(places) < num_tensors:
            raise ValueError("it has two tensors of one name")
        alignment = values.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1:
            raise ValueError(f"general.alignment is {alignment}")
        start = -(-self._at // alignment) * alignment
        places = {
            name: dataclasses.replace(place, begin=start + place.begin)
            for name, place in places.items()
        }
        tensors = {name: self._tensor(places[name]) for name in names if name in places}
        return Header(values, self._arrays, tensors, places)

    def _place(self) -> tuple[str, Place]:
        name = self._string()
        (dims,) = self._unpack("I")
        if dims > _MOST_DIMS:
            raise ValueError(f"a tensor of {dims} dims")
        shape = self._unpack(f"{dims}Q")
        kind, offset = self._unpack("IQ")
        return name, Place(tuple(reversed(shape)), kind, offset)

    def _tensor(self, place: Place) -> np.ndarray:
        dtype = _DTYPES.get(place.kind)
        if dtype is None:
            raise ValueError(f"rope factors of type {place.kind}, which is quantised")
        count, begin = math.prod(place.shape), place.begin
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

    def _whole_array(self) -> list:
        kind, count = self._unpack("IQ")
        if kind == _STRING:
            return [self._string() for _ in self._times(count)]
        if kind not in _SCALARS:
            raise ValueError(f"an array of type {kind}")
        self._times(count)
        return list(self._unpack(f"{count}{_SCALARS[kind]}"))

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
