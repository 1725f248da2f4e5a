"""Tokens on disk: made once, whole or not there, checked whenever they are read, made anew where
they are damaged.

A folder holds

    tokens.npy   uint16 (vocabulary up to 65,536) or uint32: all documents, one behind another
    offsets.npy  int64 [number of documents + 1]: document i is tokens[offsets[i]:offsets[i + 1]]
    roles.npy    uint8, one for each token: of text, prompt or answer (`answers`); only where there
                 are conversations
    names.json   of the documents
    index.json   format, dtype, length, digests of the others, what was read and passed over; sealed

It is written under another name and renamed, so that several processes may write it at one time. It
is read through a memory map, after every byte has been checked.
"""

import hashlib
import itertools
import json
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from jaxrope.data import answers
from jaxrope.data.chat import Chat
from jaxrope.data.documents import ReadCounts
from jaxrope.data.tokenizer import Tokenizer
from jaxrope.errors import InputError
from jaxrope.store import files, sealed

FORMAT = "jaxrope.tokens/3"
BATCH_CHARS = 1 << 22  # characters tokenised together: about 100 bytes of memory for each
BATCH_DOCUMENTS = 4096
BLOCK_TOKENS = 1 << 22  # tokens checked at one time when a cache is read


class Damaged(ValueError):
    """Tokens on disk are not what was written; the message says why."""


def default_cache_dir() -> Path:
    """Returns the user's folder for tokens, or a temporary one if that cannot be written."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    home = os.environ.get("HOME", "")
    if not os.path.isabs(base):  # the XDG specification: a relative path is to be ignored
        base = os.path.join(home, ".cache") if home else ""
    if base:
        cache_dir = Path(base) / "jaxrope" / "tokens"
        if _writable(cache_dir):
            return cache_dir
    owner = os.getuid() if hasattr(os, "getuid") else 0
    try:
        folder = Path(tempfile.gettempdir()) / f"jaxrope-{owner}" / "tokens"
        folder.parent.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise _unwritable("the folder for temporary files", error) from None
    if hasattr(os, "getuid") and folder.parent.lstat().st_uid != owner:
        raise InputError(
            f"data.cache_dir: '{folder.parent}' belongs to another user. Set data.cache_dir."
        )
    return folder


def cache_folder(folder: Path) -> Path:
    """Returns `folder`, made if needed.

    Raises:
      InputError: it cannot be.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(folder, error) from None
    return folder


def read_cache(
    folder: Path, *, vocab_size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, dict]:
    """Returns (ids, offsets, roles or None, index with names) of a cache folder, after checking all
    of it.

    Raises:
      Damaged: the format is another one, a file is cut off or damaged, or an id is outside the
        vocabulary (JAX would clamp it without a word).
    """
    try:
        index = sealed.read_json(folder / "index.json", form=FORMAT)
        raw = (folder / "names.json").read_bytes()
    except (InputError, OSError) as error:
        raise Damaged(str(error)) from None
    if hashlib.sha256(raw).hexdigest() != index["names_sha256"]:
        raise Damaged("names.json is not what was written (its SHA-256 differs)")
    index["names"] = json.loads(raw)
    if index["dtype"] != _dtype(vocab_size).name:
        raise Damaged(f"{index['dtype']} cannot be right for a vocabulary of {vocab_size:,} tokens")
    ids = _read_array(folder, "tokens.npy", _dtype(vocab_size), index["num_tokens"])
    offsets = _read_array(folder, "offsets.npy", np.dtype(np.int64), len(index["names"]) + 1)
    offsets = np.array(offsets)
    if hashlib.sha256(offsets).hexdigest() != index["offsets_sha256"]:
        raise Damaged("offsets.npy is not what was written (its SHA-256 differs)")
    digest = hashlib.sha256()
    for start in range(0, len(ids), BLOCK_TOKENS):
        block = np.ascontiguousarray(ids[start : start + BLOCK_TOKENS])
        if block.max() >= vocab_size:
            place = start + int(np.argmax(block >= vocab_size))
            raise Damaged(
                f"token {place:,} is {ids[place]}, the tokenizer's ids end at {vocab_size - 1}"
            )
        digest.update(block)
    if digest.hexdigest() != index["tokens_sha256"]:
        raise Damaged("tokens.npy is not what was written (its SHA-256 differs)")
    if not index["roles_sha256"]:
        return ids, offsets, None, index
    roles = _read_array(folder, "roles.npy", np.dtype(np.uint8), index["num_tokens"])
    if files.sha256_file(folder / "roles.npy") != index["roles_sha256"]:
        raise Damaged("roles.npy is not what was written (its SHA-256 differs)")
    return ids, offsets, roles, index


