"""Tokenizers: Hugging Face `tokenizer.json`, and one of plain bytes that needs no file.

Text is encoded as it is: no begin or end token is added (windows and loader add them, `with_bos`
and `prompt` where the tokenizer does), and a file's own truncation and padding are switched off.
Markup that the tokenizer lists as a token, such as `<|im_start|>`, becomes that token, as in
transformers.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from jaxrope.data import pieces, special
from jaxrope.errors import InputError
from jaxrope.store import files, strict_json

MAX_FILE_BYTES = 100_000_000  # the largest published tokenizer.json is near 35 MB
MAX_ID = (1 << 31) - 1  # ids are int32 everywhere behind this module


class Tokenizer(Protocol):
    """What the rest of the package asks of a tokenizer.

    Attributes:
      vocab_size: every id is below it.
      bos_id: what the tokenizer puts before every text; None: nothing.
      eos_id: its end of text, which ends documents; None: it has none.
      eos_ids: every id that ends a generation.
      bos_token_id: its begin token, whether it is put before texts or not; None: it has none.
      fingerprint: hex; equal fingerprints give equal ids.
      notes: what was assumed in reading it.
    """

    vocab_size: int
    bos_id: int | None
    eos_id: int | None
    eos_ids: tuple[int, ...]
    bos_token_id: int | None
    fingerprint: str
    notes: tuple[str, ...]

    def encode(self, text: str) -> np.ndarray: ...

    def prompt(self, text: str) -> np.ndarray: ...

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]: ...

    def encode_with_spans(self, text: str, *, special: bool) -> tuple[np.ndarray, np.ndarray]: ...

    def decode(self, ids: Iterable[int]) -> str: ...

    def token(self, number: int) -> str: ...


@dataclass(frozen=True)
class BytesTokenizer:
    """The 256 bytes of UTF-8, then `<s>` = 256 and `</s>` = 257."""

    vocab_size: int = 258
    bos_id: int | None = 256
    eos_id: int | None = 257
    eos_ids: tuple[int, ...] = (257,)
    bos_token_id: int | None = 256
    fingerprint: str = hashlib.sha256(b"jaxrope.bytes/1").hexdigest()
    notes: tuple[str, ...] = ()

    def encode(self, text: str) -> np.ndarray:
        """Returns the bytes of `text` as int32 ids."""
        return np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.int32)

    def prompt(self, text: str) -> np.ndarray:
        """Returns the ids of a text that is to be continued."""
        return with_bos(self, self.encode(text))

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Returns the ids of each text."""
        return [self.encode(text) for text in texts]

    def encode_with_spans(self, text: str, *, special: bool) -> tuple[np.ndarray, np.ndarray]:
        """Returns (ids, int64 [T, 2]: begin and end of each one's character in `text`).

        Args:
          text: the text.
          special: `<s>` is put in front; it has the characters 0 to 0.
        """
        sizes = [len(character.encode("utf-8")) for character in text]
        begins = np.repeat(np.arange(len(text)), sizes)
        ids, spans_T2 = self.encode(text), np.stack([begins, begins + 1], axis=1)
        if not special:
            return ids, spans_T2
        return np.insert(ids, 0, self.bos_id), np.insert(spans_T2, 0, 0, axis=0)

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text; `<s>` and `</s>` are left out, broken UTF-8 becomes U+FFFD."""
        return bytes(int(i) for i in ids if i < 256).decode("utf-8", errors="replace")

    def token(self, number: int) -> str:
        """Returns how a token is written, special ones too."""
        return {256: "<s>", 257: "</s>"}.get(number) or self.decode([number])


@dataclass(frozen=True)
class JsonTokenizer:
    """A `tokenizer.json`, run by the `tokenizers` library.

    Attributes:
      backend: tokenizers.Tokenizer.
      suffix: ids that it puts behind every text.
    """

    backend: Any
    vocab_size: int
    bos_id: int | None
    eos_id: int | None
    fingerprint: str
    eos_ids: tuple[int, ...] = ()
    bos_token_id: int | None = None
    suffix: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()

    def encode(self, text: str) -> np.ndarray:
        """Returns the int32 ids of `text`, none added."""
        return self.encode_batch([text])[0]

    def prompt(self, text: str) -> np.ndarray:
        """Returns the ids of a text that is to be continued: with the special tokens of the file's
        post_processor, as in transformers, but never a second bos.
        """
        return np.append(with_bos(self, self.encode(text)), np.array(self.suffix, np.int32))

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Returns the ids of each text; the library spreads the texts over the cores.

        Raises:
          InputError: a text holds a token that the model has no row for.
        """
        with _refused_by_the_library("a text"):
            encoded = self.backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [self._in_range(np.array(encoding.ids, np.int32)) for encoding in encoded]

    def encode_with_spans(self, text: str, *, special: bool) -> tuple[np.ndarray, np.ndarray]:
        """Returns (ids, int64 [T, 2]: begin and end of each one's characters in `text`).

        Args:
          text: the text.
          special: adds the special tokens of the file's post_processor, as in transformers; their
            characters are 0 to 0.
        """
        with _refused_by_the_library("a text"):
            encoded = self.backend.encode(text, add_special_tokens=special)
        spans_T2 = np.array(encoded.offsets, np.int64).reshape(-1, 2)
        return self._in_range(np.array(encoded.ids, np.int32)), spans_T2

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text, special tokens left out."""
        return self.backend.decode([int(i) for i in ids], skip_special_tokens=True)

    def token(self, number: int) -> str:
        """Returns how a token is written, special ones too."""
        return self.backend.id_to_token(int(number))

    def _in_range(self, ids: np.ndarray) -> np.ndarray:
        """Returns `ids`: JAX clamps one that is too large without a word."""
        if len(ids) and (largest := int(ids.max())) >= self.vocab_size:
            raise InputError(
                f"data.tokenizer: a text holds the token {self.token(largest)!r}, id {largest}; "
                f"the model's ids end at {self.vocab_size - 1}. Take it out of the text, or use "
                "the model's own tokenizer."
            )
        return ids


def load_tokenizer(path: Path | str, *, vocab_size: int | None = None) -> Tokenizer:
    """Returns the tokenizer at `path`.

    Args:
      path: "bytes", a `tokenizer.json`, a SentencePiece `tokenizer.model`, or the folder that holds
        one.
      vocab_size: rows of the model's embedding; None takes it from a `config.json` beside the file,
        if there is one. A text with a token beyond it is refused.

    Raises:
      InputError: no such file, not a tokenizer, two tokens with one id, begin or end outside the
        vocabulary, or the `tokenizers` package is missing.
    """
    if str(path) == "bytes":
        if vocab_size is not None and vocab_size < BytesTokenizer.vocab_size:
            raise InputError(
                f"data.tokenizer: 'bytes' needs a model of 258 ids, got vocab_size {vocab_size}. "
                "Use the model's own tokenizer."
            )
        return BytesTokenizer()
    file = _find(path)
    is_model = file.suffix == ".model"
    raw = pieces.to_json(file) if is_model else files.read_bytes(file, max_bytes=MAX_FILE_BYTES)
    spec = _parse(raw, file)
    backend = _backend(raw, file)
    backend.no_truncation()
    backend.no_padding()
    if getattr(backend.model, "dropout", None):
        backend.model.dropout = None  # BPE dropout draws other ids at every call
    ids = _checked_ids(spec, backend, file)
    added = special.add_named(backend, file)
    if added:
        ids = backend.get_vocab(with_added_tokens=True)
    settings = {name: special.read_beside(file, name) for name in _BESIDE}
    if vocab_size is None:
        vocab_size = _integer(settings["config.json"].get("vocab_size"))
    notes = _check_range(ids, vocab_size, file)
    number = special.Numbers(special.named_tokens(file), settings, ids, file)
    with _refused_by_the_library(f"'{file}'"):
        bos_id, suffix = special.around(backend, file)
    beyond = [i for i in (bos_id, number.eos_id()) if i is not None and i >= (vocab_size or MAX_ID)]
    if beyond:
        raise InputError(
            f"data.tokenizer: '{file}' begins or ends texts with id {beyond[0]}, the model's ids "
            f"end at {vocab_size - 1}. Use the model's own tokenizer."
        )
    return JsonTokenizer(
        backend=backend,
        vocab_size=min(max(ids.values()) + 1, vocab_size or MAX_ID),
        bos_id=bos_id,
        eos_id=number.eos_id(),
        fingerprint=hashlib.sha256(raw + "\0".join(added).encode()).hexdigest(),
        eos_ids=number.eos_ids(),
        bos_token_id=number.bos_id(),
        suffix=suffix,
        notes=(*notes, *special.older_reading(file, bos_id)),
    )


def backend_of(spec: dict) -> Any:
    """Returns the tokenizers.Tokenizer of the content of a tokenizer.json."""
    return _backend(json.dumps(spec).encode(), Path("tokenizer.json"))


def with_bos(tokenizer: Tokenizer, ids: np.ndarray) -> np.ndarray:
    """Returns `ids` with the bos in front that the tokenizer puts before texts, once."""
    if tokenizer.bos_id is None or (len(ids) and ids[0] == tokenizer.bos_id):
        return ids
    return np.insert(ids, 0, tokenizer.bos_id)


def continuation(tokenizer: Tokenizer, before: str, text: str) -> np.ndarray:
    """Returns the tokens that `text` becomes when it follows `before`.

    Encoded alone it may become others: SentencePiece puts a space before every text.

    Raises:
      InputError: the tokenizer merges the end of `before` with `text`, so that there is no border.
    """
    head, whole = tokenizer.encode(before), tokenizer.encode(before + text)
    if not np.array_equal(whole[: len(head)], head):
        raise InputError(
            f"tokenizer: no border between {before[-20:]!r} and {text!r}: it merges across. "
            "This tokenizer cannot be asked for a number."
        )
    return whole[len(head) :]


_BESIDE = ("tokenizer_config.json", "config.json", "generation_config.json")


def _find(path: Path | str) -> Path:
    """Returns the tokenizer.json that `path` means; without one, the tokenizer.model there."""
    place = files.as_path(path)
    file = place / "tokenizer.json" if place.is_dir() else place
    if not file.exists():
        if (file.parent / "tokenizer.model").exists():
            return file.parent / "tokenizer.model"
        raise InputError(
            f"data.tokenizer: '{file}' does not exist (nothing is downloaded). Give a folder with "
            'tokenizer.json, such a file, or "bytes".'
        )
    if not file.is_file():
        raise InputError(f"data.tokenizer: '{file}' is not a regular file. Give a tokenizer.json.")
    return file


def _parse(raw: bytes, file: Path) -> dict:
    """Returns the file's JSON object."""
    try:
        spec = strict_json.parse(raw, where=f"data.tokenizer: '{file}'")
    except InputError as error:
        raise InputError(f"{error} Give a whole tokenizer.json.") from None
    if not isinstance(spec.get("model"), dict):
        raise InputError(
            f"data.tokenizer: '{file}' is JSON but has no \"model\" section. Give a tokenizer.json "
            "of the `tokenizers` library."
        )
    return spec


