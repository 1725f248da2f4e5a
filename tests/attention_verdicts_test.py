"""Verdicts of the paper's findings, on hand-made numbers."""

import json
import math

import numpy as np
import pytest

from jaxrope.analyse import claims, findings, numbers
from jaxrope.analyse.findings import FAILS, HOLDS, OPEN, Measured
from tests.tiny_study import found, inside, trials

NAN = math.nan


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.1, 0.3, HOLDS),
        (-0.3, -0.1, FAILS),
        (-0.1, 0.3, OPEN),
        (0.0, 0.3, OPEN),  # the interval must exclude 0
        (-0.3, 0.0, OPEN),
        (NAN, NAN, OPEN),
    ],
)
def test_a_verdict_is_that_of_the_whole_interval(low, high, verdict):
    assert findings.judge(Measured("a", (low + high) / 2, low, high)) == verdict


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(0.1, 0.2, OPEN), (0.3, 0.4, HOLDS), (-0.4, -0.3, FAILS), (-0.2, -0.1, OPEN)],
)
def test_a_difference_too_small_to_count_decides_nothing(low, high, verdict):
    one = Measured("a", (low + high) / 2, low, high, least=0.25)
    assert findings.judge(one) == verdict


def test_what_counts_goes_by_the_unit():
    how = dict(num_samples=100, seed=0)
    for unit, verdict in (("", HOLDS), ("nats", OPEN), ("nats a token", OPEN)):
        values = [0.0005, 0.0006]
        assert findings.judge(findings.mean_of("m", values, unit=unit, **how)) == verdict
        gap = findings.difference_of_means("d", values, [0.0, 0.0], unit=unit, **how)
        assert findings.judge(gap) == verdict


@pytest.mark.parametrize(
    ("intervals", "verdict"),
    [
        (((1, 2), (3, 4)), HOLDS),
        (((1, 2), (-1, 4)), OPEN),
        (((1, 2), (-4, -1)), FAILS),
        (((-1, 1), (-4, -1)), FAILS),
        ((), OPEN),
    ],
)
def test_a_claim_about_several_settings(intervals, verdict):
    measured = [Measured("x", (low + high) / 2, low, high) for low, high in intervals]
    found = findings.finding("name", "claim", measured, "Remark.")
    assert found.verdict == verdict
    plain = found.plain()
    assert plain["holds"] is {HOLDS: True, FAILS: False, OPEN: None}[verdict]
    assert bool(found.why) == (verdict == OPEN) and plain["why"] == found.why
    assert found.evidence.endswith("Remark.") and json.dumps(plain, allow_nan=False)


@pytest.mark.parametrize(
    ("intervals", "why"),
    [
        (((1, 2),), ""),
        (((-1, 1),), "the interval includes 0"),
        (((0.0, 1),), "the interval includes 0"),
        (((0.1, 2),), "the interval reaches below 0.25 nats, too little to count"),
        (((-1, 1), (1, 2), (-2, 2)), "the interval includes 0 (2 of 3)"),
        (
            ((-1, 1), (0.1, 0.2)),
            "the interval includes 0 (1 of 2); the interval reaches below 0.25 nats, too little to "
            "count (1 of 2)",
        ),
        (((-1, NAN),), "there is no interval"),
        (((NAN, NAN),), "the number is not defined"),
    ],
)
def test_what_is_not_decided_says_why(intervals, why):
    measured = [
        Measured("x", low if math.isfinite(low) else NAN, low, high, "nats", 0.25)
        for low, high in intervals
    ]
    made = findings.finding("name", "claim", measured)
    assert made.why == why
    text = findings.as_markdown([made], {})
    assert f"**{made.verdict}**{f': {why}' if why else ''} | x" in text


def test_without_a_measurement_the_remark_says_why():
    assert findings.finding("name", "claim", [], "PI is missing.").why == "PI is missing"
    made = findings.finding("name", "claim", [])
    assert made.why == "nothing could be measured" and made.evidence.startswith("nothing could")


def test_evidence_has_the_interval_and_the_unit():
    one = Measured("gap", 0.25, 0.125, 0.5, "nats")
    assert findings.describe(one) == "gap +0.25 nats [+0.125, +0.5]"
    assert findings.describe(one._replace(low=NAN)) == "gap +0.25 nats, without an interval"
    assert findings.describe(one._replace(value=NAN)) == "gap: not defined"
    assert findings.above(one, 0.5)[1:4] == (-0.25, -0.375, 0.0)


