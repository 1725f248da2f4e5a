"""Reading and writing the safetensors files of a Hugging Face folder, which may come from anywhere.

A file is opened by the library, which rejects whatever is not whole; its header is then read again
here, because the library ignores duplicate names. Tensors are read one at a time, shard by
shard, so that no more than one shard is mapped at any time.
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from jaxrope.convert import lookup, tensor_names
from jaxrope.errors import InputError
from jaxrope.store import strict_json

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD_BYTES = 5_000_000_000  # transformers 4's "5GB"
DTYPES = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
BY_NAME = {dtype.name: dtype for dtype in DTYPES.values()}  # the names of --dtype
_READ = DTYPES | {"F64": np.dtype(np.float64)}
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_SHARD_NAME = re.compile(r"model-\d+-of-\d+\.safetensors")
_MAX_HEADER_BYTES = 100_000_000  # the library's own limit
_BLOCK = 1 << 18  # values that are looked at together, so that they stay in the cache


@dataclasses.dataclass(frozen=True)
class Entry:
    """A tensor on disk.

    Attributes:
      name: in its file.
    """

    file: Path
    name: str
    dtype: np.dtype
    shape: tuple[int, ...]


def catalogue(folder: Path) -> dict[str, Entry]:
    """Returns every tensor of a folder by name, without reading any.

    Raises:
      InputError: no safetensors, a file that is not whole or not what its name says, an index that
        names files outside the folder, or one that disagrees with them.
    """
    if index := lookup.find(folder, INDEX):
        return _sharded(folder, index)
    if single := lookup.find(folder, SINGLE):
        return header(single)
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if pickles:
        raise InputError(
            f"{folder} holds its weights as pickle only ({pickles[0]}), which can run code and is"
            " never read. Save the model once with safe_serialization=True in transformers."
        )
    raise InputError(
        f"{folder} holds neither {SINGLE} nor {INDEX}. Name a folder in Hugging Face format."
    )


def read_tensors(entries: dict[str, Entry]) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (name, array) file by file.

    An array is a copy, and the file is closed before the next is opened.

    Raises:
      InputError: an array holds NaN or infinity.
    """
    for file in sorted({entry.file for entry in entries.values()}):
        with safe_open(file, framework="numpy") as opened:
            for name in sorted(name for name, entry in entries.items() if entry.file == file):
                array = opened.get_tensor(entries[name].name)
                check_finite(str(file), name, array)
                yield name, array


def read_in_order(entries: Iterable[Entry]) -> list[tuple[str, np.ndarray]]:
    """Returns (name, array) of a few tensors, in the order of `entries`."""
    return [next(read_tensors({entry.name: entry})) for entry in entries]


def check_finite(where: str, name: str, values: np.ndarray) -> None:
    """Refuses weights that compute nothing.

    Args:
      where: they come from, for the message.
      name: of the tensor or parameter.
      values: of a dtype of DTYPES, contiguous.

    Raises:
      InputError: a value is NaN or infinite.
    """
    if not _is_finite(values):
        raise InputError(
            f"{where}: {name} holds NaN or infinity, so the model computes nothing. Take an earlier"
            " checkpoint."
        )


def _is_finite(values: np.ndarray) -> bool:
    """Returns whether every value has an exponent below the one that NaN and infinity share.

    Without the sign, bits of floats are ordered as the numbers are; 0.2 to 0.5 ns a value.
    """
    bits = np.ascontiguousarray(values).reshape(-1).view(f"u{values.dtype.itemsize}")
    infinity = np.full(1, np.inf, values.dtype).view(bits.dtype)[0] << 1
    return all((bits[i : i + _BLOCK] << 1).max() < infinity for i in range(0, bits.size, _BLOCK))


