"""Perplexity: which tokens are scored, in which context, and how their losses are put together."""

import dataclasses

import numpy as np
import pytest

from jaxrope import data, decoder
from jaxrope.convert import pretrained
from jaxrope.data import BytesTokenizer, sliding
from jaxrope.data.sliding import Span, spans
from jaxrope.errors import InputError
from jaxrope.evaluate import perplexity, rows, scoring, statistics
from jaxrope.evaluate.scoring import EvalModel
from tests.benches import make_bench


@pytest.fixture
def model(tiny_model):
    config, params = tiny_model
    return EvalModel(
        config=config,
        params=params,
        rope_fn=decoder.own_rope(config),
        tokenizer=BytesTokenizer(),
        settings=decoder.ForwardSettings(attention_block=16),
        label="none",
    )


@pytest.fixture
def documents(tmp_path):
    rng = np.random.default_rng(0)
    for i, length in enumerate((300, 40, 500)):
        text = "".join(rng.choice(list("abcdefgh "), length))
        (tmp_path / f"{i}.txt").write_text(text)
    return data.load_documents(
        [str(tmp_path / "*.txt")], BytesTokenizer(), cache_dir=tmp_path / "cache"
    )


def test_sliding_windows_by_hand():
    assert spans(10, window=4, stride=2) == [
        Span(0, 4, 0),
        Span(2, 6, 4),
        Span(4, 8, 6),
        Span(6, 10, 8),
    ]
    # the last window is as long as the others and scores what is left
    assert spans(9, window=4, stride=2)[-1] == Span(5, 9, 8)
    assert spans(4, window=4, stride=9) == [Span(0, 4, 0)]


@pytest.mark.parametrize("num_tokens", [7, 8, 20, 33])
@pytest.mark.parametrize("window", [1, 5, 7])
@pytest.mark.parametrize("stride", [1, 3, 5, 7])
def test_every_token_is_scored_once(num_tokens, window, stride):
    if stride > window:
        with pytest.raises(InputError, match=f"eval.stride is 1 to the window's {window} tokens"):
            spans(num_tokens, window=window, stride=stride)
        return
    plan = spans(num_tokens, window=window, stride=stride)
    scored = [token for span in plan for token in range(span.scored, span.end)]
    assert scored == list(range(num_tokens))
    assert all(span.end - span.begin == window for span in plan)
    assert all(span.scored - span.begin >= window - stride for span in plan[1:])


def test_disjoint_windows_without_bos_are_those_of_lm_eval():
    # tests/test_utils.py of lm-evaluation-harness: 34 tokens, max_seq_len 10, context_len 1
    tokens = np.array([-100, *range(34)], np.int32)
    found = sliding.rows(tokens, spans(34, window=10, stride=10), bos_per_window=False)
    assert found[:, :-1].tolist() == [
        [-100, *range(9)],
        list(range(9, 19)),
        list(range(19, 29)),
        list(range(23, 33)),
    ]
    assert found[0, 1:].tolist() == list(range(10))
    assert spans(34, window=10, stride=10)[-1] == Span(24, 34, 30)


def test_every_window_begins_with_bos_if_asked():
    tokens = np.array([99, *range(10)], np.int32)
    found = sliding.rows(tokens, spans(10, window=4, stride=3), bos_per_window=True)
    assert found.tolist() == [[99, 0, 1, 2, 3], [99, 3, 4, 5, 6], [99, 6, 7, 8, 9]]


def test_a_sliding_window_scores_each_token_as_a_window_by_itself(model):
    tokens_WT = np.random.default_rng(0).integers(0, 256, (2, 24)).astype(np.int32)
    tokens_WT[:, 0] = 256
    slow = dataclasses.replace(model, window=8)
    bench = make_bench(stride=3, batch_tokens=64)
    nll_WT, _, plan = perplexity.score_windows(slow, tokens_WT, bench)
    for row, tokens in enumerate(tokens_WT):
        for span in plan:
            alone = np.concatenate([[256], tokens[span.begin + 1 : span.end + 1]])[None]
            wanted, _ = scoring.score(model, alone.astype(np.int32), batch_tokens=8)
            count = span.end - span.scored
            np.testing.assert_allclose(
                nll_WT[row, span.scored : span.end], wanted[0, -count:], atol=1e-5
            )


