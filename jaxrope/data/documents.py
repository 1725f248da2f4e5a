"""Reads documents from files, each whole.

A file of records (JSON Lines, JSON, Parquet, Arrow) holds a document in each; any other file is one
document. What a file is, and whether it is packed, its content says (`formats`, `unpacking`). Text
is UTF-8; a byte order mark is dropped and CRLF becomes LF. Whatever is not text stops the program
with the file's name, before anything is trained on it; a document that is empty or only white space
is skipped and counted.
"""

import collections
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from jaxrope.data import formats, records
from jaxrope.data.fields import BadRecord, Conversation
from jaxrope.data.sources import SourceFile, reason, regular_status
from jaxrope.data.unpacking import UNPACK_ERRORS, open_unpacked
from jaxrope.errors import InputError

_BLOCK = 1 << 20


@dataclass(frozen=True)
class ReadSettings:
    """How files are read.

    Attributes:
      setting: the config key that named the files; every message begins with it.
      text_field: the field of a record that holds its text; "" looks for it (`fields`).
      skip_bad_lines: records that may be broken, over all files, before it is an error.
      format: "auto": by content; "text": every file is a text as it stands.
      chats: conversations are read too.
    """

    setting: str
    text_field: str = ""
    skip_bad_lines: int = 0
    format: str = "auto"
    chats: bool = False


@dataclass
class ReadCounts:
    """What was read, and what was passed over.

    Attributes:
      empty: documents without any text.
      bad_lines: what is wrong with each broken record.
      formats: files of each format, by what is said of it.
    """

    empty: int = 0
    bad_lines: list[str] = field(default_factory=list)
    formats: collections.Counter = field(default_factory=collections.Counter)


def read_documents(
    files: Sequence[SourceFile], settings: ReadSettings, counts: ReadCounts
) -> Iterator[tuple[str, str | Conversation]]:
    """Yields (name, text) of every document that has text, and adds to `counts`.

    The name is the file's, for a record with `:` and its line, number or row, from 1.

    Raises:
      InputError: the file is not text, a record is broken and no more may be, no field is plainly
        the text, or the file changed since it was hashed.
    """
    for file in files:
        try:
            for name, text in _read_file(file, settings, counts):
                text = text.replace("\r\n", "\n") if isinstance(text, str) else text
                if isinstance(text, Conversation) or text.strip():
                    yield name, text
                else:
                    counts.empty += 1
        except UNPACK_ERRORS as error:
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


def _read_file(
    file: SourceFile, settings: ReadSettings, counts: ReadCounts
) -> Iterator[tuple[str, str | Conversation]]:
    with open_unpacked(file, settings.setting) as stream:
        head = stream.read(formats.HEAD_BYTES)
    if problem := formats.problem(head):
        raise InputError(f"{settings.setting}: '{file.path}' {problem}, or exclude it.")
    whole = len(head) < formats.HEAD_BYTES
    kind = formats.recognise(head, file.name, whole=whole)
    if kind == formats.TEXT or (settings.format == "text" and kind in formats.OF_JSON):
        language = formats.markup(head, file.name)
        counts.formats[f"{language} as it stands" if language else formats.TEXT] += 1
        yield from _whole_file(file, settings)
        return
    place, rows = records.read(file, kind, settings.setting, settings.text_field)
    if place.chat and not settings.chats:
        raise InputError(
            f"{settings.setting}: '{file.path}' holds conversations ({place}). Give texts."
        )
    what = "conversations in" if place.chat else "text in" if place.names else "text:"
    counts.formats[f"{kind}, {what} {place}"] += 1
    for row in rows:
        try:
            if isinstance(row.value, BadRecord):
                raise row.value
            yield f"{file.name}:{row.number}", place.read(row.value)
        except BadRecord as error:
            counts.bad_lines.append(f"'{file.path}', {row.where}: {error}")
            check_bad_lines(counts.bad_lines, settings)


def _whole_file(file: SourceFile, settings: ReadSettings) -> Iterator[tuple[str, str]]:
    with open_unpacked(file, settings.setting) as stream:
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
    raise InputError(f"{settings.setting}: '{file.path}' {problem}, or exclude it.")


def check_bad_lines(bad_lines: Sequence[str], settings: ReadSettings) -> None:
    """Raises InputError if more records are broken than may be."""
    if len(bad_lines) > settings.skip_bad_lines:
        first_too_many = bad_lines[settings.skip_bad_lines]
        raise InputError(
            f"{settings.setting}: {first_too_many}. Mend it, or allow more bad lines than "
            f"data.skip_bad_lines={settings.skip_bad_lines}."
        )
