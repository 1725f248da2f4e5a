"""Documents as tokens, made once and kept on disk (`jaxrope.data.cache`)."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

import numpy as np

from jaxrope.data import answers, cache, chat
from jaxrope.data.cache import default_cache_dir
from jaxrope.data.documents import ReadCounts, ReadSettings, check_bad_lines, read_documents
from jaxrope.data.sources import SourceFile, find_files
from jaxrope.data.tokenizer import Tokenizer
from jaxrope.errors import InputError
from jaxrope.mesh import hosts

_TRAINED_ON = ReadSettings("data.train_files")
_CONTENT = "jaxrope.tokens/2"  # how text becomes tokens


@dataclass(frozen=True)
class TokenDocuments:
    """Documents as token ids, without begin and end tokens; conversations with those of the model's
    template.

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
      formats: number of files by what was said of their format.
      roles: for every id answers.TEXT, PROMPT or ANSWER, uint8; None: all are of text.
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
    formats: Mapping[str, int] = field(default_factory=dict)
    roles: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.names)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each document, int64."""
        return np.diff(self.offsets)

    @property
    def are_chats(self) -> np.ndarray:
        """Whether each document is a conversation, bool."""
        if self.roles is None:
            return np.zeros(len(self), bool)
        return np.asarray(self.roles[self.offsets[:-1]]) != answers.TEXT

    def is_chat(self, index: int) -> bool:
        """Returns whether a document is a conversation."""
        return self.roles is not None and self.roles[self.offsets[index]] != answers.TEXT

    def counted(self, index: int, start: int, stop: int) -> np.ndarray:
        """Returns whether each of the ids that `tokens` returns counts in the loss, bool: those of
        text and of answers do.
        """
        first, last = int(self.offsets[index]) + start, int(self.offsets[index + 1])
        last = min(int(self.offsets[index]) + stop, last)
        if self.roles is None:
            return np.ones(max(last - first, 0), bool)
        return np.asarray(self.roles[first:last]) != answers.PROMPT

    @property
    def file_numbers(self) -> np.ndarray:
        """The place in `files` of each document's file, int64."""
        number_of = {file.name: number for number, file in enumerate(self.files)}
        numbers = (
            number_of[name if name in number_of else name.rpartition(":")[0]] for name in self.names
        )
        return np.fromiter(numbers, np.int64, len(self))

    @property
    def summary(self) -> str:
        """What was read, in one line."""
        kinds = "; ".join(f"{count:,} {kind}" for kind, count in sorted(self.formats.items()))
        passed = {"empty": self.num_empty, "broken": self.num_bad_lines}
        passed = [f"{count:,} {why} passed over" for why, count in passed.items() if count]
        longest = int(np.argmax(self.lengths))
        return "; ".join(
            [
                f"{self.setting}: {_number(len(self.files), 'file')} ({kinds}), "
                f"{_number(len(self), 'document')}, {len(self.ids):,} tokens, the longest "
                f"{self.lengths[longest]:,} ('{self.names[longest]}')",
                *passed,
            ]
        )

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
    exclude: Sequence[str] = (),
    template_at: Path | str | None = None,
    settings: ReadSettings = _TRAINED_ON,
) -> TokenDocuments:
    """Returns the documents of files or globs as tokens, sorted by path, each whole.

    Args:
      patterns: files or globs, as `documents.find_files` takes them.
      tokenizer: what makes the tokens.
      cache_dir: where tokens are kept; "" = the user's cache folder, and a temporary one where that
        cannot be written.
      exclude: globs of files to leave out.
      template_at: the folder whose chat template renders conversations; None: there is none.
      settings: how files are read, and the config key `patterns` come from; conversations are.

    Raises:
      InputError: there is no text, a file cannot be read as text, or the cache cannot be written.
    """
    settings = dataclasses.replace(settings, chats=True)
    files = find_files(patterns, exclude=exclude, setting=settings.setting)
    described = [[file.name, file.size, file.sha256] for file in files]
    read = [settings.text_field, settings.format]
    fingerprint = _digest([_CONTENT, described, tokenizer.fingerprint, *read])
    parent = Path(cache_dir).expanduser() if str(cache_dir) else default_cache_dir()
    template = _Template(template_at, settings.setting)
    # Another release of the library may cut text otherwise; that must not look like a cache hit.
    key = _digest(
        [cache.FORMAT, fingerprint, _library_version(), template.digest, tokenizer.bos_id]
    )[:32]
    ids, offsets, roles, index = _cached(parent / key, files, tokenizer, template, settings)
    check_bad_lines(index["bad_lines"], settings)
    if roles is not None:  # a template may write the day's date
        fingerprint = _digest([fingerprint, index["tokens_sha256"], index["roles_sha256"]])
    return TokenDocuments(
        ids=ids,
        offsets=offsets,
        names=tuple(index["names"]),
        files=tuple(files),
        vocab_size=tokenizer.vocab_size,
        fingerprint=fingerprint,
        setting=settings.setting,
        num_empty=index["num_empty"],
        num_bad_lines=len(index["bad_lines"]),
        formats=index["formats"],
        roles=roles,
    )


