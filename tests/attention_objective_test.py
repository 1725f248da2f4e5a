"""Objectives of attention: their numbers from dense attention in float64, slopes, meshes, costs."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial import distance as scipy_distance

from configs import base
from jaxrope import data, decoder, rope, schema, search, setup
from jaxrope.analysis import patterns
from jaxrope.data import BytesTokenizer
from jaxrope.errors import InputError
from jaxrope.search import attention_objective, baselines, evaluator, objective
from tests import search_config
from tests.search_config import rows_of
from tests.search_evaluator_test import make, mesh_of
from tests.tiny_heads import attention_of, loud

LENGTH, TRAINED = 560, 430
SHIFT = dict(
    name="entropy_shift", num_samples=2, num_keys=1, place="spread", heads=(), needle_weight=0.0
)
MASS = SHIFT | dict(name="needle_mass")
PATTERN = dict(
    name="pattern",
    num_samples=2,
    num_keys=1,
    place="spread",
    view="below",
    num_queries=6,
    num_bins=10,
    needle_weight=0.0,
)
FACTORS = np.array([1.0, 1.3, 2.0, 4.0])


def objective_of(section, task):
    section = schema.search.OBJECTIVE.read(section, "search.objective")
    return objective.make(section, task)


@pytest.fixture(scope="module")
def documents(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    rng = np.random.default_rng(0)
    for i in range(6):
        words = ("".join(rng.choice(list("abcdef"), 4)) for _ in range(200))
        (folder / f"{i}.txt").write_text(" ".join(words))
    return data.load_documents([f"{folder}/*.txt"], BytesTokenizer(), cache_dir=folder / "cache")


@pytest.fixture(scope="module")
def params(tiny_params):
    return loud(tiny_params)


@pytest.fixture(scope="module")
def task(tiny_config, documents):
    return objective.Task(
        config=tiny_config,
        settings=decoder.ForwardSettings(attention_block=128),
        documents=documents,
        tokenizer=BytesTokenizer(),
        target_len=LENGTH,
        seed=3,
        reference=objective.Reference(rope.build(np.ones(4), theta=10_000.0), TRAINED),
    )


def candidate():
    return rope.build(FACTORS, theta=10_000.0, start_tokens=3, attention_factor=1.2)


@pytest.fixture(scope="module")
def dense(task, params):
    """For each sample: (attention [L, N, T, S], document) of both texts, in float64."""
    judge, found = objective_of(SHIFT, task), []
    for i in range(2):
        both = []
        for prefix, r in (("", candidate()), ("trained_", task.reference.rope)):
            tokens_T = judge.samples[f"{prefix}tokens_WT"][i]
            attention = attention_of(task.config, params, tokens_T[:-1], r)
            text = BytesTokenizer().decode(tokens_T)
            begin = text.index("\nOne of the special") + 1  # bos
            span = begin, text.index(".\n", begin) + 3
            answer = np.arange(len(tokens_T) - 7, len(tokens_T)) - 1  # each predicts a digit
            both.append((attention, span, answer))
        found.append(both)
    return found


def losses_of(section, task, params):
    judge = objective_of(section, task)
    return evaluator.evaluate(make(judge, (task.config, params), 1), [candidate()])[0]


def shift_of(attention, answer):
    """H / ln n without the first key, [L, N, M]."""
    p = attention[:, :, answer, 1:] / attention[:, :, answer, 1:].sum(-1, keepdims=True)
    entropy = -np.sum(p * np.log(np.where(p > 0, p, 1)), axis=-1)
    return entropy / np.log(answer)  # keys 1 to answer are seen


def mass_of(attention, span, answer):
    return attention[:, :, answer, slice(*span)].sum(-1)


@pytest.mark.parametrize("heads", [(), [(0, 1), [1, 3]]], ids=str)
def test_the_shift_of_entropy(task, params, dense, heads):
    wanted = []
    for (now, _, answer), (before, span, trained_answer) in dense:
        shift = np.abs(shift_of(now, answer) - shift_of(before, trained_answer)).mean(-1)
        weights = mass_of(before, span, trained_answer).mean(-1)
        if heads:
            weights = np.zeros((2, 4))
            weights[tuple(np.array(heads).T)] = 1
        wanted.append((shift * weights).sum() / weights.sum())
    found = losses_of(SHIFT | dict(heads=heads), task, params)
    np.testing.assert_allclose(found, wanted, rtol=1e-4)
    assert min(wanted) > 1e-3


@pytest.mark.parametrize("heads", [(), ((0, 0), (0, 2), (1, 1))], ids=str)
def test_the_mass_of_the_needle(task, params, dense, heads):
    wanted = []
    for (now, span, answer), (before, trained_span, trained_answer) in dense:
        weights = mass_of(before, trained_span, trained_answer).mean(-1)
        if heads:
            weights = np.zeros((2, 4))
            weights[tuple(np.array(heads).T)] = 1
        mass = (mass_of(now, span, answer) * weights[..., None]).sum((0, 1)) / weights.sum()
        wanted.append(-np.log(mass).mean())
    np.testing.assert_allclose(losses_of(MASS | dict(heads=heads), task, params), wanted, rtol=1e-4)
    assert min(wanted) > 0.1


@pytest.mark.parametrize("view, num_queries, num_bins", [("below", 6, 10), ("relative", 40, 7)])
def test_the_pattern(task, params, dense, view, num_queries, num_bins):
    """Curves of distance of the same queries, pair by pair."""
    wanted = []
    for texts in dense:
        curves = []
        for (attention, _, _), length in zip(texts, (LENGTH, TRAINED), strict=True):
            top = TRAINED if view == "below" else length
            edges = np.rint(np.linspace(0, top, num_bins + 1)).astype(int)
            mass, pairs = np.zeros((2, 4, num_bins)), np.zeros(num_bins)
            for i in np.rint(np.linspace(length // 2, length - 1, num_queries)).astype(int):
                p = attention[:, :, i, 1 : i + 1] / attention[:, :, i, 1 : i + 1].sum(
                    -1, keepdims=True
                )
                which = np.digitize(i - np.arange(1, i + 1), edges) - 1
                for e in range(num_bins):
                    mass[..., e] += p[..., which == e].sum(-1)
                    pairs[e] += np.sum(which == e)
            curves.append(mass / pairs * np.diff(edges))
        root = scipy_distance.jensenshannon(*curves, axis=-1)
        wanted.append(np.mean(root**2))
    section = PATTERN | dict(view=view, num_queries=num_queries, num_bins=num_bins)
    np.testing.assert_allclose(losses_of(section, task, params), wanted, rtol=2e-3)
    assert min(wanted) > 1e-5


@pytest.mark.parametrize("section", [MASS, PATTERN], ids=lambda s: s["name"])
def test_the_answer_is_weighed_in(task, params, section):
    alone = losses_of(section, task, params)
    needle = losses_of(dict(name="needle", num_samples=2, num_keys=1, place="spread"), task, params)
    both = losses_of(section | dict(needle_weight=0.5), task, params)
    np.testing.assert_allclose(both, alone + 0.5 * needle, rtol=1e-5)
    judge = objective_of(section | dict(needle_weight=0.5), task)
    assert judge.unit.endswith(" + 0.5 needle nats")
    assert judge.fitness_fn(judge.mean(both[None])) == pytest.approx(np.mean(both))


@pytest.mark.parametrize("section", [SHIFT, PATTERN], ids=lambda s: s["name"])
def test_what_does_not_change_costs_nothing(task, params, section):
    """With the trained length and its rope a candidate is its own reference."""
    same = dataclasses.replace(task, target_len=TRAINED)
    judge = objective_of(section, same)
    found = evaluator.evaluate(make(judge, (task.config, params), 1), [task.reference.rope])
    np.testing.assert_allclose(found, 0, atol=1e-6)
    assert np.all(losses_of(section, same, params) > 1e-4)


def test_it_is_counted_what_is_read(task):
    judge = objective_of(SHIFT | dict(num_samples=3), task)
    assert judge.sample_tokens == LENGTH + TRAINED
    assert judge.candidate_tokens == 3 * (LENGTH + TRAINED) and judge.num_samples == 3
    assert judge.first(2).fingerprint == objective_of(SHIFT, task).fingerprint
    assert judge.fingerprint != judge.first(2).fingerprint
    fresh = objective_of(SHIFT, dataclasses.replace(task, skip=2))
    tokens = fresh.samples["trained_tokens_WT"]
    assert np.array_equal(tokens[0], judge.samples["trained_tokens_WT"][2])
    # the shorter text asks for the same number
    long, short = (judge.samples[f"{p}tokens_WT"][:, -7:] for p in ("", "trained_"))
    assert np.array_equal(long, short)


@pytest.mark.parametrize(
    "section", [SHIFT, MASS, PATTERN | dict(needle_weight=0.3)], ids=lambda s: s["name"]
)
def test_each_has_the_slope_of_its_differences(task, params, section):
    """In float64, where the phase words that belong to other factors are made anew."""
    with jax.enable_x64(True):
        settings = decoder.ForwardSettings(attention="reference", compute_dtype="float64")
        one = section | dict(num_samples=1)
        judge = objective_of(one, dataclasses.replace(task, settings=settings))
        wide = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), params)
        sample = jax.tree.map(lambda rows: rows[0], judge.lay_out(judge.samples))

        @jax.jit
        def both(r):
            def loss(factors, attention_factor):
                new = dataclasses.replace(r, factors_R=factors, attention_factor=attention_factor)
                return judge.loss_fn(wide, new, sample)

            return jax.value_and_grad(loss, argnums=(0, 1))(r.factors_R, r.attention_factor)

        def at(factors, attention_factor):
            r = rope.build(factors, theta=10_000.0, attention_factor=attention_factor)
            return both(jax.tree.map(jnp.asarray, r))

        _, (factors_slope, attention_slope) = at(FACTORS, 1.125)
        up, down = (float(at(FACTORS, 1.125 + x)[0]) for x in (2**-10, -(2**-10)))
        assert float(attention_slope) == pytest.approx((up - down) * 2**9, rel=1e-2)
        step = np.eye(4)[1] * 2**-10
        up, down = (float(at(FACTORS + x, 1.125)[0]) for x in (step, -step))
        assert float(factors_slope[1]) == pytest.approx((up - down) * 2**9, rel=0.02)


MESHES = {
    "pattern": (PATTERN | dict(needle_weight=1.0), dict(context=2, fsdp=2, tensor=2), "all_gather"),
    "heads": (SHIFT | dict(heads=((0, 3), (1, 0))), dict(context=2, tensor=2), "ring"),
    "shift": (SHIFT, dict(context=4, tensor=2), "ring"),
    "mass": (MASS, dict(context=2, tensor=2), "ulysses"),
}
SLOW = {"shift", "mass"}


@pytest.mark.parametrize(
    "case", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in MESHES]
)
def test_every_mesh_gives_the_same(task, params, case):
    """Answers and needles lie on some of the devices, heads on others."""
    section, sizes, backend = MESHES[case]
    section, r = section | dict(num_samples=1), candidate()
    one = objective_of(section, task)
    wanted = evaluator.evaluate(make(one, (task.config, params), 1), [r])
    mesh, settings = on_mesh(task, sizes, backend)
    judge = objective_of(section, dataclasses.replace(task, settings=settings))
    made = evaluator.make(judge, task.config, params, per_device=1, mesh=mesh)
    np.testing.assert_allclose(evaluator.evaluate(made, [r]), wanted, rtol=2e-5, atol=1e-6)


def on_mesh(task, sizes, backend):
    mesh = mesh_of(8, **sizes)
    return mesh, dataclasses.replace(task.settings, mesh=mesh, attention=backend)


@pytest.mark.slow
@pytest.mark.parametrize("case", MESHES)
def test_every_mesh_gives_the_same_slopes(task, params, case):
    section, sizes, backend = MESHES[case]
    section, r, slopes = section | dict(num_samples=1), candidate(), []
    mesh, settings = on_mesh(task, sizes, backend)
    spread_task = dataclasses.replace(task, settings=settings)
    for own_task, own in ((task, mesh_of(1)), (spread_task, mesh)):
        judge = objective_of(section, own_task)
        (gradient_fn,) = evaluator.gradient_fns(judge, task.config, own)
        spread = evaluator.make(judge, task.config, params, per_device=1, mesh=own)
        (sample,) = spread.samples
        slopes.append(gradient_fn(spread.params, jax.tree.map(jnp.asarray, r), sample))
    for one, other in zip(*slopes, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("pattern", marks=pytest.mark.slow),
        "entropy_shift",
        pytest.param("needle_mass", marks=pytest.mark.slow),
    ],
)
def test_a_whole_search(tmp_path, name):
    config = search_config.tiny(tmp_path)
    for i in range(3):
        (tmp_path / "texts" / f"{i}.txt").write_text(f"some words {i} " * 80)
    config.original_len, config.target_len = 400, 448
    config.search.objective = base.attention_objective(name) | dict(num_samples=2)
    if name == "pattern":
        config.search.method = "hybrid"
        config.search.gradient.steps = 1
    config.search.algorithm.update(iterations=1)
    search.search(config, tmp_path / "run")
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    units = dict(entropy_shift="entropy shift", pattern="pattern JS", needle_mass="-ln needle mass")
    assert result["unit"] == units[name]
    rows = rows_of(tmp_path / "run")
    other = {"descent", "sliding", "short"}  # gradients, and perplexities
    rows = [row for row in rows if "losses" in row and not other & row.keys()]
    assert len(rows) >= 6
    for row in rows:
        assert row["fitness"] == pytest.approx(np.mean(row["losses"]), rel=1e-9)
        assert 0 <= row["fitness"] < 20


def test_the_search_compares_with_what_the_weights_know(tmp_path):
    config = search_config.tiny(tmp_path)
    config.original_len, config.target_len = 16, 64
    config.search.objective = dict(name="perplexity", num_samples=1, offset_tokens=0)
    model = setup.model_config(config)
    found = baselines.reference(config, model, None)
    assert found.length == 16 and np.all(found.rope.factors_R == 1)
    config.search.training_len = 20
    assert baselines.reference(config, model, None).length == 20
    tuned = rope.Bucket(None, (1.0, 2.0, 3.0, 4.0), 2, 1.25)
    config.search.multiply = True
    found = baselines.reference(config, model, baselines.Extension(tuned, 24))
    assert found.length == 20 and found.rope.factors_R.tolist() == [1, 2, 3, 4]
    assert found.rope.start_tokens == 2 and found.rope.attention_factor == 1.25


@pytest.mark.parametrize("name", ["entropy_shift", "pattern", "needle_mass"])
def test_the_builder_has_every_key(task, name):
    section = base.attention_objective(name)
    judge = objective_of(section, task)
    assert judge.num_samples == section["num_samples"]


@pytest.mark.parametrize(
    "section, message",
    [
        (SHIFT | dict(heads=((2, 0),)), r"heads must be pairs .* \(0, 0\) to \(1, 3\), got \(2, 0"),
        (PATTERN | dict(num_bins=431), "num_bins must be at most 430 for a trained length of 430"),
        (PATTERN | dict(num_queries=216), "num_queries must be at most 215 .* got 216"),
    ],
)
def test_what_does_not_fit_the_model(task, section, message):
    with pytest.raises(InputError, match=message):
        objective_of(section, task)


def test_a_trained_length_without_room_for_the_needle(task):
    short = objective.Reference(task.reference.rope, 200)
    with pytest.raises(InputError, match=r"search.training_len: 1 needles .* got length 201"):
        objective_of(SHIFT, dataclasses.replace(task, reference=short))
    with pytest.raises(ValueError, match="needs task.reference"):
        objective_of(SHIFT, dataclasses.replace(task, reference=None))


def test_distance_bins_are_those_of_patterns():
    """The views are the analysis's: relative distance is also the interpolated one."""
    curve = np.random.default_rng(0).random(40)
    edges = attention_objective.VIEWS["relative"](40, 20, 10)
    np.testing.assert_allclose(patterns.binned(curve, edges), patterns.relative(curve, 10))
    below = attention_objective.VIEWS["below"](40, 20, 10)
    wanted = patterns.relative(patterns.below(curve, 20), 10)
    np.testing.assert_allclose(patterns.binned(curve, below), wanted)
