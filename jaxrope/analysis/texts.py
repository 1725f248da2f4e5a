"""Attention in running text: statistics of some queries, and whole patterns of each head.

Queries stand evenly in the second half of a text, so that each of them has at least half of the
length to look back on. Their statistics are streamed; for the patterns their whole rows are read,
one after another. Memory is linear in length.

Letters: B batch, T length, M chosen queries, N heads, L layers, S distances or keys.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrope import decoder, rope
from jaxrope.analysis import patterns, rows, streaming
from jaxrope.attention import Mask

SINK = 1  # first keys of a text that `rest` leaves out

# name -> (Stats) -> a number for each query and head
STATISTICS = {
    "entropy": lambda stats: stats.entropy,
    "normalised_entropy": lambda stats: streaming.normalised_entropy(stats.entropy, stats.visible),
    "non_sink_entropy": lambda stats: stats.non_sink_entropy,
    "effective_tokens": lambda stats: streaming.effective_tokens(stats.entropy),
    "participation": lambda stats: stats.participation,
    "sink": lambda stats: stats.sink,
    "local": lambda stats: stats.local,
    "mean_distance": lambda stats: stats.mean_distance,
    "max_p": lambda stats: stats.max_p,
}


class Text(NamedTuple):
    """Attention in one text, numpy float64.

    Attributes:
      statistics: name of STATISTICS -> mean over the queries, [L, N].
      whole: mean probability of a key by its distance, over the queries that see one, [L, N, T].
      rest: the same without the sink: what is left of each query is a distribution again.
      last: probabilities that the last query gives the keys, by their place, [L, N, T].
    """

    statistics: dict[str, np.ndarray]
    whole: np.ndarray
    rest: np.ndarray
    last: np.ndarray


def places(length: int, count: int) -> np.ndarray:
    """Returns the places of at most `count` queries, evenly in the second half, the last one last.

    Args:
      length: tokens of the text, 2 or more.
      count: queries, 1 or more.
    """
    first = length // 2
    return np.unique(
        np.rint(np.linspace(length - 1, first, min(count, length - first))).astype(int)
    )


def of_queries(mask: Mask, chosen_M: np.ndarray) -> Mask:
    """Returns the mask of some queries of a text, and all of its keys."""
    ids = mask.q_positions_BT[:, chosen_M], mask.kv_positions_BS, None, None
    return Mask(*ids, mask.causal, mask.window)


def read(
    config: decoder.DecoderConfig,
    params: Any,
    r: rope.Rope,
    tokens_T: Sequence[int],
    *,
    queries: int,
    settings: decoder.ForwardSettings,
) -> Text:
    """Returns the attention in one text; the model is on one device.

    Args:
      config, params, r: the model and its rope.
      tokens_T: the text, bos included; texts of one length share a compiled program.
      queries: how many are measured, at most.
      settings: how the model is run.
    """
    tokens_BT = np.asarray(tokens_T, np.int32)[None]
    length = tokens_BT.shape[1]
    chosen_M = places(length, queries)
    picks_BT = np.zeros_like(tokens_BT)
    picks_BT[0, chosen_M] = 1 + np.arange(len(chosen_M))
    head_means, sums, last = _probe(
        params, r, (tokens_BT, picks_BT, chosen_M), config=config, settings=settings
    )
    windows = [config.window(config.kinds[layer]) for layer in config.attention_layers]
    curves = [
        np.stack(
            [
                patterns.curve(
                    np.asarray(mass_BNS, np.float64)[0],
                    patterns.pair_counts(chosen_M, length, window=window, first_keys=first),
                )
                for mass_BNS, window in zip(mass, windows, strict=True)
            ]
        )
        for mass, first in zip(sums, (0, SINK), strict=True)
    ]
    statistics = {name: np.asarray(x, np.float64)[:, 0] for name, x in head_means.items()}
    return Text(statistics, *curves, np.asarray(last, np.float64)[:, 0])


@functools.partial(jax.jit, static_argnames=("config", "settings"))
def _probe(params, r, arrays, *, config, settings):
    """(statistics [L, B, N], masses by distance [L, B, N, T] twice, the last row [L, B, N, T])."""
    tokens_BT, picks_BT, chosen_M = arrays

    def probe_fn(layer: decoder.Seen):
        def row_fn(row):
            rest = rows.without_first(row, SINK)
            by_distance = rows.by_every_distance
            return by_distance(row), by_distance(rest), row.weights_BNS

        whole, rest, weights = rows.over_rows(layer, picks_BT, len(chosen_M), row_fn)
        sums = jnp.sum(whole, axis=1), jnp.sum(rest, axis=1)
        return _statistics(layer, chosen_M, settings.attention_block), sums, weights[:, -1]

    return decoder.probe(config, params, tokens_BT, r, probe_fn=probe_fn, settings=settings)[1]


def _statistics(layer: decoder.Seen, chosen_M, block: int) -> dict[str, jax.Array]:
    q_BMNH, k_BTKH = (rope.rotate(x, *layer.turn) for x in (layer.q_BTNH, layer.k_BTKH))
    q_BMNH, few = q_BMNH[:, chosen_M], of_queries(layer.mask.of_batch(len(k_BTKH)), chosen_M)
    stats = streaming.statistics(q_BMNH, k_BTKH, few, streaming.Options(block=block, bins=0))
    return {
        name: jnp.mean(statistic_fn(stats), axis=1) for name, statistic_fn in STATISTICS.items()
    }
