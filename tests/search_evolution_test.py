"""Algorithm 1 of LongRoPE: its operators, its counts, and that it finds what it should."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxrope.errors import InputError
from jaxrope.search import evolution, genome

PAPER = dict(
    name="monotone",
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
START_TOKENS = (0, 1, 2, 4, 8, 12, 16, 20, 24, 28, 32, 64, 128, 256)


def space_of(num_pairs=8, factor=4.0, step=0.01, bound=1.25, start_tokens=START_TOKENS):
    return genome.make_space(
        num_pairs=num_pairs, factor=factor, step=step, bound=bound, start_tokens=start_tokens
    )


def stream(seed=0):
    return np.random.Generator(np.random.Philox(seed))


def settings_of(**changes):
    return evolution.Settings(**(PAPER | changes))


def seeds_of(space, name="monotone"):
    """Vectors of the shapes of PI, NTK and YaRN."""
    pairs, s = np.arange(space.num_pairs), space.scale / space.units
    vectors = [
        np.full(space.num_pairs, s),
        s ** (pairs / (space.num_pairs - 1)),
        1 + (s - 1) * np.clip((pairs - 2) / 3, 0, 1),
    ]
    encode = genome.ENCODINGS[name].encode
    return np.stack([encode(space, vector, 0) for vector in vectors])


def run(state, fitness_fn):
    while evolution.stop_reason(state) is None:
        state = evolution.tell(state, fitness_fn(state))
    return state


def uniform_chi_square(counts):
    """(statistic, its 99.99% quantile by Wilson and Hilferty): 3.719 is the normal's."""
    expected, freedom = counts.sum() / len(counts), len(counts) - 1
    quantile = freedom * (1 - 2 / (9 * freedom) + 3.719 * np.sqrt(2 / (9 * freedom))) ** 3
    return np.sum((counts - expected) ** 2 / expected), quantile


def test_grid_and_bounds():
    space = space_of(factor=8.0)
    assert (space.units, space.scale, space.highest) == (100, 800, 1000)
    assert space_of(factor=4.0, step=0.05).highest == 100  # 5.0 in steps of 0.05
    factors, start = genome.decode(
        space, np.array([100, 101, 129, 640, 700, 800, 999, 1000, 11], np.int32)
    )
    assert factors.tolist() == [1.0, 1.01, 1.29, 6.4, 7.0, 8.0, 9.99, 10.0]  # as decimals read
    assert start == 64


def test_encode_rounds_clips_and_raises_to_monotone():
    space = space_of(num_pairs=6)
    encoded = genome.encode_monotone(space, np.array([0.5, 1.004, 1.996, 1.5, 4.0, 99.0]), 30)
    assert encoded.tolist() == [100, 100, 200, 200, 400, 500, 9]  # 28 is as near as 32, and first


def test_piecewise_encode_finds_the_ramp():
    space = space_of(num_pairs=6)
    encoded = genome.encode_piecewise(space, np.array([1, 1, 2, 3, 4, 4.5]), 0)
    assert encoded.tolist() == [100, 100, 200, 300, 400, 400, 1, 3, 0]
    flat = genome.encode_piecewise(space, np.full(6, 4.0), 0)
    assert flat.tolist() == [400] * 6 + [-1, -1, 0]  # PI has no ramp


def test_mutation_is_uniform_between_mutated_left_and_old_right():
    """With probability 1, gene i is uniform on new[i-1]..old[i+1], given its left neighbour."""
    space = genome.Space(num_pairs=3, units=10, scale=14, highest=15, start_tokens=(0, 7))
    parent = np.array([10, 12, 14, 0], np.int32)
    rng, count = stream(), 40_000
    children = np.stack([genome.mutate_monotone(space, rng, parent, 1.0) for _ in range(count)])
    first, second, last, start = children.T
    for values, low, high in ((first, 10, 12), (start, 0, 1)):
        statistic, limit = uniform_chi_square(np.bincount(values, minlength=high + 1)[low:])
        assert statistic < limit and values.min() == low and values.max() == high
    for left in (10, 11, 12):
        counts = np.bincount(second[first == left], minlength=15)[left:]
        assert len(counts) == 15 - left
        statistic, limit = uniform_chi_square(counts)
        assert statistic < limit
    for left in (12, 13, 14):
        counts = np.bincount(last[second == left], minlength=16)[left:]
        assert len(counts) == 16 - left  # up to the bound
        statistic, limit = uniform_chi_square(counts)
        assert statistic < limit


