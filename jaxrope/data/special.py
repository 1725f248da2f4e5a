"""Which tokens begin and end a text, as the tokenizer and the files beside it say.

What is put around a text is the post_processor's of tokenizer.json alone, as in transformers 5:
neither bos_token nor add_bos_token nor bos_token_id puts a token before anything.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxrope.errors import InputError
from jaxrope.store import strict_json

# Looked up in this order when no file beside tokenizer.json says which tokens begin and end a text.
USUAL_BOS = ("<s>", "<|begin_of_text|>", "<bos>", "[BOS]", "<|startoftext|>", "<|endoftext|>")
USUAL_EOS = ("</s>", "<|end_of_text|>", "<eos>", "[EOS]", "<|endoftext|>")
STANDARD = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")


def read_beside(file: Path, name: str) -> dict:
    """Returns the JSON object of a file beside the tokenizer, {} if there is none."""
    beside = file.parent / name
    if not beside.is_file():
        return {}
    try:
        return strict_json.read(beside, max_bytes=strict_json.MAX_INDEX_BYTES)
    except InputError as error:
        raise InputError(f"data.tokenizer: {error} Mend or remove it.") from None


def named_tokens(file: Path) -> dict[str, str]:
    """Returns the special tokens that have a name: {"bos_token": "<s>", ...}, as transformers 5.

    special_tokens_map.json overrules tokenizer_config.json where the latter is old, without
    added_tokens_decoder.

    Args:
      file: the tokenizer.json.
    """
    values: dict[str, Any] = dict(read_beside(file, "tokenizer_config.json"))
    if "added_tokens_decoder" not in values:
        values |= read_beside(file, "special_tokens_map.json")
    keys = [f"{kind}_token" for kind in STANDARD]
    keys += [key for key in values if key.endswith("_token") and key not in keys]
    chosen = {key: values.get(key) for key in keys}
    extra = values.get("extra_special_tokens")
    chosen |= extra if isinstance(extra, dict) else {}
    texts = {key: _content(value) for key, value in chosen.items()}
    return {key: text for key, text in texts.items() if text is not None}


def add_named(backend: Any, file: Path) -> list[str]:
    """Makes special tokens of those that the files beside say are, as transformers does.

    A template that writes "<s>" means the token; the library finds it in a text only where it is
    an added token.

    Args:
      backend: tokenizers.Tokenizer; it is changed.
      file: the tokenizer.json.

    Returns:
      What was added.
    """
    import tokenizers

    vocab = backend.get_vocab(with_added_tokens=True)
    present = {token.content for token in backend.get_added_tokens_decoder().values()}
    rows = read_beside(file, "tokenizer_config.json").get("added_tokens_decoder")
    rows = rows if isinstance(rows, dict) else {}
    wanted = {}
    for _, row in sorted((int(i), row) for i, row in rows.items() if str(i).isdigit()):
        text = _content(row)
        if text is not None and text not in present:
            flags = {name: bool(row.get(name, False)) for name in _FLAGS}
            wanted[text] = tokenizers.AddedToken(text, **flags)
    for text in named_tokens(file).values():
        if text in vocab and text not in present:
            wanted.setdefault(text, tokenizers.AddedToken(text, normalized=False, special=True))
    for token in wanted.values():
        backend.add_special_tokens([token]) if token.special else backend.add_tokens([token])
    return list(wanted)


_FLAGS = ("lstrip", "rstrip", "normalized", "single_word", "special")


def around(backend: Any, file: Path) -> tuple[int | None, tuple[int, ...]]:
    """Returns (the id that the tokenizer puts before every text, those behind it).

    Raises:
      InputError: it puts several before a text.
    """
    for probe in ("a", "0", ".", "\n"):
        encoded = backend.encode(probe, add_special_tokens=True)
        text = [place for place, added in enumerate(encoded.special_tokens_mask) if not added]
        if text:
            break
    else:
        return None, ()
    before, behind = encoded.ids[: text[0]], encoded.ids[text[-1] + 1 :]
    if len(before) > 1:
        raise InputError(
            f"data.tokenizer: the post_processor of '{file}' puts {len(before)} tokens before every"
            " text; at most one is supported. Shorten it there."
        )
    return (before[0] if before else None), tuple(behind)


def older_reading(file: Path, bos_id: int | None) -> tuple[str, ...]:
    """Returns a note where transformers 4 puts bos before texts, and 5 does not, or the reverse: 4
    obeys add_bos_token (True where it is absent) in the classes of Llama and Gemma.
    """
    settings = read_beside(file, "tokenizer_config.json")
    name = str(settings.get("tokenizer_class")).removesuffix("Fast")
    adds = settings.get("add_bos_token", True)
    if name not in _OBEYING or adds is (bos_id is not None) or not isinstance(adds, bool):
        return ()
    what, older = ("no bos", "puts one") if bos_id is None else ("bos", "leaves it out")
    return (
        f"{what} before texts, as the post_processor of {file.name} and transformers 5 have it;"
        f" transformers 4 {older}, by add_bos_token of tokenizer_config.json",
    )


_OBEYING = ("LlamaTokenizer", "CodeLlamaTokenizer", "GemmaTokenizer")


@dataclasses.dataclass(frozen=True)
class Numbers:
    """The ids of the tokens that begin and end a text.

    Attributes:
      named: of `named_tokens`.
      settings: the files beside the tokenizer by name.
      ids: of every token.
      file: the tokenizer.json, for messages.
    """

    named: Mapping[str, str]
    settings: Mapping[str, dict]
    ids: Mapping[str, int]
    file: Path

    def bos_id(self) -> int | None:
        """Returns the begin token's, None if there is none: transformers gives a tokenizer with a
        tokenizer_config.json no other than it names.
        """
        if self.settings["tokenizer_config.json"] and "bos_token" not in self.named:
            return None
        return self._named_or_usual("bos", USUAL_BOS)

    def eos_id(self) -> int | None:
        """Returns the end token's, None if there is none."""
        return self._named_or_usual("eos", USUAL_EOS)

    def eos_ids(self) -> tuple[int, ...]:
        """Returns all that end a text: the tokenizer's and those of both configs."""
        listed = [i for source in _CONFIGS for i in self._listed(source, "eos")]
        return tuple(sorted({self.eos_id(), *listed} - {None}))

    def _listed(self, source: str, kind: str) -> list[int]:
        value = self.settings[source].get(f"{kind}_token_id")
        values = value if isinstance(value, list) else [value]
        return [i for i in values if isinstance(i, int) and not isinstance(i, bool) and i >= 0]

    def _named_or_usual(self, kind: str, usual: tuple[str, ...]) -> int | None:
        name = self.named.get(f"{kind}_token")
        if name is not None:
            if name not in self.ids:
                raise InputError(
                    f"data.tokenizer: {kind}_token {name!r} of tokenizer_config.json is no token of"
                    f" '{self.file}'. Correct it there."
                )
            return self.ids[name]
        for source in _CONFIGS:
            for number in self._listed(source, kind)[:1]:
                if number not in self.ids.values():
                    raise InputError(
                        f"data.tokenizer: {kind}_token_id {number} of {source} is no token of "
                        f"'{self.file}'. Correct it there."
                    )
                return number
        return next((self.ids[name] for name in usual if name in self.ids), None)


_CONFIGS = ("config.json", "generation_config.json")


def _content(value: object) -> str | None:
    """Returns a token's text, written as it is or as an object with its `content`."""
    text = value.get("content") if isinstance(value, Mapping) else value
    return text if isinstance(text, str) else None
