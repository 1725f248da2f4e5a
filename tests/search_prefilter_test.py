"""Scores by formula against brute force and published numbers, and what a search does with them."""

import math

import numpy as np
import pytest

from jaxrope import rope, search
from jaxrope.errors import InputError
from jaxrope.search import evolution, genome, journal, prefilter
from jaxrope.search.encodings import ENCODINGS
from tests.search_config import rows_of, tiny
from tests.search_evolution_test import init, run, settings_of
from tests.search_spaces import seeds_of, space_of, stream

PLAIN = dict(theta=1e4, trained_factors=(1.0,) * 8, trained_len=64, target_len=256)


def made(name, **changes):
    return prefilter.Prefilter(name, 4, **(PLAIN | changes))


@pytest.mark.parametrize("theta, first", [(500, 171), (1e4, 1707), (5e5, 18_438), (1e6, 27_115)])
def test_first_distance_below_zero(theta, first):
    """Of 128 dims ("Base of RoPE bounds context length"); factors move it as frequencies do."""
    inv_freq = rope.base_inv_freq(theta, 128)
    bound_M = prefilter.decay_bound(inv_freq, np.arange(1, 28_000))
    assert 1 + int(np.argmax(bound_M < 0)) == first
    assert np.all(prefilter.decay_bound(inv_freq / 2.0, np.arange(1, 2 * first - 1)) > 0)


def brute_decay(factors, theta, target_len):
    total = 0.0
    for m in range(1, target_len + 1):
        angles = (m * theta ** (-i / len(factors)) / f for i, f in enumerate(factors))
        total += max(0.0, -sum(map(math.cos, angles)))
    return total / target_len / len(factors)


@pytest.mark.parametrize("theta, target_len", [(30.0, 256), (100.0, 256), (100.0, 1000)])
def test_decay_score_is_the_formula(theta, target_len):
    factors_PR = np.array([[1.0] * 8, [1.0, 1.2, 1.5, 2, 3, 4, 4, 5]])
    sieve = made("decay", theta=theta, target_len=target_len)
    expected = [brute_decay(row, theta, target_len) for row in factors_PR.tolist()]
    assert np.allclose(prefilter.scores(sieve, factors_PR), expected, rtol=1e-9, atol=0)
    assert min(expected) > 0


def test_distances_are_all_or_4096_of_them():
    assert prefilter.distances(4096).tolist() == list(range(1, 4097))
    many = prefilter.distances(2_097_152)
    assert len(set(many.tolist())) == 4096 and 1 <= many.min() and many.max() <= 2_097_152
    counts = np.histogram(many, bins=64, range=(1, 2_097_152))[0]
    assert counts.min() >= 62 and counts.max() <= 66
    assert many[:3].tolist() == [
        1 + int(2_097_152 * x) for x in (0.6180339887, 0.2360679774, 0.8541019662)
    ]


@pytest.mark.parametrize("theta", [500.0, 1e4])
def test_decay_score_of_many_distances_is_that_of_all(theta):
    target_len, factors_PR = 40_000, np.array([np.linspace(1, 4, 32), np.full(32, 1.5)])
    some = prefilter.scores(made("decay", theta=theta, target_len=target_len), factors_PR)
    inv_freq = rope.base_inv_freq(theta, 64) / factors_PR
    bound = prefilter.decay_bound(inv_freq, np.arange(1, target_len + 1))
    assert np.allclose(some, np.maximum(-bound, 0).mean(axis=-1) / 32, rtol=0.03)


def brute_divergence(freq, trained_freq, target_len, trained_len, bins=500):
    """The histograms themselves, of 2,000,000 positions each."""
    found = []
    for inv, length in ((freq, target_len), (trained_freq, trained_len)):
        angles = np.linspace(0, length * inv, 2_000_000, endpoint=False) % (2 * np.pi)
        counts = np.histogram(angles, bins=bins, range=(0, 2 * np.pi))[0]
        found.append(0.99 * counts / counts.sum() + 0.01 / bins)
    return float(np.sum(found[0] * np.log(found[0] / found[1])))


@pytest.mark.parametrize("trained_freq", [0.05, 0.01, 0.03])
@pytest.mark.parametrize("factor", [1.0, 1.7, 4.0, 6.5])
def test_divergence_is_that_of_histograms(trained_freq, factor):
    freq, lengths = trained_freq / factor, (1024, 256)
    turns = [
        inv * length / (2 * np.pi)
        for inv, length in zip((freq, trained_freq), lengths, strict=True)
    ]
    expected = brute_divergence(freq, trained_freq, *lengths)
    assert prefilter.turns_divergence(*map(np.array, turns)) == pytest.approx(expected, abs=0.02)


def test_divergence_by_hand():
    """Half a turn was seen: at 4 times the length, factor 1 goes round twice, 8 half as far."""
    seen = np.array([0.5, 0.5, 0.5])
    whole, same, less = prefilter.turns_divergence(np.array([2.0, 0.5, 0.25]), seen)
    inside, outside = 0.01 + 0.99 * 2, 0.01
    assert whole == pytest.approx(0.5 * math.log(1 / inside) + 0.5 * math.log(1 / outside))
    assert same == 0
    high = 0.01 + 0.99 * 4
    expected = 0.25 * high * math.log(high / inside) + 0.25 * outside * math.log(outside / inside)
    assert less == pytest.approx(expected)


