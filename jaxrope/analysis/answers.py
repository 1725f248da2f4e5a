"""Attention where an answer is written: the paper's uncertainty (arXiv 2406.13282, Algorithm 1) and
other statistics that may predict failure.

Once the model has written its answer, one forward pass over prompt and answer has the attention of
every step, at the token before it. The paper does not state how heads and layers are combined. Both
ways are computed: the mean of their entropies, and the entropy of their mean, which is never less
(Jensen).

Letters: B batch of 1, T length, M steps of the answer, N heads, L layers, E bins of distance.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrope import decoder, rope
from jaxrope.analysis import patterns, rows, streaming
from jaxrope.errors import InputError

SINK = 1  # first keys that `non_sink_entropy` and the curve leave out

# statistics of each layer and head, means over the steps
OF_HEADS = ("entropy", "normalised_entropy", "non_sink_entropy", "needle_mass", "sink")


class Written(NamedTuple):
    """Attention of one answer, numpy float64, means over its steps.

    Attributes:
      heads: name of OF_HEADS -> [L, N]; entropies in nats, masses are shares.
      entropy_of_mean: nats, of the mean row of all layers and heads.
      curve: mean probability of a key by its distance, without the sink, [L, N, E], in the bins of
        streaming.edges.
      top_in_needle: share of steps whose most probable key lies in the needle, [L, N].
    """

    heads: dict[str, np.ndarray]
    entropy_of_mean: float
    curve: np.ndarray
    top_in_needle: np.ndarray

    def mean(self, name: str) -> float:
        """Returns the mean over layers and heads."""
        return float(self.heads[name].mean())


def read(
    config: decoder.DecoderConfig,
    params: Any,
    r: rope.Rope,
    tokens_T: Sequence[int],
    *,
    steps: Sequence[int],
    span: tuple[int, int],
    settings: decoder.ForwardSettings,
) -> Written:
    """Returns the attention at the steps of an answer; the model is on one device.

    Args:
      config, params, r: the model and its rope.
      tokens_T: prompt and answer, bos included; those of one length and number of steps share a
        compiled program.
      steps: places of the answer's tokens, ascending.
      span: (begin, end) of the needle.
      settings: how the model is run.

    Raises:
      InputError: the needle does not stand before the answer, or a step is outside.
    """
    tokens_BT, steps = np.asarray(tokens_T, np.int32)[None], np.asarray(steps)
    length, (begin, end) = tokens_BT.shape[1], span
    if not (len(steps) and 0 <= begin < end <= steps[0] and steps[-1] < length):
        raise InputError(
            f"answers.read: the needle must stand before the answer, and that in the {length} "
            f"tokens, got the span {tuple(span)} and steps {steps.tolist()}."
        )
    picks_BT, needle_BT = np.zeros_like(tokens_BT), np.zeros(tokens_BT.shape, bool)
    picks_BT[0, steps - 1] = 1 + np.arange(len(steps))
    needle_BT[0, begin:end] = True
    bins = tuple(streaming.edges(decoder.own_base(config).length))
    heads, mean_BMS, curve, top = _probe(
        params,
        r,
        (tokens_BT, picks_BT, needle_BT),
        config=config,
        settings=settings,
        shape=(len(steps), bins),
    )
    p = np.asarray(mean_BMS, np.float64)[0]
    inside = (np.asarray(top)[:, 0] >= begin) & (np.asarray(top)[:, 0] < end)
    return Written(
        heads={name: np.asarray(x, np.float64)[:, 0].mean(axis=1) for name, x in heads.items()},
        entropy_of_mean=float(patterns.surprise(p).sum(-1).mean()),
        curve=np.asarray(curve, np.float64)[:, 0].mean(axis=1) / np.diff(bins),
        top_in_needle=inside.mean(axis=1),
    )


@functools.partial(jax.jit, static_argnames=("config", "settings", "shape"))
def _probe(params, r, arrays, *, config, settings, shape):
    """(OF_HEADS [L, B, M, N], mean row [B, M, S], masses by bins [L, B, M, N, E], most probable
    keys [L, B, M, N])."""
    tokens_BT, picks_BT, needle_BT = arrays
    count, bins = shape

    def row_fn(row):
        rest = rows.without_first(row, SINK)
        heads = {
            "entropy": rows.entropy(row),
            "normalised_entropy": rows.normalised_entropy(row),
            "non_sink_entropy": rows.entropy(rest),
            "needle_mass": rows.mass(row, needle_BT),
            "sink": rows.mass(row, row.positions_BS < SINK),
        }
        mean_BS = jnp.mean(row.weights_BNS, axis=1)
        return heads, mean_BS, rows.by_distance(rest, bins), rows.top_key(row)

    def probe_fn(layer: decoder.Seen):
        return rows.over_rows(layer, picks_BT, count, row_fn)

    _, (heads, mean_LBMS, curve, top) = decoder.probe(
        config, params, tokens_BT, r, probe_fn=probe_fn, settings=settings
    )
    return heads, jnp.mean(mean_LBMS, axis=0), curve, top
