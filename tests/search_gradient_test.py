"""Descents: their steps on models with known curvature, gradients on devices, and the journal."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from search_config import rows_of, tiny, tiny_default, write_model

from jaxrope import decoder, rope, schema, search
from jaxrope.errors import InputError
from jaxrope.mesh import sharding
from jaxrope.search import descent, evaluator, forms, gradient, objective

SETTINGS = schema.search.Gradient(ramps=0, steps=18, batch=1, starts=1, rate=1.0)
ALLOWED = (0.5, 2.0)
TOKENS = 4096
FREE = forms.Limits(0.01, 100.0, 8.0)


class Gaussian:
    """A model of numbers x that are normal about `best` with the precision `fisher`: the loss of a
    text is the mean over its tokens of fisher (x - token)^2 / 2, whose curvature is the Fisher
    information, `fisher` itself. Tokens of a text are alike as the descent supposes, so that a text
    tells as much as fewer tokens would.
    """

    def __init__(self, best, fisher, best_attention=1.2, seed=0):
        self.best, self.fisher = np.array(best), np.array(fisher)
        self.best_attention = best_attention
        self.rng = np.random.default_rng(seed)

    def grads(self, factors, attention_factor, draws):
        """Returns what `tell` takes of `draws` texts."""
        shape = (draws, *self.best.shape)
        spread = 1 / np.sqrt(self.fisher * TOKENS * gradient.CORRELATION)
        means = self.best + spread * self.rng.normal(size=shape)
        slopes = self.fisher * (np.log(factors) - means)
        spread = 1 / math.sqrt(TOKENS * gradient.ATTENTION_CORRELATION)
        means = math.log(self.best_attention) + spread * self.rng.normal(size=draws)
        attention_slopes = math.log(attention_factor) - means
        grads = dict(
            factors_grads=slopes / factors, attention_grads=attention_slopes / attention_factor
        )
        return grads | dict(tokens=TOKENS)


def descend(model, settings=SETTINGS, factors=None, shape=None, allowed=ALLOWED, steps=None):
    """Returns the states of a descent, the first before any step."""
    factors = np.ones(model.best.shape) if factors is None else factors
    shape = shape or forms.of("free", FREE, factors)
    states = [gradient.begin(shape, allowed, factors, 1.0)]
    for step in range(steps or settings.steps + 1):
        draws = gradient.draws(settings, step)
        grads = model.grads(*gradient.point(shape, states[-1]), draws)
        states.append(gradient.tell(settings, shape, allowed, states[-1], **grads))
    return states


@pytest.mark.parametrize("rate", [1.0, 0.5])
def test_the_first_step_is_that_of_newton(rate):
    """To the bottom of the parabola, whatever the curvature; by half the rate half of the way."""
    best, fisher = np.array([0.2, -0.2, 0.25, -0.1]), np.array([0.3, 1.0, 3.0, 10.0])
    settings = dataclasses.replace(SETTINGS, batch=4000, rate=rate)
    state = descend(Gaussian(best, fisher, best_attention=1.025), settings, steps=1)[-1]
    spread = 1 / np.sqrt(fisher * TOKENS * gradient.CORRELATION * 4000)
    # the curvature is known from the spread of 4,000 draws to some 4%
    assert np.all(np.abs(state.numbers - rate * best) < 4 * spread + 0.12 * np.abs(best))
    assert state.log_attention == pytest.approx(rate * math.log(1.025), rel=0.15)


def test_descents_converge():
    """19 steps of one text each, 20 models: nine tenths of what there is to gain."""
    best, fisher = np.linspace(-0.3, 0.4, 8), np.geomspace(0.3, 5, 8)
    runs = [descend(Gaussian(best, fisher, seed=seed)) for seed in range(20)]
    losses = [[np.sum(fisher * (state.numbers - best) ** 2) for state in run] for run in runs]
    assert np.mean(losses, axis=0)[-1] < 0.1 * losses[0][0]
    assert np.median(losses, axis=0)[-1] < 0.05 * losses[0][0]
    ends = [run[-1].log_attention for run in runs]
    assert np.mean(np.abs(np.array(ends) - math.log(1.2))) < 0.06
    for run in runs:
        longest = np.max(np.abs(np.diff([state.numbers for state in run], axis=0)), axis=1)
        assert np.all(longest <= 0.3 / (1 + np.arange(19) / 5) + 1e-12)


def test_numbers_that_are_all_noise_stay():
    """Slopes that turn with the phase of a fast pair: large, and of no meaning. A plain descent of
    the same first step would carry them as far as the good ones."""
    rng, shape = np.random.default_rng(0), forms.of("free", FREE, np.ones(200))
    state = gradient.begin(shape, ALLOWED, np.ones(200), 1.0)
    for step in range(19):
        draws = gradient.draws(SETTINGS, step)
        factors, _ = gradient.point(shape, state)
        grads = dict(factors_grads=rng.normal(0, 0.5, (draws, 200)) / factors, tokens=TOKENS)
        grads |= dict(attention_grads=rng.normal(0, 0.5, draws))
        state = gradient.tell(SETTINGS, shape, ALLOWED, state, **grads)
    moved = np.abs(state.numbers)
    assert np.median(moved) < 0.01 and np.mean(moved) < 0.03 and np.mean(moved < 0.05) > 0.9


def test_odd_texts_change_little():
    """One text in ten whose gradient is a hundred times the others'."""

    class Odd(Gaussian):
        calls, odd = 0, ()

        def grads(self, *args):
            grads = super().grads(*args)
            if self.calls in self.odd:
                grads["factors_grads"][0] *= -100
            self.calls += 1
            return grads

    best, fisher, changes = np.full(4, 0.2), np.ones(4), []
    for seed in range(10):
        model = Odd(best, fisher, seed=seed)
        model.odd = (3, 12)
        changes.append(descend(model)[-1].numbers - best)
    assert np.mean(np.abs(changes)) < 0.12


