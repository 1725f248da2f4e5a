"""Algorithm 1 of LongRoPE: its operators, its counts, and that it finds what it should."""

import hashlib

import jax
import numpy as np
import pytest

from jaxrope import schema
from jaxrope.errors import InputError
from jaxrope.search import evolution, genome
from jaxrope.search.encodings import ENCODINGS
from tests.search_spaces import seeds_of, space_for, space_of, stream

PAPER = dict(
    population=64,
    mutations=16,
    crossovers=16,
    parents=32,
    iterations=40,
    mutation_probability=0.3,
    crossover_tries=20,
    step=0.01,
    bound=1.25,
    halve_above=524_288,
)


def settings_of(**changes):
    return schema.search.Algorithm(**(PAPER | changes))


def init(settings, space, seeds_SG, seed=0, form="monotone", **more):
    return evolution.init(settings, form, space, seeds_SG, seed, **more)


def run(state, fitness_fn):
    while evolution.stop_reason(state) is None:
        state = evolution.tell(state, fitness_fn(state))
    return state


def test_whole_search_evaluates_1312_different_candidates():
    space = space_of(num_pairs=32, factor=8.0)
    state = init(settings_of(), space, seeds_of(space), seed=0)
    assert state.settings.num_evaluations() == 1312
    assert np.array_equal(state.population_PG[:3], seeds_of(space))
    sizes = []

    def fitness(state):
        sizes.append(len(evolution.ask(state)))
        return evolution.ask(state)[:, :-1].sum(axis=1)

    state = run(state, fitness)
    assert sizes == [64] + [32] * 39
    assert len(state.seen_EG) == 1312 == len({genome.key(space, row) for row in state.seen_EG})
    assert state.parents_KG.shape == (32, 33)
    assert np.array_equal(np.sort(state.seen_fitness_E)[:32], state.parent_fitness_K)


def test_first_population_mutates_each_seed_in_turn():
    space = space_of(num_pairs=64, factor=100.0)
    state = init(settings_of(mutation_probability=0.02), space, seeds_of(space), seed=0)
    seeds = state.population_PG[:3]
    nearest = [
        int(np.argmin([np.sum(child != seed) for seed in seeds]))
        for child in state.population_PG[3:]
    ]
    assert nearest == [i % 3 for i in range(61)]


@pytest.mark.parametrize("name", ENCODINGS)
def test_parents_are_elitist_and_children_come_from_them(name):
    """With fitness = -sum, a parent's factors never leave the best so far."""
    space = space_for(name, num_pairs=6)
    settings = settings_of(population=12, parents=4, mutations=3, crossovers=3)
    state = init(settings, space, seeds_of(space, name), 1, name)
    best = np.inf
    for _ in range(10):
        state = evolution.tell(state, -state.population_PG[:, :6].sum(axis=1))
        assert state.parent_fitness_K[0] <= best
        assert np.array_equal(state.parent_fitness_K, np.sort(state.seen_fitness_E)[:4])
        best = state.parent_fitness_K[0]


def test_equal_fitness_keeps_the_one_seen_first():
    space = space_of()
    state = init(settings_of(population=8, parents=3), space, seeds_of(space), 0)
    state = evolution.tell(state, np.ones(8))
    assert np.array_equal(state.parents_KG, state.seen_EG[:3])


def test_beats_every_seed_on_a_quadratic():
    """40 generations come at least ten times nearer to a hidden vector than the best seed."""
    space = space_of(num_pairs=16, factor=8.0)
    target = np.sort(stream(9).integers(100, 1000, 16))

    def fitness(state):
        candidates = evolution.ask(state)
        return np.mean((candidates[:, :16] - target) ** 2, axis=1) + 50 * (candidates[:, -1] != 4)

    state = init(settings_of(), space, seeds_of(space), seed=0)
    seeds_best = fitness(state)[:3].min()
    state = run(state, fitness)
    assert evolution.best(state)[1] < seeds_best / 10
    assert genome.decode(space, evolution.best(state)[0]).start_tokens == 8


def test_same_seed_same_search_other_seed_another():
    space = space_of()

    def final(seed):
        state = init(settings_of(iterations=5), space, seeds_of(space), seed)
        return run(state, lambda state: np.sin(state.population_PG.sum(axis=1)))

    first, again, other = final(3), final(3), final(4)
    assert np.array_equal(first.seen_EG, again.seen_EG)
    assert not np.array_equal(first.seen_EG[3:], other.seen_EG[3:])


def test_every_generation_has_a_stream_of_its_own(monkeypatch):
    """One stream for all would draw the children of the first generation again and again."""
    calls, stream_fn = [], evolution._stream
    monkeypatch.setattr(evolution, "_stream", lambda *a: calls.append(a) or stream_fn(*a))
    space = space_of()
    run(
        init(settings_of(iterations=4), space, seeds_of(space), 7),
        lambda state: state.population_PG.sum(axis=1),
    )
    assert calls == [(7, 0), (7, 1), (7, 2), (7, 3)]
    draws = {float(stream_fn(*call).random()) for call in [*calls, (8, 0), (0, 7)]}
    assert len(draws) == 6


