"""Kinds of heads: against dense attention in float64, and made-up heads whose answer is known."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrope import decoder
from jaxrope.analysis import heads, rows
from jaxrope.attention import masks
from jaxrope.data import BytesTokenizer, needles
from jaxrope.errors import InputError
from tests.tiny_heads import SETTINGS, probed, read_text


@pytest.fixture(scope="module")
def read(tiny_config, tiny_params):
    return read_text(tiny_config, tiny_params)


def test_hits_by_hand():
    #         0  1  2  3  4  5  6  7  8
    tokens = [9, 5, 6, 7, 1, 8, 5, 6, 7]
    top_keys = np.array(
        [  # of the queries before the steps 6, 7, 8: one column a head
            [1, 1, 6, 1, 3],
            [2, 2, 7, 1, 2],
            [3, 0, 8, 1, 1],
        ]
    )
    # head 0 copies all; 1 loses the last one; 2 finds the tokens outside the span; 3 stays at
    # the first; 4 is in the span, at another token but for the middle one
    found = heads.hits(top_keys, tokens, (6, 7, 8), (1, 4))
    assert found.tolist() == [3, 2, 0, 1, 1]
    assert heads.hits(top_keys, tokens, (6, 7, 8), (2, 4)).tolist() == [2, 1, 0, 0, 1]
    assert heads.hits(top_keys, tokens, (6, 7, 8), (1, 3)).tolist() == [2, 2, 0, 1, 1]


@pytest.mark.parametrize("steps, span", [((20, 21, 22), (3, 19)), ((24, 30, 32), (1, 23))])
def test_retrieval_is_that_of_dense_attention(tiny_config, read, steps, span):
    params, tokens, r, attention = read
    trial = heads.Trial(tokens, steps, span)
    found = heads.retrieval(tiny_config, params, lambda _: r, [trial], settings=SETTINGS)
    top = attention[:, :, np.array(steps) - 1].argmax(-1)  # L, N, M
    wanted = np.zeros(top.shape[:2])
    for (layer, head, step), key in np.ndenumerate(top):
        wanted[layer, head] += span[0] <= key < span[1] and tokens[key] == tokens[steps[step]]
    np.testing.assert_allclose(found.scores_WLN[0], wanted / (span[1] - span[0]))
    assert 0 < wanted.sum() < wanted.size
    mass = attention[:, :, np.array(steps) - 1, slice(*span)].sum(-1).mean(-1)
    np.testing.assert_allclose(found.mass_WLN[0], mass, atol=1e-5)
    logits = np.asarray(decoder.logits(tiny_config, params, tokens[None], r))[0]
    right = logits[np.array(steps) - 1].argmax(-1) == tokens[np.array(steps)]
    assert found.recall_W.tolist() == [right.mean()]


def test_only_trials_that_were_answered_count():
    scores = np.arange(12.0).reshape(3, 2, 2)
    found = heads.Retrieval(scores, scores, np.array([1.0, 0.5, 0.6]))
    np.testing.assert_allclose(found.mean(), (scores[0] + scores[2]) / 2)
    np.testing.assert_allclose(found.mean(least_recall=0.7), scores[0])
    with pytest.raises(InputError, match="no trial of 3 has a recall above 1.0, the best has 1.00"):
        found.mean(least_recall=1.0)


def test_heads_are_ranked_and_detected():
    scores = np.array([[0.1, 0.5, 0.0], [0.5, 0.2, 0.11]])
    assert heads.ranked(scores) == [(0, 1), (1, 0), (1, 1), (1, 2), (0, 0), (0, 2)]
    assert heads.detect(scores, above=0.1) == [(0, 1), (1, 0), (1, 1), (1, 2)]
    assert heads.detect(scores, above=0.5) == []


def test_a_needle_document_is_a_trial():
    source = needles.Source(BytesTokenizer(), needles.grass(BytesTokenizer()), "evaluation", "x")
    document = needles.make_document(
        source, length=1400, num_keys=3, seed=1, index=0, depth=0.3, num_asked=2
    )
    for asked in range(2):
        trial = heads.number_trial(BytesTokenizer(), document, asked)
        text = BytesTokenizer().decode(trial.tokens[slice(*trial.span)])
        assert text == document.numbers[asked]
        assert np.array_equal(trial.tokens[list(trial.steps)], trial.tokens[slice(*trial.span)])
        assert len(trial.tokens) == trial.steps[-1] + 1
        line = BytesTokenizer().decode(document.tokens[slice(*document.spans[asked])])
        assert document.numbers[asked] in line


def test_a_number_needs_tokens_of_its_own():
    class Letters:
        def decode(self, ids):
            return "x1"

    document = SimpleNamespace(tokens=np.arange(9), spans=[(2, 5)], numbers=["123"], answers=[[8]])
    with pytest.raises(InputError, match="of the tokens 2 to 4, where the number 123 stands, none"):
        heads.number_trial(Letters(), document)


@pytest.mark.parametrize("block", [8, 512])
def test_sinks_are_those_of_dense_attention(tiny_config, read, block):
    params, tokens, r, attention = read

    def probe_fn(seen):
        return heads.first_masses(seen, first=5, block=block)

    masses = np.asarray(probed(tiny_config, params, tokens, r, probe_fn))  # L, B, N, E
    np.testing.assert_allclose(masses[:, 0], attention.sum(2)[..., :5], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("above", [0.3, 0.05])
def test_sinks_are_judged_in_each_sample(above):
    length, masses = 64, np.zeros((2, 1, 2, 3))
    masses[0, 0, 0] = [64 * 0.5, 63 * 0.302, 62 * 0.0505]
    masses[1, 0, 0] = [64 * 0.01, 63 * 0.29, 62 * 0.04]
    found = heads.sink_scores(masses, length, above=above)
    wanted = {0.3: [0.5, 0.5, 0.0], 0.05: [0.5, 1.0, 0.5]}[above]
    assert found[0].tolist() == [wanted, [0, 0, 0]]


def detection(pattern, tokens):
    """TransformerLens' detection matrices, as its documentation defines them."""
    size = len(tokens)
    same = tokens[:, None] == tokens[None]
    if pattern == "previous_token":
        return np.eye(size, k=-1)
    duplicate = np.tril(same) * (1 - np.eye(size))
    if pattern == "duplicate_token":
        return duplicate
    shifted = np.roll(duplicate, 1, axis=1)
    shifted[:, 0] = 0
    return np.tril(shifted)


