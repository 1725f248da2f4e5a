"""A SentencePiece `tokenizer.model` as the content of a tokenizer.json.

Byte pairs become what transformers 5's LlamaTokenizer makes of them: merges in the order of the
vocabulary, no normalisation, one space in front of a text that has none. A Unigram model keeps its
own normalisation, as the sentencepiece library applies it (but that the tokenizers library takes
"\\r\\n" for one character).
"""

import base64
import json
from pathlib import Path

from jaxrope.data import tokenizer_spec
from jaxrope.errors import InputError
from jaxrope.store import files, strict_json

MAX_BYTES = 100_000_000
_UNIGRAM, _BPE = 1, 2  # model_type of a model
_CONTROL, _USER, _UNKNOWN = 3, 4, 2  # type of a piece
_SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token")


def to_json(file: Path) -> bytes:
    """Returns a tokenizer.json for a tokenizer.model and the JSON files beside it.

    Raises:
      InputError: the package is missing, or the file is no such model.
    """
    proto = _parse(file)
    settings = _beside(file, "tokenizer_config.json")
    kind = proto.trainer_spec.model_type
    if kind not in (_UNIGRAM, _BPE) or not proto.pieces:
        raise InputError(
            f"data.tokenizer: '{file}' is a SentencePiece model of words or characters; BPE and"
            " Unigram are read. Give a tokenizer.json."
        )
    tokens = [piece.piece for piece in proto.pieces]
    if len({*tokens}) < len(tokens):
        raise InputError(f"data.tokenizer: '{file}' lists a piece twice. Give a whole file.")
    added = _added(file, proto, settings)
    ids = {row["content"]: row["id"] for row in added} | {t: i for i, t in enumerate(tokens)}
    ends = [
        _special(name, settings, ids, token) if settings.get(f"add_{name}_token", default) else None
        for name, default, token in (("bos", True, "<s>"), ("eos", False, "</s>"))
    ]
    body = _bpe(proto, tokens, settings) if kind == _BPE else _unigram(proto, tokens)
    spec = tokenizer_spec.document(added, tokenizer_spec.around(*ends), **body)
    return json.dumps(spec, ensure_ascii=False).encode("utf-8", "backslashreplace")


def _parse(file: Path):
    raw = files.read_bytes(file, max_bytes=MAX_BYTES)
    try:
        from google.protobuf.message import DecodeError
        from sentencepiece import sentencepiece_model_pb2
    except ImportError:
        raise InputError(
            f"data.tokenizer: '{file.parent}' has a SentencePiece tokenizer.model, which is not"
            " read without the packages sentencepiece and protobuf. Install them (pip install"
            " jaxrope[sentencepiece]), or save a tokenizer.json beside it with transformers'"
            " save_pretrained."
        ) from None
    proto = sentencepiece_model_pb2.ModelProto()
    try:
        proto.ParseFromString(raw)
        _ = [piece.piece for piece in proto.pieces]  # decodes them
    except (DecodeError, UnicodeDecodeError):
        raise InputError(
            f"data.tokenizer: '{file}' is no SentencePiece model. Download it again."
        ) from None
    return proto


def _bpe(proto, tokens: list[str], settings: dict) -> dict:
    ids = {token: number for number, token in enumerate(tokens)}
    merges = [pair for token in tokens for pair in tokenizer_spec.halves(token, ids)]
    unknown = next((p.piece for p in proto.pieces if p.type == _UNKNOWN), None)
    has_prefix = settings.get("add_prefix_space") is not False
    scheme = "always" if settings.get("legacy") else "first"
    return {
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Metaspace",
            "replacement": tokenizer_spec.SPACE,
            "prepend_scheme": scheme if has_prefix else "never",
            "split": False,
        },
        "decoder": tokenizer_spec.piece_decoder(has_prefix),
        "model": tokenizer_spec.bpe(ids, merges, unknown, byte_fallback=True, fuse_unk=True),
    }


def _unigram(proto, tokens: list[str]) -> dict:
    rules, steps = proto.normalizer_spec, []
    if rules.precompiled_charsmap:
        charsmap = base64.b64encode(rules.precompiled_charsmap).decode()
        steps.append({"type": "Precompiled", "precompiled_charsmap": charsmap})
    if rules.remove_extra_whitespaces:
        for regex, content in ((r"\A +| +\z", ""), (" {2,}", " ")):
            steps.append({"type": "Replace", "pattern": {"Regex": regex}, "content": content})
    space = {"type": "Replace", "pattern": {"String": " "}, "content": tokenizer_spec.SPACE}
    if rules.add_dummy_prefix:
        steps.append({"type": "Prepend", "prepend": tokenizer_spec.SPACE})
    scores = [piece.score for piece in proto.pieces]
    return {
        "normalizer": {"type": "Sequence", "normalizers": [*steps, space]},
        "pre_tokenizer": None,
        "decoder": tokenizer_spec.piece_decoder(rules.add_dummy_prefix),
        "model": {
            "type": "Unigram",
            "unk_id": proto.trainer_spec.unk_id,
            "vocab": [list(row) for row in zip(tokens, scores, strict=True)],
            "byte_fallback": proto.trainer_spec.byte_fallback,
        },
    }


def _added(file: Path, proto, settings: dict) -> list[dict]:
    """Returns the pieces that stay whole, and the tokens of the files beside the model."""
    rows = {
        number: tokenizer_spec.added(number, piece.piece, special=piece.type != _USER)
        for number, piece in enumerate(proto.pieces)
        if piece.type in (_CONTROL, _USER, _UNKNOWN)
    }
    special = {_text(settings.get(name)) for name in _SPECIAL}
    for token, number in _beside(file, "added_tokens.json").items():
        if not isinstance(number, int) or isinstance(number, bool) or number < 0:
            raise InputError(f"{file.parent / 'added_tokens.json'}: the id of {token!r} is none.")
        rows[number] = tokenizer_spec.added(number, token, special=token in special)
    listed = settings.get("added_tokens_decoder") or {}
    for text, row in listed.items() if isinstance(listed, dict) else ():
        if not (text.isdecimal() and isinstance(row, dict) and isinstance(row.get("content"), str)):
            raise InputError(
                f"{file.parent / 'tokenizer_config.json'}: added_tokens_decoder must give a token"
                f" for each id, got {text[:40]!r}."
            )
        number = int(text)
        flags = {key: bool(row.get(key)) for key in ("single_word", "lstrip", "rstrip", "special")}
        rows[number] = tokenizer_spec.added(number, row["content"], special=False) | flags
    return [rows[number] for number in sorted(rows)]


def _special(name: str, settings: dict, ids: dict[str, int], usual: str) -> tuple[str, int] | None:
    token = _text(settings.get(f"{name}_token", usual))
    return (token, ids[token]) if token in ids else None


def _text(token: object) -> str | None:
    value = token.get("content") if isinstance(token, dict) else token
    return value if isinstance(value, str) else None


def _beside(file: Path, name: str) -> dict:
    path = file.parent / name
    return strict_json.read(path, max_bytes=MAX_BYTES) if path.is_file() else {}
