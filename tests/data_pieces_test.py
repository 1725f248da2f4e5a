"""SentencePiece models without a tokenizer.json: ids as transformers' and sentencepiece's own."""

import io
import json

import numpy as np
import pytest

from jaxrope.convert import importing, pretrained
from jaxrope.data import load_tokenizer
from jaxrope.errors import InputError
from tests import hf_models
from tests.gguf_vocabularies import TEXT, WORDS

sentencepiece = pytest.importorskip("sentencepiece", reason="needs the package sentencepiece")
pytest.importorskip("google.protobuf", reason="needs the package protobuf")
TEXTS = {
    "words": WORDS,
    "all": TEXT,
    "a space": " ",
    "one word": "fox",
    "a leading space": " fox",
    "leading spaces": "   fox  jumps ",
    "lines": "\n\nfox\r\n\n x\n",
    "unknown letters": "ü漢😀\u0301 ½",
    "an own symbol": "fox<think> hm</think>",
    "markup": "<s>fox</s> <unk> x",
    "nothing": "",
}
SETTINGS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
SETTINGS |= {"tokenizer_class": "LlamaTokenizer"}


def train(folder, kind, **changes):
    """Trains on a few lines, and returns the library's own tokenizer."""
    model = io.BytesIO()
    options = dict(
        vocab_size=420,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        character_coverage=0.98,
        user_defined_symbols=["<think>"],
        hard_vocab_limit=False,
        minloglevel=2,
    )
    lines = WORDS.split("\n") * 4
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, model_type=kind, **options | changes
    )
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def write(folder, name, content):
    (folder / name).write_text(json.dumps(content))


def encode(folder, text):
    return load_tokenizer(folder).encode(text).tolist()


@pytest.mark.parametrize("legacy", (None, True, False))
@pytest.mark.parametrize("add_prefix_space", (None, False))
def test_byte_pairs_are_those_of_transformers(tmp_path, legacy, add_prefix_space):
    transformers = pytest.importorskip("transformers", reason="needs transformers (Python 3.11)")
    train(tmp_path, "bpe")
    more = {"legacy": legacy, "add_prefix_space": add_prefix_space}
    settings = SETTINGS | {key: value for key, value in more.items() if value is not None}
    rows = {str(420 + i): {"content": t, "special": True} for i, t in enumerate(("<a>", "<b>"))}
    size = len(load_tokenizer(tmp_path).backend.get_vocab())
    rows = {str(int(key) - 420 + size): value for key, value in rows.items()}
    write(tmp_path, "tokenizer_config.json", settings | {"added_tokens_decoder": rows})
    theirs = transformers.LlamaTokenizer.from_pretrained(tmp_path)
    for name, text in (TEXTS | {"added": " x<a> y <b>  <b>\n<a"}).items():
        expected = theirs(text, add_special_tokens=False)["input_ids"]
        assert encode(tmp_path, text) == expected, name
    assert load_tokenizer(tmp_path).decode(encode(tmp_path, "the fox\n")) == "the fox\n"


@pytest.mark.parametrize("kind", ("bpe", "unigram"))
def test_pieces_are_those_of_the_library(tmp_path, kind):
    """But for a space in front: transformers puts no other there before byte pairs."""
    theirs = train(tmp_path, kind, user_defined_symbols=[])
    for name in ("words", "one word", "lines", "unknown letters"):
        assert encode(tmp_path, TEXTS[name]) == theirs.encode(TEXTS[name]), name
    text = TEXTS["leading spaces"]
    assert (encode(tmp_path, text) == theirs.encode(text)) == (kind == "unigram")


@pytest.mark.parametrize("rule", ("identity", "nmt_nfkc"))
@pytest.mark.parametrize("trims", (False, True))
def test_unigram_normalises_as_its_model_says(tmp_path, rule, trims):
    changes = dict(normalization_rule_name=rule, remove_extra_whitespaces=trims)
    theirs = train(tmp_path, "unigram", user_defined_symbols=[], **changes)
    for name in ("words", "leading spaces", "lines", "unknown letters", "one word"):
        text = TEXTS[name].replace("\r\n", "\n")  # one character to the tokenizers library
        assert encode(tmp_path, text) == theirs.encode(text), name


def test_tokens_that_were_added(tmp_path):
    size = train(tmp_path, "bpe").get_piece_size()
    write(tmp_path, "added_tokens.json", {"<|im_start|>": size, "[PAD]": size + 1})
    write(tmp_path, "tokenizer_config.json", SETTINGS | {"pad_token": "[PAD]"})
    tokenizer = load_tokenizer(tmp_path, vocab_size=size + 2)
    assert tokenizer.encode("<|im_start|>fox[PAD]").tolist()[::4] == [size, size + 1]
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.vocab_size) == (1, 2, size + 2)
    begun, _ = tokenizer.encode_with_spans("fox", special=True)
    assert begun[0] == 1 and begun[-1] != 2
    short = load_tokenizer(tmp_path, vocab_size=size + 1)  # refused where a text has it
    assert short.encode("<|im_start|>").tolist() == [size]
    with pytest.raises(InputError, match=r"\[PAD\]"):
        short.encode("[PAD]")


def test_the_model_goes_wherever_the_model_of_language_goes(tmp_path, monkeypatch):
    config = hf_models.CASES["llama"] | dict(vocab_size=512)
    hf_models.write(tmp_path / "in", config)
    train(tmp_path / "in", "bpe")
    assert importing.import_folder(tmp_path / "in", tmp_path / "workdir") == []
    place = pretrained.load(tmp_path / "workdir").tokenizer_dir
    np.testing.assert_array_equal(
        load_tokenizer(place).encode(WORDS), load_tokenizer(tmp_path / "in").encode(WORDS)
    )
    monkeypatch.setitem(__import__("sys").modules, "sentencepiece", None)
    notes = importing.import_folder(tmp_path / "in", tmp_path / "other")
    assert len(notes) == 1 and "pip install jaxrope[sentencepiece]" in notes[0]


BROKEN = {
    "no model": (dict(model=b"x"), "is no SentencePiece model. Download it again"),
    "words": (dict(kind="word", byte_fallback=False), "of words or characters; BPE and Unigram"),
    "an id of text": (dict(added={"<a>": "1"}), "the id of '<a>' is none"),
    "an id that is there": (dict(added={"<a>": 5}), "gives id 5 to both"),
    "no token": (dict(settings={"added_tokens_decoder": {"7": 1}}), "must give a token for each"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_model_is_one_line(tmp_path, name):
    changes, message = BROKEN[name][0].copy(), BROKEN[name][1]
    model, added, settings = (changes.pop(key, None) for key in ("model", "added", "settings"))
    kind = changes.pop("kind", "bpe")
    train(tmp_path, kind, **changes)
    if model:
        (tmp_path / "tokenizer.model").write_bytes(model)
    write(tmp_path, "added_tokens.json", added or {})
    write(tmp_path, "tokenizer_config.json", settings or {})
    with pytest.raises(InputError, match=message):
        load_tokenizer(tmp_path)
