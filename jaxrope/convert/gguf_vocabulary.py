"""A tokenizer as metadata of a GGUF file; the way back is gguf_tokenizer.py.

llama.cpp has its own splitting of a text, by a name, and its own merging: what is written is read
back, and has to give the ids of the tokenizer that it came from.
"""

import json
import re
from pathlib import Path
from typing import Any

from jaxrope import data
from jaxrope.convert import gguf_tokenizer
from jaxrope.convert.gguf_header import Header
from jaxrope.convert.gguf_splits import FLAGGED, NAMES, SPLITS
from jaxrope.convert.gguf_tokenizer import BYTE, CONTROL, KEY, NORMAL, UNKNOWN, UNUSED, USER
from jaxrope.data import tokenizer_spec
from jaxrope.decoder import DecoderConfig
from jaxrope.errors import InputError

# All groups of SPLITS split it otherwise, but for those that differ in what they merge.
PLAIN = (
    "It's what THEY'LL do: x1y22z333 = 1234567 + $5.00; don't\n\n\n  if a != b && c <= d:\r\n\t\t"
    "return f(x)[1:]**2  # note -- 'quoted' \"double\" camelCase snake_case ../path//to   end  \n"
    "größe naïve café; привет мир, 日本語テキスト 한국어 ４５６ ² ½ "
    "-1,000 (...) 🙂👍 <0x0A> \u00a0 x"
)
# What llama.cpp is known to treat otherwise than some tokenizers.
_SPECIAL_CASES = {
    "letters in two characters (e\u0301)": "e\u0301a\u0308 cafe\u0301",
    "marks and capitals beyond ASCII": (MARKS := "हिन्दी ไทย приВет ÀÉÎoñÑ"),
    "spaces at the ends": "  two before,  two behind  ",
}
_MOST_SPECIAL = 100  # tokens that are tried
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_OF_PHI3 = {"<unk>", "<s>", "</s>", "<|endoftext|>"}  # llama.cpp loads no Phi-3 without
_UNREACHED = -1e6  # score of a token that no merge makes


def metadata(place: Path | str | None, config: DecoderConfig) -> tuple[dict[str, Any], list[str]]:
    """Returns (metadata of a tokenizer by key, notes).

    "general.name" is with them where llama.cpp goes by it.

    Args:
      place: as `data.load_tokenizer` takes it.
      config: of the model, whose tokens may be more, or fewer.

    Raises:
      InputError: there is no tokenizer, or llama.cpp has none like it.
    """
    if place is None:
        raise InputError("The model has no tokenizer, and llama.cpp runs none without. Add one.")
    tokenizer = data.load_tokenizer(place, vocab_size=config.vocab_size)
    spec = json.loads(tokenizer.backend.to_str())
    if spec["model"]["type"] != "BPE":
        raise InputError(
            f"{place}: only tokenizers that merge pairs are written for llama.cpp, this one is of"
            f" type {spec['model']['type']}. Serve the model with another program."
        )
    is_pieces = spec["model"]["byte_fallback"]
    values, notes = _ids(tokenizer, place)
    if config.pad_id is not None and 0 <= config.pad_id < config.vocab_size:
        values[f"{KEY}padding_token_id"] = config.pad_id
    values |= _tokens(spec, tokenizer, config.vocab_size, is_pieces=is_pieces)
    choices = _pieces(spec, values) if is_pieces else _byte_level(spec, tokenizer)
    plain = _without_added(PLAIN, spec)
    for choice in choices:
        again = _again(values | choice, str(place))
        if again is not None and _same(tokenizer, again, plain):
            return values | choice, notes + _remarks(tokenizer, again, spec)
    raise InputError(
        f"{place}: llama.cpp has no tokenizer that splits and merges a text like this one. Serve"
        " the model with another program."
    )


def _ids(tokenizer: data.Tokenizer, place: Path | str) -> tuple[dict[str, Any], list[str]]:
    """Returns the metadata of begin and end tokens and the chat template, and notes."""
    begin = tokenizer.bos_id if tokenizer.bos_id is not None else tokenizer.bos_token_id
    ends = dict.fromkeys((tokenizer.eos_id, *tokenizer.eos_ids))  # the tokenizer's own first
    ends = [number for number in ends if number is not None]
    names = ("bos_token_id", "eos_token_id", "eot_token_id", "eom_token_id")
    numbers = dict(zip(names, [begin, *ends[:3]], strict=False))
    values: dict[str, Any] = {f"{KEY}{k}": int(v) for k, v in numbers.items() if v is not None}
    values[f"{KEY}add_bos_token"] = tokenizer.bos_id is not None
    values[f"{KEY}add_eos_token"] = tokenizer.suffix == (tokenizer.eos_id,)
    template = data.chat.load_template(place)
    if template is not None:
        values["tokenizer.chat_template"] = template.source
    notes = []
    if tokenizer.suffix and not values[f"{KEY}add_eos_token"]:
        notes.append("llama.cpp puts nothing behind a text, this tokenizer does")
    if not ends:
        notes.append("the tokenizer has no end of text: llama.cpp takes a token of its own for it")
    if len(ends) > 3:
        left = ", ".join(tokenizer.token(number) for number in ends[3:])
        notes.append(f"llama.cpp is told of three ends of text; it may not stop at {left}")
    return values, notes


