"""Reads documents from files, each whole.

A `.jsonl` or `.parquet` file holds a document in each record; any other file is one document.
`.gz`, `.bz2`, `.xz` and `.zst` are unpacked on the way. Text is UTF-8; a byte order mark is
dropped and CRLF becomes LF. Whatever is not text stops the program with the file's name, before
anything is trained on it; a document that is empty or only white space is skipped and counted.
Packed files may unpack to MOST_UNPACKED times their size: prose does to 3 times with gzip, logs to
20 with xz, a file that was made to fill a memory to 1,000 and more.
"""

import bz2
import gzip
import io
import json
import lzma
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from jaxrope.data.sources import SourceFile, reason, regular_status
from jaxrope.errors import InputError, nearest

PACKED_SUFFIXES = (".gz", ".bz2", ".xz", ".zst")
MOST_UNPACKED = 64  # times the size of a packed file, beside the first _ALWAYS bytes
_ALWAYS = 1 << 26
_BLOCK = 1 << 20
_UNPACK_ERRORS = (OSError, EOFError, zlib.error, lzma.LZMAError)

# First bytes of files that are often named .txt by mistake, and what to do about them.
_NOT_TEXT = {
    b"\x1f\x8b": "is gzip data. Name it .gz",
    b"BZh": "is bzip2 data. Name it .bz2",
    b"\xfd7zXZ\x00": "is xz data. Name it .xz",
    b"\x28\xb5\x2f\xfd": "is Zstandard data. Name it .zst",
    b"PK\x03\x04": "is a zip archive. Unpack it",
    b"%PDF-": "is a PDF. Convert it to text",
    b"PAR1": "is Parquet. Name it .parquet",
    b"\xff\xfe": "is UTF-16 text. Convert it with `iconv -f UTF-16 -t UTF-8`",
    b"\xfe\xff": "is UTF-16 text. Convert it with `iconv -f UTF-16 -t UTF-8`",
}


@dataclass(frozen=True)
class ReadSettings:
    """How records are read.

    Attributes:
      setting: the config key that named the files; every message begins with it.
      text_field: the field of a JSONL or Parquet record that holds its text.
      skip_bad_lines: records that may be broken, over all files, before it is an error.
    """

    setting: str
    text_field: str = "text"
    skip_bad_lines: int = 0


@dataclass
class ReadCounts:
    """What was passed over while reading."""

    empty: int = 0  # documents without any text
    bad_lines: list[str] = field(default_factory=list)  # what is wrong with each broken record


def read_documents(
    files: Sequence[SourceFile], settings: ReadSettings, counts: ReadCounts
) -> Iterator[tuple[str, str]]:
    """Yields (name, text) of every document that has text, and adds to `counts`.

    The name is the file's, for a record with `:` and its line or row, from 1.

    Raises:
      InputError: the file is not text, a record is broken and no more may be, or the file changed
        since it was hashed.
    """
    for file in files:
        base, _ = _split_suffix(file.name)
        read = {".jsonl": _jsonl, ".parquet": _parquet}.get(Path(base).suffix.lower(), _whole_file)
        try:
            for name, text in read(file, settings, counts):
                text = text.replace("\r\n", "\n")
                if text.strip():
                    yield name, text
                else:
                    counts.empty += 1
        except _UNPACK_ERRORS as error:
            raise InputError(
                f"{settings.setting}: '{file.path}' cannot be read ({reason(error)}). "
                "Replace or exclude it."
            ) from None
        now = regular_status(str(file.path), settings.setting)
        if (now.st_size, now.st_mtime_ns) != (file.size, file.modified_ns):
            raise InputError(
                f"{settings.setting}: '{file.path}' changed while it was read. Start again when "
                "nothing writes to it."
            )


def _split_suffix(name: str) -> tuple[str, str]:
    """Returns a name without the suffix of its compression, and that suffix ("" if plain)."""
    base, suffix = os.path.splitext(name)
    return (base, suffix.lower()) if suffix.lower() in PACKED_SUFFIXES else (name, "")


