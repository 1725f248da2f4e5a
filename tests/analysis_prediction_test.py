"""Numbers that predict failure: against scipy, by counting, and where the answer is known."""

import numpy as np
import pytest
from scipy import stats

from jaxrope.analysis import prediction
from jaxrope.evaluate import statistics


def by_counting(scores, failed, strata=None, counts=None):
    """The area by its definition, over all pairs."""
    counts = np.ones(len(scores)) if counts is None else counts
    won = pairs = 0.0
    for i in np.flatnonzero(failed):
        for j in np.flatnonzero(~np.asarray(failed)):
            if strata is None or strata[i] == strata[j]:
                weight = counts[i] * counts[j]
                pairs += weight
                won += weight * ((scores[i] > scores[j]) + 0.5 * (scores[i] == scores[j]))
    return won / pairs


def cells(seed=0, size=60):
    """Scores with ties, failures, lengths and needles; all grow with the length."""
    rng = np.random.default_rng(seed)
    lengths = rng.choice([512, 1024, 2048, 4096], size)
    needles = rng.integers(0, 12, size)
    scores = np.round(np.log(lengths) + rng.normal(size=size), 1)
    failed = rng.random(size) < 1 / (1 + np.exp(-(scores - 7)))
    return scores, failed, lengths, needles


def of_all(scores, failed, lengths=None):
    """What is said of all trials, without intervals; lengths: equal where none are given."""
    lengths = np.full(len(scores), 8) if lengths is None else lengths
    trials = np.arange(len(scores))
    judged = prediction.judge({"x": scores}, failed, lengths, trials, num_samples=1, seed=0)["x"]
    return {name: getattr(judged, name).value for name in judged._fields[:4]}


def area(scores, failed):
    return of_all(scores, failed)["auroc"]


def area_within(scores, failed, lengths):
    return of_all(scores, failed, lengths)["auroc_within"]


@pytest.mark.parametrize("seed", [0, 1])
def test_the_area_with_ties(seed):
    scores, failed, lengths, _ = cells(seed)
    assert len(np.unique(scores)) < len(scores)
    wanted = by_counting(scores, failed)
    assert area(scores, failed) == pytest.approx(wanted, rel=1e-12)
    u = stats.mannwhitneyu(scores[failed], scores[~failed]).statistic
    assert wanted == pytest.approx(u / (failed.sum() * (~failed).sum()), rel=1e-12)
    within = area_within(scores, failed, lengths)
    assert within == pytest.approx(by_counting(scores, failed, lengths), rel=1e-12)
    assert within != pytest.approx(wanted, rel=1e-3)


def test_areas_that_are_known():
    failed = np.array([0, 0, 1, 1])
    assert area([1, 2, 3, 4], failed) == 1.0
    assert area([4, 3, 2, 1], failed) == 0.0
    assert area([5, 5, 5, 5], failed) == 0.5
    assert area([1, 3, 2, 4], failed) == 0.75
    assert area([1, 2, 2, 3], failed) == 0.875
    assert np.isnan(area([1, 2], [True, True]))  # no pair
    # the length alone tells all, and nothing among equal lengths
    assert area_within([1, 2, 2, 3], [0, 1, 0, 1], [8, 8, 9, 9]) == 1.0  # 2 is in both
    assert np.isnan(area_within([1, 1, 2, 2], failed, [8, 8, 9, 9]))
    assert area_within([1, 1, 2, 2, 1, 2], [0, 0, 1, 1, 1, 0], [8, 8, 9, 9, 8, 9]) == 0.5


def test_correlations_against_scipy_and_least_squares():
    scores, failed, lengths, _ = cells()
    wanted = stats.pointbiserialr(failed, scores).statistic
    found = of_all(scores, failed, lengths)
    assert found["point_biserial"] == pytest.approx(wanted, rel=1e-10)
    assert found["partial"] == pytest.approx(partial(scores, failed, lengths), rel=1e-8)


def partial(scores, failed, lengths):
    """Correlation of what is left of both by least squares on ln(length)."""
    design = np.column_stack([np.ones(len(scores)), np.log(lengths)])
    left = [
        y - design @ np.linalg.lstsq(design, y, rcond=None)[0]
        for y in (scores, failed.astype(float))
    ]
    return stats.pearsonr(*left).statistic


def test_partial_correlation_by_the_formula_of_three():
    scores, failed, lengths, _ = cells(3)
    z = np.log(lengths)
    xy, xz, yz = (np.corrcoef(*two)[0, 1] for two in ((scores, failed), (scores, z), (failed, z)))
    wanted = (xy - xz * yz) / np.sqrt((1 - xz**2) * (1 - yz**2))
    found = of_all(scores, failed, lengths)["partial"]
    assert found == pytest.approx(wanted, rel=1e-10) and abs(found) < abs(xy)


