"""How ropes change the attention of one model on the same texts, and what its rotary pairs do.

Each rope has a forward pass of its own, whose attention is measured at some queries of each text.
How far another rope is from the first one is asked of the same queries and keys, those of the first
rope's pass: the divergence of the two attentions, layer by layer. What each rotary pair does is
asked there, too: its share of the logits, and how the entropy answers to its factor.

Letters: W texts, B batch of 1, T length, M queries, L layers, N heads, K kv heads, R rotary pairs,
Q terms (see `frequencies`), E bins of distance.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrope import decoder, rope
from jaxrope.analysis import divergence, frequencies, measuring, streaming, texts
from jaxrope.attention import Mask


class Attention(NamedTuple):
    """Attention with one rope, numpy float64, means over the queries of each text.

    Attributes:
      statistics: name of texts.STATISTICS -> [W, L, N].
      curve: mean probability of a key by its distance, [W, L, N, E], in bins of streaming.edges; 0
        where no query sees so far.
      kl, reverse_kl: KL(this rope || the first) and KL(the first || this), nats, [W, L, N].
    """

    statistics: dict[str, np.ndarray]
    curve: np.ndarray
    kl: np.ndarray
    reverse_kl: np.ndarray


class Pairs(NamedTuple):
    """What rotary pairs do with the first rope, numpy float64.

    Attributes:
      share: of the variance of the logit's terms, [L, N, Q].
      correlation: of a term with the distance, [L, N, Q].
      slope: dH / d ln(factor), nats, [L, N, R].
      query_norm: mean length of a query's pair, [L, N, R].
      key_norm: of a key's, [L, K, R].
    """

    share: np.ndarray
    correlation: np.ndarray
    slope: np.ndarray
    query_norm: np.ndarray
    key_norm: np.ndarray


def compare(
    config: decoder.DecoderConfig,
    params: Any,
    ropes: Mapping[str, rope.Rope],
    texts_WT: np.ndarray,
    *,
    queries: int,
    settings: decoder.ForwardSettings,
    tick: Callable[[int], None] = lambda tokens: None,
) -> tuple[dict[str, Attention], Pairs]:
    """Returns ({label: attention with that rope}, what pairs do with the first one).

    Args:
      config, params: the model, on one device.
      ropes: by label; all others are compared with the first.
      texts_WT: tokens, bos included.
      queries: how many of each text are measured, evenly in its second half.
      settings: how the model is run.
      tick: called with the number of tokens of each forward pass.
    """
    chosen_M, readings = texts.places(texts_WT.shape[1], queries), []
    for tokens_T in texts_WT:
        tokens_BT = np.asarray(tokens_T, np.int32)[None]
        arrays = tokens_BT, chosen_M
        readings.append(
            _probe(params, tuple(ropes.values()), arrays, config=config, settings=settings)
        )
        tick(tokens_BT.size)
    measured = {
        label: _measure(config, params, r, texts_WT, chosen_M, settings, tick)
        for label, r in ropes.items()
    }
    kls = np.array([[d.kl for d in reading.divergences] for reading in readings], np.float64)
    back = np.array([[d.reverse_kl for d in reading.divergences] for reading in readings])
    attention = {
        label: Attention(*measured[label], kls[:, i], np.asarray(back[:, i], np.float64))
        for i, label in enumerate(ropes)
    }
    return attention, _pairs(readings)


class _Reading(NamedTuple):
    """What a text shows with the first rope; leaves [L, ...].

    Attributes:
      divergences: of each rope from the first, means over queries, [L, N].
      rows: moments of logit terms, [L, B, M, N, ...].
      slope: [L, N, R].
      query_norm, key_norm: [L, N, R], [L, K, R].
    """

    divergences: tuple[divergence.Divergence, ...]
    rows: frequencies.LogitRows
    slope: jax.Array
    query_norm: jax.Array
    key_norm: jax.Array


@functools.partial(jax.jit, static_argnames=("config", "settings"))
def _probe(params, ropes, arrays, *, config, settings) -> _Reading:
    tokens_BT, chosen_M = arrays
    options = streaming.Options(block=settings.attention_block)

    def probe_fn(layer: decoder.Seen) -> _Reading:
        q_BMNH, k_BTKH = layer.q_BTNH[:, chosen_M], layer.k_BTKH
        mask = texts.of_queries(layer.mask.of_batch(len(k_BTKH)), chosen_M)
        of_layer = [_of_layer(r, layer.index) for r in ropes]
        turns = [_turns(r, mask) for r in of_layer]
        kls = (
            divergence.kl_between(q_BMNH, k_BTKH, turn, turns[0], mask, options) for turn in turns
        )
        first, pairs = of_layer[0], of_layer[0].factors_R.shape[-1]
        how = dict(block=settings.attention_block)
        terms = frequencies.entropy_terms(q_BMNH, k_BTKH, first, mask, **how)
        return _Reading(
            divergences=tuple(jax.tree.map(lambda x: jnp.mean(x, axis=(0, 1)), kl) for kl in kls),
            rows=frequencies.logit_rows(q_BMNH, k_BTKH, first, mask, **how),
            slope=jnp.mean(terms.factor_BTNR, axis=(0, 1)) * first.factors_R[None],
            query_norm=frequencies.norms(layer.q_BTNH, pairs),
            key_norm=frequencies.norms(k_BTKH, pairs),
        )

    return decoder.probe(config, params, tokens_BT, ropes[0], probe_fn=probe_fn, settings=settings)[
        1
    ]


def _of_layer(r: rope.Rope, index) -> rope.Rope:
    """Returns the rope of a layer."""
    if not r.per_layer:
        return r
    leaves = jax.tree.map(lambda x: jnp.asarray(x)[index], r)
    return dataclasses.replace(leaves, per_layer=False)


def _turns(r: rope.Rope, mask: Mask):
    return rope.cos_sin(r, mask.q_positions_BT), rope.cos_sin(r, mask.kv_positions_BS)


def _measure(
    config, params, r, texts_WT, chosen_M, settings, tick
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Returns (statistics [W, L, N] by name, curve [W, L, N, E])."""
    statistics, curves = {name: [] for name in texts.STATISTICS}, []
    inputs = measuring.Inputs(queries_BM=chosen_M[None])
    options = streaming.Options(block=settings.attention_block)
    for tokens_T in texts_WT:
        how = dict(inputs=inputs, options=options, settings=settings)
        layers = measuring.measure(config, params, tokens_T[None], r, **how)
        for name, statistic_fn in texts.STATISTICS.items():
            of_layers = np.stack([np.asarray(statistic_fn(stats)) for stats in layers])
            means = of_layers.mean(axis=(1, 2), dtype=np.float64)
            statistics[name].append(means)
        masses = np.stack([stats.bin_mass.sum(axis=(0, 1), dtype=np.float64) for stats in layers])
        pairs = layers[0].bin_pairs.sum(axis=(0, 1))
        curves.append(masses / np.maximum(pairs, 1))
        tick(len(tokens_T))
    return {name: np.stack(values) for name, values in statistics.items()}, np.stack(curves)


def _pairs(readings: Sequence[_Reading]) -> Pairs:
    rows = jax.tree.map(lambda *leaves: np.concatenate(leaves, axis=1), *(r.rows for r in readings))
    num_layers = len(readings[0].slope)
    used = [
        frequencies.usage(frequencies.LogitRows(*(x[layer] for x in rows)))
        for layer in range(num_layers)
    ]
    means = (
        np.mean([np.asarray(getattr(r, name)) for r in readings], axis=0, dtype=np.float64)
        for name in ("slope", "query_norm", "key_norm")
    )
    return Pairs(np.stack([u.share for u in used]), np.stack([u.correlation for u in used]), *means)
