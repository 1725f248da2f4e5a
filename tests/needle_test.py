"""The suite of needles: what is asked, what counts as found, the model's own reference numbers."""

import dataclasses

import numpy as np
import pytest

from jaxrope import data, decoder, evaluate
from jaxrope.convert import pretrained
from jaxrope.data import BytesTokenizer
from jaxrope.errors import InputError
from jaxrope.evaluate import needle, rows, scoring
from jaxrope.evaluate.scoring import EvalModel
from tests import benches


def make_bench(documents=None, **changes):
    return benches.make_bench(documents, seed=7, **dict(needle_filler="grass") | changes)


def make_model(tokenizer=BytesTokenizer(), **changes):  # noqa: B008 (frozen)
    fields = dict(config=None, params=None, rope_fn=None, settings=None, label="x")
    return EvalModel(**fields | dict(tokenizer=tokenizer) | changes)


def test_trials_are_stratified_and_alike_for_all_numbers_of_keys():
    bench = make_bench(needle_keys=(1, 6), needle_trials=4)
    found = needle.make_documents(make_model(), bench, 1800)
    assert list(found) == [1, 6]
    for keys, trials in found.items():
        assert [trial.depths[0] for trial in trials] == [0.125, 0.375, 0.625, 0.875]
        assert all(len(trial.words) == keys and len(trial.tokens) == 1800 for trial in trials)
        assert all(len(trial.answers) == 1 for trial in trials)
    assert [t.words[0] for t in found[1]] == [t.words[0] for t in found[6]]
    other = needle.make_documents(make_model(), dataclasses.replace(bench, seed=8), 1800)
    assert [t.numbers for t in other[1]] != [t.numbers for t in found[1]]
    fewer = needle.make_documents(make_model(), make_bench(needle_trials=2), 1800)[6]
    assert [t.numbers for t in fewer] == [t.numbers for t in found[6][:2]]


def answers(monkeypatch, hit_fn):
    """Makes scoring say that token t of row i is a hit if hit_fn(i, t), and costs t / 100."""

    def score(model, tokens, **_):
        places = range(1, tokens.shape[1])
        hits = np.array([[hit_fn(i, t) for t in places] for i in range(len(tokens))])
        return np.tile(np.array(places, np.float32) / 100, (len(tokens), 1)), hits

    monkeypatch.setattr(scoring, "score", score)


@pytest.mark.parametrize(
    "hit_fn, accuracy, digits",
    [
        (lambda i, t: True, 1.0, 1.0),
        (lambda i, t: 893 <= t <= 899, 1.0, 1.0),  # the seven digits, and nothing else
        (lambda i, t: t != 899, 0.0, 6 / 7),  # all but the last digit
        (lambda i, t: t != 893, 0.0, 6 / 7),  # all but the first digit
        (lambda i, t: t not in (892, 900), 1.0, 1.0),  # neither the space nor what follows counts
        (lambda i, t: i % 4 == 0, 0.25, 0.25),
    ],
)
def test_a_number_is_found_if_all_its_digits_are(monkeypatch, hit_fn, accuracy, digits):
    answers(monkeypatch, hit_fn)
    bench = make_bench(lengths=(900,), needle_trials=8, needle_keys=(2,))
    (found,) = needle.FORCED.evaluate(make_model(), bench)
    assert found.suite == "needle-2" and found.length == 900 and found.tokens == 8 * 900
    assert list(found.metrics) == ["accuracy", "low", "high", "digit_accuracy", "nll"]
    assert found.metrics["accuracy"] == accuracy
    assert found.metrics["digit_accuracy"] == pytest.approx(digits)
    assert found.metrics["nll"] == pytest.approx(np.mean(range(893, 900)) / 100)
    assert found.metrics["low"] <= accuracy <= found.metrics["high"]
    assert sum(found.items["found"]) == accuracy * 8 and len(set(found.items["number"])) == 8


