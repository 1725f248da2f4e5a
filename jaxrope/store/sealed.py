"""Documents and arrays whose damage is seen: JSON with its own digest, .npz beside a record of it.

A sealed document ends with "sha256", the digest of everything else in it. Whoever edits one by hand
takes that key out: a document without it is read as it stands where the reader allows that.
"""

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxrope.errors import InputError
from jaxrope.store import files

KEY = "sha256"
MAX_BYTES = 1 << 30  # a larger document is none of ours


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
        if kind := files.irregular(path):
            raise InputError(f"{path} is {kind}, not a regular file. Name another.")
        if files.size(path) > MAX_BYTES:
            raise InputError(f"{path} has more than {MAX_BYTES:,} bytes. Restore it.")
        content = json.loads(path.read_bytes().decode("utf-8"))
    except InputError:
        raise
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror or error}). Restore it, or make it anew."
        ) from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged: {error}. Restore it, or make it anew.") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} is damaged: it is no JSON object. Restore it, or make it anew.")
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
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error}).") from None
    if hashlib.sha256(raw).hexdigest() != digest:
        raise InputError(f"{path} is damaged: its {KEY} differs.")
    try:
        with np.load(io.BytesIO(raw), allow_pickle=False) as part:
            return {name: part[name] for name in part.files}
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} holds no arrays: {error}.") from None
