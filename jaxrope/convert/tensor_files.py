"""The tensors of a folder that `folders.open_folder` opened: safetensors, or a GGUF file's."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from jaxrope.convert import gguf_folder, gguf_weights, safetensors_io


def catalogue(folder: Path) -> dict[str, safetensors_io.Entry]:
    """Returns every tensor by its name in Hugging Face's terms, without reading any.

    Raises:
      InputError: see `safetensors_io.catalogue` and `gguf_weights.entry`.
    """
    if gguf_folder.is_view(folder):
        return gguf_folder.catalogue(folder)
    return safetensors_io.catalogue(folder)


def notes(folder: Path) -> list[str]:
    """Returns what was assumed in opening a folder."""
    return gguf_folder.notes(folder) if gguf_folder.is_view(folder) else []


def read_tensors(entries: dict[str, safetensors_io.Entry]) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (name, array), file by file.

    Raises:
      InputError: an array holds NaN or infinity.
    """
    of_gguf = {n: entry for n, entry in entries.items() if isinstance(entry, gguf_weights.Entry)}
    yield from gguf_weights.read_tensors(of_gguf)
    rest = {name: entry for name, entry in entries.items() if name not in of_gguf}
    yield from safetensors_io.read_tensors(rest)