def test_functions_are_pure():
    space = space_of()
    state = init(settings_of(), space, seeds_of(space), 0)
    before = jax.tree.map(np.copy, state)
    told = evolution.tell(state, np.arange(64.0))
    again = evolution.tell(state, np.arange(64.0))
    assert jax.tree.all(jax.tree.map(np.array_equal, before, state))
    assert jax.tree.all(jax.tree.map(np.array_equal, told, again))
    assert len(jax.tree.leaves(state)) == 6


def test_failed_candidates_are_infinite_and_no_parents():
    space = space_of()
    state = init(settings_of(population=8, parents=8), space, seeds_of(space), 0)
    state = evolution.tell(
        state, np.array([np.nan, 5.0, np.inf, -np.inf, 4.0, np.nan, np.nan, np.nan])
    )
    assert evolution.best(state)[1] == 4.0
    assert state.seen_fitness_E.tolist() == [
        np.inf,
        5.0,
        np.inf,
        np.inf,
        4.0,
        np.inf,
        np.inf,
        np.inf,
    ]
    assert len(state.population_PG) == 32 and evolution.stop_reason(state) is None


def test_stops_when_all_failed_when_done_and_when_exhausted():
    space = space_of()
    state = init(settings_of(population=8, parents=8), space, seeds_of(space), 0)
    failed = evolution.tell(state, np.full(8, np.nan))
    assert evolution.stop_reason(failed) == "all 8 candidates failed"
    once = init(settings_of(iterations=1), space, seeds_of(space), 0)
    assert (
        evolution.stop_reason(evolution.tell(once, np.zeros(64)))
        == "all 1 generations were evaluated"
    )

    small = genome.Space(2, 2, 3, 2, 3, start_tokens=(0,), attention_factors=(1.0,))
    state = init(settings_of(population=2, parents=2), small, np.array([[2, 2, 0]], np.int32), 0)
    state = run(state, lambda state: state.population_PG[:, 0].astype(float))
    assert len(state.seen_EG) == 3  # (1, 1), (1, 1.5), (1.5, 1.5): all there are
    assert "no new candidate" in evolution.stop_reason(state)


def test_duplicate_seeds_are_evaluated_once():
    space = space_of()
    doubled = np.concatenate([seeds_of(space), seeds_of(space)])
    state = init(settings_of(), space, doubled, 0)
    assert len({genome.key(space, row) for row in state.population_PG}) == 64
    assert np.array_equal(state.population_PG[:3], seeds_of(space))


def test_halved_above_512k():
    assert settings_of().halved(524_288) == settings_of()
    halved = settings_of().halved(524_289)
    assert (halved.population, halved.mutations, halved.crossovers, halved.parents) == (
        32,
        8,
        8,
        16,
    )
    assert halved.iterations == 40
    assert settings_of(halve_above=0).halved(2**21) == settings_of(halve_above=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            dict(parents=65),
            r"search\.algorithm\.parents must be at most the population, got 65 of 64",
        ),
        (
            dict(mutations=0, crossovers=0),
            r"search\.algorithm\.mutations and crossovers are both 0",
        ),
        (dict(step=0.03), r"search\.algorithm\.step must divide 1 into whole steps, got 0\.03"),
    ],
)
def test_settings_that_do_not_go_together(changes, message):
    with pytest.raises(InputError, match=message):
        settings_of(**changes)


def test_population_must_hold_the_seeds():
    space = space_of()
    with pytest.raises(InputError, match="must hold the 3 seeds, got 2"):
        init(settings_of(population=2, parents=2), space, seeds_of(space), 0)


@pytest.mark.parametrize(
    ("name", "num_pairs", "factor", "digest"),
    [
        ("monotone", 8, 4.0, "727fe24e498f0afe"),
        ("monotone", 32, 8.0, "f2dd3ebedfdd0dc0"),
        ("piecewise", 8, 4.0, "1d0ab47f80dddc08"),
        ("piecewise", 32, 8.0, "05eb137852bd9906"),
    ],
)
def test_a_gene_with_one_choice_leaves_the_random_stream_alone(name, num_pairs, factor, digest):
    """What searches drew before there was an attention gene: their journals are still theirs."""
    space = space_of(num_pairs=num_pairs, factor=factor)
    state = init(settings_of(iterations=6), space, seeds_of(space, name), 5, name)
    state = run(state, lambda state: np.sin(state.population_PG.sum(axis=1)))
    genomes = state.seen_EG.astype("<i4").tobytes()
    assert hashlib.sha256(genomes).hexdigest()[:16] == digest


def test_the_search_finds_the_attention_factor_too():
    space = space_of(attention_factors=(1.0, 1.1, 1.2, 1.3))

    def fitness(state):
        choices = [evolution.decode(state, genome) for genome in evolution.ask(state)]
        return [abs(c.attention_factor - 1.21) + 0.01 * c.start_tokens for c in choices]

    state = init(settings_of(iterations=6), space, seeds_of(space), seed=0)
    assert {row[-2] for row in state.population_PG} == {0, 1, 2, 3}
    found = evolution.decode(state, evolution.best(run(state, fitness))[0])
    assert (found.attention_factor, found.start_tokens) == (1.2, 0)
