"""LongPPL: the numbers of the package `longppl`, and each of its quirks."""

import dataclasses
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from jaxrope import data, decoder, evaluate
from jaxrope.convert import pretrained
from jaxrope.errors import InputError
from jaxrope.evaluate import longppl, rows, scoring
from jaxrope.evaluate.scoring import EvalModel
from tests import benches

ROOT = Path(__file__).resolve().parent.parent
STDLIB = ROOT / "jaxrope" / "models" / "stdlib-3m"
TEXT = (ROOT / "LICENSE").read_text(encoding="utf-8")

# (model, evaluator, K, d, alpha, beta) -> longppl, n_key_token, ppl, n_token: the package in torch
# (PKU-ML/LongPPL 1decd2a) on the first 1,500 characters of the licence
PACKAGE = {
    ("stdlib", "", 32, 8, 0.5, -4.0): (6.633878, 106, 42.003117, 554),
    ("stdlib", "", 32, 8, 0.5, -2.0): (2.3362632, 57, 42.003117, 554),
    ("stdlib", "", 48, 16, 2.0, -2.0): (1.7594681, 13, 42.003117, 554),
    ("stdlib", "", 48, 16, 30.0, -2.0): (None, None, 42.003117, 554),
    ("stdlib", "books", 32, 8, 2.0, -2.0): (4.670531, 8, 42.003117, 554),
    ("stdlib", "books", 48, 16, 2.0, -2.0): (1.960699, 5, 42.003117, 554),
    ("books", "stdlib", 32, 8, 0.5, -2.0): (20.22593, 26, 44.367012, 653),
    ("books", "stdlib", 48, 16, 2.0, -2.0): (46.689873, 5, 44.367012, 653),
}


@pytest.fixture(scope="module")
def load():
    """A function from a folder to the EvalModel of the model in it."""
    made = {}

    def load(folder):
        if folder not in made:
            loaded = pretrained.load(folder)
            made[folder] = EvalModel(
                config=loaded.config,
                params=jax.tree.map(jnp.asarray, loaded.params),
                rope_fn=loaded.rope_fn,
                tokenizer=data.load_tokenizer(folder),
                settings=decoder.ForwardSettings(attention_block=64),
                label="none",
            )
        return made[folder]

    return load


def make_documents(folder, tokenizer, *texts):
    for i, text in enumerate(texts):
        (folder / f"{i}.txt").write_text(text, encoding="utf-8")
    return data.load_documents(
        [str(folder / "?.txt")],
        tokenizer,
        cache_dir=folder / "cache",
        settings=data.ReadSettings("data.eval_files"),
    )


def make_bench(documents, options, **changes):
    options = dict(documents=1) | options
    changes |= dict(bootstrap_samples=100, suites=("longppl",), longppl=options)
    return benches.make_bench(documents, **changes)


def measure(model, bench):
    (found,) = evaluate.run(model, bench)
    return found


@pytest.mark.parametrize("case", PACKAGE, ids=str)
def test_the_numbers_of_the_package(load, tmp_path, request, case):
    name, evaluator, context, window, alpha, beta = case
    books = request.getfixturevalue("books_6m") if "books" in case[:2] else None
    folders = {"stdlib": STDLIB, "books": books, "": ""}
    model, (score, num_keys, ppl, num_tokens) = load(folders[name]), PACKAGE[case]
    documents = make_documents(tmp_path, model.tokenizer, TEXT[:1500])
    options = dict(evaluator=str(folders[evaluator]), context=context, window=window)
    options |= dict(alpha=alpha, beta=beta)
    found = measure(model, make_bench(documents, options, lengths=(num_tokens + 1,)))
    assert found.items["n_key_token"] == [num_keys] and found.items["n_token"] == [num_tokens]
    assert found.metrics["ppl"] == pytest.approx(ppl, rel=1e-4)
    if score is None:  # "No key tokens!"
        assert found.items["longppl"] == [None] and math.isnan(found.metrics["longppl"])
    else:
        assert found.metrics["longppl"] == pytest.approx(score, rel=1e-4)
        assert found.metrics["low"] == pytest.approx(score, rel=1e-4)  # one document


