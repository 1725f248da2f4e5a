"""Documents and arrays whose damage is seen: JSON with its own digest, .npz beside a record of it.

A sealed document ends with "sha256", the digest of everything else in it. Whoever edits one by hand
takes that key out: a document without it is read as it stands where the reader allows that.
"""

import hashlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxrope.errors import InputError
from jaxrope.store import files, strict_json

KEY = "sha256"
MAX_BYTES = 1 << 28  # a larger document is none of ours


def write_json(path: Path | str, content: Mapping[str, Any]) -> None:
    """Writes a document with its digest, whole or not at all; NaN and infinity are refused."""
    files.write_json_atomic(path, {**content, KEY: digest_of(content)})


def read_json(path: Path | str, *, form: str | None = None, sealed: bool = True) -> dict[str, Any]:
    """Returns a document without its digest.

    Args:
      path: of the file.
      form: what its "format" must be; None: any.
      sealed: whether it must have a digest; False: it may be written by hand.

    Raises:
      InputError: it cannot be read, is no JSON object, is damaged or of another format.
    """
    path = files.as_path(path)
    try:
        content = strict_json.read(path, max_bytes=MAX_BYTES)
    except InputError as error:
        raise InputError(f"{error} Restore it, or make it anew.") from None
    seal = content.pop(KEY, None)
    if seal is None and sealed:
        raise InputError(f"{path} has no {KEY}: damaged, or of an older version. Make it anew.")
    if seal is not None and seal != digest_of(content):
        raise InputError(
            f"{path} is damaged or was edited: its {KEY} differs. Restore it; after an edit on "
            f'purpose take the line "{KEY}" out.'
        )
    if form is not None and content.get("format") != form:
        raise InputError(f"{path}: format must be '{form}', got {content.get('format')!r}.")
    return content


def digest_of(content: Any) -> str:
    """Returns the SHA-256, in hex, of a JSON value, whatever its layout and the order of keys."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> str:
    """Writes arrays as .npz, whole or not at all; returns the digest that reads them back."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    files.write_bytes_atomic(path, buffer.getvalue())
    return hashlib.sha256(buffer.getvalue()).hexdigest()


def read_arrays(path: Path, digest: str) -> dict[str, np.ndarray]:
    """Returns the arrays of a .npz.

    Args:
      path: of the file.
      digest: of write_arrays.

    Raises:
      InputError: the file is not there, or damaged.
    """
    return arrays(read_bytes(path, digest))


def read_bytes(path: Path, digest: str) -> bytes:
    """Returns the bytes of a .npz, whose digest holds; see read_arrays."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error}).") from None
    if hashlib.sha256(raw).hexdigest() != digest:
        raise InputError(f"{path} is damaged: its {KEY} differs.")
    return raw


def arrays(raw: bytes) -> dict[str, np.ndarray]:
    """Returns the arrays of the bytes of a .npz."""
    with np.load(io.BytesIO(raw), allow_pickle=False) as part:
        return {name: part[name] for name in part.files}
