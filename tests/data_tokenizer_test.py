"""Tests of jaxrope.data.tokenizer."""

import json
import sys

import numpy as np
import pytest

from jaxrope.data import load_tokenizer
from jaxrope.errors import InputError

WORDS = {"<unk>": 0, "<s>": 1, "</s>": 2, "the": 3, "cat": 4, "sat": 5, ".": 6}


def word_spec(**changes) -> dict:
    """A tokenizer.json that knows a few words, cut at white space."""
    model = {"type": "WordLevel", "vocab": dict(WORDS), "unk_token": "<unk>"}
    spec = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [added(1, "<s>"), added(2, "</s>")],
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": "<s>", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
            ],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": None,
        "model": model,
    }
    return spec | changes


def added(number: int, content: str) -> dict:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": content, "special": True} | flags


def write(folder, spec, **beside):
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(spec))
    for name, value in beside.items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    return folder


def test_bytes_golden():
    tokenizer = load_tokenizer("bytes")
    ids = tokenizer.encode("Aé\n")
    assert ids.tolist() == [65, 0xC3, 0xA9, 10] and ids.dtype == np.int32
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id) == (258, 256, 257)
    assert tokenizer.decode([256, *ids, 257]) == "Aé\n"
    assert [one.tolist() for one in tokenizer.encode_batch(["a", ""])] == [[97], []]


def test_json_golden(tmp_path):
    tokenizer = load_tokenizer(write(tmp_path, word_spec()))
    ids = tokenizer.encode("the cat sat .")
    assert ids.tolist() == [3, 4, 5, 6] and ids.dtype == np.int32  # no <s>, though the file asks
    assert tokenizer.encode("dog").tolist() == [0]
    assert tokenizer.vocab_size == 7
    assert tokenizer.decode([1, 3, 4, 2]) == "the cat"
    assert [one.tolist() for one in tokenizer.encode_batch(["the", "cat the"])] == [[3], [4, 3]]


