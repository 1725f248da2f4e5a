"""Documents as tokens, made once and kept on disk (`jaxrope.data.cache`)."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np

from jaxrope.data import cache
from jaxrope.data.cache import default_cache_dir
from jaxrope.data.documents import ReadCounts, ReadSettings, check_bad_lines, read_documents
from jaxrope.data.sources import SourceFile, find_files
from jaxrope.data.tokenizer import Tokenizer
from jaxrope.errors import InputError
from jaxrope.mesh import hosts

_CONTENT = "jaxrope.tokens/1"  # how text becomes tokens


@dataclass(frozen=True)
class TokenDocuments:
    """Documents as token ids, without begin and end tokens.

    Attributes:
      ids: all documents, one behind another; uint16 or uint32, a read-only memory map.
      offsets: int64 [num_docs + 1].
      names: each document's file, with `:` and the line or row for a record.
      files: where they come from.
      vocab_size: every id is below it.
      fingerprint: hex; of the files, the tokenizer and how they are read.
      setting: the config key that named the files, for messages.
      num_empty: documents passed over because they have no text.
      num_bad_lines: records passed over because they are broken.
    """

    ids: np.ndarray
    offsets: np.ndarray
    names: Sequence[str]
    files: Sequence[SourceFile]
    vocab_size: int
    fingerprint: str
    setting: str
    num_empty: int = 0
    num_bad_lines: int = 0

    def __len__(self) -> int:
        return len(self.names)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each document, int64."""
        return np.diff(self.offsets)

    def doc(self, index: int) -> np.ndarray:
        """Returns the int32 ids of a document."""
        return self.tokens(index, 0, int(self.offsets[index + 1] - self.offsets[index]))

    def tokens(self, index: int, start: int, stop: int) -> np.ndarray:
        """Returns the int32 ids `start` to `stop` (exclusive, at most its length) of a document."""
        first, last = int(self.offsets[index]), int(self.offsets[index + 1])
        return np.asarray(self.ids[first + start : min(first + stop, last)]).astype(np.int32)


def load_documents(
    patterns: Sequence[str],
    tokenizer: Tokenizer,
    *,
    cache_dir: Path | str = "",
    text_field: str = "text",
    exclude: Sequence[str] = (),
    skip_bad_lines: int = 0,
    setting: str = "data.train_files",
) -> TokenDocuments:
    """Returns the documents of files or globs as tokens, sorted by path, each whole.

    Args:
      patterns: files or globs, as `documents.find_files` takes them.
      tokenizer: what makes the tokens.
      cache_dir: where tokens are kept; "" = the user's cache folder, and a temporary one where that
        cannot be written.
      text_field: the field of a JSONL or Parquet record that holds its text.
      exclude: globs of files to leave out.
      skip_bad_lines: records that may be broken before it is an error.
      setting: the config key `patterns` come from, for messages.

    Raises:
      InputError: there is no text, a file cannot be read as text, or the cache cannot be written.
    """
    settings = ReadSettings(setting, text_field, skip_bad_lines)
    files = find_files(patterns, exclude=exclude, setting=setting)
    described = [[file.name, file.size, file.sha256] for file in files]
    fingerprint = _digest([_CONTENT, described, tokenizer.fingerprint, text_field])
    # Another release of the library may cut text otherwise; that must not look like a cache hit.
    key = _digest([cache.FORMAT, fingerprint, _library_version(), tokenizer.bos_id])[:32]
    parent = Path(cache_dir).expanduser() if str(cache_dir) else default_cache_dir()
    folder = parent / key
    read: list[tuple] = []

    def make() -> None:
        try:
            if folder.exists():
                read.append(cache.read_cache(folder, vocab_size=tokenizer.vocab_size))
                return
        except cache.Damaged as error:
            cache.remove_cache(folder, str(error))
        counts = ReadCounts()
        texts = read_documents(files, settings, counts)
        cache.write_cache(folder, texts, tokenizer, counts, setting)

    hosts.build(f"tokens of {setting}", cache.cache_folder(parent), make)
    ids, offsets, index = read[0] if read else _read_new(folder, tokenizer)
    check_bad_lines(index["bad_lines"], settings)
    return TokenDocuments(
        ids=ids,
        offsets=offsets,
        names=tuple(index["names"]),
        files=tuple(files),
        vocab_size=tokenizer.vocab_size,
        fingerprint=fingerprint,
        setting=setting,
        num_empty=index["num_empty"],
        num_bad_lines=len(index["bad_lines"]),
    )


def _read_new(folder: Path, tokenizer: Tokenizer):
    try:
        return cache.read_cache(folder, vocab_size=tokenizer.vocab_size)
    except cache.Damaged as error:
        raise InputError(
            f"data.cache_dir: the tokens in '{folder}' are damaged: {error}. They have just been "
            "written: set data.cache_dir to a folder on another disk."
        ) from None


def overlap(train_documents: TokenDocuments, eval_documents: TokenDocuments) -> list[str]:
    """Returns the names of the evaluation files whose contents are also trained on."""
    trained = {file.sha256 for file in train_documents.files if file.size}
    return [file.name for file in eval_documents.files if file.sha256 in trained]


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode("ascii")).hexdigest()


def _library_version() -> str:
    try:
        return metadata.version("tokenizers")
    except metadata.PackageNotFoundError:
        return ""
