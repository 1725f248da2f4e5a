"""Heads that are masked: a model without them by hand, made-up models whose answer is known, and
the suite of needles as what is asked.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrope import decoder, evaluate
from jaxrope.analysis import causal, heads
from jaxrope.data import BytesTokenizer
from jaxrope.errors import InputError
from jaxrope.evaluate import statistics
from jaxrope.evaluate.scoring import EvalModel
from tests.benches import make_bench
from tests.tiny_heads import SETTINGS, loud, read_text


@pytest.fixture(scope="module")
def read(tiny_config, tiny_params):
    return read_text(tiny_config, tiny_params)


def test_a_head_without_rows_adds_nothing(tiny_config, read):
    params, tokens, r, _ = read
    masked = heads.without_heads(params, [(0, 1), (1, 3)])
    assert masked["embed_VD"] is params["embed_VD"]
    assert np.any(params["layers"]["o_LNHD"][0, 1])  # those given are as they were
    found = decoder.logits(tiny_config, masked, tokens[None], r)
    # by hand: heads 0, 2, 3 of layer 0 and 0, 1, 2 of layer 1 put together again
    keep = np.ones((2, 4, 1, 1))
    keep[0, 1] = keep[1, 3] = 0
    rest = params | {"layers": params["layers"] | {"o_LNHD": params["layers"]["o_LNHD"] * keep}}
    assert np.array_equal(found, decoder.logits(tiny_config, rest, tokens[None], r))
    assert np.abs(found - decoder.logits(tiny_config, params, tokens[None], r)).max() > 1e-3
    on_host = jax.tree.map(np.asarray, params)
    again = heads.without_heads(on_host, [(0, 1), (1, 3)])["layers"]["o_LNHD"]
    assert np.array_equal(again, masked["layers"]["o_LNHD"]) and isinstance(again, np.ndarray)
    assert np.any(on_host["layers"]["o_LNHD"][0, 1])
    assert heads.without_heads(params, []) is params


def test_adapters_of_a_masked_head_add_nothing(tiny_config, read):
    params, tokens, r, _ = read
    rng = np.random.default_rng(0)
    layers = params["layers"] | {
        "o_a_LNHU": jnp.float32(rng.normal(size=(2, 4, 8, 2))),
        "o_b_LUD": jnp.float32(rng.normal(size=(2, 2, 32))),
        decoder.adapters.SCALE: jnp.ones(2),
    }
    adapted = params | {"layers": layers}
    every = [(layer, head) for layer in range(2) for head in range(4)]
    found = decoder.logits(tiny_config, heads.without_heads(adapted, every), tokens[None], r)
    none = params | {"layers": params["layers"] | {"o_LNHD": 0 * params["layers"]["o_LNHD"]}}
    np.testing.assert_allclose(found, decoder.logits(tiny_config, none, tokens[None], r), atol=1e-6)


@pytest.mark.parametrize("head", [(2, 0), (0, 4), (-1, 0)])
def test_heads_that_are_not_there(tiny_params, head):
    with pytest.raises(InputError, match=r"heads must be from \(0, 0\) to \(1, 3\), .* got"):
        heads.without_heads(tiny_params, [head])


def fake_params(num_layers=4, num_heads=8):
    return {"layers": {"o_LNHD": np.ones((num_layers, num_heads, 1, 1))}}


def left(params):
    return {tuple(map(int, head)) for head in np.argwhere(params["layers"]["o_LNHD"][..., 0, 0])}


def test_masking_the_heads_that_matter_shows():
    """A model that answers trial w while head w of the best two is there."""
    ranking = heads.ranked(np.random.default_rng(0).random((4, 8)))
    asked = []

    def found_fn(params):
        asked.append(left(params))
        return [ranking[w % 2] in asked[-1] or w == 5 for w in range(6)]

    found = causal.mask_best(
        fake_params(), ranking, found_fn, sizes=(1, 2), num_draws=3, num_samples=500, seed=0
    )
    one, two = found
    assert (one.accuracy, one.top, one.random, one.heads) == (1, 0.5, 1, tuple(ranking[:1]))
    assert two.top == pytest.approx(1 / 6) and two.effect == pytest.approx(5 / 6)
    assert two.random == 1 and two.random_draws == (1, 1, 1) and two.low > 0.4
    assert two.high <= 1 and one.low < one.effect < one.high
    assert len(asked) == 1 + 2 * 4 and len(asked[0]) == 32
    assert [32 - len(some) for some in asked[1:]] == [1] * 4 + [2] * 4
    for some in asked[6:]:
        assert not (set(ranking[:2]) - some)  # none of the best is drawn
    assert len({frozenset(some) for some in asked[6:]}) == 3
    again = causal.mask_best(
        fake_params(), ranking, found_fn, sizes=(1, 2), num_draws=3, num_samples=500, seed=0
    )
    assert again == found


def test_half_of_the_heads_leaves_the_other_half_to_be_drawn():
    ranking, masked = heads.ranked(np.random.default_rng(2).random((4, 8))), []

    def found_fn(params):
        masked.append(set(ranking) - left(params))
        return [True]

    how = dict(sizes=(16,), num_draws=2, num_samples=1, seed=3)
    (found,) = causal.mask_best(fake_params(), ranking, found_fn, **how)
    best = set(ranking[:16])
    assert set(found.heads) == best and masked == [set(), best] + [set(ranking) - best] * 2


def test_masking_heads_that_do_nothing_shows_nothing():
    rng = np.random.default_rng(1)
    answers = rng.random(40) < 0.5
    found = causal.mask_best(
        fake_params(),
        heads.ranked(rng.random((4, 8))),
        lambda params: answers,
        sizes=(3,),
        num_draws=2,
        num_samples=100,
        seed=0,
    )[0]
    assert found.accuracy == found.top == found.random == answers.mean()
    assert found.effect == found.low == found.high == 0


def test_the_interval_resamples_draws_and_trials():
    difference = np.random.default_rng(0).integers(-1, 2, (3, 10)).astype(float)
    found = statistics.crossed_interval(difference, num_samples=4000, seed=0)
    rng, means = np.random.default_rng(5), []
    for _ in range(4000):
        rows, columns = rng.integers(3, size=3), rng.integers(10, size=10)
        means.append(difference[rows][:, columns].mean())
    np.testing.assert_allclose(found, np.quantile(means, [0.025, 0.975]), atol=0.035)


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(sizes=(17,)), "causal.sizes must be from 1 to 16, half of the model's heads"),
        (dict(sizes=(0,)), "causal.sizes must be from 1 to 16"),
        (dict(num_draws=0), "causal.num_draws must be 1 or more, got 0"),
        (dict(num_samples=0), "causal.num_samples must be 1 or more, got 0"),
    ],
)
def test_what_cannot_be_masked(changes, message):
    how = dict(sizes=(1,), num_draws=1, num_samples=1, seed=0) | changes
    with pytest.raises(InputError, match=message):
        causal.mask_best(fake_params(), heads.ranked(np.zeros((4, 8))), list, **how)


def test_the_suite_of_needles_is_what_is_asked(tiny_config, tiny_params):
    """The evaluation answers for the parameters that it is given."""
    changes = dict(needle_filler="grass", needle_keys=(1,), needle_trials=3, lengths=(420,))
    bench = make_bench(seed=7, suites=("needle",), **changes)
    model = EvalModel(
        config=tiny_config,
        params=None,
        rope_fn=decoder.own_rope(tiny_config),
        tokenizer=BytesTokenizer(),
        settings=SETTINGS,
        label="x",
    )
    nlls = []

    def found_fn(params):
        (result,) = evaluate.run(dataclasses.replace(model, params=params), bench)
        nlls.append(result.items["nll"])
        return result.items["found"]

    ranking = heads.ranked(np.arange(8).reshape(2, 4))
    (found,) = causal.mask_best(
        loud(tiny_params), ranking, found_fn, sizes=(4,), num_draws=1, num_samples=10, seed=0
    )
    assert found.accuracy == found.top == 0  # a random model finds nothing
    assert (
        len(nlls) == 3 and not np.allclose(nlls[0], nlls[1]) and not np.allclose(nlls[1], nlls[2])
    )
