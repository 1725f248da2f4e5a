"""Which tokens begin and end a text, as the files beside a tokenizer.json say."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxrope.errors import InputError
from jaxrope.store import strict_json

STANDARD = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
# transformers' classes that name their tokens themselves: what tokenizer_config.json leaves out
_OF_CLASS = {
    "LlamaTokenizer": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
    "CodeLlamaTokenizer": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
    "GemmaTokenizer": {
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
        "mask_token": "<mask>",
    },
    "Qwen2Tokenizer": {
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
    },
    "GPT2Tokenizer": {
        "bos_token": "<|endoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
    },
}


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
    config = read_beside(file, "tokenizer_config.json")
    values: dict[str, Any] = dict(config)
    if "added_tokens_decoder" not in config:
        values |= read_beside(file, "special_tokens_map.json")
    name = config.get("tokenizer_class")
    by_class = _OF_CLASS.get(name.removesuffix("Fast"), {}) if isinstance(name, str) else {}
    keys = [f"{kind}_token" for kind in STANDARD]
    keys += [key for key in values if key.endswith("_token") and key not in keys]
    chosen = {key: values[key] if key in values else by_class.get(key) for key in keys}
    extra = values.get("extra_special_tokens")
    chosen |= extra if isinstance(extra, dict) else {}
    texts = {key: _content(value) for key, value in chosen.items()}
    return {key: text for key, text in texts.items() if text is not None}


def _content(value: object) -> str | None:
    """Returns a token's text, written as it is or as an object with its `content`."""
    text = value.get("content") if isinstance(value, Mapping) else value
    return text if isinstance(text, str) else None
