"""Descents: the parametrisation, Adam, the gradient on devices, what the journal brings back."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from search_config import rows_of, tiny

from jaxrope import decoder, rope, schema, search
from jaxrope.errors import InputError
from jaxrope.mesh import sharding
from jaxrope.search import evaluator, gradient, objective, problem

SETTINGS = schema.search.Gradient(
    ramp_moves=0,
    steps=8,
    batch=1,
    starts=1,
    learning_rate=0.3,
    attention_rate=0.05,
    b1=0.8,
    b2=0.95,
)


@pytest.mark.parametrize("highest", [2.5, 80.0])
def test_factors_ascend_within_their_bounds(highest):
    slopes = np.random.default_rng(0).normal(0, 3, (50, 16))
    factors = gradient.to_factors(slopes, highest)
    assert np.all(np.diff(factors) >= 0) and np.all((factors >= 1) & (factors <= highest))
    assert np.array_equal(factors[3], gradient.to_factors(slopes[3], highest))


@pytest.mark.parametrize("highest", [2.5, 80.0])
def test_factors_by_the_formula(highest):
    slopes = [-2.0, 0.5, 1.0]
    z, expected = 0.0, []
    for slope in slopes:
        z += math.log(1 + math.exp(slope))
        expected.append(highest ** (1 - math.exp(-z)))
    assert gradient.to_factors(np.array(slopes), highest) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("highest", [3.0, 10.0])
def test_slopes_undo_factors(highest):
    factors = np.array([1.2, 1.2001, 1.7, 2.4, 2.9])
    back = gradient.to_factors(gradient.to_slopes(factors, highest), highest)
    assert back == pytest.approx(factors, rel=3e-3)  # 1.2001 rises by less than the least rise
    flat = gradient.to_factors(gradient.to_slopes(np.array([1.0, 1, 9, 4, 99]), highest), highest)
    assert flat == pytest.approx([1, 1, min(9, highest), min(9, highest), highest], rel=0.02)


@pytest.mark.parametrize("highest", [3.0, 10.0])
def test_gradient_in_the_slopes_is_the_difference_quotient(highest):
    rng = np.random.default_rng(1)
    slopes, weights = rng.normal(0, 1, (2, 5)), rng.normal(0, 1, (2, 5))
    found = gradient.slopes_grad(slopes, highest, weights)
    for place in np.ndindex(slopes.shape):
        step = np.zeros(slopes.shape)
        step[place] = 1e-6
        ahead, back = (gradient.to_factors(slopes + s, highest) for s in (step, -step))
        assert found[place] == pytest.approx(np.sum(weights * (ahead - back)) / 2e-6, rel=1e-6)


@pytest.mark.parametrize(("learning_rate", "b1", "b2"), [(0.3, 0.8, 0.95), (0.1, 0.9, 0.99)])
def test_steps_are_those_of_adam(learning_rate, b1, b2):
    """Kingma and Ba, Algorithm 1, at a rate that falls as a half cosine."""
    settings = dataclasses.replace(SETTINGS, learning_rate=learning_rate, b1=b1, b2=b2)
    bounds = gradient.Bounds(10.0, (0.5, 2.0))
    state = gradient.begin(settings, bounds, [1.5, 2.0, 5.0], 1.1)
    slopes, log_attention = state.slopes.copy(), math.log(1.1)
    first, second = np.zeros(4), np.zeros(4)
    rng = np.random.default_rng(2)
    for step in range(settings.steps):
        factors_grad, attention_grad = rng.normal(0, 1, 3), rng.normal()
        factors, attention = gradient.point(bounds, state)
        assert factors == pytest.approx(gradient.to_factors(slopes, 10.0), rel=1e-9)
        assert attention == pytest.approx(math.exp(log_attention), rel=1e-9)
        state = gradient.tell(settings, bounds, state, factors_grad, attention_grad)
        grad = np.append(
            gradient.slopes_grad(slopes, 10.0, factors_grad), attention_grad * attention
        )
        first, second = b1 * first + (1 - b1) * grad, b2 * second + (1 - b2) * grad**2
        fall = 0.5 * (1 + math.cos(math.pi * step / settings.steps))
        ratio = first / (1 - b1 ** (step + 1)) / (np.sqrt(second / (1 - b2 ** (step + 1))) + 1e-8)
        slopes -= learning_rate * fall * ratio[:3]
        log_attention -= settings.attention_rate * fall * ratio[3]
    assert state.step == settings.steps


def test_attention_factor_stays_within_its_bounds():
    bounds = gradient.Bounds(10.0, (1.05, 1.2))
    for sign, end in ((1, 1.05), (-1, 1.2)):
        state = gradient.begin(SETTINGS, bounds, [1.0, 2.0], 1.1)
        for _ in range(8):
            state = gradient.tell(SETTINGS, bounds, state, np.zeros(2), float(sign))
        assert gradient.point(bounds, state)[1] == pytest.approx(end)
    fixed = gradient.Bounds(10.0, (1.1, 1.1))
    state = gradient.begin(SETTINGS, fixed, [1.0, 2.0], 1.3)
    state = gradient.tell(SETTINGS, fixed, state, np.zeros(2), 5.0)
    assert gradient.point(fixed, state)[1] == pytest.approx(1.1, rel=1e-15)


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
        objective.mean_nll(config, settings), tokens, None, np.exp, "perplexity", 64
    )
    factors = np.linspace(1.1, 4.0, config.rotary_dim // 2)
    r = rope.build(factors, theta=config.theta, start_tokens=3, attention_factor=1.1)
    at = sharding.replicated(mesh)
    sample = {k: v[0] for k, v in decoder.lay_out(settings, tokens).items()}
    where = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("context"))
    placed = sharding.put(params, decoder.param_shardings(config, mesh))
    fn = evaluator.gradient_fn(judge, config, mesh)
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
    config = tiny(tmp_path)
    usual = dict(search__method="gradient", search__gradient__steps=4)
    usual |= dict(search__gradient__ramp_moves=0)
    for name, value in (usual | keys).items():
        config.update_from_flattened_dict({name.replace("__", "."): value})
    return config


def test_a_descent_is_a_function_of_the_journal(tmp_path):
    """Killed after any row, a search ends with the same bytes."""
    config = descending(tmp_path, search__gradient__starts=2)
    whole = tmp_path / "whole"
    search.search(config, whole)
    lines = (whole / "journal.jsonl").read_text().splitlines(keepends=True)
    steps = [i for i, line in enumerate(lines) if "descent" in json.loads(line)]
    assert len(steps) == 8
    for kept in (steps[0], steps[2] + 1, steps[-1] + 1):
        again = tmp_path / f"again{kept}"
        again.mkdir()
        (again / "journal.jsonl").write_text("".join(lines[:kept]))
        search.search(config, again)
        assert (again / "rope.json").read_bytes() == (whole / "rope.json").read_bytes()


def test_the_result_of_a_descent_is_judged_beside_its_seeds(tmp_path):
    config = descending(tmp_path)
    result = search.search(config, tmp_path / "run")
    rows = rows_of(tmp_path / "run")
    judged = [row for row in rows if "genome" in row]
    last = [row for row in rows if "descent" in row][-1]
    assert len(judged) == 4  # PI, NTK, YaRN, and where the descent ended
    assert np.max(np.abs(np.array(judged[0]["factors"]) - last["factors"])) < 0.5
    assert min(row["fitness"] for row in judged) == result.content["perplexity"]
    tokens = result.content["forward_tokens"] - 3 * 4 * config.target_len
    assert tokens == result.content["evaluations"] * 2 * config.target_len


def test_hybrid_breeds_from_where_the_descent_ended(tmp_path):
    config = descending(tmp_path, search__method="hybrid")
    result = search.search(config, tmp_path / "run")
    rows = rows_of(tmp_path / "run")
    generations = {row["generation"] for row in rows if "genome" in row}
    assert len(generations) == config.search.algorithm.iterations
    assert result.content["search"]["method"] == "hybrid"


def test_steps_have_text_of_their_own(tmp_path):
    """No window comes twice, and none is one of those that judge."""
    made = problem.prepare(descending(tmp_path))
    windows = [made.fresh(step).samples[0] for step in range(12)]
    windows += list(made.objective.samples)
    assert len({window.tobytes() for window in windows}) == len(windows)
    assert np.array_equal(made.fresh(5).samples, made.fresh(5).samples)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (dict(search__compare=False), r"search\.compare must be True for method 'gradient'"),
        (
            dict(
                search__objective=dict(
                    name="mix", num_samples=2, text_weight=1.0, needle_weight=1.0
                )
                | dict(offset_tokens=0, num_keys=1, place="start"),
            ),
            r"search\.gradient\.batch must be even for the objective 'mix', .* got 1",
        ),
    ],
)
def test_messages(tmp_path, keys, message):
    with pytest.raises(InputError, match=message):
        search.search(descending(tmp_path, **keys), tmp_path / "run")