def test_stride_one_gives_every_later_token_the_longest_context(model):
    tokens_WT = np.random.default_rng(1).integers(0, 256, (1, 13)).astype(np.int32)
    nll_WT, _, plan = perplexity.score_windows(
        dataclasses.replace(model, window=6), tokens_WT, make_bench(stride=1)
    )
    assert len(plan) == 7 and nll_WT.shape == (1, 12)


def test_a_window_at_least_as_long_as_the_text_is_one_whole_window(model):
    tokens_WT = np.random.default_rng(1).integers(0, 256, (2, 17)).astype(np.int32)
    whole, _, _ = perplexity.score_windows(model, tokens_WT, make_bench())
    for window in (16, 400):
        wide = dataclasses.replace(model, window=window)
        nll_WT, _, plan = perplexity.score_windows(wide, tokens_WT, make_bench())
        np.testing.assert_array_equal(nll_WT, whole)
        assert plan == [Span(0, 16, 0)]


# two documents: one window of 4 nats, two windows of 1 nat; each token loss constant per part
NLL_WT = np.array([[4.0] * 6, [1.0] * 6, [1.0, 1.0, 1.0, 1.0, 7.0, 7.0]])
DOCS_W = np.array([0, 1, 1])
PARTS = [(0, 4), (4, 6)]


@pytest.mark.parametrize(
    "name, wanted",
    [
        ("token_mean", 48 / 18),  # all tokens
        ("window_mean", (4 + 4 + 1 + 1 + 1 + 7) / 6),  # six forward windows, each once
        ("doc_mean", (4 + 24 / 12) / 2),  # two documents, each once
    ],
)
def test_aggregation_by_hand(name, wanted):
    values = statistics.AGGREGATIONS[name](NLL_WT, DOCS_W, PARTS)
    assert values.mean() == pytest.approx(wanted)


def test_aggregation_reaches_the_score(model, documents, monkeypatch):
    monkeypatch.setattr(
        scoring, "score", lambda m, rows, **_: (np.tile([1.0, 3.0], (3, 4)), np.ones((3, 8), bool))
    )
    bench = make_bench(documents, lengths=(8,), num_windows=3, windows_per_doc=3)
    (found,) = perplexity.evaluate(model, bench)
    assert found.metrics["perplexity"] == pytest.approx(np.exp(2.0))
    assert found.metrics["nll"] == pytest.approx(2.0) and found.metrics["accuracy"] == 1.0


def test_evaluate_gives_the_perplexity_of_the_documents_windows(model, documents):
    bench = make_bench(documents, lengths=(32, 64), num_windows=5, windows_per_doc=3)
    short, long = perplexity.evaluate(model, bench)
    windows = data.eval_windows(documents, length=64, num_windows=5, windows_per_doc=3, bos_id=256)
    nll_WT, hit_WT = scoring.score(model, windows.tokens_WT, batch_tokens=8192)
    assert long.metrics["perplexity"] == pytest.approx(np.exp(nll_WT.mean()), rel=1e-5)
    assert long.metrics["accuracy"] == pytest.approx(hit_WT.mean())
    assert long.metrics["low"] < long.metrics["perplexity"] < long.metrics["high"]
    np.testing.assert_allclose(long.nll_WT, nll_WT, atol=1e-6)
    assert long.items["window_doc"] == [documents.names[i] for i in windows.doc_ids_W]
    assert long.items["window_start"] == [0, 64, 128, 0, 64]
    assert long.tokens == 5 * 64 and long.length == 64 and short.length == 32
    assert short.fingerprint != long.fingerprint