def _read_array(folder: Path, name: str, dtype: np.dtype, length: int) -> np.ndarray:
    """Returns a memory map of a vector whose header and size on disk are as they must be."""
    path = folder / name
    try:
        with open(path, "rb") as file:
            if np.lib.format.read_magic(file) != (1, 0):
                raise ValueError("not version 1.0 of the format")
            shape, _, actual = np.lib.format.read_array_header_1_0(file)
            start = file.tell()
    except (OSError, ValueError) as error:
        raise Damaged(f"{name} is no .npy file ({error})") from None
    if actual != dtype or shape != (length,):
        raise Damaged(f"{name} is {actual} {shape}, index.json says {dtype} ({length},)")
    size, expected = path.stat().st_size, start + length * dtype.itemsize
    if size != expected:
        raise Damaged(f"{name} has {size:,} bytes instead of {expected:,}")
    return np.memmap(path, dtype, mode="r", offset=start, shape=(length,))


def write_cache(
    folder: Path,
    texts: Iterable[tuple[str, str | Chat]],
    tokenizer: Tokenizer,
    counts: ReadCounts,
    setting: str,
) -> None:
    """Tokenises the texts into `folder`. If another process was quicker, its folder stays."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        files.sweep(folder.parent, older_than=files.ABANDONED_SECONDS)
        staging = Path(
            tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.", suffix=".tmp")
        )
    except OSError as error:
        raise _unwritable(folder.parent, error) from None
    try:
        _write_files(staging, texts, tokenizer, counts)
        if not (staging / "index.json").exists():
            raise InputError(
                f"{setting}: none of {counts.empty} documents has any text. Name files with text."
            )
        os.chmod(staging, 0o755)  # mkdtemp makes 0700; a cache may be shared
        try:
            os.rename(staging, folder)
        except OSError:
            if not folder.exists():
                raise
        _sync(folder.parent)
    except OSError as error:
        raise _unwritable(folder.parent, error) from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def remove_cache(folder: Path, why: str) -> None:
    """Removes a damaged folder of tokens, and tells why; what others have mapped stays theirs."""
    print(
        f"data.cache_dir: the tokens in '{folder}' are damaged: {' '.join(why.split())}. They are "
        "made anew",
        file=sys.stderr,
        flush=True,
    )
    aside = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.tmp")
    try:
        os.rename(folder, aside)
    except FileNotFoundError:  # another process was quicker
        return
    except OSError as error:
        raise _unwritable(folder.parent, error) from None
    files.remove_tree(aside)


def _write_files(
    staging: Path,
    texts: Iterable[tuple[str, str | Chat]],
    tokenizer: Tokenizer,
    counts: ReadCounts,
) -> None:
    """Writes the files; none but an empty tokens.npy if there are no tokens."""
    dtype = _dtype(tokenizer.vocab_size)
    names: list[str] = []
    lengths: list[int] = []
    digest = hashlib.sha256()
    with open(staging / "tokens.npy", "wb") as file, _Roles(staging / "roles.npy") as roles:
        start = _write_header(file, dtype, 0)
        for name, ids, of_chat in _tokenised(texts, tokenizer):
            if not len(ids):  # a normalizer can leave nothing of a text of odd characters
                counts.empty += 1
                continue
            block = ids.astype(dtype)
            file.write(block.data)
            digest.update(block.data)
            roles.add(of_chat, len(ids))
            names.append(name)
            lengths.append(len(ids))
        file.seek(0)
        # numpy pads the header so that a longer shape takes no more room
        assert _write_header(file, dtype, sum(lengths)) == start
        _sync(file)
    if not names:
        return
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    with open(staging / "offsets.npy", "wb") as file:
        _write_header(file, np.dtype(np.int64), len(lengths) + 1)
        file.write(offsets.data)
        _sync(file)
    raw = json.dumps(names).encode("ascii")  # a file's name need not be valid UTF-8
    files.write_bytes_atomic(staging / "names.json", raw)
    sealed.write_json(
        staging / "index.json",
        {
            "format": FORMAT,
            "dtype": dtype.name,
            "num_tokens": sum(lengths),
            "tokens_sha256": digest.hexdigest(),
            "offsets_sha256": hashlib.sha256(offsets).hexdigest(),
            "names_sha256": hashlib.sha256(raw).hexdigest(),
            "roles_sha256": files.sha256_file(roles.path) if roles.path.exists() else "",
            "formats": dict(counts.formats),
            "num_empty": counts.empty,
            "bad_lines": counts.bad_lines,
        },
    )


def _write_header(file, dtype: np.dtype, length: int) -> int:
    """Writes the .npy header of a vector; returns where the data starts."""
    np.lib.format.write_array_header_1_0(
        file, {"descr": dtype.str, "fortran_order": False, "shape": (length,)}
    )
    return file.tell()


class _Roles:
    """Writes roles.npy if there is a conversation; all before the first one are of text."""

    def __init__(self, path: Path):
        self.path, self._file, self._count = path, None, 0

    def __enter__(self) -> "_Roles":
        return self

    def add(self, roles: np.ndarray | None, count: int) -> None:
        """Adds the roles of the next `count` tokens; None: they are of text."""
        if roles is not None and self._file is None:
            self._file = open(self.path, "wb")
            self._start = _write_header(self._file, np.dtype(np.uint8), 0)
        if roles is not None:
            self._file.seek(self._start + self._count)  # what is passed over is 0: TEXT
            self._file.write(roles.data)
        self._count += count

    def __exit__(self, *_error) -> None:
        if self._file is not None:
            with self._file as file:
                file.truncate(self._start + self._count)
                file.seek(0)
                _write_header(file, np.dtype(np.uint8), self._count)
                _sync(file)


def _tokenised(
    texts: Iterable[tuple[str, str | Chat]], tokenizer: Tokenizer
) -> Iterator[tuple[str, np.ndarray, np.ndarray | None]]:
    """Yields (name, ids, roles of a conversation), several documents tokenised together.

    A document is never cut for it: whether a cut changes ids depends on the tokenizer, and pieces
    of 20 lines are only 1.3 times as fast.
    """
    batch: list[tuple[str, str]] = []
    chars = 0
    for name, text in texts:
        if isinstance(text, Chat):
            yield from _encode(batch, tokenizer)
            batch, chars = [], 0
            yield name, *answers.encode(tokenizer, text)
            continue
        batch.append((name, text))
        chars += len(text)
        if chars >= BATCH_CHARS or len(batch) >= BATCH_DOCUMENTS:
            yield from _encode(batch, tokenizer)
            batch, chars = [], 0
    yield from _encode(batch, tokenizer)


def _encode(
    batch: Sequence[tuple[str, str]], tokenizer: Tokenizer
) -> Iterator[tuple[str, np.ndarray, None]]:
    """Yields (name, ids, None): without the bos that windows and rows put before them."""
    ids = tokenizer.encode_batch([text for _, text in batch]) if batch else []
    bos_id = tokenizer.bos_id
    ids = [one[1:] if bos_id is not None and one[:1] == [bos_id] else one for one in ids]
    return zip((name for name, _ in batch), ids, itertools.repeat(None, len(ids)), strict=True)


def _writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _unwritable(where: Path | str, error: OSError) -> InputError:
    return InputError(
        f"data.cache_dir: tokens cannot be written to '{where}' ({error.strerror or error}). Set "
        "data.cache_dir to a folder with room."
    )


def _sync(target) -> None:
    """Waits until a file, or the names in a folder, are on disk."""
    if isinstance(target, Path):
        handle = os.open(target, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    else:
        target.flush()
        os.fsync(target.fileno())


def _dtype(vocab_size: int) -> np.dtype:
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)
