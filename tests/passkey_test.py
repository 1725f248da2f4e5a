"""Pass key: the prompt to the token, and what counts as found."""

import dataclasses

import numpy as np
import pytest

from jaxrope import data, decoder
from jaxrope.convert import pretrained
from jaxrope.data import BytesTokenizer
from jaxrope.errors import InputError
from jaxrope.evaluate import passkey, rows, scoring
from jaxrope.evaluate.scoring import EvalModel
from tests import benches


def make_bench(documents=None, **changes):
    return benches.make_bench(documents, seed=7, **changes)


def make_model(tokenizer, **changes):
    fields = dict(config=None, params=None, rope_fn=None, settings=None, label="x")
    return EvalModel(**fields | dict(tokenizer=tokenizer) | changes)


@pytest.fixture(scope="module")
def books_tokenizer(books_6m):
    return data.load_tokenizer(books_6m)


def test_a_prompt_by_hand():
    (trial,) = passkey.make_trials(make_model(BytesTokenizer()), make_bench(passkey_trials=1), 600)
    text = BytesTokenizer().decode(trial.tokens)
    before = text.index("\nThe pass key is")
    filler_before = text[len(passkey.OPENING) : before]
    assert text.startswith(
        "There is an important info hidden inside a lot of irrelevant text. Find it and memorize "
        "them. I will quiz you about the important information there.\nThe grass is green. The sky"
    )
    key = trial.about["key"]
    key_line = f"\nThe pass key is {key}. Remember it. {key} is the pass key.\n"
    question = f"\nWhat is the pass key? The pass key is {key}"
    assert text[before:].startswith(f"{key_line}The grass is green. The sky is blue.")
    assert text.endswith(question)
    filler_after = text[before + len(key_line) : -len(question)]
    assert abs(len(filler_before) - len(filler_after)) <= 1  # one trial: the middle
    grass = (
        "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. "
    )
    assert (grass * 9).startswith(filler_before) and (grass * 9).startswith(filler_after)
    assert trial.tokens[0] == 256 and trial.digits == (595, 596, 597, 598, 599)


@pytest.mark.parametrize("length", [440, 441, 512, 1000])
@pytest.mark.parametrize("filler", ["grass", "text"])
def test_every_trial_has_exactly_the_length(length, filler, tmp_path):
    (tmp_path / "a.txt").write_text("once upon a time " * 100)
    documents = data.load_documents(
        [str(tmp_path / "a.txt")], BytesTokenizer(), cache_dir=tmp_path / "cache"
    )
    bench = make_bench(documents, passkey_trials=4, passkey_filler=filler)
    trials = passkey.make_trials(make_model(BytesTokenizer()), bench, length)
    assert {len(trial.tokens) for trial in trials} == {length}
    for trial in trials:
        assert BytesTokenizer().decode(trial.tokens).count(trial.about["key"]) == 3
    assert ("upon" in BytesTokenizer().decode(trials[0].tokens)) == (filler == "text")


def test_depths_are_stratified():
    trials = passkey.make_trials(make_model(BytesTokenizer()), make_bench(passkey_trials=4), 2000)
    assert [trial.about["depth"] for trial in trials] == [0.125, 0.375, 0.625, 0.875]
    places = [BytesTokenizer().decode(t.tokens).index("\nThe pass key") for t in trials]
    opening = len(passkey.OPENING)
    room = 2000 - 1 - opening - len(passkey.KEY_LINE.format(key="12345") * 1)
    room -= len(passkey.QUESTION) + len(" 12345")
    assert places == [opening + round(d * room) for d in (0.125, 0.375, 0.625, 0.875)]


def keys_of(model, bench, length):
    return [trial.about["key"] for trial in passkey.make_trials(model, bench, length)]


def test_keys_are_seeded_and_differ():
    model, bench = make_model(BytesTokenizer()), make_bench(passkey_trials=20)
    keys = keys_of(model, bench, 500)
    assert keys == keys_of(model, bench, 500)
    assert len(set(keys)) == 20 and all(len(key) == 5 and key[0] != "0" for key in keys)
    assert keys != keys_of(model, bench, 501)
    other = dataclasses.replace(bench, seed=8)
    assert keys != keys_of(model, other, 500)
    # fewer trials are the first of the more, but for their depths
    assert keys_of(model, make_bench(passkey_trials=3), 500) == keys[:3]


def test_keys_may_begin_with_zeros():
    bench = make_bench(passkey_trials=200, passkey_zero_padded=True)
    keys = keys_of(make_model(BytesTokenizer()), bench, 450)
    assert all(len(key) == 5 for key in keys) and any(key[0] == "0" for key in keys)


def test_a_space_of_its_own_is_no_digit(books_tokenizer):
    model = make_model(books_tokenizer)
    (trial,) = passkey.make_trials(model, make_bench(passkey_trials=1), 512)
    assert trial.digits == (507, 508, 509, 510, 511)
    digits = [books_tokenizer.decode([trial.tokens[i]]) for i in trial.digits]
    assert digits == list(trial.about["key"])
    assert books_tokenizer.decode([trial.tokens[-6]]) == " "
    assert trial.tokens[0] == books_tokenizer.bos_id and len(trial.tokens) == 512


