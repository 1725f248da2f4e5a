"""Scoring, intervals, rows, and the interface that evaluators share."""

import dataclasses
import hashlib

import numpy as np
import pytest

from jaxrope import decoder, evaluate, rope
from jaxrope.data import BytesTokenizer
from jaxrope.decoder import losses
from jaxrope.errors import InputError
from jaxrope.evaluate import (
    haystack,
    protocols,
    retrieval,
    rows,
    ruler,
    scoring,
    statistics,
    suites,
    summary,
)
from jaxrope.evaluate.scoring import EvalModel, Result
from jaxrope.mesh import sharding
from jaxrope.schema import evaluation
from jaxrope.schema.rules import rules


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


def random_rows(count, length, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, length + 1)).astype(np.int32)


def dense_nll(model, tokens_BT, r):
    """-log softmax in float64 of the whole sequence's logits."""
    logits = decoder.logits(model.config, model.params, tokens_BT[:, :-1], r)
    logits = np.asarray(logits, np.float64)
    highest = logits.max(-1, keepdims=True)
    log_sum = np.log(np.exp(logits - highest).sum(-1)) + highest[..., 0]
    picked = np.take_along_axis(logits, tokens_BT[:, 1:, None], -1)[..., 0]
    return log_sum - picked, logits.argmax(-1) == tokens_BT[:, 1:]


def test_score_equals_a_dense_computation(model):
    tokens = random_rows(5, 40)
    nll_WT, hit_WT = scoring.score(model, tokens, batch_tokens=80)
    wanted_nll, wanted_hit = dense_nll(model, tokens, model.rope_fn(40))
    np.testing.assert_allclose(nll_WT, wanted_nll, atol=2e-5)
    np.testing.assert_array_equal(hit_WT, wanted_hit)


def test_logits_exist_for_a_chunk_at_a_time(model, monkeypatch):
    monkeypatch.setattr(scoring, "CHUNK", 8)
    seen = []
    real = losses._nll
    monkeypatch.setattr(
        losses, "_nll", lambda x, *rest: (seen.append(x.shape[1]), real(x, *rest))[1]
    )
    scoring.score(model, random_rows(1, 27), batch_tokens=27)
    assert seen and set(seen) == {8}


def test_methods_of_one_length_share_a_compilation(model):
    tokens = random_rows(3, 33)
    scoring.score(model, tokens, batch_tokens=99)
    before = scoring.score_batch._cache_size()
    for name in ("pi", "ntk", "yarn@su"):
        row = rows.method_row(name, model.config, rope_len=256)
        other = dataclasses.replace(model, rope_fn=row.rope_fn)
        scoring.score(other, tokens, batch_tokens=99)
    assert scoring.score_batch._cache_size() == before