def test_mutation_probability_is_per_gene():
    space = space_of(num_pairs=10, factor=100.0)
    parent = genome.encode_monotone(space, np.linspace(1, 100, 10), 0)
    rng = stream(1)
    changed = np.mean(
        [genome.mutate_monotone(space, rng, parent, 0.3) != parent for _ in range(4000)], axis=0
    )
    # a gene that is drawn keeps its value once in some thousand draws, n̂ once in 14
    assert np.all(np.abs(changed[:-1] - 0.3) < 0.03)
    assert abs(changed[-1] - 0.3 * 13 / 14) < 0.03


@pytest.mark.parametrize("name", genome.ENCODINGS)
def test_children_stay_in_the_space(name):
    space, rng = space_of(num_pairs=12), stream(2)
    encoding, pool = genome.ENCODINGS[name], list(seeds_of(space_of(num_pairs=12), name))
    crossed = 0
    for _ in range(1500):
        first, second = rng.choice(len(pool), size=2, replace=False)
        before = pool[first].copy(), pool[second].copy()
        child = encoding.cross(space, rng, pool[first], pool[second])
        crossed += child is not None
        child = encoding.mutate(space, rng, pool[first] if child is None else child, 0.3)
        assert np.array_equal(before[0], pool[first]) and np.array_equal(before[1], pool[second])
        factors = child[: space.num_pairs]
        assert (
            factors[0] >= space.units
            and factors[-1] <= space.highest
            and np.all(np.diff(factors) >= 0)
        )
        assert 0 <= child[-1] < len(START_TOKENS) and child.dtype == np.int32
        if name == "piecewise":
            alpha, beta = child[space.num_pairs : space.num_pairs + 2]
            assert -1 <= alpha <= beta <= space.num_pairs - 1
            assert np.all(factors[: alpha + 1] == 100) and np.all(factors[beta + 1 :] == 400)
        pool.append(child)
    assert crossed > 50


def test_crossover_takes_every_gene_from_either_parent_alike():
    space = space_of(num_pairs=4)
    first, second = (
        np.array([100, 200, 300, 400, 1], np.int32),
        np.array([101, 201, 301, 401, 2], np.int32),
    )
    rng = stream(3)
    children = np.stack([genome.cross_monotone(space, rng, first, second) for _ in range(4000)])
    is_second = children == second
    assert np.all(is_second | (children == first))
    assert np.all(np.abs(is_second.mean(axis=0) - 0.5) < 0.03)
    assert np.all(np.abs(np.corrcoef(is_second.T.astype(float)) - np.eye(5)) < 0.08)


def test_crossover_refuses_factors_that_fall():
    space = space_of(num_pairs=2, start_tokens=(0,))
    first, second = np.array([100, 200, 0], np.int32), np.array([300, 400, 0], np.int32)
    rng = stream(4)
    results = [genome.cross_monotone(space, rng, first, second) for _ in range(400)]
    assert {None if child is None else tuple(child[:2]) for child in results} == {
        None,
        (100, 200),
        (300, 400),
        (100, 400),
    }


def test_piecewise_borders_take_gaussian_steps_of_two_pairs():
    space, rng = space_of(num_pairs=64), stream(5)
    parent = genome.encode_piecewise(
        space, np.concatenate([np.ones(20), np.linspace(1.1, 3.9, 24), np.full(20, 4.0)]), 0
    )
    assert parent[64:66].tolist() == [19, 43]
    steps = (
        np.stack([genome.mutate_piecewise(space, rng, parent, 1.0)[64:66] for _ in range(4000)])
        - parent[64:66]
    )
    assert np.all(np.abs(steps.mean(axis=0)) < 0.12)
    assert np.all(np.abs(steps.std(axis=0) - np.sqrt(4 + 1 / 12)) < 0.1)  # rounding adds 1/12


