"""Genomes: what they may hold, how they vary, and what they say."""

import dataclasses

import numpy as np
import pytest

from jaxrope.errors import InputError
from jaxrope.search import genome
from jaxrope.search.encodings import ENCODINGS
from tests.search_spaces import START_TOKENS, encode, seeds_of, space_for, space_of, stream

MONOTONE, PIECEWISE = ENCODINGS["monotone"], ENCODINGS["piecewise"]


def uniform_chi_square(counts):
    """(statistic, its 99.99% quantile by Wilson and Hilferty): 3.719 is the normal's."""
    expected, freedom = counts.sum() / len(counts), len(counts) - 1
    quantile = freedom * (1 - 2 / (9 * freedom) + 3.719 * np.sqrt(2 / (9 * freedom))) ** 3
    return np.sum((counts - expected) ** 2 / expected), quantile


def test_grid_and_bounds():
    space = space_of(factor=8.0)
    assert (space.units, space.scale, space.highest) == (100, 800, 1000)
    assert space_of(factor=4.0, step=0.05).highest == 100  # 5.0 in steps of 0.05
    factors, start, attention_factor = genome.decode(
        space, np.array([100, 101, 129, 640, 700, 800, 999, 1000, 11], np.int32)
    )
    assert factors.tolist() == [1.0, 1.01, 1.29, 6.4, 7.0, 8.0, 9.99, 10.0]  # as decimals read
    assert (start, attention_factor) == (64, 1.0)


def test_encode_rounds_clips_and_raises_to_monotone():
    space = space_of(num_pairs=6)
    encoded = encode("monotone", space, np.array([0.5, 1.004, 1.996, 1.5, 4.0, 99.0]), 30)
    assert encoded.tolist() == [100, 100, 200, 200, 400, 500, 9]  # 28 is as near as 32, and first


def test_piecewise_encode_finds_the_ramp():
    space = space_of(num_pairs=6)
    encoded = encode("piecewise", space, np.array([1, 1, 2, 3, 4, 4.5]), 0)
    assert encoded.tolist() == [100, 100, 200, 300, 400, 400, 1, 3, 0]
    flat = encode("piecewise", space, np.full(6, 4.0), 0)
    assert flat.tolist() == [400] * 6 + [-1, -1, 0]  # PI has no ramp


def test_mutation_is_uniform_between_mutated_left_and_old_right():
    """With probability 1, gene i is uniform on new[i-1]..old[i+1], given its left neighbour."""
    space = genome.Space(3, 10, 14, 10, 15, start_tokens=(0, 7), attention_factors=(1.0,))
    parent = np.array([10, 12, 14, 0], np.int32)
    rng, count = stream(), 40_000
    children = np.stack([genome.mutate(MONOTONE, space, rng, parent, 1.0) for _ in range(count)])
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
    parent = encode("monotone", space, np.linspace(1, 100, 10), 0)
    rng = stream(1)
    changed = np.mean(
        [genome.mutate(MONOTONE, space, rng, parent, 0.3) != parent for _ in range(4000)], axis=0
    )
    # a gene that is drawn keeps its value once in some thousand draws, n̂ once in 14
    assert np.all(np.abs(changed[:-1] - 0.3) < 0.03)
    assert abs(changed[-1] - 0.3 * 13 / 14) < 0.03


