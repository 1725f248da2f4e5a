"""An append-only journal: a JSON record a line, on disk before the work goes on, nothing damaged
unseen.

Every line ends with "sha256", 16 hex digits of the SHA-256 of that key of the line before it and of
its own text up to there: a bit that flips, a line that is lost, doubled or moved is found. What a
killed process left of a last line is dropped without a word; any other damage is told in a note.
Where rows stand for themselves (`ordered=False`) the damaged ones are left out; where each depends
on those before it, the first damaged one ends the journal. The program measures the rest again.

The first line is the header: {"format": ..., ...}.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from jaxrope.errors import InputError
from jaxrope.store import files, strict_json

_KEY = '"sha256": "'
_DIGITS = 16
_MAX_BYTES = 1 << 32  # a longer journal is none of ours


class Journal:
    """The journal in a file.

    Attributes:
      path: of the file.
      header: its first record, without "format"; None: there was no file, or it holds nothing.
      rows: the records after it, those of this process included.
      notes: lines for the user: what was damaged.
    """

    def __init__(self, path: Path, form: str, *, ordered: bool, repair: bool = True):
        """Reads what is there.

        Args:
          path: of the file.
          form: "format" of the header.
          ordered: whether a row depends on those before it.
          repair: cuts what is damaged off the file, so that appending goes on; False: only reads.

        Raises:
          InputError: the file cannot be read, or is of another format.
        """
        self.path, self.rows, self.notes, self.header = path, [], [], None
        self._form, self._last = form, ""
        raw = _bytes(path)
        if not raw:
            return
        lines, damaged = self._verified(raw, ordered)
        if not lines or lines[0].get("format") != form:
            raise self._foreign(lines, damaged)
        self.header = {key: value for key, value in lines[0].items() if key != "format"}
        self.rows = lines[1:]
        if damaged and ordered:
            self.notes.append(
                f"{path}, line {damaged[0]}: damaged. It and what follows are measured again."
            )
        elif damaged:
            which = ", ".join(map(str, damaged[:5])) + ("" if len(damaged) <= 5 else ", ...")
            self.notes.append(f"{path}, line {which}: damaged. What stood there is measured again.")
        if repair and self._text(lines) != raw:
            files.write_bytes_atomic(path, self._text(lines))

    def begin(self, header: dict[str, Any]) -> None:
        """Starts the file with a header, in place of whatever was there."""
        self.header, self.rows, self._last = header, [], ""
        text = self._line({"format": self._form, **header})
        files.write_bytes_atomic(self.path, text)

    def append(self, rows: list[dict], *, durable: bool = True) -> None:
        """Appends rows; `durable`: returns when they are on disk. `begin` comes first."""
        assert self.header is not None
        text = b"".join(map(self._line, rows))
        self.rows += rows
        if files.is_remote(self.path):
            self.path.write_bytes(self.path.read_bytes() + text)
            return
        with open(self.path, "ab") as file:
            file.write(text)
            file.flush()
            if durable:
                os.fsync(file.fileno())

    def _line(self, row: dict) -> bytes:
        body = json.dumps(row, ensure_ascii=False, allow_nan=False)[:-1]
        self._last = _digest(self._last, body)
        joint = ", " if len(body) > 1 else ""
        return f'{body}{joint}{_KEY}{self._last}"}}\n'.encode()

    def _text(self, lines: list[dict]) -> bytes:
        """Returns the file that has these lines; what is appended goes on from its last one."""
        self._last = ""
        return b"".join(map(self._line, lines))

    def _verified(self, raw: bytes, ordered: bool) -> tuple[list[dict], list[int]]:
        """Returns (the records whose digests hold, numbers of the lines that are damaged)."""
        records, damaged, before = [], [], ""
        lines = raw.split(b"\n")
        lines.pop()  # what a killed process left of a line; b"" where the last one is whole
        for number, line in enumerate(lines, start=1):
            record, before = _parse(line, before)
            if record is None:
                damaged.append(number)
                if ordered or number == 1:
                    break
            else:
                records.append(record)
        return records, damaged

    def _foreign(self, lines: list[dict], damaged: list[int]) -> InputError:
        if damaged or not lines:
            return InputError(
                f"{self.path}, line 1: damaged, or not a journal of this version. Delete the file "
                "to measure anew, or use another --workdir."
            )
        return InputError(
            f"{self.path}: format must be '{self._form}', got {lines[0].get('format')!r}. Use "
            "another --workdir."
        )


def read_rows(path: Path, form: str) -> list[dict]:
    """Returns the rows of a journal, for those who only look: nothing is repaired.

    Raises:
      InputError: it is damaged or of another format.
    """
    journal = Journal(path, form, ordered=True, repair=False)
    if journal.notes:
        raise InputError(f"{journal.notes[0]} Start its program again, which does that.")
    return journal.rows


def _parse(line: bytes, before: str) -> tuple[dict | None, str]:
    """Returns (the record of a line, its digest); None for a line whose digest does not hold."""
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError:
        return None, ""
    cut = text.rfind(_KEY)
    digest = text[cut + len(_KEY) : -2]
    if cut < 0 or not text.endswith('"}') or len(digest) != _DIGITS:
        return None, ""
    body = text[:cut].removesuffix(", ")
    if _digest(before, body) != digest:
        return None, digest
    return strict_json.parse(f"{body}}}".encode(), where="line"), digest


def _digest(before: str, body: str) -> str:
    return hashlib.sha256(f"{before}\n{body}".encode()).hexdigest()[:_DIGITS]


def _bytes(path: Path) -> bytes:
    try:
        return files.read_bytes(path, max_bytes=_MAX_BYTES) if path.exists() else b""
    except InputError as error:
        raise InputError(f"{error} Restore it, or use another --workdir.") from None
