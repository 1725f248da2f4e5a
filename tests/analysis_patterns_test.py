"""Curves of distance and their similarity: against scipy, by hand, and where it is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial import distance as scipy_distance

from jaxrope.analysis import patterns
from jaxrope.errors import InputError


def causal_weights(length, seed=0, heads=()):
    logits = np.random.default_rng(seed).normal(size=(*heads, length, length)) * 2
    logits = np.where(np.tril(np.ones((length, length), bool)), logits, -np.inf)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def test_js_is_the_square_of_scipys_number():
    rng = np.random.default_rng(0)
    p, q = rng.gamma(0.3, size=(2, 5, 40))
    found = patterns.js(p, q)
    assert found.shape == (5,) and found.dtype == np.float64
    root = scipy_distance.jensenshannon(p, q, axis=-1)
    np.testing.assert_allclose(found, root**2, rtol=1e-12)
    np.testing.assert_allclose(patterns.js(q, p), found, rtol=1e-12)
    np.testing.assert_allclose(patterns.js(7 * p, q / 3), found, rtol=1e-12)


def test_js_where_the_answer_is_known():
    assert patterns.js([0.25, 0.75], [0.25, 0.75]) == 0
    apart = patterns.js([1.0, 1, 0, 0], [0.0, 0, 1, 3])
    assert apart == pytest.approx(np.log(2), rel=1e-12)  # the bound, in nats
    # (1, 0) and (1/2, 1/2): middle (3/4, 1/4)
    wanted = 0.5 * np.log(4 / 3) + 0.25 * np.log(2 / 3) + 0.25 * np.log(2)
    assert patterns.js([1.0, 0.0], [0.5, 0.5]) == pytest.approx(wanted, rel=1e-12)


def test_js_is_bounded_and_its_root_is_a_metric():
    p, q, r = np.random.default_rng(1).gamma(0.05, size=(3, 200, 8)) + 1e-300
    pq, qr, pr = (np.sqrt(patterns.js(*two)) for two in ((p, q), (q, r), (p, r)))
    assert np.all(pq**2 <= np.log(2) + 1e-12)
    assert np.all(pr <= pq + qr + 1e-9)


def test_js_of_jax_arrays_has_the_same_value_and_a_slope():
    p, q = np.random.default_rng(2).gamma(0.5, size=(2, 30))
    q[:3] = 0
    found = patterns.js(jnp.float32(p), jnp.float32(q))
    assert isinstance(found, jax.Array)
    assert float(found) == pytest.approx(float(patterns.js(p, q)), rel=1e-5)
    slope = jax.grad(lambda x: patterns.js(x, jnp.float32(q)))(jnp.float32(p))
    step = np.eye(30)[7] * 1e-6
    wanted = (patterns.js(p + step, q) - patterns.js(p - step, q)) / 2e-6
    assert float(slope[7]) == pytest.approx(float(wanted), rel=1e-3)
    assert np.all(np.isfinite(slope))


@pytest.mark.parametrize("window, first_keys", [(None, 0), (3, 0), (None, 1), (4, 2)])
def test_pairs_are_counted_as_a_loop_would(window, first_keys):
    positions = np.array([0, 1, 2, 3, 4, 0, 1, 2, 7])  # two documents, and one query of a third
    wanted = np.zeros(9, int)
    for i in positions:
        for j in range(first_keys, i + 1):
            if window is None or i - j < window:
                wanted[i - j] += 1
    found = patterns.pair_counts(positions, 9, window=window, first_keys=first_keys)
    assert found.tolist() == wanted.tolist()


def test_a_curve_is_the_mean_over_queries_that_have_the_distance():
    weights = causal_weights(12, heads=(2, 3))
    diagonals = [np.diagonal(weights, -d, axis1=-2, axis2=-1) for d in range(12)]
    mass = np.stack([diagonal.sum(-1) for diagonal in diagonals], axis=-1)
    counts = patterns.pair_counts(np.arange(12), 12)
    found = patterns.curve(mass, counts)
    assert found.shape == (2, 3, 12) and counts.tolist() == list(range(12, 0, -1))
    for distance, diagonal in enumerate(diagonals):
        np.testing.assert_allclose(found[..., distance], diagonal.mean(-1), rtol=1e-12)
    assert patterns.curve([0.0, 5.0], [3, 0]).tolist() == [0.0, 0.0]  # no query sees so far


@pytest.mark.parametrize("asarray", [np.asarray, jnp.asarray])
def test_surprise_sums_to_the_entropy(asarray):
    p = asarray([0.5, 0.25, 0.25, 0.0])
    assert float(patterns.surprise(p).sum()) == pytest.approx(1.5 * np.log(2), rel=1e-6)


def test_bins():
    values = np.arange(20.0).reshape(2, 10)
    found = patterns.binned(values, [0, 1, 4, 9])
    np.testing.assert_allclose(found, [[0, 6, 30], [10, 36, 80]])
    mass, counts = np.array([4.0, 3.0, 2.0]), np.array([4, 6, 0])
    assert patterns.curve(mass, counts).tolist() == [1.0, 0.5, 0.0]
    with pytest.raises(ValueError, match="edges ascend within 10 distances"):
        patterns.binned(values, [0, 11])


def test_distances_below_the_training_length():
    curve = np.array([4.0, 3, 2, 1])
    other = np.array([4.0, 3])
    assert patterns.js(patterns.below(curve, 2), other) == 0  # made a distribution again
    assert patterns.js(patterns.below(curve, 3), [4.0, 3, 1]) > 0
    with pytest.raises(InputError, match="num_distances must be from 1 to 4, .* got 5"):
        patterns.below(curve, 5)


@pytest.mark.parametrize("factor", [2, 3])
def test_a_stretched_curve_is_the_same_on_relative_distance(factor):
    curve = np.random.default_rng(0).gamma(0.5, size=(2, 12))
    stretched = np.repeat(curve, factor, axis=-1) / factor
    for num_bins in (4, 12, 7, 24):
        a, b = patterns.relative(curve, num_bins), patterns.relative(stretched, num_bins)
        np.testing.assert_allclose(a, b, rtol=1e-12)
        np.testing.assert_allclose(a.sum(-1), curve.sum(-1), rtol=1e-12)
    assert np.max(patterns.js(patterns.below(stretched, 12), curve)) > 0.01
    np.testing.assert_allclose(patterns.interpolated(stretched, factor), curve, rtol=1e-12)
    np.testing.assert_allclose(
        patterns.interpolated(stretched, factor), patterns.relative(stretched, 12), rtol=1e-12
    )


def test_bins_that_cut_a_distance_take_their_share():
    curve = np.array([4.0, 2.0, 1.0])
    np.testing.assert_allclose(patterns.relative(curve, 2), [5.0, 2.0])  # 4 + 2/2, 2/2 + 1
    np.testing.assert_allclose(patterns.interpolated(curve, 1.5), [5.0, 2.0])
    np.testing.assert_allclose(patterns.interpolated(curve, 2.0), [6.0])  # whole bins alone
    np.testing.assert_allclose(patterns.interpolated(np.ones(30), 1.1), [1.1] * 27)


@pytest.mark.parametrize("factor", [0.5, 4, float("nan")])
def test_factors_that_leave_nothing(factor):
    with pytest.raises(InputError, match="factor must be from 1 to 3, the distances"):
        patterns.interpolated(np.ones(3), factor)


def test_similarity_of_each_head_and_of_the_mean():
    rng = np.random.default_rng(3)
    p, q = rng.gamma(0.5, size=(2, 2, 4, 16)) * np.array([1, 30, 1, 1])[:, None]
    found = patterns.similarity(p, q)
    root = scipy_distance.jensenshannon(p, q, axis=-1)
    np.testing.assert_allclose(found.root, root, rtol=1e-10)
    assert found.mean_js == pytest.approx(np.mean(root**2), rel=1e-10)
    mean = [(x / x.sum(-1, keepdims=True)).mean((0, 1)) for x in (p, q)]  # no head counts more
    wanted = scipy_distance.jensenshannon(*mean) ** 2
    assert found.js_of_mean == pytest.approx(wanted, rel=1e-10)
    assert found.js_of_mean < found.mean_js


def test_heads_that_change_places_cancel_in_the_mean():
    p = np.array([[[1.0, 0], [0, 1]]])
    found = patterns.similarity(p, p[:, ::-1])
    np.testing.assert_allclose(found.js, np.log(2))
    assert found.js_of_mean == 0


@pytest.mark.parametrize(
    "p, q, message",
    [
        ([1.0, 2], [1.0, 2, 3], "same distances, got 2 and 3. Take patterns.below"),
        ([0.0, 0], [1.0, 2], "not all 0, got sums from 0 to 0"),
        ([1.0, -1e-3], [1.0, 2], "the least number -0.001"),
        ([1.0, float("nan")], [1.0, 2], "finite numbers of 0 or more"),
    ],
)
def test_what_is_no_curve(p, q, message):
    with pytest.raises(InputError, match=message):
        patterns.js(p, q)


def test_no_bin():
    with pytest.raises(InputError, match="num_bins must be 1 or more, got 0"):
        patterns.relative(np.ones(3), 0)
