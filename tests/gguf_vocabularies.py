"""Small vocabularies in GGUF, and a text that tells tokenizers apart."""

from collections import Counter

import numpy as np

from tests import gguf_models, hf_models

WORDS = (
    "The quick brown fox, it's said, didn't jump over 12345 lazy dogs; THEY'LL have 3.14159 of "
    "'em. def f(x):\n    return x[1:] + y**2  # note\n\n\nclass A(B): pass\r\n\t\t"
    "if a != b && c <= d: Größe, naïve façade, ÀÉÎ привет МИР Мир مرحبا "
    "हिन्दी ไทย 日本語テキスト 한국어 ４５６ ² ½ "
    "camelCase HTTPServer snake_case_name x1y22z333 $5.00 -- 'quoted' \"double\" ‘curly’ “both” "
)
TEXT = (
    "  Leading, and   three. \n \n\nend  \t\n"
    + WORDS
    + "e\u0301a\u0308 🙂👍🏽 \u00a0\u2003\u3000x zqxj a zqxj ÿÿ ␀ <0x0A> ▁ "
    + "<|im_start|>user\nhi<|im_end|>\n<think> hm </think>  <|im_start|> tail "
)
CONTROL, USER, UNKNOWN, BYTE = 3, 4, 2, 6
_SPECIAL = (("<|im_start|>", CONTROL), ("<|im_end|>", CONTROL), ("<think>", USER))
_SPECIAL += (("<|endoftext|>", CONTROL),)


def byte_level(pre: str, **changes):
    """Returns a writer of a byte-level vocabulary with this pre-tokenizer."""
    alphabet = _alphabet()
    text = "".join(alphabet[byte] for byte in WORDS.encode())
    merges, tokens = _merges(text, 300), list(alphabet.values())
    tokens += dict.fromkeys(a + b for a, b in merges)
    tokens.append(alphabet[32] + "zqxj")  # no merge makes it: it shows who splits whole words
    kinds = [1] * len(tokens)
    values = {
        "model": "gpt2",
        "pre": pre,
        "tokens": tokens + [token for token, _ in _SPECIAL],
        "token_type": kinds + [kind for _, kind in _SPECIAL],
        "merges": [f"{a} {b}" for a, b in merges],
        "bos_token_id": len(tokens),
        "eos_token_id": len(tokens) + 1,
    }
    return values | changes


def sentencepiece(**changes):
    """Returns the same of a SentencePiece vocabulary."""
    merges = _merges(WORDS.replace(" ", "▁"), 300)
    pieces = [a + b for a, b in merges]
    pieces = [*dict.fromkeys(pieces + sorted({*WORDS.replace(" ", "▁")}))]
    become_bytes = {*"ü½ไ"}
    pieces = [piece for piece in pieces if piece != "\n\n" and not become_bytes & {*piece}]
    tokens = [("<unk>", UNKNOWN), ("<s>", CONTROL), ("</s>", CONTROL)]
    tokens += [(f"<0x{byte:02X}>", BYTE) for byte in range(256)]
    scores = [0.0] * len(tokens) + [-float(rank) for rank in range(len(pieces))]
    tokens += [(piece, 1) for piece in pieces] + [*_SPECIAL, ("\n\n", USER), ("   ", USER)]
    values = {
        "model": "llama",
        "tokens": [token for token, _ in tokens],
        "scores": scores + [-1000.0] * (len(tokens) - len(scores)),
        "token_type": [kind for _, kind in tokens],
        "unknown_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return values | changes


def write(path, values: dict, **extra):
    """Writes a tiny Llama with this vocabulary."""
    config = hf_models.CASES["llama"] | dict(vocab_size=len(values["tokens"]))
    tensors = hf_models.random_tensors(config, 0, np.float32)
    metadata = [(f"tokenizer.ggml.{key}", value) for key, value in values.items()]
    return gguf_models.write(path, config, tensors, extra=[*metadata, *extra.items()])


def _alphabet() -> dict[int, str]:
    """Each byte's character in a byte-level vocabulary (GPT-2's)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in plain]
    return {byte: chr(byte) for byte in plain} | {b: chr(256 + i) for i, b in enumerate(rest)}


def _merges(text: str, count: int) -> list[tuple[str, str]]:
    """The most frequent neighbours, one after the other; across words too, which splits show."""
    symbols, merges = list(text), []
    for _ in range(count):
        pairs = zip(symbols, symbols[1:], strict=False)
        counts = Counter((a, b) for a, b in pairs if len(a + b) <= 5)
        if not counts:
            break
        pair, _ = max(counts.items(), key=lambda row: (row[1], row[0]))
        merges.append(pair)
        joined, at = [], 0
        while at < len(symbols):
            is_pair = tuple(symbols[at : at + 2]) == pair
            joined.append("".join(pair) if is_pair else symbols[at])
            at += 1 + is_pair
        symbols = joined
    return [*dict.fromkeys(merges)]