def test_short_windows_by_hand():
    # tokens 4 .. 9 are scored, each once, with 4 to 6 tokens before it; the last window is shorter
    assert longppl.short_windows(10, context=4, window=3) == [(0, 7), (3, 10)]
    assert longppl.short_windows(9, context=4, window=3) == [(0, 7), (3, 9)]
    assert longppl.short_windows(4, context=4, window=3) == []
    for num_tokens in (5, 9, 23):
        plan = longppl.short_windows(num_tokens, context=4, window=3)
        scored = [token for begin, end in plan for token in range(begin + 4, end)]
        assert scored == list(range(4, num_tokens))


def test_intervals_that_touch_are_merged():
    spans = np.array([[0, 2], [2, 5], [6, 7], [9, 9], [9, 12]])
    assert longppl.merge(spans).tolist() == [[0, 5], [6, 7], [9, 12]]
    assert longppl.merge(spans[:1]).tolist() == [[0, 2]]
    assert longppl.merge(spans[:0]).shape == (0, 2)


def test_a_token_counts_if_an_interval_holds_all_of_it():
    intervals = np.array([[2, 5], [5, 6], [9, 12]])
    spans = [[0, 2], [1, 3], [2, 3], [3, 5], [4, 6], [5, 6], [8, 10], [9, 9], [9, 12], [12, 13]]
    assert longppl.contained(np.array(spans), intervals) == [2, 3, 5, 7, 8]
    assert longppl.contained(np.array([[0, 4]]), intervals[:0]) == []
    # a token of two key tokens that touch counts, since these are merged first
    assert longppl.contained(np.array([[2, 6]]), longppl.merge(intervals[:2])) == [0]


def test_the_loss_of_the_first_token_is_that_of_the_last_place():
    # key_tokens.append(i - 1): index -1
    nll = np.array([1.0, 2.0, 40.0])  # of tokens 1, 2 and 3
    spans = np.array([[0, 1], [1, 2], [2, 3], [3, 4]])
    both = longppl.document(nll, spans, np.array([[0, 2]]))
    assert both["n_key_token"] == 2 and both["longppl"] == pytest.approx(math.exp((40 + 1) / 2))
    second = longppl.document(nll, spans, np.array([[1, 2]]))
    assert second["longppl"] == pytest.approx(math.e)
    assert second["ppl"] == pytest.approx(math.exp(43 / 3)) and second["n_token"] == 4


def test_a_first_token_can_be_key(load, tmp_path, books_6m):
    """With K = 1 and alpha below 0, as the package has it: 136 tokens, the first among them."""
    model = load(STDLIB)
    documents = make_documents(tmp_path, model.tokenizer, TEXT[4200:4600])
    options = dict(evaluator=str(books_6m), context=1, window=8, alpha=-1.0, beta=-20.0)
    found = measure(model, make_bench(documents, options, lengths=(151,)))
    assert found.items["key_intervals"][0][0] == [0, 11]
    assert found.items["n_key_token"] == [136]
    assert found.metrics["longppl"] == pytest.approx(52.838486, rel=1e-4)


def test_a_last_window_of_one_token_is_scored(load, tmp_path):
    """The package: TypeError, "iteration over a 0-d tensor"."""
    model = load(STDLIB)
    documents = make_documents(tmp_path, model.tokenizer, TEXT[4200:4600])
    options = dict(context=13, window=8, alpha=-30.0, beta=-30.0)
    bench = make_bench(documents, options, lengths=(150,))
    (passage,) = longppl.passages(model, bench, 150)
    assert len(passage.evaluator.tokens) == 150  # the tokenizer.json of this model adds bos
    assert longppl.short_windows(150, context=13, window=8)[-1] == (136, 150)  # 13 + 1 tokens
    found = measure(model, bench)
    # every token but the first K, which are never key
    assert found.items["n_key_token"] == [150 - 13]


