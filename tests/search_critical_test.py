"""The critical pair: by the theory, as a gene, and as a search measures it."""

import dataclasses

import numpy as np
import pytest

from configs import base
from jaxrope import rope, schema, search
from jaxrope.errors import InputError
from jaxrope.search import critical, evolution, genome, journal, problem
from jaxrope.search.encodings import ENCODINGS
from tests.search_config import rows_of, tiny
from tests.search_spaces import encode, space_of, stream

CRITICAL = ENCODINGS["critical"]
# (rotary_dim, theta, trained_len, theoretical pair): LongRoPE2, sections 2 and 3
MODELS = {
    "llama2_7b": (128, 1e4, 4096, 46),
    "phi3_mini": (96, 1e4, 2048, 31),
    "llama3_8b": (128, 5e5, 8192, 35),
    "mistral_7b": (128, 1e4, 8192, 50),
}


def section_of(**changes):
    changes = dict(form="critical", start_tokens=(0,)) | changes
    config = schema.read(base.get_config())
    return schema.replace(config, {f"search.{name}": x for name, x in changes.items()}).search


def space_at(pairs, num_pairs=8, factor=4.0, **more):
    space = space_of(num_pairs=num_pairs, factor=factor, bound=2.0, **more)
    return dataclasses.replace(space, critical_pairs=tuple(pairs))


