"""Atomic writes, and a journal that survives a torn last line.

A path is a pathlib.Path or, for `gs://`, one of etils' epath, which has the same methods: `as_path`
makes both, and pathlib.Path(...) of the latter would lose its "//". Objects in `gs://` are written
whole or not at all; they cannot be appended to, so an append rewrites the file.
"""

import hashlib
import importlib.util
import json
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from jaxrope.errors import InputError

ABANDONED_SECONDS = 24 * 3600.0  # an unfinished folder of this age has no owner
_UNFINISHED = re.compile(r"\..+\.[a-z0-9_]{8}\.tmp")  # as `tempfile` names them for us


def as_path(text: Path | str) -> Path:
    """Returns the path of a text: `~` is the home folder, `gs://` a bucket.

    Raises:
      InputError: the package for `gs://` is not installed, or the path has another scheme.
    """
    text = os.fspath(text)
    scheme, mark, _ = text.partition("://")
    if not mark:
        try:
            return Path(text).expanduser()
        except RuntimeError:
            raise InputError(f"{text}: there is no such user. Write ./~ for such a name.") from None
    if scheme != "gs":
        raise InputError(
            f"{text}: must be a folder of the file system or begin with gs://. Copy it here, or "
            "mount it, and give the folder."
        )
    if importlib.util.find_spec("gcsfs") is None:
        raise InputError(
            f"{text}: gs:// needs the package gcsfs. Install it (pip install gcsfs), or mount the "
            "bucket and give the folder."
        )
    import fsspec
    from etils import epath

    # Other processes write there too, and TensorStore does in this one: a listing is old at once.
    fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
    return epath.Path(text)


def is_remote(path: Path | str) -> bool:
    """Returns whether a path is in a bucket."""
    return "://" in os.fspath(path)


def absolute(path: Path | str) -> Path:
    """Returns a path that does not depend on the folder the program was started in."""
    path = as_path(path)
    return path if is_remote(path) else path.resolve()


def check_writable(folder: Path) -> None:
    """Makes a folder, and writes and removes a file there.

    Raises:
      InputError: the folder cannot be written to.
    """
    probe = folder / f".writable-{os.getpid()}"
    try:
        if not is_remote(folder):
            folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise _cannot_write(folder, error.strerror or str(error)) from None
    except Exception as error:  # a bucket's: no credentials, no such bucket, no permission
        if not is_remote(folder):
            raise
        raise _cannot_write(folder, f"{type(error).__name__}: {error}") from None


def size(path: Path) -> int:
    """Returns the bytes of a file."""
    return path.stat().length if is_remote(path) else path.stat().st_size


def read_bytes(path: Path, *, max_bytes: int) -> bytes:
    """Returns the content of a regular file: a pipe could wait, and a device need not end.

    Raises:
      InputError: it is no regular file, larger than `max_bytes`, or cannot be read.
    """
    try:
        if is_remote(path):
            _check_size(path, size(path), max_bytes)
            return path.read_bytes()
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise InputError(f"{path}: is not a regular file.")
            _check_size(path, status.st_size, max_bytes)
            return file.read(status.st_size)
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file.") from None
    except (OSError, ValueError) as error:  # a name with a NUL byte is a ValueError
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: cannot be read: {reason}.") from None


def _check_size(path: Path, actual: int, max_bytes: int) -> None:
    if actual > max_bytes:
        raise InputError(
            f"{path}: must be at most {max_bytes:,} bytes, is {actual:,}. It is not what its name "
            "says."
        )


def remove_tree(folder: Path) -> None:
    """Removes a folder and what is in it, as far as possible."""
    if is_remote(folder):
        folder.rmtree(missing_ok=True)
    else:
        shutil.rmtree(folder, ignore_errors=True)


def sweep(folder: Path, *, older_than: float = 0.0) -> None:
    """Removes what a killed process left of files and folders that it was writing: `.NAME.*.tmp`,
    in a folder and in those of its sub-folders that are no workdirs themselves.

    Args:
      folder: of a run, whose lock is held; or one that several processes write to at one time.
      older_than: seconds since something was last written there, for such a folder.
    """
    if is_remote(folder) or not folder.is_dir():
        return  # a bucket has whole objects alone
    parts = [path for path in folder.iterdir() if path.is_dir() and not path.is_symlink()]
    parts = [path for path in parts if not (path / ".lock").exists()]
    for entry in (entry for place in (folder, *parts) for entry in place.glob(".*.tmp")):
        try:
            inside = entry.iterdir() if entry.is_dir() else ()
            written = max(path.lstat().st_mtime for path in (entry, *inside))
            if not _UNFINISHED.fullmatch(entry.name) or time.time() - written < older_than:
                continue
            remove_tree(entry) if entry.is_dir() else entry.unlink()
        except FileNotFoundError:  # its owner has just renamed or removed it
            continue