def test_the_loss_is_that_of_the_forward_pass(tiny_model):
    config, params = tiny_model
    settings = decoder.ForwardSettings(attention_block=64)
    model = make_model(
        config=config, params=params, rope_fn=decoder.own_rope(config), settings=settings
    )
    bench = make_bench(lengths=(820,), needle_trials=2, needle_keys=(2,), batch_tokens=820)
    (found,) = needle.FORCED.evaluate(model, bench)
    assert found.metrics["accuracy"] == 0.0
    trials = needle.make_documents(model, bench, 820)[2]
    for trial, nll in zip(trials, found.items["nll"], strict=True):
        r = decoder.own_rope(config)(820)
        logits = np.asarray(decoder.logits(config, params, trial.tokens[None], r)[0], np.float64)
        logits -= np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        wanted = [-logits[i - 1, trial.tokens[i]] for i in range(813, 820)]
        assert nll == pytest.approx(np.mean(wanted), rel=1e-5)


def test_all_rows_answer_the_same(tiny_model):
    bench = make_bench(lengths=(900,), needle_trials=2)
    one, two = (needle.make_documents(make_model(label=label), bench, 900) for label in "ab")
    assert one[6][1].tokens.tolist() == two[6][1].tokens.tolist()


def test_a_sliding_window_is_not_asked():
    model = make_model(window=64)
    bench = make_bench(lengths=(500,), needle_keys=(1, 6), needle_trials=3)
    assert list(needle.FORCED.evaluate(model, bench)) == []
    assert needle.FORCED.forward_tokens(model, bench, 500) == 0
    assert needle.FORCED.forward_tokens(make_model(), bench, 500) == 2 * 3 * 500


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"needle_filler": "text"}, "eval.needle_filler is 'text', which needs text: set data.ev"),
        ({}, r"eval.lengths: 6 needles and 1 questions .* got length 600"),
    ],
)
def test_what_cannot_be_built_is_refused(changes, message):
    with pytest.raises(InputError, match=message):
        needle.make_documents(make_model(), make_bench(**changes), 600)


def test_text_is_loaded_only_if_it_is_read():
    bench = make_bench(suites=("needle",))
    assert not evaluate.needs_text(bench.options)
    assert evaluate.needs_text(make_bench(suites=("needle",), needle_filler="text").options)


def books_accuracy(books_6m, shared, tmp_path, length, method):
    checkpoint = pretrained.load(books_6m)
    tokenizer = data.load_tokenizer(books_6m)
    texts = [str(shared / "books" / "val" / "*.txt")]
    documents = data.load_documents(texts, tokenizer, cache_dir=tmp_path)
    model = make_model(
        tokenizer,
        config=checkpoint.config,
        params=checkpoint.params,
        rope_fn=rows.method_row(method, checkpoint.config, rope_len=0).rope_fn,
        settings=decoder.ForwardSettings(),
    )
    bench = make_bench(documents, lengths=(length,), needle_filler="text")
    (found,) = needle.FORCED.evaluate(model, bench)
    return found.metrics["accuracy"]


# the table of the model's README, six keys, 24 trials: 0.96 and 0.83, each +- 0.1
@pytest.mark.parametrize("length, method, least, most", [(500, "none", 0.86, 1)])
def test_the_reference_of_books_6m(books_6m, shared, tmp_path, length, method, least, most):
    assert least <= books_accuracy(books_6m, shared, tmp_path, length, method) <= most


@pytest.mark.slow
@pytest.mark.parametrize(
    "length, method, least, most",
    # 0.88 and 0.83 in the README, with words the model was taught; ours it has not seen: 0.63, 0.50
    [(2048, "yarn", 0.4, 1), (2048, "ntk", 0, 0.05), (4096, "yarn", 0.3, 1)],
)
def test_the_reference_of_books_6m_at_long_lengths(
    books_6m, shared, tmp_path, length, method, least, most
):
    assert least <= books_accuracy(books_6m, shared, tmp_path, length, method) <= most
