"""Forms of a result: numbers and factors, against definitions, quotients and transformers."""

import dataclasses
import math

import numpy as np
import pytest
from scipy import optimize

from jaxrope import rope
from jaxrope.search import forms

R = 16
LIMITS = forms.Limits(lowest=0.8, highest=10.0, scale=8.0, critical_pairs=(3, 6, 9))
GEOMETRY = dict(head_dim=2 * R, rotary_dim=2 * R, theta=1e4, original_len=512)
PAIRS = np.arange(R)
# factors that each form has: what its shape is made for
FACTORS = {
    "free": np.random.default_rng(0).uniform(0.9, 9, R),
    "monotone": np.sort(np.random.default_rng(1).uniform(0.9, 9, R)),
    "piecewise": np.concatenate([np.ones(5), np.linspace(1.5, 7, 6), np.full(5, 8.0)]),
    "critical": np.where(PAIRS < 6, 8.5 ** (PAIRS / 6), np.linspace(8.5, 9.9, R)[PAIRS - 6]),
    "yarn": rope.ramp_factors(4, 11, R, 8.7),
    "ntk": 7.0 ** (PAIRS / (R - 1)),
}
RAMPS = [(0, 1), (3, 4), (4, 11), (9, R), (R - 2, R), (0, R)]


def shapes():
    """Every form, and ramps of all kinds."""
    yield from ((name, forms.of(name, LIMITS, factors)) for name, factors in FACTORS.items())
    yield from ((f"yarn {ramp}", forms.yarn_at(LIMITS, R, ramp)) for ramp in RAMPS)


def numbers_of(shape, *leading, seed=0):
    """Legal numbers, all the same distance from one another or more."""
    count = shape.numbers_fn(np.zeros(R)).size
    rng = np.random.default_rng(seed)
    numbers = rng.uniform(shape.lowest + 0.01, shape.highest - 0.01, (*leading, count))
    return np.sort(numbers, axis=-1) if shape.ascends else numbers


@pytest.mark.parametrize(("name", "shape"), list(shapes()))
def test_numbers_come_back_from_factors(name, shape):
    for leading in ((), (2,), (2, 3)):
        numbers = numbers_of(shape, *leading)
        back = shape.numbers_fn(shape.logs_fn(numbers))
        np.testing.assert_allclose(back, numbers, rtol=1e-9, atol=1e-9)
        assert shape.logs_fn(numbers).shape == (*leading, R)
    legal = numbers_of(shape, 2)
    assert np.array_equal(shape.settle(legal, np.ones_like(legal)), legal)


@pytest.mark.parametrize(("name", "shape"), list(shapes()))
def test_slopes_are_difference_quotients(name, shape):
    rng, numbers = np.random.default_rng(2), numbers_of(shape, 3)
    slopes_XR = rng.normal(size=(3, R))
    found, step = shape.slopes_fn(numbers, slopes_XR), 1e-6
    assert found.shape == numbers.shape
    for k in range(numbers.shape[-1]):
        moved = step * (np.arange(numbers.shape[-1]) == k)
        change = (shape.logs_fn(numbers + moved) - shape.logs_fn(numbers - moved)) / (2 * step)
        np.testing.assert_allclose(found[:, k], np.sum(slopes_XR * change, axis=-1), rtol=1e-6)


@pytest.mark.parametrize("name", FACTORS)
def test_a_form_knows_its_own(name):
    """They come back as they are, and are of no form that is narrower."""
    factors = FACTORS[name]
    np.testing.assert_allclose(forms.nearest(name, LIMITS, factors), factors, rtol=1e-9)
    fitting = {other for other in forms.FORMS if forms.fits(other, LIMITS, factors)}
    wider = dict(free=set(), ntk={"free", "monotone", "piecewise"})
    assert fitting == {name} | wider.get(name, {"free", "monotone"})


def test_the_borders_that_suit_best():
    """A ramp, its critical pair, and where a piecewise one begins and ends."""
    assert forms.of("yarn", LIMITS, FACTORS["yarn"]).constants == {"borders": (4, 11)}
    assert forms.of("critical", LIMITS, FACTORS["critical"]).constants == {"critical_pair": 6}
    piecewise = forms.of("piecewise", LIMITS, FACTORS["piecewise"])
    assert piecewise.numbers_fn(np.zeros(R)).size == 6
    free = piecewise.logs_fn(np.full(6, 0.5))
    np.testing.assert_allclose(free, [0] * 5 + [0.5] * 6 + [math.log(8)] * 5)
    noisy = FACTORS["yarn"] * np.exp(np.random.default_rng(3).normal(0, 0.01, R))
    assert forms.of("yarn", LIMITS, noisy).constants == {"borders": (4, 11)}
    each = np.stack([FACTORS["yarn"], 1.1 * FACTORS["yarn"]])  # of layers: one ramp for all
    assert forms.of("yarn", LIMITS, each).constants == {"borders": (4, 11)}


def isotonic(values, weights):
    """The min-max formula of isotonic regression: the largest of the left ends, of the least of the
    right ends, of the weighted mean between (Robertson, Wright and Dykstra, 1.4)."""
    count = len(values)

    def mean(i, j):
        return np.average(values[i : j + 1], weights=weights[i : j + 1])

    return [
        max(min(mean(i, j) for j in range(k, count)) for i in range(k + 1)) for k in range(count)
    ]