def test_intervals_are_of_means_and_of_their_difference():
    how = dict(num_samples=2000, seed=0)
    values = np.array([1.0, 2.0, 3.0, 6.0])
    one = findings.mean_of("m", values, **how)
    assert one.value == 3.0 and 1.0 < one.low < 2.0 and 4.0 < one.high < 6.0
    both = findings.difference_of_means("d", values, [1.0, 1.0], **how)
    assert both.value == 2.0
    assert both.low == pytest.approx(one.low - 1, abs=0.3)
    assert findings.difference_of_means("d", [1, 1], [1, 1], **how)[1:4] == (0, 0, 0)


@pytest.mark.parametrize(
    ("pi", "yarn", "verdict"),
    [(0.3, 0.9, HOLDS), (0.9, 0.3, FAILS), (0.5, 0.5, OPEN), ((0.8, 0.3), 0.8, OPEN)],
)
def test_yarn_keeps_the_patterns_and_pi_does_not(pi, yarn, verdict):
    """The base has slope 1: what is nearer to it has kept the pattern."""
    if isinstance(pi, tuple):  # in half of the texts PI is nearer, in half it is not
        made = found({"base": 1.0, "none": 1.0, "pi": pi, "yarn": yarn})
    else:
        made = found({"base": 1.0, "none": 1.0, "pi": pi, "yarn": yarn})
    assert claims.patterns_within(made).verdict == verdict


@pytest.mark.parametrize(
    ("plain", "pi", "verdict"), [(0.1, 0.9, HOLDS), (0.9, 0.1, FAILS), (0.5, 0.5, OPEN)]
)
def test_extensions_are_nearer_to_the_model_trained_longer(plain, pi, verdict):
    made = found({"base": plain, "none": 1.0, "pi": pi, "yarn": 0.95, "twin": 1.0})
    result = claims.nearer_to_native(made)
    of_pi = dict((part.what, verdict) for part, verdict in result.parts)
    assert of_pi["JS of base less pi at 16"] == verdict
    assert result.verdict == (FAILS if verdict == FAILS else verdict)


def test_patterns_beyond_are_compared_by_relative_distance():
    """A slope of a quarter at four times the length is the same pattern there."""
    slopes = {"base": 1.0, "none": 1.0, "pi": 0.25, "yarn": 0.26, "twin": 1.0}
    result = claims.patterns_beyond(found(slopes))
    assert result.verdict == HOLDS
    value = next(part.value for part, _ in result.parts if "pi" in part.what)
    js = numbers.against_base(found(slopes), "base", 16, "relative")
    assert value == pytest.approx(js.mean(), rel=0.05) and value > 0.05  # that of pi is nearly 0


@pytest.mark.parametrize(("pi", "verdict"), [(2.0, HOLDS), (4.0, FAILS), (None, OPEN)])
def test_perplexity_is_compared_window_by_window(pi, verdict):
    none = [3.0, 3.2, 3.4, 3.8]
    own = [3.1, 3.1, 3.5, 3.7] if pi is None else [x - 3 + pi for x in none]
    made = found({}, nll={"none": none, "pi": own, "yarn": [x - 1 for x in none]})
    assert claims.perplexity(made).verdict == verdict