def test_a_tokenizer_without_a_border_is_refused():
    class Joined:
        def encode(self, text):
            return np.array([1, 3]) if text.endswith("5") else np.array([1, 2])

    with pytest.raises(InputError, match="tokenizer: no border between 'the key is' and ' 12345'"):
        passkey.continuation(Joined(), "the key is", " 12345")


class Space:
    """Encodes as SentencePiece does: a space before every text."""

    def encode(self, text):
        return np.frombuffer((" " + text).encode(), np.uint8)


def test_the_answer_is_what_the_question_continues_with():
    assert bytes(passkey.continuation(Space(), "key is", " 12345")) == b" 12345"


@pytest.mark.parametrize(
    "changes, length, message",
    [
        ({}, 200, r"eval.lengths: .* without filler has \d+ tokens, got length 200"),
        ({"passkey_filler": "text"}, 600, "'text', which needs text: set data.eval_files"),
    ],
)
def test_what_cannot_be_built_is_refused(changes, length, message):
    with pytest.raises(InputError, match=message):
        passkey.make_trials(make_model(BytesTokenizer()), make_bench(**changes), length)


def test_text_that_is_too_short_to_fill_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("short")
    documents = data.load_documents(
        [str(tmp_path / "a.txt")], BytesTokenizer(), cache_dir=tmp_path / "cache"
    )
    bench = make_bench(documents, passkey_filler="text")
    with pytest.raises(InputError, match=r"document of \d+ tokens, the longest .* has 5"):
        passkey.make_trials(make_model(BytesTokenizer()), bench, 600)


def answers(monkeypatch, hit_fn):
    """Makes scoring say that token t of row i is a hit if hit_fn(i, t)."""

    def score(model, tokens, **_):
        hits = np.array(
            [[hit_fn(i, t) for t in range(1, tokens.shape[1])] for i in range(len(tokens))]
        )
        return np.zeros(hits.shape, np.float32), hits

    monkeypatch.setattr(scoring, "score", score)


@pytest.mark.parametrize(
    "hit_fn, accuracy, digits",
    [
        (lambda i, t: True, 1.0, 1.0),  # knows everything
        (lambda i, t: False, 0.0, 0.0),
        (lambda i, t: 495 <= t <= 499, 1.0, 1.0),  # the five digits, and nothing else
        (lambda i, t: t != 499, 0.0, 0.8),  # all but the last digit
        (lambda i, t: t != 495, 0.0, 0.8),  # all but the first digit
        (lambda i, t: t not in (494, 500), 1.0, 1.0),  # neither the space nor what follows count
        (lambda i, t: i % 4 == 0, 0.25, 0.25),
    ],
)
def test_a_key_is_found_if_all_its_digits_are(monkeypatch, hit_fn, accuracy, digits):
    answers(monkeypatch, hit_fn)
    bench = make_bench(lengths=(500,), passkey_trials=8)
    (found,) = passkey.FORCED.evaluate(make_model(BytesTokenizer()), bench)
    assert found.metrics["accuracy"] == accuracy
    assert found.metrics["digit_accuracy"] == pytest.approx(digits)
    assert found.metrics["low"] <= accuracy <= found.metrics["high"]
    assert sum(found.items["found"]) == accuracy * 8 and len(found.items["depth"]) == 8
    assert found.tokens == 8 * 500


def test_a_random_model_finds_nothing(tiny_model):
    config, params = tiny_model
    model = make_model(
        BytesTokenizer(),
        config=config,
        params=params,
        rope_fn=decoder.own_rope(config),
        settings=decoder.ForwardSettings(attention_block=64),
    )
    (found,) = passkey.FORCED.evaluate(model, make_bench(lengths=(450,), passkey_trials=3))
    assert found.metrics["accuracy"] == 0.0


def test_a_sliding_window_is_not_asked():
    model = make_model(BytesTokenizer(), window=64)
    assert list(passkey.FORCED.evaluate(model, make_bench(lengths=(500,)))) == []
    assert passkey.FORCED.forward_tokens(model, make_bench(), 500) == 0


def books_accuracy(books_6m, length, method):
    checkpoint = pretrained.load(books_6m)
    row = rows.method_row(method, checkpoint.config, rope_len=0)
    model = make_model(
        data.load_tokenizer(books_6m),
        config=checkpoint.config,
        params=checkpoint.params,
        rope_fn=row.rope_fn,
        settings=decoder.ForwardSettings(),
    )
    (found,) = passkey.FORCED.evaluate(model, make_bench(lengths=(length,)))
    return found.metrics["accuracy"]


# the table of the model's README, 12 trials
@pytest.mark.parametrize(
    "length, method, least, most",
    [(512, "none", 1, 1), (1024, "none", 0, 0), (1024, "ntk", 0, 0.1), (1024, "yarn", 0.9, 1)],
)
def test_the_reference_of_books_6m(books_6m, length, method, least, most):
    assert least <= books_accuracy(books_6m, length, method) <= most


@pytest.mark.slow
@pytest.mark.parametrize("length, least", [(2048, 0.8), (4096, 0.9)])
def test_the_reference_of_books_6m_at_long_lengths(books_6m, length, least):
    assert books_accuracy(books_6m, length, "yarn") >= least
    assert books_accuracy(books_6m, length, "none") == 0.0
