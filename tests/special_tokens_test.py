"""What begins and ends texts, for every kind of tokenizer folder, judged by transformers."""

import json

import numpy as np
import pytest
import tiny_run
import tiny_tokenizers
from tokenizers import processors

from jaxrope import train
from jaxrope.data import eval_windows, load_documents, load_tokenizer
from jaxrope.errors import InputError
from jaxrope.evaluate import passkey
from tests.benches import make_bench

POST = {
    "none": None,
    "byte level": processors.ByteLevel(),
    "bos": tiny_tokenizers.template("<s> $A"),
    "bos and eos": tiny_tokenizers.template("<s> $A </s>"),
    "eos": tiny_tokenizers.template("$A </s>"),
    "sequence": processors.Sequence(
        [processors.ByteLevel(), tiny_tokenizers.template("<|im_start|> $A")]
    ),
}
CONFIGS = {
    "plain": {},
    "add bos": {"add_bos_token": True, "add_eos_token": True},
    "no bos": {"add_bos_token": False},
    "null bos": {"bos_token": None, "add_bos_token": False},
    "gpt2": {"bos_token": "<|im_end|>", "eos_token": "<|im_end|>", "add_bos_token": False},
    "llama class": {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True},
    "objects": {"bos_token": {"content": "<s>", "lstrip": False, "__type": "AddedToken"}},
}
TEXTS = ("It was a dark night", "a", " Hello, again </s> ", "<|im_start|>user\nBe brief.")


def theirs_of(folder):
    return pytest.importorskip("transformers").AutoTokenizer.from_pretrained(folder)


def tokenizers_of(place, tokenizer, settings, eos=(1, 5)):
    """Returns (ours, transformers') of a folder."""
    folder = tiny_tokenizers.write(place, tokenizer, tokenizer_config=settings)
    ids = {"model_type": "llama", "bos_token_id": 0, "eos_token_id": list(eos), "vocab_size": 400}
    (folder / "config.json").write_text(json.dumps(ids))
    return load_tokenizer(folder), theirs_of(folder)


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("post", POST)
@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_a_prompt_is_encoded_as_transformers_encodes_it(tmp_path, kind, post, config):
    settings = CONFIGS[config]
    if kind == "unigram" and "tokenizer_class" in settings:
        settings = {"add_bos_token": True}  # transformers 5 makes a BPE of a Llama's pieces
    tokenizer = getattr(tiny_tokenizers, kind)(POST[post])
    ours, theirs = tokenizers_of(tmp_path, tokenizer, settings)
    for text in TEXTS:
        bare, whole = theirs(text, add_special_tokens=False).input_ids, theirs(text).input_ids
        twice = ours.bos_id is not None and bare[0] == ours.bos_id
        assert ours.encode(text).tolist() == bare
        assert ours.prompt(text).tolist() == (whole[1:] if twice else whole)
        assert ours.prompt(text)[0] == (bare[0] if ours.bos_id is None else ours.bos_id)
    assert ours.bos_token_id == theirs.bos_token_id and ours.eos_id == theirs.eos_token_id
    assert ours.eos_ids == tuple(sorted({1, 5, theirs.eos_token_id}))


def test_a_text_that_begins_with_bos_has_one(tmp_path):
    tokenizer = tiny_tokenizers.bpe(POST["bos"])
    ours, theirs = tokenizers_of(tmp_path, tokenizer, {})
    assert theirs("<s>night").input_ids[:2] == [0, 0]
    assert ours.prompt("<s>night").tolist() == theirs("night").input_ids
    (tmp_path / "a.txt").write_text("<s>It was a dark night")
    (tmp_path / "b.txt").write_text("It was a dark night")
    files = [str(tmp_path / "*.txt")]
    first, second = (
        load_documents(files, ours, cache_dir=tmp_path / "cache").doc(i) for i in (0, 1)
    )
    assert np.array_equal(first, second)


@pytest.mark.parametrize("post, begins", [("none", False), ("bos", True)])
def test_a_window_begins_as_the_tokenizer_begins_a_text(tmp_path, post, begins):
    ours, theirs = tokenizers_of(tmp_path, tiny_tokenizers.bpe(POST[post]), {})
    (tmp_path / "a.txt").write_text("It was a dark night, and the rain fell")
    documents = load_documents([str(tmp_path / "a.txt")], ours, cache_dir=tmp_path / "cache")
    windows = eval_windows(documents, length=6, num_windows=1, bos_id=ours.bos_id)
    assert windows.tokens_WT[0].tolist() == theirs(TEXTS[0] + ", and the").input_ids[:7]
    assert (windows.tokens_WT[0, 0] == 0) == begins


