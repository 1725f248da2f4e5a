"""Attention patterns: how much probability goes to a key at each distance, and how alike two such
curves are (Zhong et al., arXiv 2406.13282, section 3.2 and Table 1).

A curve is D(d), the mean probability of a key d tokens back over the queries that can see one. Its
sum over queries alone would make long distances look rare, which few queries have. Curves of
different lengths are compared on what they share: distances below the shorter length, the distance
relative to the length, or the distance divided by the factor of an extension.

Everything here is numpy in float64, except that `js` takes JAX arrays too, for a loss.

Letters: S distances 0, 1, 2, ..., E bins of distance; "..." layers, heads or nothing.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrope.errors import InputError

_LEAST = 1e-30  # a probability below it counts for nothing in a logarithm
_WHOLE = 1e-9  # a share of a bin that rounding of length / factor may lose


def pair_counts(
    positions, num_distances: int, *, window: int | None = None, first_keys: int = 0
) -> np.ndarray:
    """Returns counts_S, int64: how many of the queries see a key at each distance.

    Args:
      positions: of the queries within their documents; any shape.
      num_distances: S, distances from 0 on.
      window: of a sliding window, tokens; None: none.
      first_keys: keys at the beginning of each document that are left out (the sink).
    """
    last = np.bincount(np.asarray(positions).reshape(-1), minlength=num_distances + first_keys)
    num_queries = np.cumsum(last[::-1])[::-1]  # queries at a position or later
    counts = num_queries[first_keys : first_keys + num_distances].astype(np.int64)
    if window is not None:
        counts[window:] = 0
    return counts


def binned(values_S, edges) -> np.ndarray:
    """Returns sums over bins of distance, [..., E]: bin e has edges[e], ..., edges[e + 1] - 1."""
    values_S, edges = np.asarray(values_S), np.asarray(edges)
    if not (edges[0] >= 0 and edges[-1] <= values_S.shape[-1] and np.all(np.diff(edges) > 0)):
        raise ValueError(f"edges ascend within {values_S.shape[-1]} distances, got {edges}.")
    # reduceat ends its last sum with the array
    return np.add.reduceat(values_S[..., : edges[-1]], edges[:-1], axis=-1)


def curve(mass_S, counts_S) -> np.ndarray:
    """Returns D: mass by distance, summed over queries, divided by the pairs that have it.

    Args:
      mass_S: [..., S] or by bins; probability summed over queries.
      counts_S: [S], of `pair_counts`, or its sums over the same bins; 0 gives 0.
    """
    mass_S, counts_S = np.asarray(mass_S, np.float64), np.asarray(counts_S)
    return np.where(counts_S > 0, mass_S, 0.0) / np.maximum(counts_S, 1)


def below(curve_S, num_distances: int) -> np.ndarray:
    """Returns the curve at distances below `num_distances`; `js` makes it a distribution again.

    Raises:
      InputError: the curve has fewer.
    """
    curve_S = np.asarray(curve_S, np.float64)
    if not 1 <= num_distances <= curve_S.shape[-1]:
        raise InputError(
            f"patterns.below: num_distances must be from 1 to {curve_S.shape[-1]}, the distances "
            f"of the curve, got {num_distances}."
        )
    return curve_S[..., :num_distances]


def relative(curve_S, num_bins: int) -> np.ndarray:
    """Returns the curve by distance / length in `num_bins` equal bins, [..., E].

    A distance is spread evenly over [d, d + 1), so that bins may be narrower than a distance.

    Raises:
      InputError: there is no bin.
    """
    if num_bins < 1:
        raise InputError(f"patterns.relative: num_bins must be 1 or more, got {num_bins}.")
    return _spread(curve_S, np.linspace(0.0, np.shape(curve_S)[-1], num_bins + 1))


def interpolated(curve_S, factor: float) -> np.ndarray:
    """Returns the curve by distance / factor, [..., whole bins of `factor` distances].

    It is how a head sees distances whose positions were divided by `factor`. With factor = length /
    training length it is `relative` with a bin for each distance of training.

    Raises:
      InputError: factor is below 1, or above the number of distances.
    """
    num_distances = np.shape(curve_S)[-1]
    if not 1 <= factor <= num_distances:
        raise InputError(
            f"patterns.interpolated: factor must be from 1 to {num_distances}, the distances of "
            f"the curve, got {factor}."
        )
    num_bins = math.floor(num_distances / factor + _WHOLE)
    return _spread(curve_S, np.minimum(np.arange(num_bins + 1) * factor, num_distances))


def _spread(curve_S, edges) -> np.ndarray:
    """Integrals of the curve, a step function of the distance, between edges that need not be
    whole."""
    curve_S = np.asarray(curve_S, np.float64)
    total = np.concatenate([np.zeros_like(curve_S[..., :1]), np.cumsum(curve_S, axis=-1)], axis=-1)
    low = np.minimum(edges.astype(np.int64), curve_S.shape[-1] - 1)
    return np.diff(total[..., low] + (edges - low) * curve_S[..., low], axis=-1)


def surprise(p):
    """Returns -p ln p, 0 where p is 0; summed over a distribution it is its entropy, nats."""
    xp = jnp if isinstance(p, jax.Array) else np
    return -p * xp.log(xp.where(p > 0, p, 1.0))


def js(p, q):
    """Returns the Jensen-Shannon divergence over the last axis, nats, 0 to ln 2.

    Both are made distributions first. Its root is a metric, which scipy calls `jensenshannon`.

    Args:
      p, q: numbers of 0 or more, [..., S], not all 0; JAX arrays give one that can be
        differentiated, others float64.

    Raises:
      InputError: the last axes differ, a number is negative or not finite, or all are 0; none of
        these can be seen in a JAX array that is traced.
    """
    xp = jnp if isinstance(p, jax.Array) or isinstance(q, jax.Array) else np
    if xp is np:
        p, q = _checked(p), _checked(q)
    if p.shape[-1] != q.shape[-1]:
        raise InputError(
            f"patterns.js: both curves must have the same distances, got {p.shape[-1]} and "
            f"{q.shape[-1]}. Take patterns.below, relative or interpolated of them first."
        )
    p = p / xp.sum(p, axis=-1, keepdims=True)
    q = q / xp.sum(q, axis=-1, keepdims=True)
    middle = (p + q) / 2
    divergence = (_kl(xp, p, middle) + _kl(xp, q, middle)) / 2
    return xp.maximum(divergence, 0.0)


def _kl(xp, p, q):
    ratio = xp.log(xp.maximum(p, _LEAST)) - xp.log(xp.maximum(q, _LEAST))
    return xp.sum(xp.where(p > _LEAST, p * ratio, 0.0), axis=-1)


def _checked(p) -> np.ndarray:
    p = np.asarray(p, np.float64)
    if not (np.all(np.isfinite(p)) and np.all(p >= 0) and np.all(p.sum(axis=-1) > 0)):
        raise InputError(
            "patterns.js: a curve must have finite numbers of 0 or more that are not all 0, got "
            f"sums from {np.min(p.sum(axis=-1)):g} to {np.max(p.sum(axis=-1)):g} and the least "
            f"number {np.min(p):g}."
        )
    return p


class Similarity(NamedTuple):
    """How alike the patterns of two settings are.

    Attributes:
      js: nats, one number for each head: [L, N].
      mean_js: nats, the mean of it.
      js_of_mean: nats, of the curves averaged over all heads first (the paper's Table 1): what
        heads do differently may cancel in it, so that it is at most mean_js.
    """

    js: np.ndarray
    mean_js: float
    js_of_mean: float

    @property
    def root(self) -> np.ndarray:
        """The metric, for each head."""
        return np.sqrt(self.js)


def similarity(p, q) -> Similarity:
    """Compares two curves of each head, [L, N, S], after `below`, `relative` or `interpolated`.

    Each head's curve is made a distribution before heads are averaged.

    Raises:
      InputError: see `js`.
    """
    p, q = (x / x.sum(axis=-1, keepdims=True) for x in (_checked(p), _checked(q)))
    divergence = js(p, q)
    heads = tuple(range(p.ndim - 1))
    return Similarity(
        divergence, float(np.mean(divergence)), float(js(p.mean(heads), q.mean(heads)))
    )