def _cached(
    folder: Path,
    files: Sequence[SourceFile],
    tokenizer: Tokenizer,
    template: "_Template",
    settings: ReadSettings,
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, dict]:
    """Returns what cache.read_cache does of a folder, made if it is not there or damaged."""
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
        texts = answers.render_all(texts, template.get, counts, settings.setting)
        cache.write_cache(folder, texts, tokenizer, counts, settings.setting)

    hosts.build(f"tokens of {settings.setting}", cache.cache_folder(folder.parent), make)
    return read[0] if read else _read_new(folder, tokenizer)


class _Template:
    """The chat template of a folder, which is missed only where there are conversations."""

    def __init__(self, folder: Path | str | None, setting: str):
        self._setting, self._template, self._error = setting, None, None
        try:
            self._template = chat.load_template(folder) if folder not in (None, "bytes") else None
        except InputError as error:
            self._error = error

    @property
    def digest(self) -> str:
        """Of what it writes."""
        template = self._template
        return _digest([template.source, dict(template.tokens)]) if template else ""

    def get(self) -> chat.ChatTemplate:
        """Returns the template.

        Raises:
          InputError: there is none.
        """
        if self._error:
            raise self._error
        if self._template is None:
            raise InputError(
                f"{self._setting}: there are conversations, and the tokenizer has no chat template "
                "to write them. Use an instruct model's tokenizer (data.tokenizer), or set "
                "data.text_field to a field of text."
            )
        return self._template


def _number(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'s' if count != 1 else ''}"


def _read_new(folder: Path, tokenizer: Tokenizer):
    try:
        return cache.read_cache(folder, vocab_size=tokenizer.vocab_size)
    except cache.Damaged as error:
        raise InputError(
            f"data.cache_dir: the tokens in '{folder}' are damaged: {error}. They have just been "
            "written: set data.cache_dir to a folder on another disk."
        ) from None


def split(documents: TokenDocuments, share: float) -> tuple[TokenDocuments, TokenDocuments]:
    """Returns (the first documents, the last ones with about `share` of the tokens); at least one
    in each. A single document is cut. Of text and of conversations each has its share.

    Raises:
      InputError: it cannot be cut: it is a conversation, or too short.
    """
    are_chats = documents.are_chats
    if are_chats.any() and not are_chats.all():
        kinds = [split(_select(documents, kind), share) for kind in (~are_chats, are_chats)]
        first, last = (_joined(parts) for parts in zip(*kinds, strict=True))
        return first, last
    count, first = len(documents), (1 - share) * len(documents.ids)
    if count == 1:
        if documents.is_chat(0) or not 1 <= int(first) < len(documents.ids):
            raise InputError(
                f"{documents.setting}: one conversation, or one text of few tokens, cannot be cut "
                "in two for data.held_out. Give more text, or files for data.eval_files."
            )
        cut, names = int(first), (documents.names[0], f"{documents.names[0]}, its end")
        offsets = np.array([0, cut, len(documents.ids)])
        documents, place = dataclasses.replace(documents, offsets=offsets, names=names), 1
    else:
        place = int(np.searchsorted(documents.offsets, first, side="right")) - 1
        place = min(max(place, 1), count - 1)
    held_out = dataclasses.replace(documents, setting=f"the held-out part of {documents.setting}")
    return _part(documents, slice(0, place)), _part(held_out, slice(place, None))


def _part(documents: TokenDocuments, chosen: slice) -> TokenDocuments:
    """Returns documents that follow one another."""
    begins, ends = documents.offsets[:-1][chosen], documents.offsets[1:][chosen]
    span, roles = slice(int(begins[0]), int(ends[-1])), documents.roles
    return dataclasses.replace(
        documents,
        ids=documents.ids[span],
        offsets=np.append(begins, ends[-1]) - begins[0],
        names=documents.names[chosen],
        fingerprint=_digest([documents.fingerprint, span.start, span.stop]),
        roles=None if roles is None else roles[span],
    )


def _select(documents: TokenDocuments, chosen: np.ndarray) -> TokenDocuments:
    """Returns some of the documents, by a bool for each; their tokens are copied."""
    borders = np.flatnonzero(np.diff(np.concatenate([[False], chosen, [False]]).astype(int)))
    runs = borders.reshape(-1, 2).tolist()
    return _joined([_part(documents, slice(*run)) for run in runs])


def _joined(parts: Sequence[TokenDocuments]) -> TokenDocuments:
    """Returns the documents of parts of one corpus."""
    first, has_roles = parts[0], parts[0].roles is not None
    return dataclasses.replace(
        first,
        ids=np.concatenate([part.ids for part in parts]),
        offsets=np.cumsum([0, *np.concatenate([part.lengths for part in parts])]),
        names=tuple(name for part in parts for name in part.names),
        fingerprint=_digest([part.fingerprint for part in parts]),
        roles=np.concatenate([part.roles for part in parts]) if has_roles else None,
    )


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