def test_another_rope_answers_the_same_items(model, documents):
    bench = make_bench(documents, lengths=(100,), num_windows=2, stride=20)
    row = rows.method_row("yarn", model.config, rope_len=0)
    sliding = rows.method_row("sliding", model.config, rope_len=0)
    models = [
        dataclasses.replace(model, rope_fn=r.rope_fn, window=r.window)
        for r in (rows.Row("none", model.rope_fn), row, sliding)
    ]
    found = [next(perplexity.evaluate(one, bench)) for one in models]
    assert len({one.fingerprint for one in found}) == 1
    assert len({one.metrics["perplexity"] for one in found}) == 3
    assert [one.tokens for one in found] == [200, 200, 2 * 64 * 3]  # 64, then 20 and 16 more


def test_text_that_is_too_short_is_refused_with_what_is_needed(model, documents):
    with pytest.raises(InputError, match="(?s)600 tokens.*longest has 500"):
        list(perplexity.evaluate(model, make_bench(documents, lengths=(600,), num_windows=1)))
    with pytest.raises(InputError, match="'perplexity', which needs text: set data.eval_files"):
        list(perplexity.evaluate(model, make_bench(None, lengths=(8,))))


# The model's README, measured with transformers: token mean over the windows' first length - 1
# tokens, books/val, first four documents, tokens 20,000 onward.
REFERENCE = {
    (512, "none"): 32.9,
    (1024, "none"): 57.6,
    (1024, "pi"): 58.9,
    (1024, "ntk"): 42.6,
    (1024, "yarn"): 38.8,
    (1024, "sliding"): 38.8,
}
LONG_REFERENCE = {
    (2048, "none"): 81.7,
    (2048, "pi"): 77.8,
    (2048, "ntk"): 52.4,
    (2048, "yarn"): 39.4,
    (2048, "sliding"): 38.6,
    (4096, "none"): 107.1,
    (4096, "pi"): 97.1,
    (4096, "ntk"): 64.9,
    (4096, "yarn"): 40.3,
    (4096, "yarn@none"): 41.8,
    (4096, "yarn@su"): 39.9,
    (4096, "sliding"): 38.0,
}


@pytest.fixture(scope="module")
def books(shared, books_6m, tmp_path_factory):
    """(checkpoint, tokenizer, documents)."""
    tokenizer = data.load_tokenizer(books_6m)
    first = sorted((shared / "books" / "val").glob("*.txt"))[:4]
    cache = tmp_path_factory.mktemp("tokens")
    documents = data.load_documents([str(path) for path in first], tokenizer, cache_dir=cache)
    return pretrained.load(books_6m), tokenizer, documents


def reproduce(books, length, method, wanted):
    checkpoint, tokenizer, documents = books
    bench = make_bench(
        documents, lengths=(length,), num_windows=4, windows_per_doc=1, offset_tokens=20_000
    )
    row = rows.method_row(method, checkpoint.config, rope_len=0)
    model = EvalModel(
        config=checkpoint.config,
        params=checkpoint.params,
        rope_fn=row.rope_fn,
        tokenizer=tokenizer,
        settings=decoder.ForwardSettings(),
        label=method,
        window=row.window,
    )
    (found,) = perplexity.evaluate(model, bench)
    # transformers has no prediction for the token after the last one it reads
    counted = np.exp(found.nll_WT[:, :-1].mean(dtype=np.float64))
    assert counted == pytest.approx(wanted, abs=0.06 if method == "sliding" else 0.0501)


@pytest.mark.parametrize("length, method", REFERENCE)
def test_the_reference_of_books_6m(books, length, method):
    reproduce(books, length, method, REFERENCE[length, method])


@pytest.mark.slow
@pytest.mark.parametrize("length, method", LONG_REFERENCE)
def test_the_reference_of_books_6m_at_long_lengths(books, length, method):
    reproduce(books, length, method, LONG_REFERENCE[length, method])