def test_the_first_k_tokens_are_never_key(load, tmp_path):
    model = load(STDLIB)
    documents = make_documents(tmp_path, model.tokenizer, TEXT[:1500])
    for context in (40, 60):
        options = dict(context=context, window=100 - context, alpha=-30.0, beta=-30.0)
        bench = make_bench(documents, options, lengths=(100,))
        (passage,) = longppl.passages(model, bench, 100)
        (intervals,) = measure(model, bench).items["key_intervals"]
        assert intervals[0][0] == passage.model.spans_T2[context - 1, 0]  # bos is the first


def test_the_evaluator_reads_special_tokens_and_the_model_does_not(load, tmp_path, books_6m):
    for folder, added in ((books_6m, [1]), (STDLIB, [0])):  # as their tokenizer.json say
        model = load(folder)
        documents = make_documents(tmp_path, model.tokenizer, TEXT[:1500])
        (passage,) = longppl.passages(model, make_bench(documents, dict(context=40)), 100)
        assert passage.evaluator.tokens[: len(added)].tolist() == added
        np.testing.assert_array_equal(passage.evaluator.tokens[len(added) :], passage.model.tokens)
        assert passage.evaluator.spans_T2[: len(added)].tolist() == [[0, 0]] * len(added)
        np.testing.assert_array_equal(passage.model.tokens, documents.doc(0)[:99])
    bytes_ids, spans = data.BytesTokenizer().encode_with_spans("a\u00e9", special=True)
    assert bytes_ids.tolist() == [256, 97, 195, 169]
    assert spans.tolist() == [[0, 0], [0, 1], [1, 2], [1, 2]]


@pytest.mark.parametrize("room", [3, 4, 5, 6])
def test_a_text_ends_with_a_whole_character(room):
    tokenizer = data.BytesTokenizer()
    ids = tokenizer.encode("ab\u00e9\u20ac")  # bytes 1 1 2 3
    documents = dataclasses.make_dataclass("Documents", ["names", "doc"])(["x"], lambda i: ids)
    passage = longppl._passage(tokenizer, tokenizer, documents, 0, room)
    found = passage.model
    assert passage.evaluator.tokens.tolist() == [256, *found.tokens.tolist()]
    assert tokenizer.decode(found.tokens) == ("ab" if room == 3 else "ab\u00e9")
    assert found.spans_T2.tolist()[:2] == [[0, 1], [1, 2]]
    assert found.spans_T2.tolist()[2:] == [[2, 3]] * (0 if room == 3 else 2)


def test_texts_are_pooled_by_their_numbers_of_tokens():
    one = dict(longppl=math.exp(1.0), n_key_token=2, ppl=math.exp(3.0), n_token=10)
    two = dict(longppl=math.exp(4.0), n_key_token=4, ppl=math.exp(5.0), n_token=30)
    none = dict(longppl=None, n_key_token=None, ppl=math.exp(1.0), n_token=10)
    found = longppl.pooled([one, two, none], num_samples=100, seed=0)
    assert math.log(found["longppl"]) == pytest.approx((1 * 2 + 4 * 4) / 6)
    assert math.log(found["ppl"]) == pytest.approx((3 * 10 + 5 * 30 + 1 * 10) / 50)
    assert found["n_key_token"] == 6 and found["n_token"] == 50
    assert [math.log(found[end]) for end in ("low", "high")] == pytest.approx([1.0, 4.0])
    assert math.isnan(longppl.pooled([none], num_samples=100, seed=0)["longppl"])