def test_special_tokens_of_the_files_beside_are_tokens_in_a_text(tmp_path):
    tokenizer = tiny_tokenizers.bpe()
    folder = tiny_tokenizers.write(tmp_path, tokenizer, tokenizer_config={})
    spec = json.loads((folder / "tokenizer.json").read_text())
    spec["added_tokens"] = [row for row in spec["added_tokens"] if row["content"] != "</s>"]
    spec["added_tokens"][-1]["special"] = False  # <|eot_id|>
    (folder / "tokenizer.json").write_text(json.dumps(spec))
    row = {"content": "<extra>", "lstrip": False, "rstrip": False, "normalized": False}
    row |= {"single_word": False, "special": True}
    config = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<|eot_id|>"}
    config |= {"tokenizer_class": "PreTrainedTokenizerFast", "added_tokens_decoder": {"320": row}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    ours, theirs = load_tokenizer(folder), theirs_of(folder)
    text = "night</s><|eot_id|><extra>night"
    assert ours.encode(text).tolist() == theirs(text, add_special_tokens=False).input_ids
    assert {1, 6} < set(ours.encode(text).tolist()) and ours.decode(ours.encode(text)) == (
        theirs.decode(theirs(text).input_ids, skip_special_tokens=True)
    )


def test_an_old_folder_has_its_names_in_a_file_of_their_own(tmp_path):
    folder = tiny_tokenizers.write(tmp_path, tokenizer_config={})
    names = {"bos_token": "<|im_start|>", "eos_token": {"content": "<|im_end|>", "lstrip": False}}
    names["eos_token"] |= {"rstrip": False, "normalized": False, "single_word": False}
    (folder / "special_tokens_map.json").write_text(json.dumps(names))
    ours, theirs = load_tokenizer(folder), theirs_of(folder)
    assert (ours.bos_token_id, ours.eos_id) == (theirs.bos_token_id, theirs.eos_token_id) == (4, 5)


def test_several_tokens_before_a_text_are_refused(tmp_path):
    tokenizer = tiny_tokenizers.bpe(tiny_tokenizers.template("<s> <|im_start|> $A"))
    folder = tiny_tokenizers.write(tmp_path, tokenizer, tokenizer_config={})
    with pytest.raises(InputError, match="puts 2 tokens before every text; at most one"):
        load_tokenizer(folder)


def test_begin_and_end_need_rows(tmp_path):
    folder = tiny_tokenizers.write(tmp_path, tokenizer_config={"eos_token": "<|eot_id|>"})
    with pytest.raises(InputError, match="ends texts with id 6, the model's ids end at 5"):
        load_tokenizer(folder, vocab_size=6)


@pytest.mark.parametrize(
    "post, settings, older",
    [
        ("bos", {"add_bos_token": False}, "transformers 4 leaves it out"),
        ("none", {"add_bos_token": True}, "transformers 4 puts one"),
        ("none", {}, "transformers 4 puts one"),
        ("bos", {}, ""),
        ("none", {"add_bos_token": False}, ""),
        ("bos", {"add_bos_token": False, "tokenizer_class": "PreTrainedTokenizerFast"}, ""),
    ],
)
def test_what_transformers_4_does_otherwise_is_a_note(tmp_path, post, settings, older):
    tokenizer = tiny_tokenizers.bpe(POST[post])
    settings = {"tokenizer_class": "LlamaTokenizerFast"} | settings
    notes = load_tokenizer(
        tiny_tokenizers.write(tmp_path, tokenizer, tokenizer_config=settings)
    ).notes
    assert len(notes) == bool(older) and older in "".join(notes)


def test_a_qwen_has_no_bos_anywhere(shared, tmp_path):
    """tokenizer_config.json: bos_token null; config.json: bos_token_id 2."""
    folder = shared / "cases" / "04_qwen_bos_null"
    tokenizer, theirs = load_tokenizer(folder), theirs_of(folder)
    text = "It was a dark night, and the rain fell. " * 40
    assert tokenizer.bos_id is None and tokenizer.bos_token_id is None
    assert tokenizer.prompt(text).tolist() == theirs(text).input_ids
    for name in ("train-0", "held-out"):
        (tmp_path / f"{name}.txt").write_text(text)
    config = tiny_run.make_config(tmp_path)
    config.model = dict(source="checkpoint", path=str(folder), shape="")
    config.data.tokenizer = ""
    plan = train.prepare(config)
    rows = plan.loader.batch(0)["tokens_BT"]
    assert not (rows == 2).any()
    windows = eval_windows(plan.documents, length=8, num_windows=1, bos_id=plan.tokenizer.bos_id)
    assert windows.tokens_WT[0].tolist() == theirs(text).input_ids[:9]
    assert not (passkey_of(plan) == 2).any()


def passkey_of(plan) -> np.ndarray:
    """Returns the tokens of a pass key prompt."""
    bench = make_bench(passkey_trials=1)
    model = plan.eval_model({})
    return passkey.make_trials(model, bench, 256)[0].tokens
