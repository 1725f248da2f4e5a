"""Small tokenizers of every kind that models come with, as folders."""

import json
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

SPECIAL = ("<s>", "</s>", "<unk>", "<pad>", "<|im_start|>", "<|im_end|>", "<|eot_id|>")
TEXT = (
    "It was a dark night, and the rain fell on the roof of the old house by the sea.",
    "user assistant system What is the answer? I think so. Be brief. Hello again, and again.",
)


def bpe(post_processor=None) -> tokenizers.Tokenizer:
    """Returns a byte-level BPE of a few hundred tokens, ids 0 to 6 those of SPECIAL."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    settings = dict(vocab_size=320, special_tokens=list(SPECIAL), initial_alphabet=alphabet)
    tokenizer.train_from_iterator(TEXT, trainers.BpeTrainer(show_progress=False, **settings))
    if post_processor is not None:
        tokenizer.post_processor = post_processor
    return tokenizer


def unigram(post_processor=None) -> tokenizers.Tokenizer:
    """Returns a Unigram of a hundred pieces, as sentencepiece makes them."""
    tokenizer = tokenizers.Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    settings = dict(vocab_size=120, special_tokens=list(SPECIAL), unk_token="<unk>")
    tokenizer.train_from_iterator(TEXT, trainers.UnigramTrainer(show_progress=False, **settings))
    if post_processor is not None:
        tokenizer.post_processor = post_processor
    return tokenizer


def template(single: str) -> processors.TemplateProcessing:
    """Returns the post-processor that puts special tokens where `single` has them."""
    tokens = [(name, number) for number, name in enumerate(SPECIAL)]
    return processors.TemplateProcessing(single=single, pair=f"{single} $B", special_tokens=tokens)


def write(
    place: Path, tokenizer: tokenizers.Tokenizer | None = None, *, tokenizer_config: dict
) -> Path:
    """Writes tokenizer.json and tokenizer_config.json into `place`, and returns it.

    bos, eos and the class are those of a plain Llama unless `tokenizer_config` says otherwise.
    """
    place.mkdir(exist_ok=True)
    (tokenizer or bpe()).save(str(place / "tokenizer.json"))
    usual = {"bos_token": "<s>", "eos_token": "</s>", "tokenizer_class": "PreTrainedTokenizerFast"}
    text = json.dumps(usual | tokenizer_config)
    (place / "tokenizer_config.json").write_text(text, encoding="utf-8")
    return place


def backend(folder: Path) -> tokenizers.Tokenizer:
    """Returns the library's tokenizer of a folder."""
    return tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
