"""The tensors of a GGUF file as Hugging Face would hold them, one at a time, and back.

What is quantised is read as float32, exactly as the package gguf dequantises it; float16 and
bfloat16 stay what they are, unless an offset is taken off.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np

from jaxrope.convert import gguf_header, safetensors_io
from jaxrope.convert.gguf_config import Origin
from jaxrope.errors import InputError

_PLAIN = {0: np.dtype("<f4"), 1: np.dtype("<f2"), 30: np.dtype(ml_dtypes.bfloat16)}  # by ggml type
_FLOAT32 = np.dtype(np.float32)
_Q8_0 = 8
# Of the matrices of a file that is written: its name -> ggml's type.
KINDS = {"float32": 0, "float16": 1, "bfloat16": 30, "q8_0": _Q8_0}
KINDS |= {"f32": 0, "f16": 1, "bf16": 30}


@dataclasses.dataclass(frozen=True)
class Entry(safetensors_io.Entry):
    """A tensor in a GGUF file.

    Attributes:
      place: where it lies, and its type.
      num_bytes: there.
      origin: what was done to it.
    """

    place: gguf_header.Place
    num_bytes: int
    origin: Origin


def entry(file: Path, place: gguf_header.Place, origin: Origin) -> Entry:
    """Returns where a tensor lies, compared with the file's size.

    Raises:
      InputError: the file ends before it, or its type cannot be read.
    """
    where = f"{file}: tensor '{origin.name[:80]}'"
    block, block_bytes = _block(place.kind, where)
    columns = place.shape[-1] if place.shape else 1
    if columns % block or 0 in place.shape:
        raise InputError(
            f"{where} has shape {list(place.shape)}; rows of its type are multiples of {block}."
        )
    num_bytes = math.prod(place.shape) // block * block_bytes
    if place.begin + num_bytes > file.stat().st_size:
        raise InputError(f"{where} lies beyond the end of the file. Download it again.")
    if origin.heads and place.shape[0] % (2 * origin.heads):
        raise InputError(
            f"{where} has {place.shape[0]} rows, which {origin.heads} heads cannot share."
        )
    stored = _PLAIN.get(place.kind, _FLOAT32)
    dtype = _FLOAT32 if origin.offset else stored
    return Entry(file, origin.name, dtype, place.shape, place, num_bytes, origin)


def read_tensors(entries: dict[str, Entry]) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (name, array), in the order of the files.

    Raises:
      InputError: an array holds NaN or infinity, or a file has shrunk.
    """
    for name, item in sorted(entries.items(), key=lambda row: (row[1].file, row[1].place.begin)):
        array = _read(item)
        safetensors_io.check_finite(str(item.file), item.origin.name, array)
        yield name, array


def _read(item: Entry) -> np.ndarray:
    with open(item.file, "rb") as file:
        file.seek(item.place.begin)
        raw = np.fromfile(file, np.uint8, item.num_bytes)
    if raw.size < item.num_bytes:
        raise InputError(f"{item.file} has become shorter while it was read.")
    values = _dequantised(raw, item).reshape(item.shape)
    if item.origin.heads:
        values = _in_halves(values, item.origin.heads)
    if item.origin.offset:
        values = values.astype(np.float32) - np.float32(item.origin.offset)
    return values


def _dequantised(raw: np.ndarray, item: Entry) -> np.ndarray:
    if item.place.kind in _PLAIN:
        return raw.view(_PLAIN[item.place.kind])
    rows = raw.reshape(math.prod(item.shape[:-1]), -1)  # the package goes through 16 at a time
    with np.errstate(all="ignore"):  # scales of a damaged file; what comes of them is checked
        return package().dequantize(rows, _quantisation(item.place.kind))


def _in_halves(values: np.ndarray, heads: int) -> np.ndarray:
    """Returns the rows of each head with the first of every rotary pair before the second."""
    pairs = values.reshape(heads, -1, 2, *values.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(values.shape)


def in_pairs(values: np.ndarray, heads: int) -> np.ndarray:
    """Returns the rows of each head with the two of every rotary pair side by side; a row may be
    the bytes of a quantised one.
    """
    halves = values.reshape(heads, 2, -1, *values.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(values.shape)


def kind_of(shape: tuple[int, ...], kind: int) -> int:
    """Returns the type of a tensor where matrices have type `kind`: vectors are float32 to
    llama.cpp, and float16 is for rows that a block does not divide, as with its own converter.
    """
    if len(shape) < 2:
        return 0
    return 1 if shape[-1] % _block(kind, "")[0] else kind


def stored(name: str, values: np.ndarray, origin: Origin, kind: int) -> np.ndarray:
    """Returns a tensor of Hugging Face's as a file holds it, in the bytes of type `kind`.

    Raises:
      InputError: a value is beyond the range of the type.
    """
    if origin.offset:
        values = values.astype(np.float32) + np.float32(origin.offset)
    values = in_pairs(values, origin.heads) if origin.heads else values
    if kind in _PLAIN:
        return np.ascontiguousarray(safetensors_io.cast(name, values, _PLAIN[kind]))
    return package().quantize(np.float32(values), _quantisation(kind))


def quantisation_name(kind: int) -> str:
    """Returns ggml's name of a quantised type, "" of a plain one."""
    return "" if kind in _PLAIN else getattr(_quantisation(kind), "name", f"type {kind}")


def _block(kind: int, where: str) -> tuple[int, int]:
    """Returns (values, bytes) of a block of a type."""
    if kind in _PLAIN:
        return 1, _PLAIN[kind].itemsize
    quantisation = _quantisation(kind)
    if quantisation is None or not _is_readable(quantisation):
        name = quantisation.name if quantisation is not None else f"number {kind}"
        raise InputError(
            f"{where} is of type {name}, which the package gguf cannot dequantise. Take another"
            " quantisation of the model."
        )
    return package().GGML_QUANT_SIZES[quantisation]


def _quantisation(kind: int):
    """Returns the package's name of a type; None: it has none."""
    types = package().GGMLQuantizationType
    return types(kind) if kind in set(map(int, types)) else None


@functools.cache
def _is_readable(quantisation) -> bool:
    gguf = package()
    _, block_bytes = gguf.GGML_QUANT_SIZES[quantisation]
    try:
        gguf.dequantize(np.zeros(block_bytes, np.uint8), quantisation)
        return True
    except NotImplementedError:
        return False


def package(what: str = "Quantised weights of GGUF need"):
    """Returns the package gguf.

    Raises:
      InputError: it is not installed; `what` needs it.
    """
    try:
        import gguf
    except ImportError:
        raise InputError(
            f"{what} the package gguf. Install it (pip install jaxrope[gguf])."
        ) from None
    return gguf