def cast(name: str, values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Returns finite `values` in another dtype.

    Raises:
      InputError: a value becomes infinite (float16 ends at 65504).
    """
    if values.dtype == dtype:
        return values
    with np.errstate(over="ignore"):
        converted = values.astype(dtype)
    if not _is_finite(converted):
        raise InputError(
            f"{name} has values beyond the range of {dtype.name},"
            f" {float(ml_dtypes.finfo(dtype).max):g}. Take float32, or bfloat16."
        )
    return converted


def divide(sizes: dict[str, int], shard_bytes: int) -> list[dict[str, int]]:
    """Returns `sizes` (name -> bytes) cut, in order, into shards of at most `shard_bytes`.

    A larger tensor has a shard of its own.
    """
    shards: list[dict[str, int]] = [{}]
    for name, size in sizes.items():
        if shards[-1] and sum(shards[-1].values()) + size > shard_bytes:
            shards.append({})
        shards[-1][name] = size
    return shards


def write(
    folder: Path, tensors: Iterable[tuple[str, np.ndarray]], shards: list[dict[str, int]]
) -> dict[str, str]:
    """Writes tensors as one file, or as shards with an index, and returns each one's digest.

    Args:
      folder: exists, empty of safetensors.
      tensors: (name, contiguous array), in the order of `shards`; consumed a shard at a time.
      shards: of `divide`.
    """
    stream, digests, weight_map = iter(tensors), {}, {}
    for number, names in enumerate(shards, start=1):
        file = (
            SINGLE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        )
        arrays = dict(next(stream) for _ in names)
        for name, array in arrays.items():
            assert array.flags.c_contiguous and array.nbytes == names[name], name
            digests[name] = _digest(array)
            weight_map[name] = file
        write_file(folder / file, arrays)
    if len(shards) > 1:
        content = {
            "metadata": {"total_size": sum(sum(names.values()) for names in shards)},
            "weight_map": weight_map,
        }
        (folder / INDEX).write_text(
            json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8"
        )
    return digests


def write_file(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes contiguous arrays as one file."""
    save_file(arrays, path, metadata={"format": "pt"})
    path.chmod(0o644)  # the library makes 0600: a result is for everybody to read


def verify(folder: Path, digests: dict[str, str]) -> None:
    """Reads everything again and compares.

    Raises:
      RuntimeError: the folder does not hold what was written.
    """
    entries = catalogue(folder)
    if entries.keys() != digests.keys():
        raise RuntimeError(f"{folder}: other tensors were written than meant")
    for name, array in read_tensors(entries):
        if _digest(array) != digests[name]:
            raise RuntimeError(
                f"{folder}: {name} reads back with other values than were written. The disk may be"
                " failing."
            )


def _digest(array: np.ndarray) -> str:
    digest = hashlib.sha256(f"{array.dtype.name} {array.shape} ".encode())
    digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
    return digest.hexdigest()


def _sharded(folder: Path, index: Path) -> dict[str, Entry]:
    weight_map = strict_json.read(index, max_bytes=strict_json.MAX_INDEX_BYTES).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(
            f"{index}: weight_map must be an object that gives a file for each tensor."
        )
    for name, file in weight_map.items():
        plain = isinstance(file, str) and re.fullmatch(r"[\w.-]+\.safetensors", file) is not None
        if not plain or file.startswith("."):
            raise InputError(
                f"{index}: weight_map['{name[:80]}'] must be the plain name of a .safetensors file"
                f" in the folder, got {strict_json.kind(file)}."
            )
    files = sorted(set(weight_map.values()))
    on_disk = {path.name for path in folder.glob("*.safetensors")}
    missing = [file for file in files if lookup.find(folder, file) is None]
    if missing:
        raise InputError(
            f"{index}: {missing[0]} is missing from the folder, with {len(missing)} of {len(files)}"
            " shards. Download it again."
        )
    extra = sorted(
        file for file in on_disk - set(files) if _SHARD_NAME.fullmatch(file) or file == SINGLE
    )
    if extra:
        raise InputError(
            f"{index}: {extra[0]} lies in the folder and is not in the index. Remove it, or the"
            " index that does not belong to it."
        )
    entries = {}
    for file in files:
        for name, entry in header(folder / file).items():
            if name in entries:
                raise InputError(
                    f"{folder}: tensor '{name[:80]}' is in two shards,"
                    f" {entries[name].file.name} and {file}."
                )
            if weight_map.get(name) != file:
                listed_file = weight_map.get(name)
                raise InputError(
                    f"{index}: tensor '{name[:80]}' is in {file}; the index says"
                    f" {listed_file or 'nothing of it'}."
                )
            entries[name] = entry
    absent = next(
        (name for name in weight_map if name not in entries and not tensor_names.is_buffer(name)),
        None,
    )
    if absent is not None:
        raise InputError(
            f"{index}: tensor '{absent[:80]}' is not in {weight_map[absent]}, where it should be."
        )
    return entries


def header(file: Path) -> dict[str, Entry]:
    """Returns the tensors of one file, which is opened by the library first.

    Raises:
      InputError: it is not whole or not what its name says.
    """
    with open(file, "rb") as opened:
        start = opened.read(64)
    _sniff(file, start)
    try:
        with safe_open(file, framework="numpy"):
            pass
    except (SafetensorError, OSError) as error:
        reason = re.sub(r"\s+", " ", str(error))[:120]
        raise InputError(
            f"{file} is not a whole safetensors file ({reason}). Download it again."
        ) from None
    with open(file, "rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        content = strict_json.parse(
            opened.read(min(length, _MAX_HEADER_BYTES)), where=f"{file}, header"
        )
    entries = {}
    for name, row in content.items():
        if name == "__metadata__":
            continue
        if row["dtype"] not in _READ:
            raise InputError(
                f"{file}: tensor '{name[:80]}' has dtype {row['dtype']}; known are"
                f" {', '.join(_READ)}. A quantised model must be saved without quantisation:"
                " model.dequantize() of transformers, then save_pretrained; or take the model that"
                " it was made from."
            )
        entries[name] = Entry(file, name, _READ[row["dtype"]], tuple(row["shape"]))
    return entries


def _sniff(file: Path, start: bytes) -> None:
    """Names the usual impostors."""
    text = start.lstrip().lower()
    if start.startswith(b"version https://git-lfs"):
        raise InputError(
            f"{file} is a git-LFS pointer, not the weights. Run `git lfs pull` in that folder."
        )
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise InputError(
            f"{file} is a web page, not the weights. The download went wrong; do it again."
        )
    if start.startswith(
        (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
    ) and start[2:8] != bytes(6):
        raise InputError(
            f"{file} is a pickle, which can run code and is never read, whatever its name."
        )