def _tokens(
    spec: dict, tokenizer: data.Tokenizer, vocab_size: int, *, is_pieces: bool
) -> dict[str, Any]:
    """Returns the list of tokens and their types, as long as the embedding."""
    by_id = {i: t for t, i in tokenizer.backend.get_vocab(with_added_tokens=True).items()}
    added, unknown = {row["id"]: row for row in spec["added_tokens"]}, spec["model"]["unk_token"]
    tokens, kinds = [], []
    for number in range(vocab_size):
        token, row = by_id.get(number), added.get(number)
        kind = NORMAL if row is None else CONTROL if row["special"] else USER
        if token is None:
            token, kind = f"[PAD{number}]", UNUSED
        elif is_pieces and token == unknown:
            kind = UNKNOWN
        elif is_pieces and row is None and _BYTE.fullmatch(token):
            kind = BYTE
        elif is_pieces and kind == USER and row["normalized"]:
            token = token.replace(tokenizer_spec.SPACE, " ")  # found before spaces are replaced
        tokens.append(token)
        kinds.append(kind)
    return {f"{KEY}tokens": tokens, f"{KEY}token_type": kinds}


def _byte_level(spec: dict, tokenizer: data.Tokenizer) -> list[dict[str, Any]]:
    """Returns the metadata of each of llama.cpp's ways to split that splits as this tokenizer."""
    model, before = spec["model"], tokenizer.backend.pre_tokenizer
    if before is None or not model["merges"]:
        return []
    groups = [group for group in SPLITS if _is_split(before, group, PLAIN)]
    groups.sort(
        key=lambda group: (
            not _is_split(before, group, MARKS),
            (group in FLAGGED) != model["ignore_merges"],
        )
    )
    merges = [" ".join(pair) for pair in model["merges"]]
    values = {f"{KEY}model": "gpt2", f"{KEY}merges": merges}
    return [values | {f"{KEY}pre": NAMES[group]} for group in groups]


def _is_split(before, group: str, text: str) -> bool:
    """Returns whether a pre-tokenizer splits a text as llama.cpp does for a group."""
    return [piece for piece, _ in before.pre_tokenize_str(text)] == split(group, text)


def split(group: str, text: str) -> list[str]:
    """Returns a text as llama.cpp splits it for a group of `SPLITS`."""
    body = gguf_tokenizer.splitting(group) | {"model": tokenizer_spec.bpe({"a": 0}, [], None)}
    backend = data.backend_of(tokenizer_spec.document([], None, **body))
    return [piece for piece, _ in backend.pre_tokenizer.pre_tokenize_str(text)]


def _pieces(spec: dict, values: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the metadata of SentencePiece's merges, with a space in front of a text and without.

    The earlier a merge, the higher the score of what it makes.
    """
    rank = {}
    for number, pair in enumerate(spec["model"]["merges"]):
        rank.setdefault("".join(pair), number)
    scores = [-float(rank[t]) if t in rank else _UNREACHED for t in values[f"{KEY}tokens"]]
    numbers = {row["content"]: row["id"] for row in spec["added_tokens"]}
    numbers |= spec["model"]["vocab"]
    unknown = numbers.get(spec["model"]["unk_token"])
    common = {f"{KEY}model": "llama", f"{KEY}pre": "default", f"{KEY}scores": scores}
    common |= {} if unknown is None else {f"{KEY}unknown_token_id": unknown}
    strips = any(row["rstrip"] and row["special"] for row in spec["added_tokens"])
    if strips and _OF_PHI3 <= numbers.keys():  # llama.cpp strips behind special tokens by the name
        common["general.name"] = "phi-3"
    return [common | {f"{KEY}add_space_prefix": prefix} for prefix in (True, False)]


def _again(values: dict[str, Any], where: str):
    """Returns the tokenizer that is read from the metadata; None: they cannot be read."""
    arrays = {key: value for key, value in values.items() if isinstance(value, list)}
    firsts = {key: value[0] for key, value in arrays.items()}
    context = {"general.architecture": "llama", "llama.context_length": 1}
    contents, _ = gguf_tokenizer.files(Header(values | firsts | context, arrays, {}, {}), where)
    if "tokenizer.json" not in contents:
        return None
    return data.backend_of(contents["tokenizer.json"])


def _without_added(text: str, spec: dict) -> list[str]:
    """Returns the parts of a text between tokens that are found before it is split."""
    added = [re.escape(row["content"]) for row in spec["added_tokens"]]
    parts = re.split("|".join(sorted(added, key=len, reverse=True)), text) if added else [text]
    return [part.strip() for part in parts if part.strip()]


def _same(tokenizer: data.Tokenizer, again, texts: list[str]) -> bool:
    backends = (tokenizer.backend, again)
    ids, others = ([e.ids for e in backend.encode_batch(texts)] for backend in backends)
    return ids == others


def _remarks(tokenizer: data.Tokenizer, again, spec: dict) -> list[str]:
    """Returns where llama.cpp gives other ids than the tokenizer."""
    notes = [
        f"llama.cpp gives other tokens than this tokenizer to {what}"
        for what, text in _SPECIAL_CASES.items()
        if not _same(tokenizer, again, [text])
    ]
    added = [row["content"] for row in spec["added_tokens"]][:_MOST_SPECIAL]
    wrong = [t for t in added if not _same(tokenizer, again, [f"a{t}b", f"a {t} b", f"{t}\n{t}"])]
    if wrong:
        notes.append(
            f"llama.cpp gives other tokens than this tokenizer to a text around {wrong[0]!r}"
            f" ({len(wrong)} of {len(added)} special tokens)"
        )
    return notes