def in_form(name, space, genome_G):
    """Whether every layer has the factors of its form, by the definitions of the papers."""
    for genes_R, own_O in zip(*genome.layers(space, genome_G), strict=True):
        factors, last = genes_R / space.units, space.num_pairs - 1
        pairs, s = np.arange(last + 1), space.scale / space.units
        if genes_R.min() < space.lowest or genes_R.max() > space.highest:
            return False
        if name != "free" and np.any(np.diff(genes_R) < 0):
            return False
        if name == "piecewise":
            alpha, beta = own_O
            assert -1 <= alpha <= beta <= last
            implied = np.where(pairs <= alpha, 1.0, np.where(pairs > beta, s, factors))
        elif name == "critical":
            pair = own_O[0]
            assert pair in space.critical_pairs and np.all(factors[pair:] >= s)
            below = factors[pair] ** (pairs / pair)
            implied = np.where(pairs < pair, below, factors)
        elif name == "yarn":
            low, high, factor = own_O
            assert 0 <= low < high <= last + 1 and factor >= space.scale
            ramp = np.clip((pairs - low) / (high - low), 0, 1)
            implied = 1 / ((1 - ramp) + ramp / (factor / space.units))
        elif name == "ntk":
            implied = (own_O[0] / space.units) ** (pairs / last)
        else:
            implied = factors
        if np.any(np.abs(factors - implied) > 0.5 / space.units + 1e-9):
            return False
    return True


@pytest.mark.parametrize("name", ENCODINGS)
def test_children_stay_in_their_form(name):
    space, rng = space_for(name, num_pairs=12), stream(2)
    encoding, pool = ENCODINGS[name], list(seeds_of(space, name))
    crossed = 0
    for _ in range(1500):
        first, second = rng.choice(len(pool), size=2, replace=False)
        before = pool[first].copy(), pool[second].copy()
        child = genome.cross(encoding, space, rng, pool[first], pool[second])
        crossed += child is not None
        child = genome.mutate(encoding, space, rng, pool[first] if child is None else child, 0.3)
        assert np.array_equal(before[0], pool[first]) and np.array_equal(before[1], pool[second])
        assert in_form(name, space, child)
        assert 0 <= child[-1] < len(START_TOKENS) and child.dtype == np.int32
        pool.append(child)
    assert crossed > 50
    assert len({genome.key(space, child) for child in pool}) > 300
    encoded = [encode(name, space, genome.decode(space, child).factors) for child in pool[::50]]
    for child, again in zip(pool[::50], encoded, strict=True):  # decoding and encoding is no step
        assert np.max(np.abs(again[: space.num_pairs] - child[: space.num_pairs])) <= 1


def test_crossover_takes_every_gene_from_either_parent_alike():
    space = space_of(num_pairs=4)
    first, second = (
        np.array([100, 200, 300, 400, 1], np.int32),
        np.array([101, 201, 301, 401, 2], np.int32),
    )
    rng = stream(3)
    children = np.stack([genome.cross(MONOTONE, space, rng, first, second) for _ in range(4000)])
    is_second = children == second
    assert np.all(is_second | (children == first))
    assert np.all(np.abs(is_second.mean(axis=0) - 0.5) < 0.03)
    assert np.all(np.abs(np.corrcoef(is_second.T.astype(float)) - np.eye(5)) < 0.08)


def test_crossover_refuses_factors_that_fall():
    space = space_of(num_pairs=2, start_tokens=(0,))
    first, second = np.array([100, 200, 0], np.int32), np.array([300, 400, 0], np.int32)
    rng = stream(4)
    results = [genome.cross(MONOTONE, space, rng, first, second) for _ in range(400)]
    assert {None if child is None else tuple(child[:2]) for child in results} == {
        None,
        (100, 200),
        (300, 400),
        (100, 400),
    }


def test_piecewise_borders_take_gaussian_steps_of_two_pairs():
    space, rng = space_of(num_pairs=64), stream(5)
    parent = encode(
        "piecewise",
        space,
        np.concatenate([np.ones(20), np.linspace(1.1, 3.9, 24), np.full(20, 4.0)]),
        0,
    )
    assert parent[64:66].tolist() == [19, 43]
    steps = (
        np.stack([genome.mutate(PIECEWISE, space, rng, parent, 1.0)[64:66] for _ in range(4000)])
        - parent[64:66]
    )
    assert np.all(np.abs(steps.mean(axis=0)) < 0.12)
    assert np.all(np.abs(steps.std(axis=0) - np.sqrt(4 + 1 / 12)) < 0.1)  # rounding adds 1/12


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(bound=0.2), r"search\.algorithm\.bound must leave factors above 1"),
        (dict(bound=1e6, step=1e-5), r"search\.algorithm\.bound must leave .* below 2\^31 steps"),
    ],
)
def test_space_messages(changes, message):
    with pytest.raises(InputError, match=message):
        space_of(**changes)