def test_a_files_truncation_padding_and_dropout_are_off(tmp_path):
    truncation = {"max_length": 2, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    padding = {"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None}
    padding |= {"pad_id": 0, "pad_type_id": 0, "pad_token": "<unk>"}
    spec = word_spec(truncation=truncation, padding=padding)
    assert load_tokenizer(write(tmp_path, spec)).encode("the cat sat .").tolist() == [3, 4, 5, 6]
    letters = {"<s>": 0, "</s>": 1, "a": 2, "b": 3, "ab": 4, "abab": 5}
    spec["model"] = {
        "type": "BPE",
        "vocab": letters,
        "merges": [["a", "b"], ["ab", "ab"]],
        "dropout": 0.9,
    }
    spec["added_tokens"] = [added(0, "<s>"), added(1, "</s>")]
    spec["post_processor"] = None
    tokenizer = load_tokenizer(write(tmp_path, spec))
    assert all(tokenizer.encode("abab").tolist() == [5] for _ in range(20))


def test_end_by_the_usual_name(tmp_path):
    tokenizer = load_tokenizer(write(tmp_path, word_spec()) / "tokenizer.json")
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.eos_ids) == (1, 2, (2,))


def test_begin_and_end_from_the_files_beside_it(tmp_path):
    names = {"bos_token": "the", "eos_token": {"content": "cat"}}
    numbers = {"bos_token_id": 5, "eos_token_id": [6, 2]}

    def ids_of(name, **beside):
        spec = word_spec(**beside.pop("spec", {}))
        tokenizer = load_tokenizer(write(tmp_path / name, spec, **beside))
        names = ("bos_id", "bos_token_id", "eos_id", "eos_ids")
        return tuple(getattr(tokenizer, name) for name in names)

    assert ids_of("a", tokenizer_config=names, config=numbers) == (1, 3, 4, (2, 4, 6))
    null = {"bos_token": None}
    assert ids_of("b", tokenizer_config=null, config=numbers) == (1, None, 6, (2, 6))
    generation = {"eos_token_id": 3}
    assert ids_of("c", config=numbers, generation_config=generation) == (1, 5, 6, (2, 3, 6))
    vocab = {"type": "WordLevel", "vocab": {"x": 0, "<unk>": 1}, "unk_token": "<unk>"}
    bare = dict(model=vocab, added_tokens=[], post_processor=None)
    assert ids_of("d", spec=bare) == (None, None, None, ())


def test_fingerprint_follows_the_file(tmp_path):
    first = load_tokenizer(write(tmp_path / "a", word_spec())).fingerprint
    assert load_tokenizer(write(tmp_path / "b", word_spec())).fingerprint == first
    spec = word_spec(normalizer={"type": "Lowercase"})
    assert load_tokenizer(write(tmp_path / "a", spec)).fingerprint != first
    assert load_tokenizer("bytes").fingerprint != first


def refused(folder, spec, match, **beside):
    with pytest.raises(InputError, match=match) as caught:
        load_tokenizer(write(folder, spec, **beside))
    assert "\n" not in str(caught.value)


def test_ids_must_be_unique_and_in_the_vocabulary(tmp_path):
    spec = word_spec()
    spec["model"]["vocab"]["dog"] = 4
    refused(tmp_path, spec, "gives id 4 to both 'cat' and 'dog'; every id must be unique")
    spec = word_spec(added_tokens=[added(1, "<s>"), added(3, "</s>")])
    refused(tmp_path, spec, "gives token '</s>' two ids, 2 and 3")
    spec = word_spec(added_tokens=[added(1, "<s>"), added(2, "</s>"), added(20, "<new>")])
    refused(tmp_path, spec, "says '<new>' is 20, the `tokenizers` library makes it 7")
    spec = word_spec()
    spec["model"]["vocab"]["far"] = 4294967295
    refused(tmp_path, spec, "token 'far' the id 4294967295, ids end at 2147483647")
    refused(tmp_path, word_spec(), "ends texts with id 2, .* end at 1", config={"vocab_size": 2})
    with pytest.raises(InputError, match="'bytes' needs a model of 258 ids, got vocab_size 256"):
        load_tokenizer("bytes", vocab_size=256)
    model = {"type": "Unigram", "vocab": [["a", 0.0], ["b", -1.0], ["a", -2.0]], "unk_id": 0}
    spec = word_spec(model=model, added_tokens=[], post_processor=None)
    refused(tmp_path, spec, "lists a piece twice")


def test_a_token_without_a_row_is_refused_in_a_text_alone(tmp_path):
    tokenizer = load_tokenizer(write(tmp_path, word_spec()), vocab_size=6)
    assert tokenizer.vocab_size == 6 and tokenizer.encode("the cat").tolist() == [3, 4]
    assert tokenizer.notes == (
        f"1 of the 7 tokens of {tmp_path / 'tokenizer.json'}, '.' (id 6) first, have no row in the "
        "embedding (vocab_size 6); a text that holds one is refused",
    )
    for encode in (tokenizer.encode, lambda text: tokenizer.encode_with_spans(text, special=False)):
        with pytest.raises(InputError, match=r"a text holds the token '\.', id 6; .* end at 5"):
            encode("the cat .")


def test_a_vocabulary_that_just_fits_is_taken(tmp_path):
    folder = write(tmp_path, word_spec(), config={"vocab_size": 7})
    assert load_tokenizer(folder).vocab_size == 7 and load_tokenizer(folder).notes == ()
    assert load_tokenizer("bytes", vocab_size=258).vocab_size == 258


@pytest.mark.parametrize(
    ("raw", "match"),
    [
        (b"", "tokenizer.json': is not JSON: Expecting value, line 1"),
        (b"\xff\xfe\x00garbage", "is not UTF-8"),
        (b"[" * 100_000, "is nested too deeply"),
        (b'{"model": {"a": 1, "a": 2}}', 'gives "a" twice'),
        (b"{}", 'has no "model" section'),
        (b'{"model": {}}', "refused by the `tokenizers` library"),
        (b'{"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}}', "refused by"),
        (b'{"model": {"type": "BPE", "vocab": {}, "merges": []}}', "has no tokens"),
    ],
)
def test_garbage_is_one_line(tmp_path, raw, match):
    (tmp_path / "tokenizer.json").write_bytes(raw)
    with pytest.raises(InputError, match=match) as caught:
        load_tokenizer(tmp_path)
    assert "\n" not in str(caught.value) and "data.tokenizer" in str(caught.value)


def test_messages_about_the_path(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"nobody' does not exist \(nothing is downloaded\)"):
        load_tokenizer(tmp_path / "nobody")
    (tmp_path / "tokenizer.model").write_bytes(b"x")
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(InputError, match="tokenizer.model, which is not read without the packages"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").mkdir()
    with pytest.raises(InputError, match="is not a regular file"):
        load_tokenizer(tmp_path)


def test_a_huge_file_is_not_read(tmp_path):
    with open(tmp_path / "tokenizer.json", "wb") as file:
        file.truncate((1 << 29) + 1)  # sparse
    with pytest.raises(InputError, match="must be at most 100,000,000 bytes, is 536,870,913"):
        load_tokenizer(tmp_path)


def test_messages_about_the_files_beside_it(tmp_path):
    refused(
        tmp_path,
        word_spec(),
        "bos_token '<b>' of tokenizer_config.json is no token",
        tokenizer_config={"bos_token": "<b>"},
    )
    (tmp_path / "tokenizer_config.json").unlink()
    refused(
        tmp_path,
        word_spec(),
        "eos_token_id 77 of config.json is no token",
        config={"eos_token_id": 77},
    )
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match="config.json: is not JSON"):
        load_tokenizer(tmp_path)


def test_without_the_library(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(InputError, match="needs the package `tokenizers`, which is not installed"):
        load_tokenizer(write(tmp_path, word_spec()))
    assert load_tokenizer("bytes").encode("a").tolist() == [97]


def test_a_probe_that_the_library_refuses_is_one_line(tmp_path):
    """Its word for unknown text is no word: the library says so at the first text."""
    model = {"type": "WordLevel", "vocab": {"x": 0}, "unk_token": "<unk>"}
    (tmp_path / "tokenizer.json").write_text(json.dumps({"version": "1.0", "model": model}))
    with pytest.raises(InputError, match="Missing .UNK. token"):
        load_tokenizer(tmp_path)