EXCLUSIONS = [(False, False), (True, False), (True, True)]


def all_positional(seen, tokens_BT, block):
    return {
        (pattern, first, current): heads.positional_masses(
            seen, tokens_BT, pattern, block=block, exclude_first=first, exclude_current=current
        )
        for pattern in heads.PATTERNS
        for first, current in EXCLUSIONS
    }


def test_positional_heads_are_those_of_dense_attention(tiny_config, read):
    params, tokens, r, attention = read
    tokens_BT = jnp.asarray(tokens)[None]
    found = probed(tiny_config, params, tokens, r, lambda seen: all_positional(seen, tokens_BT, 8))
    for (pattern, first, current), masses in found.items():
        looked, counted = (np.asarray(x)[:, 0] for x in masses)
        kept = attention.copy()
        if first:
            kept[..., 0] = 0
        if current:
            kept[..., np.arange(33), np.arange(33)] = 0
        np.testing.assert_allclose(counted, kept.sum((-1, -2)), rtol=1e-4)
        wanted = (kept * detection(pattern, tokens)).sum((-1, -2))
        np.testing.assert_allclose(looked, wanted, rtol=1e-4, atol=1e-5)
        assert np.all(wanted > 0)


def made_up(logits_TS):
    """A Seen whose attention is the softmax of these logits: keys are one-hot."""
    size = len(logits_TS)
    q = jnp.float32(logits_TS)[None, :, None] * size**0.5
    k = jnp.eye(size)[None, :, None]
    turn = jnp.ones((1, size, 0)), jnp.zeros((1, size, 0))
    positions = jnp.arange(size, dtype=jnp.int32)[None]
    return decoder.Seen(jnp.int32(0), q, k, k, turn, masks.self_mask(positions))


