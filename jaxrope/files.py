"""Files that are whole or not there: atomic writes, and a journal that survives a torn last
line.
"""

import hashlib
import json
import os
import tempfile
from pathlib import Path


def write_text_atomic(path: Path | str, text: str) -> None:
    """Writes `text` under a temporary name beside `path`, flushes it to disk, and renames it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
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
    not know them.
    """
    write_text_atomic(path, json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n")


def append_jsonl(path: Path | str, rows: dict | list[dict], *, durable: bool = False) -> None:
    """Appends a record, or several in one write; `durable` waits until they are on disk."""
    rows = [rows] if isinstance(rows, dict) else rows
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
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
    path = Path(path)
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
    if repair and good < len(raw):
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
