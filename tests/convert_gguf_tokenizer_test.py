"""Tokenizers of GGUF: the ids are llama.cpp's, and arrive with the model wherever it goes."""

import hashlib
import json

import gguf_vocabularies
import numpy as np
import pytest

from configs import base
from jaxrope import data, setup
from jaxrope.convert import folders, gguf_splits, importing, pretrained
from jaxrope.errors import InputError
from tests.rope_samples import run

pytest.importorskip("gguf", reason="needs the package gguf (the test extra has it)")
BYTE_LEVEL, PIECES = gguf_vocabularies.byte_level, gguf_vocabularies.sentencepiece

# SHA-256 of the int32 ids that llama.cpp (xllamacpp 2026.10.11549: llama_tokenize, with begin and
# end as the file says, markup parsed) gives for gguf_vocabularies.TEXT: first digits.
LLAMA_CPP = {
    "default": "1c2afada69c7",
    "gpt-2": "91746073116d",
    "digits": "6e58b34d16da",
    "llama3": "cf7330ca867d",
    "smaug": "37a32aa1ce65",
    "qwen2": "dbc5212ced9d",
    "tekken": "3bc6752d8cae",
    "gpt-4o": "d670a2323155",
    "deepseek-coder": "70fd2900e68c",
    "deepseek-v3": "25df20804088",
    "qwen35": "a2ab73ebb9a5",
}
OTHERS = {
    "pieces": (PIECES(), {}, "4bb1f433b7d8"),
    "pieces without a space before": (
        PIECES(add_space_prefix=False, add_bos_token=False),
        {},
        "15b29b2f164b",
    ),
    "of Phi-3, by its name": (PIECES(), {"general.name": "Phi-3 mini"}, "b297063faf85"),
    "begin and end": (
        BYTE_LEVEL("qwen2", add_eos_token=True, add_bos_token=True),
        {},
        "3ffedbb653e5",
    ),
}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def backend(folder):
    tokenizers = pytest.importorskip("tokenizers")
    return tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))


def digest(folder):
    ids = backend(folder).encode(gguf_vocabularies.TEXT).ids
    return hashlib.sha256(np.int32(ids).tobytes()).hexdigest()[:12]


def test_every_way_of_splitting_has_its_numbers():
    assert LLAMA_CPP.keys() == gguf_splits.SPLITS.keys() == {*gguf_splits.GROUPS.values()}
    assert len({*LLAMA_CPP.values()}) == len(LLAMA_CPP)  # the text tells them apart


@pytest.mark.parametrize("group", LLAMA_CPP)
def test_byte_level_ids_are_those_of_llama_cpp(tmp_path, group):
    names = [name for name, its_group in gguf_splits.GROUPS.items() if its_group == group]
    for name in {names[0], names[-1]}:
        file = gguf_vocabularies.write(tmp_path / f"{name}.gguf", BYTE_LEVEL(name))
        assert digest(folders.open_folder(file)) == LLAMA_CPP[group]


@pytest.mark.parametrize("name", OTHERS)
def test_other_ids_are_those_of_llama_cpp(tmp_path, name):
    values, extra, expected = OTHERS[name]
    file = gguf_vocabularies.write(tmp_path / "m.gguf", values, **extra)
    assert digest(folders.open_folder(file)) == expected


@pytest.mark.parametrize(
    "values", (BYTE_LEVEL("qwen2"), PIECES(add_space_prefix=False)), ids=("bytes", "pieces")
)
def test_a_text_comes_back(tmp_path, values):
    folder = folders.open_folder(gguf_vocabularies.write(tmp_path / "m.gguf", values))
    tokenizer, text = backend(folder), gguf_vocabularies.WORDS
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_the_tokenizer_goes_wherever_the_model_goes(tmp_path, capsys):
    values = BYTE_LEVEL("qwen2", padding_token_id=9, eot_token_id=12)
    template = "{{ messages[0].content }}"
    extra = {"tokenizer.chat_template": template}
    file = gguf_vocabularies.write(tmp_path / "m.gguf", values, **extra)
    assert run(capsys, "import", file, tmp_path / "workdir")[0] == 0
    assert run(capsys, "export", tmp_path / "workdir", tmp_path / "out")[0] == 0
    end = values["eos_token_id"]
    for folder in (folders.open_folder(file), tmp_path / "workdir", tmp_path / "out"):
        assert digest(folder) == LLAMA_CPP["qwen2"]
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        assert settings["bos_token"] == "<|im_start|>" and settings["eos_token"] == "<|im_end|>"
        assert settings["pad_token"] == values["tokens"][9] and not settings["add_bos_token"]
        assert settings["chat_template"] == template and settings["model_max_length"] == 128
        generation = json.loads((folder / "generation_config.json").read_text())
        # the end of a turn, and what is one by its name, as in published generation configs
        assert generation["eos_token_id"] == [end, 12, values["tokens"].index("<|endoftext|>")]
        assert generation["pad_token_id"] == 9
    loaded = data.load_tokenizer(tmp_path / "out")
    assert (loaded.bos_id, loaded.bos_token_id) == (None, end - 1)  # add_bos_token is false
    assert {end, 12} <= set(loaded.eos_ids)


