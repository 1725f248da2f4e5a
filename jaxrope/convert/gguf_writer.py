"""Writes GGUF files with the package gguf, a tensor at a time, atomically."""

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxrope.convert import gguf_weights
from jaxrope.errors import InputError

_ALIGNMENT = "general.alignment"


class Tensor(NamedTuple):
    """A tensor that is to be written.

    Attributes:
      name: in the file.
      shape: of its values, as of an array in C order.
      kind: ggml's number of its type.
    """

    name: str
    shape: tuple[int, ...]
    kind: int


class Typed(NamedTuple):
    """A value with the types of another file, of GGUF's: of it, and of the items of an array."""

    value: Any
    types: tuple[Any, ...]


def write(
    path: Path, values: dict[str, Any], tensors: list[Tensor], arrays: Iterable[np.ndarray]
) -> None:
    """Writes a file under a temporary name beside `path`, and renames it.

    Args:
      path: of the file.
      values: metadata by key, "general.architecture" with them; numbers become uint32 and float32.
      tensors: in their order.
      arrays: their bytes, in the same order.

    Raises:
      InputError: the package gguf is missing, or the file cannot be written.
    """
    gguf = package()
    values = dict(values)
    architecture, alignment = values.pop("general.architecture"), values.pop(_ALIGNMENT, None)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:80]}.", suffix=".tmp")
    os.close(handle)
    writer = gguf.GGUFWriter(name, architecture)
    try:
        for key, value in values.items():
            value, types = value if isinstance(value, Typed) else (value, _types(gguf, value))
            writer.add_key_value(key, value, *types)
        if alignment is not None:
            writer.add_custom_alignment(alignment.value)
        for tensor in tensors:
            _declare(gguf, writer, tensor)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for array in arrays:
            writer.write_tensor_data(array)
        for file in writer.fout:
            file.flush()
            os.fsync(file.fileno())
        writer.close()
        os.chmod(name, 0o644)  # mkstemp makes 0600: a result is for everybody to read
        os.replace(name, path)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}.") from None
    finally:
        writer.close()
        Path(name).unlink(missing_ok=True)


def _declare(gguf, writer, tensor: Tensor) -> None:
    kind = gguf.GGMLQuantizationType(tensor.kind)
    block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    num_bytes = int(np.prod(tensor.shape)) // block * block_bytes
    writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), num_bytes, kind)


def _types(gguf, value: Any) -> tuple[Any, ...]:
    kinds = gguf.GGUFValueType
    if isinstance(value, list):
        item = kinds.INT32 if type(value[0]) is int else _types(gguf, value[0])[0]
        return (kinds.ARRAY, item)
    by_type = {bool: kinds.BOOL, int: kinds.UINT32, float: kinds.FLOAT32, str: kinds.STRING}
    return (by_type[type(value)],)


def package():
    """Returns the package gguf, see `gguf_weights.package`."""
    return gguf_weights.package("Writing GGUF needs")