def test_the_evaluator_is_asked_once_for_all_rows(load, tmp_path, monkeypatch):
    model, loads = load(STDLIB), []
    documents = make_documents(tmp_path, model.tokenizer, TEXT[:600], TEXT[600:1300])
    told, skipped = [], []
    options = dict(evaluator=str(STDLIB), documents=2, context=32, window=8, alpha=0.5)
    bench = make_bench(documents, options, lengths=(100,))
    bench = dataclasses.replace(bench, tick=told.append, skip=skipped.append)
    plain = pretrained.load
    monkeypatch.setattr(
        pretrained, "load", lambda *a, **k: loads.append(k.get("weights", True)) or plain(*a, **k)
    )
    first = measure(model, bench)
    assert sum(told) == first.tokens == longppl.forward_tokens(model, bench, 100)
    row = rows.method_row("pi", model.config, rope_len=512)
    second = measure(dataclasses.replace(model, rope_fn=row.rope_fn, label="pi"), bench)
    assert loads.count(True) == 1 and sum(skipped) == first.tokens - 2 * 100
    assert first.items["key_intervals"] == second.items["key_intervals"]
    assert first.fingerprint == second.fingerprint
    assert first.metrics["ppl"] != pytest.approx(second.metrics["ppl"], rel=1e-3)
    # the model as its own evaluator finds the same key tokens: it is the same checkpoint
    options = {**options, "evaluator": ""}
    itself = measure(model, make_bench(documents, options, lengths=(100,)))
    assert itself.items["key_intervals"] == first.items["key_intervals"]
    assert itself.metrics["longppl"] == pytest.approx(first.metrics["longppl"], rel=1e-6)


def test_both_passes_have_the_factors_of_the_length(load, tmp_path, monkeypatch):
    model, lengths = load(STDLIB), []
    documents = make_documents(tmp_path, model.tokenizer, TEXT[:1500])
    asked = dataclasses.replace(model, rope_fn=lambda n: lengths.append(n) or model.rope_fn(n))
    measure(asked, make_bench(documents, dict(context=32, window=8), lengths=(100,)))
    assert set(lengths) == {100}


def test_a_row_whose_window_slides_has_none(load):
    slow = dataclasses.replace(load(STDLIB), window=64)
    bench = make_bench(None, {}, lengths=(100,))
    assert not list(longppl.evaluate(slow, bench))
    assert longppl.forward_tokens(slow, bench, 100) == 0


def test_the_defaults_are_those_of_the_package():
    section = base.get_config().eval.longppl
    assert (section.context, section.window, section.alpha, section.beta) == (4096, 1024, 2.0, -2.0)


@pytest.mark.parametrize(
    "options, length, message",
    [
        (dict(context=1), 2, "eval.lengths is 3 or more for the suite 'longppl', got 2"),
        (
            dict(context=100),
            100,
            "eval.longppl.context is 100 tokens, which are never key, and a text of length 100 has "
            "100 for the evaluator. Set a smaller one",
        ),
        (
            dict(documents=2, context=8),
            100,
            "documents is 2, but of the 2 of data.eval_files 1 have 99 tokens or more; the longest "
            "has 554. Name more text",
        ),
        (dict(context=8, evaluator="nowhere"), 100, "nowhere"),
    ],
)
def test_refused_before_anything_runs(load, tmp_path, options, length, message):
    model = load(STDLIB)
    documents = make_documents(tmp_path, model.tokenizer, TEXT[:1500], "short")
    bench = make_bench(documents, options, lengths=(length,))
    with pytest.raises(InputError, match=message):
        evaluate.check(model, bench)


def test_it_needs_text(load):
    with pytest.raises(InputError, match="has 'longppl', which needs text: set data.eval_files"):
        longppl.passages(load(STDLIB), make_bench(None, {}), 512)


def test_an_evaluator_needs_its_tokenizer(load, tmp_path):
    model = load(STDLIB)
    folder = tmp_path / "bare"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_bytes((STDLIB / name).read_bytes())
    documents = make_documents(tmp_path, model.tokenizer, TEXT[:1500])
    bench = make_bench(documents, dict(evaluator=str(folder), context=8), lengths=(100,))
    with pytest.raises(InputError, match=r"longppl.evaluator: '.*bare' has no tokenizer.json"):
        longppl.passages(model, bench, 100)


def test_losses_of_short_pieces_are_those_of_each_alone(load):
    model = load(STDLIB)
    ids = model.tokenizer.encode(TEXT[:300])
    bench = make_bench(None, {})
    pieces = [ids[:20], ids[5:12]]
    found = longppl._losses(model, bench, pieces, size=20, length=20)
    for piece, nll in zip(pieces, found, strict=True):
        alone, _ = scoring.score(model, piece[None], batch_tokens=64)
        np.testing.assert_allclose(nll, alone[0], atol=1e-4)
