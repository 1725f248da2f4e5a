"""Attention in running text and where an answer is written, against dense attention in float64."""

import numpy as np
import pytest

from jaxrope import decoder
from jaxrope.analysis import answers, streaming, texts
from jaxrope.errors import InputError
from tests.tiny_heads import SETTINGS, attention_of, loud

LENGTH = 41  # more than the trained length


@pytest.fixture(scope="module")
def read(tiny_config, tiny_params):
    """(params, tokens, rope, attention [L, N, T, S])."""
    tokens = np.random.default_rng(1).integers(0, 9, LENGTH).astype(np.int32)
    params, r = loud(tiny_params), decoder.own_rope(tiny_config)(LENGTH)
    return params, tokens, r, attention_of(tiny_config, params, tokens, r)


def without_first(p):
    kept = np.where(np.arange(p.shape[-1]) >= 1, p, 0)
    total = kept.sum(-1, keepdims=True)
    return np.where(total > 0, kept / np.where(total > 0, total, 1), 0)


def entropy(p):
    return -np.sum(p * np.log(np.where(p > 0, p, 1)), axis=-1)


def pattern(p, chosen, first):
    """Mean probability by distance, a query and a distance at a time."""
    found = np.zeros((*p.shape[:2], LENGTH))
    for distance in range(LENGTH):
        seen = [i for i in chosen if i - distance >= first]
        if seen:
            found[..., distance] = np.mean([p[:, :, i, i - distance] for i in seen], axis=0)
    return found


def test_queries_stand_in_the_second_half():
    assert texts.places(8, 3).tolist() == [4, 6, 7]
    assert texts.places(8, 100).tolist() == [4, 5, 6, 7]
    assert texts.places(9, 1).tolist() == [8]


def test_a_text_is_read_as_dense_attention_has_it(read, tiny_config):
    params, tokens, r, p = read
    found = texts.read(tiny_config, params, r, tokens, queries=7, settings=SETTINGS)
    chosen = texts.places(LENGTH, 7)
    assert len(chosen) == 7 and chosen[0] == 20
    np.testing.assert_allclose(found.whole, pattern(p, chosen, 0), atol=2e-6)
    np.testing.assert_allclose(found.rest, pattern(without_first(p), chosen, 1), atol=2e-6)
    np.testing.assert_allclose(found.last, p[:, :, -1], atol=2e-6)
    some, counts = p[:, :, chosen], chosen + 1.0
    wanted = {
        "entropy": entropy(some),
        "normalised_entropy": entropy(some) / np.log(counts),
        "non_sink_entropy": entropy(without_first(some)),
        "effective_tokens": np.exp(entropy(some)),
        "participation": 1 / np.sum(some**2, axis=-1),
        "sink": some[..., 0],
        "max_p": some.max(-1),
        "mean_distance": np.sum(some * (chosen[:, None] - np.arange(LENGTH)), axis=-1),
    }
    for name, values in wanted.items():
        np.testing.assert_allclose(found.statistics[name], values.mean(-1), rtol=2e-5, err_msg=name)


def test_an_answer_is_read_as_dense_attention_has_it(read, tiny_config):
    params, tokens, r, p = read
    steps, span = (37, 38, 40), (5, 9)
    found = answers.read(tiny_config, params, r, tokens, steps=steps, span=span, settings=SETTINGS)
    rows = p[:, :, np.array(steps) - 1]  # the token before writes
    wanted = {
        "entropy": entropy(rows),
        "normalised_entropy": entropy(rows) / np.log(np.array(steps)),
        "non_sink_entropy": entropy(without_first(rows)),
        "needle_mass": rows[..., 5:9].sum(-1),
        "sink": rows[..., 0],
    }
    assert set(wanted) == set(answers.OF_HEADS)
    for name, values in wanted.items():
        np.testing.assert_allclose(found.heads[name], values.mean(-1), rtol=2e-5, err_msg=name)
        assert found.mean(name) == pytest.approx(values.mean(), rel=2e-5)
    mean = rows.mean((0, 1))
    assert found.entropy_of_mean == pytest.approx(entropy(mean).mean(), rel=2e-5)
    assert found.entropy_of_mean > found.mean("entropy")  # Jensen
    inside = (rows.argmax(-1) >= 5) & (rows.argmax(-1) < 9)
    np.testing.assert_allclose(found.top_in_needle, inside.mean(-1))
    edges = streaming.edges(tiny_config.original_len)
    rest = without_first(rows)
    for e, (low, high) in enumerate(zip(edges[:-1], edges[1:], strict=True)):
        mass = [
            rest[:, :, m, max(step - 1 - high + 1, 0) : step - 1 - low + 1].sum(-1)
            for m, step in enumerate(steps)
        ]
        wanted = np.mean(mass, axis=0) / (high - low)
        np.testing.assert_allclose(found.curve[..., e], wanted, atol=2e-6)


@pytest.mark.parametrize(
    ("steps", "span"), [((37,), (36, 39)), ((41,), (1, 2)), ((), (1, 2)), ((37,), (4, 4))]
)
def test_a_needle_behind_its_answer_is_refused(read, tiny_config, steps, span):
    params, tokens, r, _ = read
    with pytest.raises(InputError, match="the needle must stand before the answer, and that in"):
        answers.read(tiny_config, params, r, tokens, steps=steps, span=span, settings=SETTINGS)