def test_what_does_not_matter_does_not_run_away():
    """No slope and no spread: a curvature of nothing is none to divide by."""
    shape = forms.of("free", FREE, np.ones(2))
    state = gradient.begin(shape, ALLOWED, np.ones(2), 1.0)
    grads = dict(factors_grads=np.tile([0.0, 1e-6], (4, 1)), attention_grads=np.zeros(4))
    state = gradient.tell(SETTINGS, shape, ALLOWED, state, **grads, tokens=TOKENS)
    assert state.numbers[0] == 0 and 0 < -state.numbers[1] < 1e-3


def test_layers_descend_as_numbers_do():
    """Factors of each layer's own are as many numbers."""
    best, fisher = np.linspace(-0.2, 0.2, 6), np.geomspace(1, 8, 6)
    flat = descend(Gaussian(best, fisher))[-1]
    layered = descend(Gaussian(best.reshape(2, 3), fisher.reshape(2, 3)))[-1]
    assert np.array_equal(layered.numbers, flat.numbers.reshape(2, 3))


def test_ascending_numbers_pool_by_their_curvature():
    """What is known well draws with it what is known little."""
    model = Gaussian([0.2, 0.0], [10.0, 0.1])
    shape = forms.of("monotone", FREE._replace(lowest=1.0), np.ones(2))
    settings = dataclasses.replace(SETTINGS, batch=500)
    states = descend(model, settings, shape=shape)
    assert all(np.diff(state.numbers) >= 0 for state in states)
    assert states[-1].numbers == pytest.approx([0.2, 0.2], abs=0.02)


