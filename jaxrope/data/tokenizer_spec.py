"""Parts of a tokenizer.json, for vocabularies that come in another format."""

SPACE = "▁"  # a space, in the vocabularies of SentencePiece


def bpe(ids: dict[str, int], merges: list[list[str]], unknown: str | None, **changes) -> dict:
    """Returns a model of byte pairs.

    Args:
      ids: of the tokens.
      merges: pairs, the first to be merged first.
      unknown: the token for what has none.
      changes: other values of the library's settings.
    """
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": unknown,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": ids,
        "merges": merges,
        **changes,
    }


def halves(token: str, ids: dict[str, int]) -> list[list[str]]:
    """Returns the pairs of tokens that make a token."""
    pairs = [[token[:at], token[at:]] for at in range(1, len(token))]
    pairs = [pair for pair in pairs if pair[0] in ids and pair[1] in ids]
    return sorted(pairs, key=lambda pair: (ids[pair[0]], ids[pair[1]]))


def added(number: int, token: str, *, special: bool, rstrip: bool = False) -> dict:
    """Returns a token that is found in a text before it is split."""
    return {
        "id": number,
        "content": token,
        "single_word": False,
        "lstrip": False,
        "rstrip": rstrip,
        "normalized": False,
        "special": special,
    }


def around(begin: tuple[str, int] | None, end: tuple[str, int] | None) -> dict | None:
    """Returns the post-processor that puts (token, id) before and after each text."""
    if begin is None and end is None:
        return None

    def pieces(letter: str, kind: int) -> list[dict]:
        special = [
            [{"SpecialToken": {"id": row[0], "type_id": kind}}] if row else []
            for row in (begin, end)
        ]
        return [*special[0], {"Sequence": {"id": letter, "type_id": kind}}, *special[1]]

    return {
        "type": "TemplateProcessing",
        "single": pieces("A", 0),
        "pair": [*pieces("A", 0), *pieces("B", 1)],
        "special_tokens": {
            token: {"id": token, "ids": [number], "tokens": [token]}
            for token, number in filter(None, (begin, end))
        },
    }


def document(added_tokens: list[dict], post_processor: dict | None, **parts) -> dict:
    """Returns a tokenizer.json; `parts` are its normalizer, pre_tokenizer, decoder and model."""
    common = {"version": "1.0", "truncation": None, "padding": None}
    return common | {"added_tokens": added_tokens, "post_processor": post_processor} | parts


def piece_decoder(strip: bool) -> dict:
    """Returns the decoder of SentencePiece; `strip`: a space in front was put there."""
    back = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
    decoders = [back, {"type": "ByteFallback"}, {"type": "Fuse"}]
    if strip:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {"type": "Sequence", "decoders": decoders}