@pytest.mark.parametrize("name", MODELS)
def test_theoretical_pairs_of_the_paper(name):
    dim, theta, trained_len, pair = MODELS[name]
    geometry = dict(rotary_dim=dim, theta=theta, trained_len=trained_len)
    assert critical.theoretical_pair(**geometry) == pair
    periods = 2 * np.pi * theta ** (2 * np.arange(dim // 2) / dim)
    assert periods[pair - 1] <= trained_len < periods[pair]  # the first that was not seen whole
    many = critical.theoretical_pair(**geometry, turns=10)
    assert periods[many - 1] <= trained_len / 10 < periods[many]


def test_the_theoretical_pair_is_one_of_the_model():
    assert critical.theoretical_pair(rotary_dim=8, theta=10.0, trained_len=100_000) == 3
    assert critical.theoretical_pair(rotary_dim=8, theta=1e4, trained_len=16, turns=10) == 1


@pytest.mark.parametrize("name, low", [("phi3_mini", 19), ("llama3_8b", 24)])
def test_candidates_by_formula_hold_what_the_paper_found(name, low):
    """It found 25 in Phi-3-mini and 30 in LLaMA3-8B."""
    dim, theta, trained_len, high = MODELS[name]
    space = space_of(num_pairs=dim // 2, factor=32.0, bound=2.0)
    lengths = dict(theta=theta, trained_len=trained_len, target_len=32 * trained_len)
    narrowed = critical.narrow(space, section_of(), **lengths)
    assert narrowed.critical_pairs == tuple(range(low, high + 1))
    fixed = critical.narrow(space, section_of(critical_pairs=(25, 25)), **lengths)
    assert fixed.critical_pairs == (25,)
    assert critical.narrow(space, section_of(form="monotone"), **lengths) is space


@pytest.mark.parametrize(
    ("changes", "highest", "message"),
    [
        (dict(critical_pairs=(5, 4)), 8.0, r"within 1 to 7 .*, got \(5, 4\), which are 5 and 4"),
        (dict(critical_pairs=(2, 8)), 8.0, r"critical_pairs must be 0 .* got \(2, 8\)"),
        (dict(critical_pairs=(7, 0)), 8.0, r"critical_pairs must be .* \(7, 0\), .* 7 and 4"),
        (dict(), 3.0, r"needs factors of at least target_len / training_len, 4, got 3 at most"),
    ],
)
def test_messages(changes, highest, message):
    space = space_of(bound=highest / 4)
    with pytest.raises(InputError, match=message):
        critical.narrow(space, section_of(**changes), theta=1e4, trained_len=256, target_len=1024)


def test_encode_takes_the_nearest_pair():
    space = space_at((2, 3, 5), num_pairs=7)
    exact = 4 ** (np.minimum(np.arange(7), 3) / 3)
    genes = encode("critical", space, exact)
    assert genes.tolist() == [100, 159, 252, 400, 400, 400, 400, 3, 0]  # 4^(1/3), 4^(2/3)
    assert encode("critical", space, np.full(7, 4.0)).tolist()[-2] == 2  # PI: the lowest
    ntk = encode("critical", space, 4 ** (np.arange(7) / 6))
    assert ntk[-2] == 5 and ntk[5:7].tolist() == [400, 400]  # the last two are raised to s
    assert encode("critical", space, [1, 1.6, 2.5, 4, 5, 6, 99.0])[:7].tolist()[3:] == [
        400,
        500,
        600,
        800,
    ]


def in_space(space, genes):
    (factors_R,), (own,) = genome.layers(space, genes)
    pair = int(own[0])
    assert pair in space.critical_pairs
    assert np.all(factors_R[pair:] >= space.scale) and factors_R[-1] <= space.highest
    assert np.all(np.diff(factors_R) >= 0)
    below = (factors_R[pair] / space.units) ** (np.arange(pair) / pair)
    assert np.all(np.abs(factors_R[:pair] / space.units - below) <= 0.5 / space.units + 1e-9)
    return pair


def test_children_are_ntk_below_and_in_s_to_2s_from_there_on():
    space, rng = space_at((3, 4, 5), num_pairs=8), stream()
    pool = [encode("critical", space, np.full(8, 4.0)), encode("critical", space, np.full(8, 8.0))]
    pairs, crossed = [], 0
    for _ in range(800):
        first, second = (pool[i] for i in rng.integers(len(pool), size=2))
        child = genome.cross(CRITICAL, space, rng, first, second)
        crossed += child is not None
        if child is not None:
            in_space(space, child)
        child = genome.mutate(CRITICAL, space, rng, first if child is None else child, 0.3)
        pairs.append(in_space(space, child))
        pool.append(child)
    assert crossed > 200 and set(pairs) == {3, 4, 5}


def test_mutation_is_uniform_from_the_critical_pair_on():
    """With probability 1: the pair any of the listed, the first factor from s to its neighbour."""
    space = dataclasses.replace(space_at((2, 3), num_pairs=4), units=1, scale=4, highest=8)
    rng, parent = stream(1), np.array([1, 1, 6, 7, 2, 0], np.int32)
    children = np.stack([genome.mutate(CRITICAL, space, rng, parent, 1.0) for _ in range(6000)])
    assert abs(np.mean(children[:, 4] == 2) - 0.5) < 0.03
    low = children[children[:, 4] == 2]
    assert np.all(np.abs(np.bincount(low[:, 2])[4:] / len(low) - 1 / 4) < 0.04)  # 4 to 7
    alone = children[children[:, 4] == 3]
    assert np.all(np.abs(np.bincount(alone[:, 3])[4:] / len(alone) - 1 / 5) < 0.04)  # 4 to 8
    assert np.array_equal(alone[:, 2], np.rint(alone[:, 3] ** (2 / 3)))


def test_one_critical_pair_draws_nothing_for_it():
    space = space_at((3,))
    parent = encode("critical", space, np.full(8, 4.0))
    drawn = stream(2)
    genome.mutate(CRITICAL, space, drawn, parent, 1.0)
    expected = stream(2)
    is_chosen = expected.random(5) < 1.0  # pairs 3 to 7
    left = space.scale
    for pair in 3 + np.flatnonzero(is_chosen):
        left = expected.integers(left, parent[pair + 1] if pair < 7 else 800, endpoint=True)
    expected.random(), expected.integers(14)
    assert drawn.random() == expected.random()


def test_first_population_is_that_of_the_paper():
    """Any critical pair, one factor from s to 2 s from there on."""
    space, rng = space_at((2, 3, 4)), stream(3)
    seed = encode("critical", space, np.full(8, 4.0))
    begun = np.stack([genome.begin(CRITICAL, space, rng, seed, 0.3) for _ in range(3000)])
    pairs, factors = begun[:, 8], begun[:, 7]
    assert np.all(np.abs(np.bincount(pairs)[2:] / 3000 - 1 / 3) < 0.03)
    assert factors.min() < 405 and factors.max() > 795 and abs(factors.mean() - 600) < 10
    for genes in begun[:200]:
        assert set(genes[in_space(space, genes) : 8].tolist()) == {genes[7]}
    assert abs(np.mean(begun[:, -1] != 0) - 0.3 * 13 / 14) < 0.03  # the start gene mutates


def test_seeds_are_the_rope_method():
    space = space_at((3, 5), attention_factors=(1.1, 1.2))
    found = critical.seeds(space, target_len=1024, attention_factor=1.2)
    assert [seed.name for seed in found] == ["critical_3", "critical_5"]
    for seed, pair in zip(found, (3, 5), strict=True):
        geometry = dict(head_dim=16, theta=1e4, original_len=256)
        made = rope.make("ntk_rcd", **geometry, factor=4.0, critical_pair=pair)
        assert np.allclose(seed.bucket.factors, made.bucket(1024).factors, rtol=1e-12)
        assert (seed.bucket.max_len, seed.bucket.attention_factor) == (1024, 1.2) and seed.is_seed
    assert critical.seeds(space_of(), target_len=1024, attention_factor=1.0) == []


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """(config, workdir, result) of a search by a model with four rotary pairs."""
    folder = tmp_path_factory.mktemp("critical")
    config = tiny(folder)
    algorithm = dict(population=8, mutations=2, crossovers=2, parents=3, iterations=2)
    config.search.algorithm.update(algorithm, bound=2.0)
    config.search.update(form="critical", critical_pairs=(1, 3))
    return config, folder / "run", search.search(config, folder / "run")


def test_a_search_measures_the_critical_pair(found):
    _, workdir, result = found
    rows = journal.candidates(rows_of(workdir))
    content = result.content
    expected = {}
    for pair in (1, 2, 3):
        wanted = np.rint(100 * 4 ** (np.minimum(np.arange(4), pair) / pair)).tolist()
        (row,) = [r for r in rows if r["genome"][:4] == wanted and r["genome"][-1] == 0]
        expected[pair] = row["fitness"]
    assert content["critical_pairs"] == [
        {"pair": pair, "fitness": fitness} for pair, fitness in expected.items()
    ]
    assert content["critical_pair"] == min(expected, key=expected.get)
    assert content["theoretical_critical_pair"] == 1  # 4 log_10000(16 / 2 pi) = 0.41
    best = min(rows, key=lambda row: row["fitness"])
    assert content["best_critical_pairs"] == [best["genome"][4]]
    assert max(row["factors"][-1] for row in rows) <= 8.0  # 2 s
    assert min(row["factors"][-1] for row in rows) >= 4.0


def test_the_critical_pair_alone(found, tmp_path):
    """One fixed pair, nothing else searched: the rope method ntk_rcd, rounded to the grid."""
    config = found[0].copy_and_resolve_references().unlock()
    config.search.algorithm.update(bound=1.0, population=1, parents=1, iterations=1)
    config.search.update(critical_pairs=(2, 2), start_tokens=(0,), compare=False)
    result = search.search(config, tmp_path / "run")
    geometry = dict(head_dim=8, theta=1e4, original_len=16)
    made = rope.make("ntk_rcd", **geometry, factor=4.0, critical_pair=2)
    assert np.allclose(result.factors, made.bucket(64).factors, atol=0.005)
    assert result.content["critical_pair"] == 2


def test_a_failed_pair_has_no_fitness():
    space = space_at((2, 3))
    made = [
        genome.Choice(np.array(s.bucket.factors), 0, 1.0)
        for s in critical.seeds(space, target_len=1, attention_factor=1.0)
    ]
    seeds_SG = np.stack([genome.encode(CRITICAL, space, choice) for choice in made])
    settings = dataclasses.replace(section_of().algorithm, population=3, parents=1)
    state = evolution.init(settings, "critical", space, seeds_SG, 0)
    told = evolution.tell(state, [np.nan, 7.0, 5.0])
    report = critical.report(told, theta=1e4, trained_len=256, attention_factor=1.0)
    assert report["critical_pairs"] == [dict(pair=2, fitness=None), dict(pair=3, fitness=7.0)]
    assert report["critical_pair"] == 3


def test_seeds_of_a_search_are_the_known_methods_and_one_of_each_pair(found):
    made = search.prepare(found[0])
    names = [seed.name for seed in problem.seeds(made)]
    assert names == ["pi", "ntk", "yarn", "critical_1", "critical_2", "critical_3"]