@pytest.mark.parametrize(
    ("entropy_fn", "verdict", "given_length"),
    [
        (lambda n, i: 1 + (i % 2 == 0) + i / 100, HOLDS, HOLDS),
        (lambda n, i: 3 - (i % 2 == 0) + i / 100, FAILS, FAILS),
        (lambda n, i: 1 + i / 100 * (-1) ** (i // 2), OPEN, OPEN),
    ],
)
def test_uncertainty_goes_with_errors(entropy_fn, verdict, given_length):
    rows = trials(lambda n, i: i % 2 == 1, entropy_fn, count=16)
    base = trials(lambda n, i: True, lambda n, i: 1.0)
    made = found(answers={"base": base, "pi": rows})
    predicted = numbers.predictions(made, ["pi"])
    first, second = claims.uncertainty(made, predicted)
    assert (first.verdict, second.verdict) == (verdict, given_length)
    assert "16 of 32 answers are wrong" in first.evidence


def test_length_alone_is_no_uncertainty():
    """Entropy that the length alone drives predicts errors, but not at equal length."""
    rows = trials(lambda n, i: n == 8 or i == 4, lambda n, i: math.log(n) + (i % 3) / 1e4, count=16)
    base = trials(lambda n, i: True, lambda n, i: 1.0)
    made = found(answers={"base": base, "pi": rows})
    first, second = claims.uncertainty(made, numbers.predictions(made, ["pi"]))
    assert first.verdict == HOLDS and second.verdict != HOLDS
    (within, said), _ = second.parts
    assert "at equal length" in within.what and said == OPEN and abs(within.value) < 0.2


def test_at_floor_nothing_is_said_of_errors():
    rows = trials(lambda n, i: False, lambda n, i: 1 + i)
    made = found(answers={"base": rows, "pi": rows})
    (one,) = claims.uncertainty(made, numbers.predictions(made, ["pi"]))
    assert numbers.is_at_floor(made) and one.verdict == OPEN and claims.AT_FLOOR in one.evidence


@pytest.mark.parametrize(("gain", "verdict"), [(-0.5, HOLDS), (0.5, FAILS), (None, OPEN)])
def test_longer_training_is_compared_needle_by_needle_beyond_the_window(gain, verdict):
    def short_fn(n, i):
        return 5.0 + i

    def long_fn(n, i):
        if n == 8:
            return 99.0  # inside the window does not count
        return 5.0 + i + ((-1) ** i * 0.5 if gain is None else gain)

    right = trials(inside, short_fn)
    made = found(
        answers={
            "base": trials(lambda n, i: True, short_fn),
            "pi": right,
            "pi, trained longer": trials(lambda n, i: True, long_fn),
        }
    )
    certain, retrieves = claims.longer_training(made)
    assert certain.verdict == verdict
    assert retrieves.verdict == HOLDS  # from none to all beyond the window


def test_larger_model_is_helped_more():
    def model(name, right, pi_nll):
        nll = {"none": [4.0, 4.1, 4.2, 4.3], "pi": [x + pi_nll for x in (4.0, 4.1, 4.2, 4.3)]}
        answers = {
            "base": trials(lambda n, i: True, lambda n, i: 1.0),
            "none": trials(inside, lambda n, i: 1.0),
            "pi": trials(right, lambda n, i: 1.0),
        }
        return found(answers=answers, nll=nll, name=name)

    large, small = model("", lambda n, i: True, -1.0), model("small", inside, -0.1)
    retrieval, perplexity = claims.larger_helped(large, small)
    assert (retrieval.verdict, perplexity.verdict) == (HOLDS, HOLDS)
    retrieval, perplexity = claims.larger_helped(small, large)
    assert (retrieval.verdict, perplexity.verdict) == (FAILS, FAILS)
    same, _ = claims.larger_helped(large, large)
    assert same.verdict == OPEN
    floor = found(answers={}, nll=dict.fromkeys(("none", "pi"), [1.0, 2.0]), name="small")
    retrieval, _ = claims.larger_helped(large, floor)
    assert retrieval.verdict == OPEN and "small cannot retrieve" in retrieval.evidence


def test_table_1_compares_half_with_the_base_and_twice_with_the_twin():
    made = found({"base": 1.0, "none": 1.0, "pi": 0.5, "twin": 0.5})
    rows = {(r["label"], r["length"]): r for r in numbers.table1(made)}
    assert rows["none", 4]["js"] == 0 and rows["pi", 4]["js"] > 0.01
    assert rows["pi", 16]["js"] == 0 and rows["none", 16]["js"] > 0.01
    assert rows["pi", 4]["reference"] == "base at 4" and rows["pi", 16]["reference"] == "twin at 16"
    assert ("base", 4) not in rows and ("twin", 16) not in rows
    assert rows["pi", 4]["samples"] == 4 * 2 * 4  # texts, layers, heads
    p, q = (x / x.sum() for x in (np.exp(-np.arange(4.0)), np.exp(-np.arange(4.0) / 2)))
    m = (p + q) / 2
    wanted = (np.sum(p * np.log(p / m)) + np.sum(q * np.log(q / m))) / 2
    assert rows["pi", 4]["js"] == pytest.approx(wanted, rel=0.05)
    assert rows["pi", 4]["root_js"] == pytest.approx(math.sqrt(wanted), rel=0.05)
