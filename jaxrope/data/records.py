"""Records of a file, one after another: lines or values of JSON, rows of Parquet and Arrow.

Each comes with where it is, "line 3", and its number, from 1. A record that is broken comes as a
BadRecord. Memory holds some records, and of a table some of its rows.
"""

import codecs
import io
import itertools
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from jaxrope.data import fields, formats
from jaxrope.data.fields import BadRecord
from jaxrope.data.json_values import BrokenJson, values
from jaxrope.data.sources import SourceFile, reason
from jaxrope.data.unpacking import check_unpacked, is_packed, missing_package, open_unpacked
from jaxrope.errors import InputError, nearest

_ROWS = 256  # of a table that are in memory
_SAMPLED = 1000  # records that are looked at for whole ones


class Record(NamedTuple):
    """A record, or what is wrong with it.

    Attributes:
      number: of the line, the value or the row, from 1.
      where: the same in words.
      value: what JSON or the table has there; a BadRecord where that cannot be read.
    """

    number: int
    where: str
    value: Any


def read(file: SourceFile, kind: str, setting: str, wanted: str) -> tuple[fields.Field, Iterator]:
    """Returns (the field that has the text, the records).

    Args:
      file: which.
      kind: of formats.recognise.
      setting: the config key that named the file.
      wanted: data.text_field.

    Raises:
      InputError: the file is not whole, or no field is plainly the text.
    """
    make = {
        formats.LINES: _lines,
        formats.VALUES: _values,
        formats.PARQUET: _parquet,
        formats.ARROW: _arrow,
    }[kind]
    records = make(file, setting, wanted)
    sample, whole = [], 0
    for record in itertools.islice(records, _SAMPLED):
        sample.append(record)
        whole += not isinstance(record.value, BadRecord)
        if whole == fields.SAMPLE:
            break
    try:
        field = fields.choose([record.value for record in sample], wanted)
    except fields.NoField as error:
        raise InputError(f"{setting}: '{file.path}': {error}, or exclude it.") from None
    return field, itertools.chain(sample, records)


def _lines(file: SourceFile, setting: str, _wanted: str) -> Iterator[Record]:
    with open_unpacked(file, setting) as stream:
        for number, line in enumerate(stream, start=1):
            line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            if line.strip():
                yield Record(number, f"line {number}", _parsed(line))


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return BadRecord(f"not UTF-8 (byte 0x{line[error.start]:02x})")
    except (ValueError, RecursionError) as error:
        return BadRecord(f"not JSON ({reason(error)})")


def _values(file: SourceFile, setting: str, _wanted: str) -> Iterator[Record]:
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    with open_unpacked(file, setting) as stream:

        def read_text(count: int) -> str:
            text = ""
            while not text and (block := stream.read(count)):
                text = decoder.decode(block)
            return text or decoder.decode(b"", final=True)

        try:
            for number, value in enumerate(values(read_text), start=1):
                yield Record(number, f"record {number}", value)
        except BrokenJson as error:
            raise InputError(
                f"{setting}: '{file.path}' is not whole JSON ({error}). Mend or exclude it; if it "
                "is a text that looks like JSON, data.format=text reads it as it stands."
            ) from None
        except UnicodeDecodeError as error:
            raise InputError(
                f"{setting}: '{file.path}' is not UTF-8 (byte 0x{error.object[error.start]:02x}). "
                "Convert it with `iconv -f ENCODING -t UTF-8`, or exclude it."
            ) from None


def _parquet(file: SourceFile, setting: str, wanted: str) -> Iterator[Record]:
    pyarrow = _pyarrow(file, setting, "read Parquet")
    try:
        with open_unpacked(file, setting) as stream:
            # a packed file is unpacked into memory: Parquet is read from its end
            source = io.BytesIO(stream.read()) if is_packed(file) else stream
            table = pyarrow.parquet.ParquetFile(source)
            names = _columns(table.schema_arrow, file, setting, wanted)
            batches = table.iter_batches(batch_size=_ROWS, columns=names)
            yield from _rows(batches, file, setting)
    except pyarrow.ArrowException as error:
        raise _not_whole(file, setting, "Parquet", error) from None


def _arrow(file: SourceFile, setting: str, wanted: str) -> Iterator[Record]:
    """Rows of both of Arrow's formats: `datasets` writes the stream, others the file."""
    pyarrow = _pyarrow(file, setting, "read Arrow")
    try:
        with open_unpacked(file, setting) as stream:
            is_stream = stream.read(4) == b"\xff\xff\xff\xff"
        with open_unpacked(file, setting) as stream:
            if is_stream:
                reader = pyarrow.ipc.open_stream(stream)
                batches = iter(reader)
            else:
                source = io.BytesIO(stream.read()) if is_packed(file) else stream
                reader = pyarrow.ipc.open_file(source)
                batches = map(reader.get_batch, range(reader.num_record_batches))
            names = _columns(reader.schema, file, setting, wanted)
            yield from _rows((_checked(batch, names) for batch in batches), file, setting)
    except pyarrow.ArrowException as error:
        raise _not_whole(file, setting, "Arrow", error) from None


def _checked(batch, names: list[str]):
    """Returns some columns, their offsets checked: nothing has looked at them yet."""
    batch = batch.select(names)
    batch.validate(full=True)
    return batch


def _rows(batches, file: SourceFile, setting: str) -> Iterator[Record]:
    number, count = 0, 0
    for batch in batches:
        count += batch.nbytes
        check_unpacked(count, file, setting)
        for start in range(0, batch.num_rows, _ROWS):
            for row in batch.slice(start, _ROWS).to_pylist():
                number += 1
                yield Record(number, f"row {number}", row)


def _columns(schema, file: SourceFile, setting: str, wanted: str) -> list[str]:
    """Returns the columns that may hold text or conversations."""
    import pyarrow

    if wanted:
        if wanted not in schema.names:
            raise InputError(
                f"{setting}: '{file.path}' has no column '{wanted}' (data.text_field). "
                f"{nearest(wanted, schema.names)}"
            )
        return [name for name in (wanted, *fields.BESIDE) if name in schema.names]

    def may_hold(kind) -> bool:
        kind = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
        of_text = pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)
        of_text |= pyarrow.types.is_string_view(kind)
        lists = pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind)
        return of_text or (lists and pyarrow.types.is_struct(kind.value_type))

    names = [field.name for field in schema if may_hold(field.type)]
    if not names:
        raise InputError(
            f"{setting}: '{file.path}' has no column of text. It has: "
            f"{', '.join(schema.names[:20])}. Exclude it."
        )
    return names


def _pyarrow(file: SourceFile, setting: str, purpose: str):
    try:
        import pyarrow
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError:
        raise missing_package(file, setting, "pyarrow", purpose) from None
    return pyarrow


def _not_whole(file: SourceFile, setting: str, kind: str, error: Exception) -> InputError:
    return InputError(
        f"{setting}: '{file.path}' is not whole {kind} ({reason(error)}). Replace or exclude it."
    )