def test_transformers_opens_an_export(tmp_path, capsys):
    transformers = pytest.importorskip("transformers", reason="needs transformers (Python 3.11)")
    template = "{% for m in messages %}<|im_start|>{{ m.role }} {{ m.content }}{% endfor %}"
    extra = {"tokenizer.chat_template": template}
    file = gguf_vocabularies.write(tmp_path / "m.gguf", PIECES(), **extra)
    assert run(capsys, "export", file, tmp_path / "out")[0] == 0
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    expected = backend(tmp_path / "out").encode(gguf_vocabularies.TEXT).ids
    assert tokenizer(gguf_vocabularies.TEXT)["input_ids"] == expected
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert chat == "<|im_start|>user hi"


def without(values, *names):
    return {key: value for key, value in values.items() if key not in names}


BROKEN = {
    "kinds of others": (BYTE_LEVEL("qwen2", token_type=[1, 1]), "must be 5.. numbers, one a"),
    "a piece twice": (
        PIECES(tokens=[*PIECES()["tokens"][:-1], "<s>"]),
        "tokens must all be different",
    ),
    "no scores": (without(PIECES(), "scores"), "tokenizer.ggml.scores is missing"),
    "scores of texts": (PIECES(scores=["a"] * len(PIECES()["tokens"])), "numbers, one a token"),
    "a merge of one": (BYTE_LEVEL("qwen2", merges=["abc"]), "must be pairs of tokens"),
    "an id beyond": (BYTE_LEVEL("qwen2", bos_token_id=10**6), "must be below"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_vocabulary_that_contradicts_itself_is_one_line(tmp_path, name):
    values, message = BROKEN[name]
    file = gguf_vocabularies.write(tmp_path / "m.gguf", values)
    with pytest.raises(InputError, match=message):
        pretrained.load(file)


@pytest.mark.parametrize("change", ({"pre": "bloom"}, {"model": "rwkv"}), ids=("pre", "model"))
def test_a_tokenizer_that_is_not_known_is_a_note(tmp_path, change):
    file = gguf_vocabularies.write(tmp_path / "m.gguf", BYTE_LEVEL("qwen2") | change)
    notes = importing.import_folder(file, tmp_path / "workdir")
    assert any(f"'{change['pre']}'" in n if "pre" in change else "kind rwkv" in n for n in notes)
    assert not (tmp_path / "workdir" / "tokenizer.json").exists()


@pytest.mark.parametrize("what", ["file", "folder"])
def test_a_gguf_is_taken_where_a_tokenizer_is_asked_for(tmp_path, what):
    """By a config, and by the arguments of generate and compare."""
    file = gguf_vocabularies.write(tmp_path / "m.gguf", BYTE_LEVEL("qwen2"))
    place = str(file if what == "file" else tmp_path)
    expected = data.load_tokenizer(folders.open_folder(file))
    config = base.get_config()
    config.data.tokenizer = place
    tokenizer, where = setup.tokenizer(config, None, expected.vocab_size)
    assert tokenizer.fingerprint == expected.fingerprint
    assert importing.copy_tokenizer(where, tmp_path)  # as a training does, into its workdir
    for other in (tmp_path, tmp_path / "tokenizer.json", tmp_path / "nowhere", "bytes"):
        assert pretrained.open_tokenizer(str(other)) == other