@pytest.mark.parametrize("seed", range(5))
def test_settling_is_isotonic_regression_by_weights(seed):
    rng, shape = np.random.default_rng(seed), forms.of("monotone", LIMITS, FACTORS["monotone"])
    values, weights = rng.normal(1, 0.8, (2, 3, 9)), rng.uniform(0.01, 5, (2, 3, 9))
    found = shape.settle(values, weights)
    for place in np.ndindex(2, 3):
        wanted = np.clip(isotonic(values[place], weights[place]), shape.lowest, shape.highest)
        np.testing.assert_allclose(found[place], wanted, rtol=1e-12)
    free = forms.of("free", LIMITS, FACTORS["free"])
    assert np.array_equal(
        free.settle(values, weights), np.clip(values, math.log(0.8), math.log(10))
    )


def test_settling_is_the_nearest_of_all_that_is_legal():
    """Bounds too, against a quadratic program."""
    shape = forms.of("monotone", LIMITS, FACTORS["monotone"])
    values = np.array([0.1, -1.0, 1.2, 0.9, 2.6, 3.1])
    weights = np.array([2.0, 0.5, 0.3, 1.0, 2.0, 0.1])
    ascends = {"type": "ineq", "fun": np.diff}
    best = optimize.minimize(
        lambda x: np.sum(weights * (x - values) ** 2),
        np.linspace(0, 1, 6),
        method="SLSQP",
        bounds=[(shape.lowest, shape.highest)] * 6,
        constraints=[ascends],
        options=dict(ftol=1e-14, maxiter=500),
    ).x
    assert np.any(np.isclose(best, shape.highest)) and np.any(np.diff(best) < 1e-6)
    np.testing.assert_allclose(shape.settle(values, weights), best, atol=1e-5)


@pytest.mark.parametrize("bounds", [(0.8, 10.0), (1.0, 9.0)])
def test_numbers_stay_in_their_limits(bounds):
    limits = LIMITS._replace(lowest=bounds[0], highest=bounds[1])
    for name, factors in FACTORS.items():
        shape = forms.of(name, limits, factors)
        far = np.array([-9.0, 9.0])[:, None] * np.ones(shape.numbers_fn(np.zeros(R)).size)
        logs = shape.logs_fn(shape.settle(far, np.ones_like(far)))
        lowest, highest = np.exp(logs.min()), np.exp(logs.max())
        assert lowest >= bounds[0] * (1 - 1e-9) and highest <= bounds[1] * (1 + 1e-9)
        if name in ("critical", "yarn"):  # what is stretched is stretched by the whole factor
            assert np.exp(logs[:, -1]).min() >= 8.0 - 1e-9
        if name in ("free", "monotone", "ntk"):
            np.testing.assert_allclose(np.exp(logs[:, -1]), bounds, rtol=1e-12)


@pytest.mark.parametrize("ramp", RAMPS)
@pytest.mark.parametrize("factor", [8.0, 9.5])
def test_yarn_is_the_ramp(ramp, factor):
    logs = forms.yarn_at(LIMITS, R, ramp).logs_fn(np.array([math.log(factor)]))
    np.testing.assert_allclose(np.exp(logs), rope.ramp_factors(*ramp, R, factor), rtol=1e-12)


@pytest.mark.parametrize("factor", [2.0, 8.0])
def test_ntk_is_a_larger_base(factor):
    wanted = rope.make("ntk", **GEOMETRY, factor=factor).bucket(4096).factors
    shape = forms.of("ntk", LIMITS, FACTORS["ntk"])
    np.testing.assert_allclose(np.exp(shape.logs_fn(np.log([factor]))), wanted, rtol=1e-12)
    assert forms.fits("ntk", LIMITS, np.array(wanted))


@pytest.mark.parametrize("pair", LIMITS.critical_pairs)
def test_critical_is_ntk_below_its_pair(pair):
    wanted = rope.make("ntk_rcd", **GEOMETRY, factor=8.0, critical_pair=pair).bucket(4096).factors
    shape = forms.of("critical", LIMITS, np.array(wanted))
    assert shape.constants == {"critical_pair": pair}
    numbers = shape.numbers_fn(np.log(wanted))
    assert numbers.shape == (R - pair,)
    np.testing.assert_allclose(numbers, math.log(8), rtol=1e-12)
    np.testing.assert_allclose(np.exp(shape.logs_fn(numbers)), wanted, rtol=1e-12)


@pytest.mark.parametrize("truncate", [True, False])
@pytest.mark.parametrize("theta", [1e4, 5e5])
@pytest.mark.parametrize("borders", [(0, 1), (5, 6), (5, 12), (0, 16), (9, 16), (14, 16)])
def test_a_yarn_result_is_that_of_transformers(borders, theta, truncate):
    """Its constants give the same frequencies whether a program rounds the borders or not."""
    transformers = pytest.importorskip("transformers")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    geometry = GEOMETRY | dict(theta=theta)
    ours = forms.of_rope(borders, 8.0, attention_factor=1.15, **geometry)
    limits = LIMITS._replace(highest=8.0)
    logs = forms.yarn_at(limits, R, borders).logs_fn(np.log([8.0]))
    np.testing.assert_allclose(ours.bucket(4096).factors, np.exp(logs), rtol=1e-5)
    betas = {name: ours.constants[name] for name in ("beta_fast", "beta_slow")}
    config = transformers.LlamaConfig(
        head_dim=2 * R,
        max_position_embeddings=4096,
        rope_parameters=dict(
            rope_type="yarn",
            rope_theta=theta,
            factor=8.0,
            attention_factor=1.15,
            original_max_position_embeddings=512,
            truncate=truncate,
            **betas,
        ),
    )
    inv_freq, attention_factor = ROPE_INIT_FUNCTIONS["yarn"](config, device="cpu")
    plain = theta ** -(PAIRS / R)
    np.testing.assert_allclose(plain / inv_freq.numpy(), np.exp(logs), rtol=2e-5)
    assert attention_factor == 1.15


def test_forms_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        forms.yarn_at(LIMITS, R, (1, 2)).lowest = 0.0