def test_attention_factor_stays_within_its_bounds():
    for best, allowed, end in (
        (3.0, (0.95, 1.1), 1.1),
        (0.2, (0.95, 1.1), 0.95),
        (2.0, (1.1, 1.1), 1.1),
    ):
        model = Gaussian(np.zeros(2), np.ones(2), best_attention=best)
        states = descend(model, allowed=allowed)
        numbers = [math.exp(state.log_attention) for state in states]
        assert numbers[-1] == pytest.approx(end) and min(numbers) >= allowed[0] * (1 - 1e-12)
        assert max(numbers) <= allowed[1] * (1 + 1e-12)


def test_draws_follow_one_another():
    for batch, first in ((1, gradient.FIRST), (7, 7)):
        settings = dataclasses.replace(SETTINGS, batch=batch)
        numbers = [gradient.draws(settings, step) for step in range(4)]
        assert numbers == [first, batch, batch, batch]
        before = [gradient.draws_before(settings, step) for step in range(5)]
        assert before == np.cumsum([0, *numbers]).tolist()


@pytest.mark.parametrize(
    ("sizes", "backend"),
    [
        (dict(), "blockwise"),
        (dict(context=4, data=2), "ring"),
        (dict(context=2, fsdp=2, tensor=2), "all_gather"),
    ],
)
def test_gradient_is_the_same_on_every_mesh(tiny_model, sizes, backend):
    """Against jax.grad of the whole model on one device, attention by its definition."""
    config, params = tiny_model
    mesh = sharding.make_mesh(
        dict(data=1, fsdp=1, context=1, tensor=1) | sizes,
        jax.devices()[: math.prod(sizes.values())],
    )
    settings = decoder.ForwardSettings(
        attention=backend, attention_block=16, mesh=mesh if mesh.size > 1 else None
    )
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (1, 65)).astype(np.int32)
    judge = objective.Objective(
        objective.mean_nll(config, settings), tokens, None, np.exp, "perplexity", 64, 64
    )
    factors = np.linspace(1.1, 4.0, config.rotary_dim // 2)
    r = rope.build(factors, theta=config.theta, start_tokens=3, attention_factor=1.1)
    at = sharding.replicated(mesh)
    sample = {k: v[0] for k, v in decoder.lay_out(settings, tokens).items()}
    where = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("context"))
    placed = sharding.put(params, decoder.param_shardings(config, mesh))
    (fn,) = evaluator.gradient_fns(judge, config, mesh)
    loss, factors_grad, attention_grad = fn(
        placed, sharding.put(r, at), sharding.put(sample, where)
    )

    def plain(factors_R, attention_factor):
        moved = dataclasses.replace(r, factors_R=factors_R, attention_factor=attention_factor)
        whole = decoder.ForwardSettings(attention="reference")
        out = jax.nn.log_softmax(
            decoder.logits(config, params, tokens[:, :-1], moved, settings=whole)
        )
        return -jnp.mean(jnp.take_along_axis(out, tokens[:, 1:, None], -1))

    wanted = jax.value_and_grad(plain, argnums=(0, 1))(r.factors_R, r.attention_factor)
    assert float(loss) == pytest.approx(float(wanted[0]), rel=1e-5)
    scale = float(np.max(np.abs(wanted[1][0])))
    assert np.asarray(factors_grad) == pytest.approx(np.asarray(wanted[1][0]), abs=2e-4 * scale)
    assert float(attention_grad) == pytest.approx(float(wanted[1][1]), rel=2e-3)


def descending(tmp_path, **keys):
    """Returns a config; "a__b" stands for the key a.b."""
    config = tiny_default(tmp_path)
    keys = dict(search__gradient__ramps=0) | keys
    for name, value in keys.items():
        config.update_from_flattened_dict({name.replace("__", "."): value})
    return config


def scaled(tmp_path, **keys):
    """Of a model with YaRN of its own, which serves 32 tokens."""
    config = descending(tmp_path, **keys)
    own = dict(rope_type="yarn", factor=2.0, original_max_position_embeddings=16, beta_fast=2.0)
    write_model(tmp_path / "yarn", rope_scaling=own, max_position_embeddings=32)
    config.model.path = str(tmp_path / "yarn")
    return config


