"""The tokenizer of a GGUF file as tokenizer.json and its companions, with llama.cpp's own ids.

Two kinds: `gpt2`, BPE over bytes whose merges are in the file, and `llama`, SentencePiece, which
merges the neighbours whose union has the highest score: here as merges in that order.
"""

import dataclasses

from jaxrope.convert import gguf_header
from jaxrope.convert.fields import Fields
from jaxrope.convert.gguf_splits import FLAGGED, GROUPS, SPLITS
from jaxrope.data import tokenizer_spec
from jaxrope.errors import InputError

KEY = "tokenizer.ggml."
ARRAYS = tuple(KEY + name for name in ("tokens", "scores", "token_type", "merges"))
NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = range(1, 7)  # token_type
# Tokens that end an answer, whatever a file says of them: as the published generation configs.
_ENDS = (
    *("<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|im_end|>", "<|endoftext|>", "<|end|>"),
    *("<end_of_turn>", "<|end_of_turn|>", "<|return|>", "<EOT>", "_<EOT>", "[EOT]"),
    "<｜end▁of▁sentence｜>",
)


@dataclasses.dataclass(frozen=True)
class _Vocabulary:
    """What the file lists.

    Attributes:
      fields: the metadata.
      tokens: by id; all different.
      kinds: their token_type.
      arrays: whole, by key.
    """

    fields: Fields
    tokens: list[str]
    kinds: list[int]
    arrays: dict[str, list]

    def id_of(self, name: str) -> int | None:
        """Returns the id under a key such as "bos_token_id"; None: there is none."""
        number = self.fields.count(f"{KEY}{name}", None, low=0)
        if number is not None and number >= len(self.tokens):
            raise self.fields.wrong(f"{KEY}{name}", f"be below {len(self.tokens)}, the tokens")
        return number

    def token(self, name: str) -> str | None:
        """Returns the token under such a key."""
        number = self.id_of(name)
        return None if number is None else self.tokens[number]


def files(header: gguf_header.Header, where: str) -> tuple[dict[str, dict], list[str]]:
    """Returns the content of the JSON files by name, and notes.

    Args:
      header: with the arrays `ARRAYS`.
      where: the file, for messages.

    Raises:
      InputError: the tokenizer's metadata contradict each other.
    """
    fields = Fields(header.values, where)
    kind = fields.text(f"{KEY}model", None)
    if kind not in ("gpt2", "llama"):
        return {}, [
            f"{where} has a tokenizer of kind {kind}, which is not read (gpt2 and llama are)"
        ]
    vocabulary = _vocabulary(header, fields)
    split = fields.text(f"{KEY}pre", None) or "default"
    if kind == "gpt2" and split not in GROUPS:
        return {}, [
            f"{where}: how its tokenizer splits text ({KEY}pre, '{split[:60]}') is not known, so"
            " it comes without one; name the tokenizer.json of the original model"
        ]
    is_flagged = kind == "llama" or GROUPS.get(split) in FLAGGED
    adds = {
        "bos": fields.flag(f"{KEY}add_bos_token", is_flagged),
        "eos": fields.flag(f"{KEY}add_eos_token", False),
    }
    body = _byte_level(vocabulary, split) if kind == "gpt2" else _sentencepiece(vocabulary)
    ends = [
        (vocabulary.tokens[number], number) if number is not None and adds[name] else None
        for name in ("bos", "eos")
        for number in [vocabulary.id_of(f"{name}_token_id")]
    ]
    around = tokenizer_spec.around(*ends)
    contents = {
        "tokenizer.json": tokenizer_spec.document(_added(vocabulary), around, **body),
        "tokenizer_config.json": _settings(vocabulary, adds),
        "generation_config.json": _generation(vocabulary),
    }
    return contents, []


def _vocabulary(header: gguf_header.Header, fields: Fields) -> _Vocabulary:
    arrays = {key.removeprefix(KEY): header.arrays.get(key, []) for key in ARRAYS}
    tokens, kinds = arrays["tokens"], arrays["token_type"] or [NORMAL] * len(arrays["tokens"])
    if not tokens or not all(isinstance(token, str) for token in tokens):
        raise InputError(f"{fields.path(KEY + 'tokens')} must be a list of texts.")
    for name, items in (("token_type", kinds), ("scores", arrays["scores"] or tokens)):
        if len(items) != len(tokens) or (items is not tokens and isinstance(items[0], str)):
            raise InputError(
                f"{fields.path(KEY + name)} must be {len(tokens)} numbers, one a token, got"
                f" {len(items)} items."
            )
    tokens = [token or f"[EMPTY_{number}]" for number, token in enumerate(tokens)]
    if len({*tokens}) < len(tokens):
        raise InputError(f"{fields.path(KEY + 'tokens')} must all be different.")
    kinds = [CONTROL if token in _ENDS else kind for token, kind in zip(tokens, kinds, strict=True)]
    return _Vocabulary(fields, tokens, kinds, arrays)