@pytest.mark.parametrize(
    "sizes, backend",
    [
        (dict(data=4, fsdp=2), "blockwise"),
        (dict(data=2, context=4), "ring"),
        (dict(fsdp=2, context=2, tensor=2), "all_gather"),
        pytest.param(dict(context=4, tensor=2), "usp", marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_rows_over_eight_devices_score_as_on_one(model, sizes, backend):
    """27 tokens are no multiple of any mesh with context > 1: rows are filled up."""
    mesh = sharding.make_mesh(dict(data=1, fsdp=1, context=1, tensor=1) | sizes)
    settings = dataclasses.replace(
        model.settings, mesh=mesh, attention=backend, ulysses=2 if backend == "usp" else 1
    )
    params = sharding.put(model.params, decoder.param_shardings(model.config, mesh))
    spread = dataclasses.replace(model, settings=settings, params=params)
    tokens = random_rows(3, 27)
    one, hits = scoring.score(model, tokens, batch_tokens=27)
    many, their_hits = scoring.score(spread, tokens, batch_tokens=27)
    np.testing.assert_allclose(many, one, atol=1e-5)
    np.testing.assert_array_equal(hits, their_hits)


@pytest.mark.parametrize(
    "rows_, length, tokens, wanted", [(12, 512, 4096, 6), (4, 512, 4096, 4), (7, 100, 50, 1)]
)
def test_batches_are_as_large_as_allowed_and_even(rows_, length, tokens, wanted):
    assert scoring.batch_rows(rows_, length, tokens) == wanted


def test_progress_counts_every_token_once(model):
    told = []
    scoring.score(model, random_rows(5, 16), batch_tokens=32, tick=told.append)
    assert sum(told) == 5 * 16 and len(told) == 3


def test_a_sequence_beyond_the_last_bucket_is_refused(model):
    factors = (1.0,) * (model.config.rotary_dim // 2)
    short = rope.make(
        "longrope",
        head_dim=model.config.head_dim,
        theta=model.config.theta,
        original_len=64,
        factors=factors,
        attention_factor=1.0,
        max_len=128,
    )
    with pytest.raises(InputError, match="129 tokens is longer than the last length bucket, 128"):
        scoring.score(
            dataclasses.replace(model, rope_fn=short), random_rows(1, 129), batch_tokens=1
        )


def test_a_fingerprint_tells_tokens_order_and_extras_apart():
    tokens = random_rows(2, 5)
    prints = {
        scoring.fingerprint(tokens),
        scoring.fingerprint(tokens[::-1]),
        scoring.fingerprint(tokens.reshape(3, 4)),
        scoring.fingerprint(tokens, "answer"),
    }
    assert len(prints) == 4
    assert scoring.fingerprint(tokens) == scoring.fingerprint(tokens.astype(np.int64))
    by_hand = b"((2, 2),)" + bytes([1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 4, 0, 0, 0])
    assert scoring.fingerprint([[1, 2], [3, 4]]) == hashlib.sha256(by_hand).hexdigest()


# Newcombe 1998 (Statistics in Medicine 17:857), Table I, method 3
@pytest.mark.parametrize(
    "successes, trials, low, high",
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_equals_published_values(successes, trials, low, high):
    assert statistics.wilson_interval(successes, trials) == pytest.approx((low, high), abs=5e-5)
    mirrored = statistics.wilson_interval(trials - successes, trials)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=5e-5)


def test_wilson_refuses_more_successes_than_trials():
    with pytest.raises(ValueError, match="must not be greater than"):
        statistics.wilson_interval(3, 2)


def test_the_bootstrap_interval_is_that_of_the_mean():
    values = np.random.default_rng(1).normal(3.0, 2.0, 400)
    low, high = statistics.bootstrap_interval(values, num_samples=4000, seed=0)
    error = 1.96 * values.std() / np.sqrt(400)  # the central limit theorem
    assert (low, high) == pytest.approx((values.mean() - error, values.mean() + error), abs=0.02)
    assert (low, high) == statistics.bootstrap_interval(values, num_samples=4000, seed=0)
    assert (low, high) != statistics.bootstrap_interval(values, num_samples=4000, seed=1)


def test_the_bootstrap_of_two_values_has_three_means():
    # means 0, 0.5, 1 with shares 1/4, 1/2, 1/4: the 95% interval is from 0 to 1, the 40% one 0.5
    low_high = statistics.bootstrap_interval([0.0, 1.0], num_samples=2000, seed=3)
    assert low_high == (0.0, 1.0)
    assert statistics.bootstrap_interval([0.0, 1.0], num_samples=2000, seed=3, level=0.4) == (
        0.5,
        0.5,
    )


def test_resamples_may_be_more_than_fit_at_one_time(monkeypatch):
    monkeypatch.setattr(statistics, "_DRAWS_AT_A_TIME", 64)
    low, high = statistics.bootstrap_interval(np.arange(10.0), num_samples=1001, seed=0)
    assert low == pytest.approx(2.7, abs=0.3) and high == pytest.approx(6.3, abs=0.3)


def test_a_paired_comparison_removes_what_windows_have_in_common():
    rng = np.random.default_rng(0)
    hard_W1 = rng.normal(3.0, 1.0, (16, 1))
    b_WT = hard_W1 + rng.normal(0, 0.01, (16, 50))
    found = statistics.compare(b_WT - 0.02, b_WT, num_samples=500, seed=0)
    assert found.mean == pytest.approx(-0.02) and found.num_windows == 16
    assert statistics.verdict(found.low, found.high) is False
    assert found.low == pytest.approx(-0.02) and found.high == pytest.approx(-0.02)
    same = statistics.compare(b_WT, b_WT, num_samples=500, seed=0)
    assert statistics.verdict(same.low, same.high) is None


def test_an_interval_decides_if_all_of_it_is_on_one_side_of_what_counts():
    assert statistics.verdict(0.1, 0.3) is True and statistics.verdict(-0.3, -0.1) is False
    assert statistics.verdict(-0.1, 0.3) is None and statistics.verdict(0.0, 0.3) is None
    assert statistics.verdict(0.1, 0.3, least=0.2) is None
    assert statistics.verdict(-0.3, -0.1, least=0.2) is None
    assert statistics.verdict(0.3, 0.4, least=0.2) is True
    assert statistics.verdict(np.nan, np.nan) is None


def test_one_window_has_the_interval_of_its_number():
    assert statistics.bootstrap_interval([3.5], num_samples=100, seed=0) == (3.5, 3.5)
    difference = statistics.difference_interval([3.0], [1.0], num_samples=100, seed=0)
    assert difference == (2.0, 2.0)


def test_a_comparison_of_other_tokens_is_refused():
    with pytest.raises(ValueError, match=r"same scored tokens, got shapes \(2, 3\) and \(2, 4\)"):
        statistics.compare(np.zeros((2, 3)), np.zeros((2, 4)), num_samples=1, seed=0)


def test_position_curve_covers_every_position_once():
    nll_WT = np.arange(300.0)[None].repeat(2, 0)
    edges, means = statistics.position_curve(nll_WT, bins_per_octave=2)
    assert edges[0] == 0 and edges[-1] == 300 and (np.diff(edges) > 0).all()
    assert np.sum(means * np.diff(edges)) == pytest.approx(nll_WT[0].sum())
    assert means[0] == 0.0  # the first bin is the first token alone
    assert {75, 150} <= set(edges.tolist()) and len(edges) == 17  # its quarter and its half
    short_edges, short = statistics.position_curve(nll_WT[:, :5])
    assert short_edges.tolist() == [0, 1, 2, 3, 4, 5] and short.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("name", ["none", "pi", "ntk", "yarn"])
def test_a_row_has_the_factors_of_its_length_or_of_a_fixed_one(name, tiny_config):
    constants = {"none": {}, "yarn": dict(factor=4.0, beta_fast=32, beta_slow=1)}
    wanted = rope.make(
        name,
        head_dim=tiny_config.head_dim,
        theta=tiny_config.theta,
        original_len=64,
        **constants.get(name, dict(factor=4.0)),
    )(256)
    own = rows.method_row(name, tiny_config, rope_len=0).rope_fn(256)
    fixed = rows.method_row(name, tiny_config, rope_len=256).rope_fn(64)
    for found in (own, fixed):
        np.testing.assert_array_equal(found.factors_R, wanted.factors_R)
        assert found.attention_factor == wanted.attention_factor
    below = rows.method_row(name, tiny_config, rope_len=0).rope_fn(32)
    np.testing.assert_array_equal(below.factors_R, np.ones(4, np.float32))


def test_a_stated_attention_factor_changes_nothing_else(tiny_config):
    plain = rows.method_row("yarn", tiny_config, rope_len=0).rope_fn(256)
    for law, wanted in (
        ("su", np.sqrt(1 + np.log(4) / np.log(64))),
        ("yarn", 0.1 * np.log(4) + 1),
        ("none", 1.0),
        ("1.25", 1.25),
    ):
        found = rows.method_row(f"yarn@{law}", tiny_config, rope_len=0).rope_fn(256)
        assert float(found.attention_factor) == pytest.approx(wanted, rel=1e-6)
        np.testing.assert_array_equal(found.turns_R2, plain.turns_R2)


def test_a_row_may_be_a_rope_json(tmp_path, tiny_config):
    geometry = dict(head_dim=tiny_config.head_dim, original_len=64)
    made = rope.make("yarn", theta=10_000.0, factor=4.0, beta_fast=32.0, beta_slow=1.0, **geometry)
    rope.save(tmp_path / "a@b.json", made, {})
    found = rows.method_row(str(tmp_path / "a@b.json"), tiny_config, rope_len=512)
    np.testing.assert_array_equal(found.rope_fn(200).turns_R2, made(200).turns_R2)
    assert found.rope_fn(200).attention_factor == made(200).attention_factor
    with pytest.raises(InputError, match="257 tokens is longer than the last length bucket"):
        found.rope_fn(257)
    other = rope.make("pi", theta=500.0, factor=4.0, **geometry)
    rope.save(tmp_path / "other.json", other, {})
    with pytest.raises(InputError, match="theta must equal the model's, 10000.0, got 500.0"):
        rows.method_row(str(tmp_path / "other.json"), tiny_config, rope_len=0)


def test_the_sliding_row_is_the_base_in_its_own_window(tiny_config):
    row = rows.method_row("sliding", tiny_config, rope_len=256)
    assert row.window == 64
    np.testing.assert_array_equal(row.rope_fn(64).factors_R, np.ones(4, np.float32))


def test_every_name_of_the_schema_is_implemented():
    assert {*evaluation.SUITES} == {*suites.SUITES, *suites.GROUPS}
    assert {*evaluation.ROWS} - {rows.OWN, rows.SLIDING} < {*rope.METHODS}
    assert {*evaluation.PROTOCOLS} == {"", *protocols.PROTOCOLS}
    assert {*evaluation.AGGREGATIONS} == {*statistics.AGGREGATIONS}
    assert {*evaluation.RULER_TASKS} == {*ruler.NAMES}
    fillers = {"grass", "text"}
    for key in ("passkey_filler", "needle_filler"):
        assert {*rules(evaluation.Evaluation)[key].names} == fillers
    niah, lines = (rules(section) for section in (evaluation.Niah, evaluation.Lines))
    assert {*niah["depth_spacing"].names} == {*haystack.SPACINGS}
    assert {*niah["score"].names} == {*haystack.SCORERS}
    assert {*lines["names"].names} == {*retrieval.NAMES}
    assert {*lines["score"].names} == {*retrieval.PICKS}
    for law in evaluation.LAWS:
        assert rope.attention_factor(law, factor=2.0, original_len=64) >= 1


def result(label, nll, *, length=8, print_="a", **metrics):
    return Result(
        suite="perplexity",
        label=label,
        length=length,
        metrics={"perplexity": float(np.exp(np.mean(nll))), "low": 1.0, "high": np.inf} | metrics,
        items={"window_nll": [float(x) for x in np.mean(nll, axis=1)]},
        nll_WT=np.asarray(nll, np.float32),
        fingerprint=print_,
        tokens=10,
        seconds=2.0,
    )


def test_differences_are_from_the_baseline_on_the_same_items():
    one, two = np.full((4, 8), 3.0), np.full((4, 8), 3.5)
    results = [
        result("yarn", one),
        result("pi", two),
        result("other", two, print_="b"),
        result("pi", two, length=16),
    ]
    found = summary.differences(results, baseline="yarn", num_samples=200, seed=0)
    assert set(found) == {("pi", 8)}
    assert found["pi", 8].mean == pytest.approx(0.5)
    assert summary.differences(results, baseline="absent", num_samples=200, seed=0) == {}


def test_the_record_is_json_without_infinities():
    results = [result("yarn", np.full((2, 8), 3.0)), result("pi", np.full((2, 8), 4.0))]
    found = summary.differences(results, baseline="yarn", num_samples=200, seed=0)
    rows_ = summary.record(results, found, baseline="yarn")
    assert rows_[0]["metrics"]["high"] is None and "difference" not in rows_[0]
    assert rows_[1]["difference"] == {
        "baseline": "yarn",
        "mean": 1.0,
        "low": 1.0,
        "high": 1.0,
        "num_windows": 2,
    }
    assert rows_[1]["tokens_per_second"] == 5.0


def test_scalars_are_the_score_of_each_suite_and_length():
    found = evaluate.scalars(
        [result("x", np.zeros((1, 8))), result("x", np.zeros((1, 9)), length=9)]
    )
    assert found == {"perplexity/8": 1.0, "perplexity/9": 1.0}


def test_yarn_has_the_betas_of_its_paper(tiny_config):
    # L0 512, 32 pairs, base 10,000: 32 turns at pair 3.2, 1 turn at pair 15.3; the ramp is 3 to 16
    config = dataclasses.replace(tiny_config, head_dim=64, rotary_dim=64, original_len=512)
    found = rows.method_row("yarn", config, rope_len=4096).rope_fn(4096).factors_R
    ramp = np.clip((np.arange(32) - 3) / 13, 0, 1)
    np.testing.assert_allclose(found, 1 / (1 - ramp + ramp / 8), rtol=1e-6)