def second(tmp_path, **keys):
    """A second search, on factors that the model was fine-tuned with."""
    config = descending(tmp_path, search__multiply=True, **keys)
    bucket = dict(max_len=32, factors=[1.0, 1.13, 1.57, 2.3], start_tokens=0, attention_factor=1.1)
    tuned = rope.make("longrope", head_dim=8, theta=1e4, original_len=16, buckets=[bucket])
    (tmp_path / "tuned").mkdir()
    rope.save(tmp_path / "tuned" / "rope.json", tuned, {})
    config.rope = dict(method="file", path=str(tmp_path / "tuned" / "rope.json"))
    return config


def layered(tmp_path, **keys):
    config = descending(tmp_path, search__per_layer=True, **keys)
    write_model(tmp_path / "two", num_hidden_layers=2)
    config.model.path = str(tmp_path / "two")
    return config


@pytest.mark.parametrize("make", [descending, scaled, second, layered])
def test_a_step_of_a_search_is_the_formula(tmp_path, make):
    """From gradients in the journal, in the logs of what multiplies the base, by definition."""
    config = make(tmp_path, search__form="free", search__gradient__steps=1)
    result = search.search(config, tmp_path / "run")
    made = search.prepare(config)
    first, then = [row for row in rows_of(tmp_path / "run") if "descent" in row][:2]
    slopes = np.array(first["factors_grads"]) * np.array(first["factors"])
    slopes = np.concatenate([slopes.reshape(4, -1).T, [np.array(first["attention_grads"])]])
    slopes[-1] *= first["attention_factor"]
    change = []
    for values, correlation in zip(slopes, [0.25] * (len(slopes) - 1) + [0.15], strict=True):
        spread = np.sqrt(np.mean(np.diff(values) ** 2) / 2)  # of four none is left out
        near = np.clip(values, *(np.median(values) + np.array([-3, 3]) * spread))
        step = -near.mean() / (correlation * 64 * (spread**2 + 0.003**2))
        longest = 0.3 if correlation == 0.25 else 0.03
        change.append(np.clip(step, -longest, longest))
    own = np.array(first["factors"]) / np.array(made.space.multiplier or 1.0)
    low, high = made.limits.lowest, made.limits.highest
    wanted = np.clip(own * np.exp(np.reshape(change[:-1], own.shape)), low, high)
    found = np.array(then["factors"]) / np.array(made.space.multiplier or 1.0)
    np.testing.assert_allclose(found, wanted, rtol=1e-3)
    number = np.clip(first["attention_factor"] * np.exp(change[-1]), *made.attention_range)
    assert then["attention_factor"] == pytest.approx(number, rel=1e-3)
    assert np.shape(first["factors"]) == ((2, 4) if make is layered else (4,))
    assert result.content["verdict"]["samples"] in (8, 24)
    start = min(
        (r for r in rows_of(tmp_path / "run") if r.get("baseline") == first["descent"]),
        key=lambda row: row["fitness"],
    )
    np.testing.assert_allclose(
        np.broadcast_to(start["factors"], own.shape), first["factors"], rtol=1e-6
    )
    assert first["attention_factor"] == pytest.approx(start["attention_factor"], rel=1e-12)


@pytest.mark.parametrize("make", [descending, scaled, second, layered])
def test_a_descent_is_a_function_of_the_journal(tmp_path, make):
    """Killed after any row, a search ends with the same bytes."""
    starts = 1 if make is layered else 2
    config = make(tmp_path, search__gradient__starts=starts, search__gradient__steps=2)
    whole = tmp_path / "whole"
    search.search(config, whole)
    lines = (whole / "journal.jsonl").read_text().splitlines(keepends=True)
    steps = [i for i, line in enumerate(lines) if "descent" in json.loads(line)]
    assert len(steps) >= 3 * starts and len(steps) % starts == 0
    for kept in {3, steps[0], steps[1] + 1, steps[-1] + 1, len(lines) - 1}:
        again = tmp_path / f"again{kept}"
        again.mkdir()
        (again / "journal.jsonl").write_text("".join(lines[:kept]))
        search.search(config, again)
        assert (again / "rope.json").read_bytes() == (whole / "rope.json").read_bytes()
        timeless = [[dict(row, seconds=0) for row in rows_of(path)] for path in (again, whole)]
        assert timeless[0] == timeless[1]


