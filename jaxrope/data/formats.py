"""What a file holds, by its content: plain text, JSON Lines, JSON, Parquet or Arrow.

A text is JSON if it begins with `{` or `[` and is JSON as far as its first HEAD_BYTES go, or begins
as only JSON (or a Python dict) does: `{"key":`, `[{"key":`. What is broken behind such a beginning
is refused or counted as broken, and never taken for text. A name decides where the content says
nothing: `.jsonl` and `.json` are JSON, `.parquet` and `.arrow` tables.
"""

import json
import os
import re

from jaxrope.data.json_values import is_json

HEAD_BYTES = 1 << 16
TEXT, LINES, VALUES = "plain text", "JSON Lines", "JSON"
PARQUET, ARROW = "Parquet", "Arrow"
OF_JSON = (LINES, VALUES)
_LINES_SUFFIXES = (".jsonl", ".ndjson", ".jsonlines", ".ldjson")
_TABLES = {".parquet": PARQUET, ".arrow": ARROW, ".feather": ARROW}
_PACKED_SUFFIXES = (".gz", ".bz2", ".xz", ".zst", ".zstd")
_KEY = r"""\{\s*("([^"\\\n]|\\.)*"|'([^'\\\n]|\\.)*')\s*:"""
_OBJECT = re.compile(_KEY)
_OBJECTS = re.compile(r"\[\s*" + _KEY)

# First bytes of what is no text, and what to do about it.
_NOT_TEXT = {
    b"PK\x03\x04": "is a zip archive. Unpack it",
    b"%PDF-": "is a PDF. Convert it to text",
    b"{\\rtf": "is RTF. Convert it to text",
    b"\xff\xfe": "is UTF-16 text. Convert it with `iconv -f UTF-16 -t UTF-8`",
    b"\xfe\xff": "is UTF-16 text. Convert it with `iconv -f UTF-16 -t UTF-8`",
}
_MARKUP = {"<!doctype html": "HTML", "<html": "HTML", "<?xml": "XML"}
_MARKUP_SUFFIXES = {".csv": "CSV", ".tsv": "TSV"}


def problem(head: bytes) -> str:
    """Returns what data is and what to do, if its first bytes say that it is no text; else ""."""
    return next((text for magic, text in _NOT_TEXT.items() if head.startswith(magic)), "")


def recognise(head: bytes, name: str, *, whole: bool) -> str:
    """Returns what a file holds: TEXT, LINES, VALUES, PARQUET or ARROW.

    Args:
      head: its first HEAD_BYTES, unpacked.
      name: of the file.
      whole: there is no more.
    """
    if head.startswith(b"PAR1"):
        return PARQUET
    if head.startswith((b"ARROW1\x00\x00", b"\xff\xff\xff\xff")):
        return ARROW
    suffix = _suffix(name)
    if suffix in _TABLES:
        return _TABLES[suffix]
    text = head.decode("utf-8-sig", errors="replace").rstrip("\ufffd").lstrip()
    if text.startswith("[") and (_OBJECTS.match(text) or is_json(text, whole=whole)):
        return VALUES
    if text.startswith("{") and (_OBJECT.match(text) or is_json(text, whole=whole)):
        broken = suffix in _LINES_SUFFIXES and not is_json(text, whole=whole)
        return LINES if broken or _in_lines(text) else VALUES
    return LINES if suffix in _LINES_SUFFIXES else VALUES if suffix == ".json" else TEXT


def markup(head: bytes, name: str) -> str:
    """Returns the language of a text that is marked up, "" for plain text."""
    begin = head[:64].decode("utf-8-sig", errors="replace").lstrip().lower()
    languages = (language for mark, language in _MARKUP.items() if begin.startswith(mark))
    return next(languages, _MARKUP_SUFFIXES.get(_suffix(name), ""))


def _suffix(name: str) -> str:
    """Returns the last part of a name, without that of its compression, in small letters."""
    base, suffix = os.path.splitext(name.lower())
    return os.path.splitext(base)[1] if suffix in _PACKED_SUFFIXES else suffix


def _in_lines(text: str) -> bool:
    """Returns whether an object that begins here has a line for itself."""
    line, end, rest = text.partition("\n")
    try:
        return not end or isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return rest.lstrip("\r\n").startswith("{")