def test_a_head_made_for_a_pattern_has_its_score():
    tokens = np.tile(np.arange(5), 3)
    score_fn = jax.jit(
        lambda logits: {
            key: looked[0, 0] / counted[0, 0]
            for key, (looked, counted) in all_positional(
                made_up(logits), jnp.asarray(tokens)[None], 4
            ).items()
        }
    )
    for pattern in heads.PATTERNS:
        scores = score_fn(np.where(detection(pattern, tokens) > 0, 30.0, 0.0))
        of_pattern = {name: float(scores[name, True, False]) for name in heads.PATTERNS}
        assert max(of_pattern, key=of_pattern.get) == pattern and of_pattern[pattern] > 0.6
    with pytest.raises(InputError, match="Unknown heads.pattern 'induct'. Did you mean 'inducti"):
        heads.positional_masses(made_up(np.eye(3)), None, "induct", block=4)


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            dict(steps=()),
            r"trial 0 has 8 tokens, and its answer must be some of them .* got .*\(\)",
        ),
        (dict(steps=(0, 6)), r"after the first, got places \(0, 6\)"),
        (dict(steps=(8,)), r"got places \(8,\)"),
        (dict(span=(2, 7)), r"before its answer, which begins at 6, got the span \(2, 7\)"),
        (dict(span=(2, 2)), r"got the span \(2, 2\)"),
    ],
)
def test_trials_are_checked_first(changes, message):
    trial = heads.Trial(np.arange(8), (6,), (2, 3))._replace(**changes)
    with pytest.raises(InputError, match=message):
        heads.retrieval(None, None, None, [trial], settings=None)


def test_a_row_is_that_of_dense_attention(tiny_config, read):
    """Entropies, distances and the sink, with queries in any order and one that is nowhere."""
    params, tokens, r, attention = read
    picks = np.zeros((1, 33), np.int32)
    picks[0, [30, 4, 11]] = [1, 3, 2]
    edges = np.array([0, 1, 5, 33])

    def row_fn(row):
        rest = rows.without_first(row, 2)
        return (
            rows.entropy(row),
            rows.normalised_entropy(row),
            rows.by_distance(row, edges),
            rows.entropy(rest),
            rows.normalised_entropy(rest),
        )

    def probe_fn(seen):
        return rows.over_rows(seen, jnp.asarray(picks), 4, row_fn)

    found = [np.asarray(x)[:, 0] for x in probed(tiny_config, params, tokens, r, probe_fn)]

    def entropy(p):
        return -np.sum(p * np.log(np.where(p > 0, p, 1)), axis=-1)

    for number, query in enumerate((30, 11, 4)):
        p = attention[:, :, query]
        np.testing.assert_allclose(found[0][:, number], entropy(p), atol=1e-5)
        wanted = entropy(p) / np.log(query + 1)
        np.testing.assert_allclose(found[1][:, number], wanted, atol=1e-5)
        by_distance = p[..., query::-1]
        parts = [by_distance[..., a:b].sum(-1) for a, b in zip(edges, edges[1:], strict=False)]
        np.testing.assert_allclose(found[2][:, number], np.stack(parts, -1), atol=1e-5)
        rest = p[..., 2:] / p[..., 2:].sum(-1, keepdims=True)
        np.testing.assert_allclose(found[3][:, number], entropy(rest), atol=1e-5)
        wanted = entropy(rest) / np.log(query - 1)
        np.testing.assert_allclose(found[4][:, number], wanted, atol=1e-5)