def _open(file: SourceFile, setting: str) -> BinaryIO:
    """Opens a file, unpacked."""
    suffix = _split_suffix(file.name)[1]
    if not suffix:
        return open(file.path, "rb")
    if suffix == ".zst":
        try:
            import zstandard
        except ImportError:
            raise _missing_package(file, setting, "zstandard", "unpack it") from None
        unpacked = _ZstdReader(open(file.path, "rb"), zstandard)
    else:
        unpacked = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}[suffix](file.path, "rb")
    return io.BufferedReader(_Bounded(unpacked, file, setting), buffer_size=_BLOCK)


class _Bounded(io.RawIOBase):
    """What a packed file unpacks to, as far as that is bearable."""

    def __init__(self, unpacked: BinaryIO, file: SourceFile, setting: str):
        self._unpacked, self._file, self._setting, self._count = unpacked, file, setting, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        count = self._unpacked.readinto(buffer)
        self._count += count
        _check_unpacked(self._count, self._file, self._setting)
        return count

    def close(self) -> None:
        self._unpacked.close()
        super().close()


def _check_unpacked(count: int, file: SourceFile, setting: str) -> None:
    if count > _ALWAYS + MOST_UNPACKED * file.size:
        raise InputError(
            f"{setting}: '{file.path}' has {file.size:,} bytes and unpacks to {count:,} and more, "
            f"{MOST_UNPACKED} times as much: it is no text, or repeats itself. Exclude it; if it "
            "is what you want, unpack it and name the files."
        )


class _ZstdReader(io.RawIOBase):
    """All frames of a Zstandard file. The library's own reader stops after the first frame, and
    takes a file that is cut off for a whole one."""

    def __init__(self, packed: BinaryIO, zstandard):
        self._packed, self._error = packed, zstandard.ZstdError
        self._decompressor = zstandard.ZstdDecompressor()
        self._frame = None  # the frame that is being unpacked
        self._plain = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while not self._plain:
            rest = self._frame.unused_data if self._frame and self._frame.eof else b""
            block = rest or self._packed.read(1 << 9)  # which can unpack to 16 MiB
            if not block:
                if self._frame and not self._frame.eof:
                    raise EOFError("the Zstandard data is cut off")
                return 0
            if self._frame is None or self._frame.eof:
                self._frame = self._decompressor.decompressobj()
            try:
                self._plain = self._frame.decompress(block)
            except self._error as error:
                raise OSError(str(error)) from None
        count = min(len(buffer), len(self._plain))
        buffer[:count], self._plain = self._plain[:count], self._plain[count:]
        return count

    def close(self) -> None:
        self._packed.close()
        super().close()


def _recognise(head: bytes) -> str:
    """Returns what data is and what to do, by its first bytes; "" if they say nothing."""
    return next((text for magic, text in _NOT_TEXT.items() if head.startswith(magic)), "")


def _whole_file(
    file: SourceFile, settings: ReadSettings, counts: ReadCounts
) -> Iterator[tuple[str, str]]:
    with _open(file, settings.setting) as stream:
        blocks, zero = [], -1
        while zero < 0 and (block := stream.read(_BLOCK)):
            zero = block.find(b"\x00")
            blocks.append(block)
    raw = b"".join(blocks)
    zero += len(raw) - len(blocks[-1]) if zero >= 0 else 0
    problem = f"has a NUL byte at offset {zero}: it is binary. Convert it to UTF-8"
    if zero < 0:
        try:
            yield file.name, raw.decode("utf-8-sig")
            return
        except UnicodeDecodeError as error:
            # with a byte order mark the decoder counts from behind it
            offset = error.start + 3 * raw.startswith(b"\xef\xbb\xbf")
            problem = (
                f"is not UTF-8: byte 0x{raw[offset]:02x} at offset {offset}. Convert it with "
                "`iconv -f ENCODING -t UTF-8`"
            )
    problem = _recognise(raw[:8]) or problem
    raise InputError(f"{settings.setting}: '{file.path}' {problem}, or exclude it.")