def test_attention_gene_is_there_where_there_is_a_choice():
    one, three = space_of(num_pairs=2), space_of(num_pairs=2, attention_factors=(1.1, 1.2, 1.4))
    assert encode("monotone", one, [1, 2], 4, 1.15).tolist() == [100, 200, 3]
    genes = encode("monotone", three, [1, 2], 4, 1.31)
    assert genes.tolist() == [100, 200, 2, 3]
    assert genome.decode(three, genes)[1:] == (4, 1.4)
    assert encode("piecewise", three, [1, 4], 4, 1.1).tolist() == [100, 400, 0, 0, 0, 3]
    other = genes.copy()
    other[-2] = 1
    assert genome.key(three, other) != genome.key(three, genes)  # two candidates


def test_attention_gene_mutates_as_the_start_gene_does():
    space, rng = space_of(attention_factors=(1.0, 1.1, 1.2)), stream(6)
    parent = encode("monotone", space, np.full(8, 4.0))
    drawn = np.stack([genome.mutate(MONOTONE, space, rng, parent, 0.5) for _ in range(4000)])[:, -2]
    assert np.all(np.abs(np.bincount(drawn) / 4000 - [4 / 6, 1 / 6, 1 / 6]) < 0.03)


ROWS = {
    "critical": [[1.0, 4.0, 4.0], [1.0, 2.0, 4.0]],
    "yarn": [[1.0, 1.6, 4.0], [1.0, 1.0, 4.0]],
    "ntk": [[1.0, 2.0, 4.0], [1.0, 1.5, 2.25]],
}


@pytest.mark.parametrize("name", ENCODINGS)
def test_layers_have_factors_of_their_own(name):
    space, rng = space_of(num_pairs=3, num_layers=2), stream(7)
    space = dataclasses.replace(space, critical_pairs=(1, 2) if name == "critical" else ())
    rows = np.array(ROWS.get(name, [[1.0, 2.0, 4.0], [1.5, 3.0, 4.0]]))
    genes = encode(name, space, rows, 8)
    assert genome.decode(space, genes).factors.tolist() == rows.tolist()
    shared = encode(name, space, rows[0])
    assert genome.decode(space, shared).factors.tolist() == [rows[0].tolist()] * 2
    pool, mixed = [genes, shared], 0
    for _ in range(400):
        child = genome.mutate(ENCODINGS[name], space, rng, pool[rng.integers(len(pool))], 0.3)
        factors = genome.decode(space, child).factors
        assert factors.shape == (2, 3) and in_form(name, space, child)
        crossed = genome.cross(ENCODINGS[name], space, rng, genes, child)
        first, second = (genome.layers(space, g)[0] for g in (genes, child))
        for layer, row in enumerate(genome.layers(space, crossed)[0]):
            assert row.tolist() in (first[layer].tolist(), second[layer].tolist())
        mixed += genome.key(space, crossed) not in (
            genome.key(space, genes),
            genome.key(space, child),
        )
        pool.append(child)
    assert mixed > 100 and len({genome.key(space, g) for g in pool}) > 200


def test_own_genes_of_a_layer_go_with_it():
    space, rng = space_of(num_pairs=3, num_layers=2), stream(8)
    first = encode("piecewise", space, [[1, 2, 4], [1, 1, 4]])
    second = encode("piecewise", space, [[4, 4, 4], [1, 1, 2]])
    for _ in range(50):
        genes_LR, own_LO = genome.layers(space, genome.cross(PIECEWISE, space, rng, first, second))
        for genes_R, own_O in zip(genes_LR, own_LO, strict=True):
            assert PIECEWISE.encode(space, genes_R / space.units)[1] == own_O.tolist()
