"""Opens files, unpacked on the way where their first bytes say that they are packed.

gzip, bzip2, xz and Zstandard, whatever the name. A packed file may unpack to MOST_UNPACKED times
its size: prose does to 3 times with gzip, logs to 20 with xz, a file that was made to fill a memory
to 1,000 and more.
"""

import bz2
import gzip
import io
import lzma
import re
import zlib
from collections.abc import Callable
from typing import BinaryIO

from jaxrope.data.sources import SourceFile
from jaxrope.errors import InputError

MOST_UNPACKED = 64  # times the size of a packed file, beside the first _ALWAYS bytes
UNPACK_ERRORS = (OSError, EOFError, zlib.error, lzma.LZMAError)
_ALWAYS = 1 << 26
_BLOCK = 1 << 20


def open_unpacked(file: SourceFile, setting: str) -> BinaryIO:
    """Returns a reader of what a file holds, unpacked.

    Raises:
      InputError: the package that unpacks it is missing; while reading: it unpacks to too much.
    """
    unpack = _unpacker(file, setting, _head(file))
    raw = open(file.path, "rb")
    if unpack is None:
        return raw
    return io.BufferedReader(_Bounded(unpack(raw), raw, file, setting), buffer_size=_BLOCK)


def is_packed(file: SourceFile) -> bool:
    """Returns whether a file's first bytes are those of a packed one."""
    head = _head(file)
    return any(magic.match(head) for magic in _PACKED)


def check_unpacked(count: int, file: SourceFile, setting: str) -> None:
    """Raises InputError if `count` bytes are more than a file of this size may unpack to."""
    if count > _ALWAYS + MOST_UNPACKED * file.size:
        raise InputError(
            f"{setting}: '{file.path}' has {file.size:,} bytes and unpacks to {count:,} and more, "
            f"{MOST_UNPACKED} times as much: it is no text, or repeats itself. Exclude it; if it "
            "is what you want, unpack it and name the files."
        )


def missing_package(file: SourceFile, setting: str, package: str, purpose: str) -> InputError:
    """Returns the error for a file that needs a package which is not installed."""
    return InputError(
        f"{setting}: '{file.path}': the package `{package}` is needed to {purpose} and is not "
        "installed. Install it with pip, or convert the file."
    )


def _head(file: SourceFile) -> bytes:
    with open(file.path, "rb") as raw:
        return raw.read(16)


def _zstandard(file: SourceFile, setting: str) -> Callable[[BinaryIO], BinaryIO]:
    try:
        import zstandard
    except ImportError:
        raise missing_package(file, setting, "zstandard", "unpack it") from None
    return lambda raw: _ZstdReader(raw, zstandard)


# First bytes -> (file, setting) -> a function that unpacks. A text may begin with "BZh".
_PACKED = {
    re.compile(rb"\x1f\x8b\x08"): lambda *_: lambda raw: gzip.GzipFile(fileobj=raw),
    re.compile(rb"BZh[1-9](1AY&SY|\x17\x72\x45\x38\x50\x90)"): lambda *_: bz2.BZ2File,
    re.compile(rb"\xfd7zXZ\x00"): lambda *_: lzma.LZMAFile,
    re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18"): _zstandard,
}


def _unpacker(file: SourceFile, setting: str, head: bytes) -> Callable | None:
    for magic, unpacker in _PACKED.items():
        if magic.match(head):
            return unpacker(file, setting)
    return None


class _Bounded(io.RawIOBase):
    """What a packed file unpacks to, as far as that is bearable."""

    def __init__(self, unpacked: BinaryIO, raw: BinaryIO, file: SourceFile, setting: str):
        self._unpacked, self._raw, self._count = unpacked, raw, 0
        self._file, self._setting = file, setting

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        count = self._unpacked.readinto(buffer)
        self._count += count
        check_unpacked(self._count, self._file, self._setting)
        return count

    def close(self) -> None:
        self._unpacked.close()
        self._raw.close()
        super().close()


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