def test_another_step_in_the_journal_is_refused(tmp_path):
    config = descending(tmp_path)
    search.search(config, tmp_path / "run")
    other = descending(tmp_path, search__gradient__rate=0.5)
    with pytest.raises(InputError, match=r"another search: .*search\.gradient\.rate"):
        search.search(other, tmp_path / "run")
    rows = rows_of(tmp_path / "run")
    row = next(row for row in rows if row.get("step") == 1)
    made = search.prepare(config)
    bucket = made.baselines[0].bucket
    bench = type("Bench", (), {"record": type("Record", (), {"path": "journal.jsonl"})})
    with pytest.raises(InputError, match="step 1 of the descent .* is not the one that this"):
        descent._check(bench, row, 1, bucket)


def test_the_end_of_a_descent_is_judged_beside_the_baselines(tmp_path):
    result = search.search(descending(tmp_path), tmp_path / "run")
    rows = rows_of(tmp_path / "run")
    last = [row for row in rows if "descent" in row][-1]
    judged = {row["judged"]: row for row in rows if "judged" in row}
    end = judged.pop(f"{last['descent']}, descended")
    assert 1 <= len(judged) <= 6
    assert set(judged) <= {row["baseline"] for row in rows if "baseline" in row}
    assert np.max(np.abs(np.log(end["factors"]) - np.log(last["factors"]))) <= 0.3
    again = {row["judged again"]: row["losses"] for row in rows if "judged again" in row}
    read = {row["judged"]: row["losses"] for row in (end, *judged.values())}
    read = {name: read[name] + losses for name, losses in again.items()} or read
    best = min(read, key=lambda name: np.mean(read[name]))
    wanted = np.exp(np.mean(read[best]))
    assert result.content["perplexity"] == pytest.approx(wanted, rel=1e-12)
    assert result.content["verdict"]["result"] == best
    (steps,) = result.descents.values()
    assert list(result.descents) == [last["descent"]] and len(steps) == last["step"] + 1 >= 4
    assert not result.generations


def test_hybrid_breeds_from_where_the_descent_ended(tmp_path):
    config = descending(tmp_path, search__method="hybrid")
    result = search.search(config, tmp_path / "run")
    rows = rows_of(tmp_path / "run")
    bred = [row for row in rows if "genome" in row]
    assert len({row["generation"] for row in bred}) == config.search.algorithm.iterations
    assert result.content["search"]["method"] == "hybrid"
    end = next(row for row in rows if "descended" in row.get("judged", ""))
    assert np.max(np.abs(np.array(bred[0]["factors"]) - end["factors"])) <= 0.005 + 1e-9


def test_steps_have_text_of_their_own(tmp_path):
    """No window comes twice, and none is one of those that judge."""
    for method in (tiny, tiny_default):
        made = search.prepare(method(tmp_path))
        windows = [made.fresh(step, 1).samples[0] for step in range(12)]
        windows += list(made.objective.samples)
        assert len({window.tobytes() for window in windows}) == len(windows)
        assert np.array_equal(made.fresh(5, 2).samples[1], made.fresh(6, 1).samples[0])


def test_descents_start_from_the_methods_compared(tmp_path):
    message = r"search\.compare must be True for method 'gradient'"
    with pytest.raises(InputError, match=message):
        search.search(descending(tmp_path, search__compare=False), tmp_path / "run")