def _backend(raw: bytes, file: Path) -> Any:
    """Returns the library's tokenizer for the file's bytes."""
    try:
        import tokenizers
    except ImportError:
        raise InputError(
            f"data.tokenizer: '{file}' needs the package `tokenizers`, which is not installed. "
            'Install it with pip, or use data.tokenizer="bytes".'
        ) from None
    with _refused_by_the_library(f"'{file}'"):
        return tokenizers.Tokenizer.from_buffer(raw)


@contextlib.contextmanager
def _refused_by_the_library(what: str) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except BaseException as error:  # bare Exception for bad content, and Rust's panics
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise InputError(
            f"data.tokenizer: {what} is refused by the `tokenizers` library "
            f"({_one_line(error)}). Give a whole tokenizer.json."
        ) from None


def _checked_ids(spec: dict, backend: Any, file: Path) -> dict[str, int]:
    """Returns token -> id for every token, each id once.

    The library accepts two tokens with one id, an id of 2**32 - 1, and an added token whose id it
    silently changes.
    """
    vocab = spec["model"].get("vocab", {})
    written = dict(vocab) if isinstance(vocab, dict) else {}
    if isinstance(vocab, list):  # Unigram: [piece, score] pairs, the place is the id
        written = {piece: place for place, (piece, _) in enumerate(vocab)}
        if len(written) < len(vocab):
            raise InputError(
                f"data.tokenizer: '{file}' lists a piece twice. Give a whole tokenizer.json."
            )
    for token in spec.get("added_tokens") or ():
        if written.setdefault(token["content"], token["id"]) != token["id"]:
            raise InputError(
                f"data.tokenizer: '{file}' gives token {token['content']!r} two ids, "
                f"{written[token['content']]} and {token['id']}. Give a whole tokenizer.json."
            )
    by_id: dict[int, str] = {}
    for token, number in written.items():
        if by_id.setdefault(number, token) != token:
            raise InputError(
                f"data.tokenizer: '{file}' gives id {number} to both {by_id[number]!r} and "
                f"{token!r}; every id must be unique. Give a whole tokenizer.json."
            )
    used = backend.get_vocab(with_added_tokens=True)
    for token, number in used.items():
        if written.get(token, number) != number:
            raise InputError(
                f"data.tokenizer: '{file}' says {token!r} is {written[token]}, the `tokenizers` "
                f"library makes it {number}. Ids must have no holes before added tokens."
            )
    if not used:
        raise InputError(f"data.tokenizer: '{file}' has no tokens. Give a whole tokenizer.json.")
    return used


def _check_range(ids: dict[str, int], vocab_size: int | None, file: Path | str) -> tuple[str, ...]:
    """Returns a note on tokens that the model has no row for; a text that holds one is refused."""
    token, largest = max(ids.items(), key=lambda item: item[1])
    if largest > MAX_ID:
        raise InputError(
            f"data.tokenizer: '{file}' gives token {token!r} the id {largest}, ids end at {MAX_ID}."
            " Give a whole tokenizer.json."
        )
    beyond = sorted((i, name) for name, i in ids.items() if vocab_size and i >= vocab_size)
    if not beyond:
        return ()
    if len(beyond) == len(ids):
        raise InputError(
            f"data.tokenizer: every id of '{file}' is beyond the model's, which end at "
            f"{vocab_size - 1}. Use the model's own tokenizer."
        )
    return (
        f"{len(beyond):,} of the {len(ids):,} tokens of {file}, {beyond[0][1]!r} (id "
        f"{beyond[0][0]:,}) first, have no row in the embedding (vocab_size {vocab_size:,}); a "
        "text that holds one is refused",
    )


def _integer(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