def test_divergence_score_knows_the_lengths_and_the_factors_of_training():
    pi = np.full((1, 8), 4.0)
    assert prefilter.scores(made("divergence"), pi) == pytest.approx([0.0])  # 256 / 64
    assert prefilter.scores(made("divergence", trained_len=32), pi)[0] > 0.01
    assert prefilter.scores(made("divergence", target_len=512), pi)[0] > 0.01
    twice = made("divergence", trained_factors=(2.0,) * 8)  # a second search: 2 * 4 in all
    assert prefilter.scores(twice, 2 * pi) == pytest.approx([0.0])
    other = made("divergence", theta=100.0)
    some = np.linspace(1, 4, 8)[None]
    assert abs(prefilter.scores(other, some) - prefilter.scores(made("divergence"), some)) > 0.01


@pytest.mark.parametrize("name", prefilter.SCORES)
def test_layers_count_alike(name):
    sieve = made(name, theta=100.0)
    rows = np.array([np.linspace(1, 4, 8), np.linspace(1, 2, 8)])
    each = prefilter.scores(sieve, rows)
    assert each[0] != each[1]
    assert prefilter.scores(sieve, rows[None]) == pytest.approx([each.mean()])
    assert prefilter.scores(sieve, np.stack([rows, rows[:1].repeat(2, 0)])).shape == (2,)


def test_the_best_of_the_bred_is_kept():
    """The stream of the first generation, replayed: of four new ones the least score wins."""
    space, sieve = space_of(), made("decay", theta=100.0)
    settings = settings_of(population=9, parents=3)
    state = init(settings, space, seeds_of(space), 5, prefilter=sieve)
    assert np.array_equal(state.population_PG[:3], seeds_of(space))  # seeds are never filtered
    rng, seeds = evolution._stream(5, 0), seeds_of(space)
    taken = {genome.key(space, seed) for seed in seeds}
    for i, kept in enumerate(state.population_PG[3:]):
        bred = []
        while len(bred) < 4:
            child = genome.mutate(ENCODINGS["monotone"], space, rng, seeds[i % 3], 0.3)
            bred += [child] if genome.key(space, child) not in taken else []
        factors = np.stack([genome.decode(space, child).factors for child in bred])
        scores = [brute_decay(row, 100.0, 256) for row in factors.tolist()]
        assert kept.tolist() == bred[int(np.argmin(scores))].tolist()
        taken.add(genome.key(space, kept))


@pytest.mark.parametrize("name", prefilter.SCORES)
def test_a_filtered_search_has_as_many_candidates_and_better_scores(name):
    space, sieve = space_of(), made(name, theta=100.0)

    def search_with(chosen):
        state = init(settings_of(iterations=6), space, seeds_of(space), prefilter=chosen)
        return run(state, lambda s: np.sin(s.population_PG.sum(axis=1)))

    def mean_score(state):
        factors = state.seen_EG[:, :8] / space.units
        return prefilter.scores(sieve, factors[3:]).mean()

    plain, filtered = search_with(prefilter.NONE), search_with(sieve)
    assert len(filtered.seen_EG) == len(plain.seen_EG) == 64 + 5 * 32
    keys = {genome.key(space, row) for row in filtered.seen_EG}
    assert len(keys) == len(filtered.seen_EG)
    assert mean_score(filtered) < 0.95 * mean_score(plain)
    again = search_with(made(name, theta=100.0))
    assert np.array_equal(again.seen_EG, filtered.seen_EG)


def test_two_million_tokens_are_scored_in_milliseconds():
    import time

    sieve = made("decay", trained_factors=(1.0,) * 64, trained_len=4096, target_len=2_097_152)
    factors_PR = np.sort(1 + 500 * stream().random((4, 64)), axis=1)
    prefilter.scores(sieve, factors_PR)
    start = time.process_time()
    prefilter.scores(sieve, factors_PR)
    assert time.process_time() - start < 0.5


@pytest.mark.parametrize("name", prefilter.SCORES)
def test_a_killed_search_with_a_prefilter_goes_on(tmp_path, name):
    """The real program, cut within its second generation; another pre-filter is another search."""
    config = tiny(tmp_path)
    config.search.compare = False
    config.search.prefilter = dict(name=name, oversample=3)
    whole = search.search(config, tmp_path / "whole")
    lines = (tmp_path / "whole" / "journal.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "journal.jsonl").write_text("".join(lines[:9]))
    again = search.search(config, tmp_path / "cut")
    genomes = [
        [row["genome"] for row in journal.candidates(rows_of(tmp_path / x))]
        for x in ("whole", "cut")
    ]
    assert genomes[0] == genomes[1] and len(genomes[0]) == 14
    assert whole.factors == again.factors
    config.search.prefilter = dict(name=name, oversample=4)
    with pytest.raises(
        InputError, match=r"another search: .*search\.prefilter\.oversample \(3, now 4"
    ):
        search.search(config, tmp_path / "whole")