def test_what_the_length_explains_is_nothing():
    lengths = np.repeat([1.0, 2, 4, 8], 5)
    failed = lengths > 2
    assert np.isnan(of_all(3 * np.log(lengths) - 1, failed, lengths)["partial"])
    assert np.isnan(of_all(np.ones(20), failed)["point_biserial"])
    assert np.isnan(of_all(lengths, np.zeros(20))["point_biserial"])


def test_the_bootstrap_resamples_whole_needles():
    scores, failed, lengths, needles = cells()
    found = prediction.judge(
        {"entropy": scores}, failed, lengths, needles, num_samples=300, seed=5
    )["entropy"]
    rng, drawn = np.random.default_rng(5), []
    groups = np.unique(needles, return_inverse=True)[1]
    size = groups.max() + 1
    for counts in rng.multinomial(size, np.full(size, 1 / size), size=300):
        drawn.append(np.repeat(np.arange(len(scores)), counts[groups]))
    strata = {None: found.auroc, "lengths": found.auroc_within}
    for name, interval in strata.items():
        told = None if name is None else lengths
        areas = [
            by_counting(scores[i], failed[i], None if told is None else told[i]) for i in drawn
        ]
        np.testing.assert_allclose(interval[1:], np.quantile(areas, [0.025, 0.975]), rtol=1e-9)
    numbers = [partial(scores[i], failed[i].astype(float), lengths[i]) for i in drawn]
    np.testing.assert_allclose(found.partial[1:], np.quantile(numbers, [0.025, 0.975]), rtol=1e-7)
    numbers = [stats.pearsonr(scores[i], failed[i]).statistic for i in drawn]
    wanted = np.quantile(numbers, [0.025, 0.975])
    np.testing.assert_allclose(found.point_biserial[1:], wanted, rtol=1e-7)
    assert found.auroc.value == area(scores, failed)
    assert found.trials == 60 and found.failures == failed.sum()
    assert found.auroc.low < found.auroc.value < found.auroc.high


def test_intervals_cover_as_they_should():
    """200 samples whose true area is known: 95% of intervals have it, give or take."""
    rng, covered = np.random.default_rng(0), 0
    true = stats.norm.cdf(1 / np.sqrt(2))  # P(N(1, 1) > N(0, 1))
    for _ in range(200):
        failed = np.arange(60) % 2
        found = prediction.judge(
            {"x": rng.normal(size=60) + failed},
            failed,
            np.full(60, 8),
            np.arange(60),
            num_samples=200,
            seed=int(rng.integers(1 << 30)),
        )["x"].auroc
        covered += found.low <= true <= found.high
    assert 178 <= covered <= 199  # 190 expected, deviation 3


def test_equal_seeds_give_equal_intervals_in_any_chunks(monkeypatch):
    scores, failed, lengths, needles = cells()
    rest = dict(num_samples=50, seed=1)
    args = {"x": scores}, failed, lengths, needles
    one = prediction.judge(*args, **rest)
    assert one == prediction.judge(*args, **rest)
    assert one != prediction.judge(*args, num_samples=50, seed=2)
    monkeypatch.setattr(statistics, "_DRAWS_AT_A_TIME", 7 * len(scores))
    chunked = prediction.judge(*args, **rest)["x"]
    np.testing.assert_allclose(chunked[:4], one["x"][:4], rtol=1e-9)


def test_one_needle_and_no_failure():
    scores, failed = np.arange(20.0), np.arange(20) == 19
    lone = prediction.judge(
        {"x": scores}, failed, np.full(20, 8), np.zeros(20), num_samples=20, seed=0
    )["x"]
    assert lone.auroc == (1.0, 1.0, 1.0)  # one needle: every resample is all of it
    found = prediction.judge(
        {"x": scores}, 0 * failed, np.full(20, 8), scores, num_samples=9, seed=0
    )
    assert np.isnan(found["x"].auroc).all() and found["x"].failures == 0


@pytest.mark.parametrize(
    "scores, failed, message",
    [
        ([1.0, 2], [True], r"One score and one failure for each trial, got \(2,\), \(1,\)"),
        ([], [], "One score and one failure"),
        ([1.0, np.inf], [0, 1], "scores are finite, got inf"),
        ([1.0, 2.0], [0, 2], "only True and False"),
    ],
)
def test_what_is_no_trial(scores, failed, message):
    with pytest.raises(ValueError, match=message):
        area(scores, failed)


def test_lengths_and_samples_are_checked():
    with pytest.raises(ValueError, match="One value for each of 3 trials, got 2"):
        area_within([1.0, 2], [0, 1], [1, 2, 3])
    with pytest.raises(ValueError, match="num_samples is at least 1, got 0"):
        prediction.judge({}, [0, 1], [1, 1], [0, 1], num_samples=0, seed=0)