def _byte_level(vocabulary: _Vocabulary, split: str) -> dict:
    ids = {token: number for number, token in enumerate(vocabulary.tokens)}
    pairs = [_pair(merge, vocabulary.fields) for merge in vocabulary.arrays["merges"]]
    pairs = [pair for pair in pairs if ids.keys() >= {*pair, "".join(pair)}]
    return splitting(GROUPS[split]) | {
        "model": tokenizer_spec.bpe(ids, pairs, None, ignore_merges=GROUPS[split] in FLAGGED)
    }


def splitting(group: str) -> dict:
    """Returns the parts of a tokenizer.json that split a text as a group of `SPLITS` does."""
    pieces = [
        {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
        for regex in SPLITS[group]
    ]
    bytes_ = {"add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    bytes_ = {"type": "ByteLevel"} | bytes_
    return {
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*pieces, bytes_]},
        "decoder": bytes_,
    }


def _pair(merge: object, fields: Fields) -> list[str]:
    at = merge.find(" ", 1) if isinstance(merge, str) else -1
    if at < 0:
        raise InputError(f"{fields.path(KEY + 'merges')} must be pairs of tokens with a space.")
    return [merge[:at], merge[at + 1 :]]


def _sentencepiece(vocabulary: _Vocabulary) -> dict:
    scores = vocabulary.arrays["scores"]
    if not scores:
        raise InputError(f"{vocabulary.fields.path(KEY + 'scores')} is missing.")
    prefix = vocabulary.fields.flag(f"{KEY}add_space_prefix", True)
    ids = {token: number for number, token in enumerate(vocabulary.tokens)}
    ranked = sorted(range(len(scores)), key=lambda number: -scores[number])
    tokens = vocabulary.tokens
    pairs = [pair for number in ranked for pair in tokenizer_spec.halves(tokens[number], ids)]
    space = {"type": "Replace", "pattern": {"String": " "}, "content": tokenizer_spec.SPACE}
    steps = [{"type": "Prepend", "prepend": tokenizer_spec.SPACE}, space] if prefix else [space]
    unknown = vocabulary.token("unknown_token_id")
    return {
        "normalizer": {"type": "Sequence", "normalizers": steps},
        "pre_tokenizer": None,
        "decoder": tokenizer_spec.piece_decoder(prefix),
        "model": tokenizer_spec.bpe(ids, pairs, unknown, byte_fallback=True, fuse_unk=True),
    }


def _added(vocabulary: _Vocabulary) -> list[dict]:
    """Returns the tokens that are found in a text before it is split."""
    name = str(vocabulary.fields.get("general.name")).lower()
    strips = {*vocabulary.tokens} - {"<unk>", "<s>", "<|endoftext|>"}
    strips = strips if "phi-3" in name or "phi3" in name else set()  # as llama.cpp, by the name
    rows = enumerate(zip(vocabulary.tokens, vocabulary.kinds, strict=True))
    return [
        tokenizer_spec.added(number, token, special=kind != USER, rstrip=token in strips)
        for number, (token, kind) in rows
        if kind in (UNKNOWN, CONTROL, USER)
    ]


def _settings(vocabulary: _Vocabulary, adds: dict[str, bool]) -> dict:
    keys = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    values: dict = {
        f"{name}_token": vocabulary.token(f"{key}_token_id") for name, key in keys.items()
    }
    values |= {f"add_{name}_token": added for name, added in adds.items()}
    architecture = vocabulary.fields.get("general.architecture")
    values |= {
        "clean_up_tokenization_spaces": False,
        "model_max_length": vocabulary.fields.count(f"{architecture}.context_length"),
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    if template := vocabulary.fields.text("tokenizer.chat_template", None):
        values["chat_template"] = template
    return values


def _generation(vocabulary: _Vocabulary) -> dict:
    names = ("eos_token_id", "eot_token_id", "eom_token_id")
    ends = [number for name in names if (number := vocabulary.id_of(name)) is not None]
    ends += [number for number, token in enumerate(vocabulary.tokens) if token in _ENDS]
    values = {
        "bos_token_id": vocabulary.id_of("bos_token_id"),
        "eos_token_id": [*dict.fromkeys(ends)],
    }
    values["pad_token_id"] = vocabulary.id_of("padding_token_id")
    return {key: value for key, value in values.items() if value not in (None, [])}