def test_whole_search_evaluates_1312_different_candidates():
    space = space_of(num_pairs=32, factor=8.0)
    state = evolution.init(settings_of(), space, seeds_of(space), seed=0)
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
    state = evolution.init(settings_of(mutation_probability=0.02), space, seeds_of(space), seed=0)
    seeds = state.population_PG[:3]
    nearest = [
        int(np.argmin([np.sum(child != seed) for seed in seeds]))
        for child in state.population_PG[3:]
    ]
    assert nearest == [i % 3 for i in range(61)]


@pytest.mark.parametrize("name", genome.ENCODINGS)
def test_parents_are_elitist_and_children_come_from_them(name):
    """With fitness = -sum, a parent's factors never leave the best so far."""
    space = space_of(num_pairs=6)
    state = evolution.init(
        settings_of(name=name, population=12, parents=4, mutations=3, crossovers=3),
        space,
        seeds_of(space, name),
        1,
    )
    best = np.inf
    for _ in range(10):
        state = evolution.tell(state, -state.population_PG[:, :6].sum(axis=1))
        assert state.parent_fitness_K[0] <= best
        assert np.array_equal(state.parent_fitness_K, np.sort(state.seen_fitness_E)[:4])
        best = state.parent_fitness_K[0]


def test_equal_fitness_keeps_the_one_seen_first():
    space = space_of()
    state = evolution.init(settings_of(population=8, parents=3), space, seeds_of(space), 0)
    state = evolution.tell(state, np.ones(8))
    assert np.array_equal(state.parents_KG, state.seen_EG[:3])


def test_beats_every_seed_on_a_quadratic():
    """40 generations come at least ten times nearer to a hidden vector than the best seed."""
    space = space_of(num_pairs=16, factor=8.0)
    target = np.sort(stream(9).integers(100, 1000, 16))

    def fitness(state):
        candidates = evolution.ask(state)
        return np.mean((candidates[:, :16] - target) ** 2, axis=1) + 50 * (candidates[:, -1] != 4)

    state = evolution.init(settings_of(), space, seeds_of(space), seed=0)
    seeds_best = fitness(state)[:3].min()
    state = run(state, fitness)
    assert evolution.best(state)[1] < seeds_best / 10
    assert genome.decode(space, evolution.best(state)[0])[1] == 8


def test_same_seed_same_search_other_seed_another():
    space = space_of()

    def final(seed):
        state = evolution.init(settings_of(iterations=5), space, seeds_of(space), seed)
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
        evolution.init(settings_of(iterations=4), space, seeds_of(space), 7),
        lambda state: state.population_PG.sum(axis=1),
    )
    assert calls == [(7, 0), (7, 1), (7, 2), (7, 3)]
    draws = {float(stream_fn(*call).random()) for call in [*calls, (8, 0), (0, 7)]}
    assert len(draws) == 6


def test_functions_are_pure():
    space = space_of()
    state = evolution.init(settings_of(), space, seeds_of(space), 0)
    before = jax.tree.map(np.copy, state)
    told = evolution.tell(state, np.arange(64.0))
    again = evolution.tell(state, np.arange(64.0))
    assert jax.tree.all(jax.tree.map(np.array_equal, before, state))
    assert jax.tree.all(jax.tree.map(np.array_equal, told, again))
    assert len(jax.tree.leaves(state)) == 6