def _jsonl(
    file: SourceFile, settings: ReadSettings, counts: ReadCounts
) -> Iterator[tuple[str, str]]:
    with _open(file, settings.setting) as stream:
        for number, line in enumerate(stream, start=1):
            if number == 1:
                if problem := _recognise(line[:8]):
                    raise InputError(f"{settings.setting}: '{file.path}' {problem}, or exclude it.")
                line = line.removeprefix(b"\xef\xbb\xbf")
            if not line.strip():
                continue
            try:
                text = _record_text(line, settings.text_field)
            except _BadRecord as error:
                _count_bad(f"'{file.path}', line {number}: {error}", settings, counts)
                continue
            yield f"{file.name}:{number}", text


def _parquet(
    file: SourceFile, settings: ReadSettings, counts: ReadCounts
) -> Iterator[tuple[str, str]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise _missing_package(file, settings.setting, "pyarrow", "read Parquet") from None
    number, count = 0, 0
    try:
        with _open(file, settings.setting) as stream:
            # a packed file is unpacked into memory: Parquet is read from its end
            source = io.BytesIO(stream.read()) if _split_suffix(file.name)[1] else stream
            table = pyarrow.parquet.ParquetFile(source)
            if settings.text_field not in table.schema_arrow.names:
                raise InputError(
                    f"{settings.setting}: '{file.path}' has no column '{settings.text_field}' "
                    f"(data.text_field). {nearest(settings.text_field, table.schema_arrow.names)}"
                )
            for batch in table.iter_batches(batch_size=256, columns=[settings.text_field]):
                count += batch.nbytes
                _check_unpacked(count, file, settings.setting)
                for text in batch.column(0).to_pylist():
                    number += 1
                    try:
                        _check_text(text, settings.text_field)
                    except _BadRecord as error:
                        _count_bad(f"'{file.path}', row {number}: {error}", settings, counts)
                        continue
                    yield f"{file.name}:{number}", text
    except pyarrow.ArrowException as error:
        raise InputError(
            f"{settings.setting}: '{file.path}' is not whole Parquet ({reason(error)}). Replace or "
            "exclude it."
        ) from None


class _BadRecord(Exception):
    """A record that has no usable text; its message says why."""


def _record_text(line: bytes, text_field: str) -> str:
    try:
        record = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise _BadRecord(f"not UTF-8 (byte 0x{line[error.start]:02x})") from None
    except (ValueError, RecursionError) as error:
        raise _BadRecord(f"not JSON ({reason(error)})") from None
    if not isinstance(record, dict):
        raise _BadRecord(f"a JSON {type(record).__name__}, not an object")
    if text_field not in record:
        raise _BadRecord(
            f"no field '{text_field}' (data.text_field). {nearest(text_field, list(record)[:20])}"
        )
    return _check_text(record[text_field], text_field)


def _check_text(text: object, text_field: str) -> str:
    if not isinstance(text, str):
        raise _BadRecord(f"field '{text_field}' is {type(text).__name__}, not a string")
    if "\x00" in text:
        raise _BadRecord(f"field '{text_field}' has a NUL character")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise _BadRecord(f"field '{text_field}' has half a surrogate pair") from None
    return text


def _count_bad(what: str, settings: ReadSettings, counts: ReadCounts) -> None:
    counts.bad_lines.append(what)
    check_bad_lines(counts.bad_lines, settings)


def check_bad_lines(bad_lines: Sequence[str], settings: ReadSettings) -> None:
    """Raises InputError if more records are broken than may be."""
    if len(bad_lines) > settings.skip_bad_lines:
        first_too_many = bad_lines[settings.skip_bad_lines]
        raise InputError(
            f"{settings.setting}: {first_too_many}. Mend it, or allow more bad lines than "
            f"data.skip_bad_lines={settings.skip_bad_lines}."
        )


def _missing_package(file: SourceFile, setting: str, package: str, purpose: str) -> InputError:
    return InputError(
        f"{setting}: '{file.path}': the package `{package}` is needed to {purpose} and is not "
        "installed. Install it with pip, or convert the file."
    )