def copy(source: Path, target: Path) -> None:
    """Copies a small file."""
    target.write_bytes(source.read_bytes())


def fetch(folder: Path, names: Sequence[str] | None = None) -> Path:
    """Returns a local copy of a bucket's folder, without its sub-folders.

    It lies in the user's cache folder, and is copied again when a file's size or time has changed.

    Args:
      folder: in a bucket.
      names: of the files to copy; None = all.
    """
    entries = sorted(path for path in folder.iterdir() if names is None or path.name in names)
    entries = [path for path in entries if not path.is_dir()]
    versions = [[path.name, (status := path.stat()).length, status.mtime] for path in entries]
    key = hashlib.sha256(json.dumps([os.fspath(folder), versions]).encode()).hexdigest()[:32]

    def fill(staging: Path) -> None:
        for path in entries:
            with path.open("rb") as source, open(staging / path.name, "wb") as file:
                shutil.copyfileobj(source, file, 1 << 24)

    return cached("remote", key, fill)


def cache_root(kind: str) -> Path:
    """Returns the user's folder for what is kept of one kind of source."""
    base = os.environ.get("XDG_CACHE_HOME", "") or os.path.expanduser("~/.cache")
    return Path(base) / "jaxrope" / kind


def cached(kind: str, key: str, fill: Callable[[Path], None]) -> Path:
    """Returns the folder `key` in the user's cache, made where it is not there: whole or not at
    all, however many processes ask.

    Args:
      kind: of source, see `cache_root`.
      key: a digest of all that the content depends on.
      fill: writes into a new folder.

    Raises:
      InputError: the cache cannot be written to.
    """
    target = cache_root(kind) / key
    if target.is_dir():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        sweep(target.parent, older_than=ABANDONED_SECONDS)
        staging = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{key}.", suffix=".tmp"))
    except OSError as error:
        raise InputError(
            f"{target.parent} cannot be written to: {error.strerror}. Set XDG_CACHE_HOME to a"
            " folder that can."
        ) from None
    try:
        fill(staging)
        try:
            os.rename(staging, target)
        except OSError:  # another process was quicker
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return target


def write_text_atomic(path: Path | str, text: str) -> None:
    """Writes `text` as write_bytes_atomic writes bytes."""
    write_bytes_atomic(path, text.encode("utf-8"))


def write_bytes_atomic(path: Path | str, content: bytes) -> None:
    """Writes under a temporary name beside `path`, flushes it to disk, and renames it."""
    path = as_path(path)
    if is_remote(path):
        path.write_bytes(content)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp makes 0600: a result is for everybody to read
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def write_json_atomic(path: Path | str, value: object) -> None:
    """Writes `value` as JSON, atomically. NaN and infinity are refused: other readers of JSON do
    not know them. Of a file's name that is not UTF-8, bytes stand as escapes.
    """
    text = json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    write_bytes_atomic(path, text.encode("utf-8", "backslashreplace"))


def append_jsonl(path: Path | str, rows: dict | list[dict], *, durable: bool = False) -> None:
    """Appends a record, or several in one write; `durable` waits until they are on disk."""
    rows = [rows] if isinstance(rows, dict) else rows
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    if is_remote(path):
        path = as_path(path)
        path.write_bytes((path.read_bytes() if path.exists() else b"") + text.encode())
        return
    with open(path, "a", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        if durable:
            os.fsync(file.fileno())


def read_jsonl(path: Path | str, *, repair: bool = True) -> list[dict]:
    """Returns the records of a JSON-lines file; none if there is no such file.

    A process that is killed can leave a torn last line. With `repair` that line is cut off the file
    as well, so that the next record starts on a line of its own.

    Raises:
      ValueError: a line other than the last is broken.
    """
    path = as_path(path)
    if not path.exists():
        return []
    raw = path.read_bytes()
    rows, good = [], 0
    for number, line in enumerate(raw.splitlines(keepends=True), start=1):
        try:
            if not line.endswith(b"\n"):
                raise ValueError("torn")
            rows.append(json.loads(line))
        except ValueError:
            if good + len(line) < len(raw):
                raise ValueError(
                    f"{path}, line {number}: not JSON. Remove the line, or start afresh."
                ) from None
            break
        good += len(line)
    if repair and good < len(raw) and is_remote(path):
        path.write_bytes(raw[:good])
    elif repair and good < len(raw):
        with open(path, "r+b") as file:
            file.truncate(good)
    return rows


def sha256_file(path: Path | str) -> str:
    """Returns the SHA-256 of a file's bytes, in hex."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)  # the rename itself is durable only with the folder
    finally:
        os.close(handle)


def _cannot_write(folder: Path, why: str) -> InputError:
    return InputError(
        f"{folder} cannot be written to: {why}. Give a --workdir that can be made and written."
    )