def test_failed_candidates_are_infinite_and_no_parents():
    space = space_of()
    state = evolution.init(settings_of(population=8, parents=8), space, seeds_of(space), 0)
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
    state = evolution.init(settings_of(population=8, parents=8), space, seeds_of(space), 0)
    failed = evolution.tell(state, np.full(8, np.nan))
    assert evolution.stop_reason(failed) == "all 8 candidates failed"
    once = evolution.init(settings_of(iterations=1), space, seeds_of(space), 0)
    assert (
        evolution.stop_reason(evolution.tell(once, np.zeros(64)))
        == "all 1 generations were evaluated"
    )

    small = genome.Space(num_pairs=2, units=2, scale=3, highest=3, start_tokens=(0,))
    state = evolution.init(
        settings_of(population=2, parents=2), small, np.array([[2, 2, 0]], np.int32), 0
    )
    state = run(state, lambda state: state.population_PG[:, 0].astype(float))
    assert len(state.seen_EG) == 3  # (1, 1), (1, 1.5), (1.5, 1.5): all there are
    assert "no new candidate" in evolution.stop_reason(state)


def test_duplicate_seeds_are_evaluated_once():
    space = space_of()
    doubled = np.concatenate([seeds_of(space), seeds_of(space)])
    state = evolution.init(settings_of(), space, doubled, 0)
    assert len({genome.key(space, row) for row in state.population_PG}) == 64
    assert np.array_equal(state.population_PG[:3], seeds_of(space))


def test_halved_above_512k():
    assert evolution.settings_for(PAPER, 524_288) == settings_of()
    halved = evolution.settings_for(PAPER, 524_289)
    assert (halved.population, halved.mutations, halved.crossovers, halved.parents) == (
        32,
        8,
        8,
        16,
    )
    assert halved.iterations == 40
    assert evolution.settings_for(PAPER | dict(halve_above=0), 2**21) == settings_of(halve_above=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            dict(population=0),
            r"search\.algorithm\.population must be a whole number from 1 on, got 0",
        ),
        (dict(population=64.0), r"search\.algorithm\.population must be a whole number"),
        (
            dict(parents=65),
            r"search\.algorithm\.parents must be at most the population, got 65 of 64",
        ),
        (
            dict(mutation_probability=1.5),
            r"search\.algorithm\.mutation_probability must be at most 1, got 1\.5",
        ),
        (
            dict(mutation_probability=0.0),
            r"search\.algorithm\.mutation_probability must be a number above 0",
        ),
        (
            dict(mutation_probability=float("nan")),
            r"search\.algorithm\.mutation_probability must be a number",
        ),
        (dict(iterations=0), r"search\.algorithm\.iterations must be a whole number from 1 on"),
        (
            dict(crossover_tries=-1),
            r"search\.algorithm\.crossover_tries must be a whole number from 0 on",
        ),
        (
            dict(mutations=0, crossovers=0),
            r"search\.algorithm\.mutations and crossovers are both 0",
        ),
        (
            dict(name="monoton"),
            r"Unknown search\.algorithm\.name 'monoton'\. Did you mean 'monotone'",
        ),
        (
            dict(popluation=3),
            r"Unknown search\.algorithm key 'popluation'\. Did you mean 'population'",
        ),
    ],
)
def test_settings_messages(changes, message):
    with pytest.raises(InputError, match=message):
        evolution.settings_for(PAPER | changes, 4096)


def test_missing_setting_is_named():
    section = {name: value for name, value in PAPER.items() if name != "bound"}
    with pytest.raises(InputError, match=r"search\.algorithm lacks bound"):
        evolution.settings_for(section, 4096)


def test_population_must_hold_the_seeds():
    space = space_of()
    with pytest.raises(InputError, match="must hold the 3 seeds, got 2"):
        evolution.init(settings_of(population=2, parents=2), space, seeds_of(space), 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(step=0.03), r"search\.algorithm\.step must divide 1"),
        (dict(step=0.0), r"search\.algorithm\.step must divide 1"),
        (dict(bound=0.2), r"search\.algorithm\.bound must leave factors above 1"),
        (dict(start_tokens=()), r"search\.start_tokens must list ascending"),
        (dict(start_tokens=(4, 2)), r"search\.start_tokens must list ascending"),
        (dict(start_tokens=(0, -1)), r"search\.start_tokens must list ascending"),
    ],
)
def test_space_messages(changes, message):
    with pytest.raises(InputError, match=message):
        space_of(**changes)


def test_settings_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings_of().population = 3
