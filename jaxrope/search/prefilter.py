"""Scores of factors that need no model: which child of several is worth a forward pass.

For every child, a search with a pre-filter breeds `oversample` of them and keeps the one with the
lowest score; seeds are never filtered. A score is a pure function of the factors, so a killed
search comes back bit for bit. Start tokens and the attention factor do not enter.

Letters: P candidates, L layers with factors of their own, R rotary pairs, M distances.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from jaxrope import rope

_DISTANCES = 4096  # at most, of the decay score: 4 candidates of 64 pairs take some 10 ms
_GOLDEN = (5**0.5 - 1) / 2
_SMOOTHING = 0.01  # part of every histogram that is uniform: an angle never seen costs ln 100


@dataclasses.dataclass(frozen=True)
class Prefilter:
    """`search.prefilter`, and the numbers of the search that its score needs.

    Attributes:
      name: in SCORES, or "none".
      oversample: children bred for each that is evaluated.
      theta: base of the plain frequencies.
      trained_factors: that the weights were trained with, [R] or [L, R]; 1 for a plain model.
      trained_len: tokens they were trained on.
      target_len: tokens searched for.
    """

    name: str
    oversample: int
    theta: float = 1e4
    trained_factors: tuple = ()
    trained_len: int = 1
    target_len: int = 1


NONE = Prefilter("none", 1)


def scores(prefilter: Prefilter, factors_PR: np.ndarray) -> np.ndarray:
    """Returns the score of each candidate, float64 [P]; lower is better.

    Args:
      prefilter: with a score.
      factors_PR: or [P, L, R], whose score is the mean over layers.
    """
    plain_R = rope.base_inv_freq(prefilter.theta, 2 * factors_PR.shape[-1])
    layer_scores = SCORES[prefilter.name](prefilter, plain_R / factors_PR)
    return layer_scores.reshape(len(factors_PR), -1).mean(axis=1)


def decay_bound(inv_freq_R: np.ndarray, distances_M: np.ndarray) -> np.ndarray:
    """Returns B_m = sum_i cos(m theta_i / lambda_i), float64 [..., M] ("Base of RoPE bounds context
    length", Eq. 7): below 0, a similar token at distance m gets less attention than a random one.

    Args:
      inv_freq_R: theta_i / lambda_i, radians a token, [..., R].
      distances_M: m, tokens.
    """
    return np.cos(np.multiply.outer(inv_freq_R, distances_M)).sum(axis=-2)


def distances(target_len: int) -> np.ndarray:
    """Returns the distances that the decay score looks at: all from 1 to `target_len` if these are
    at most 4,096; else 4,096 of them, 1 + floor(target_len * frac(j * (sqrt(5) - 1) / 2)).

    Multiples of the golden ratio are as even as a grid, and no rotary pair can keep step with them.
    """
    if target_len <= _DISTANCES:
        return np.arange(1, target_len + 1)
    return 1 + np.floor(target_len * (np.arange(1, _DISTANCES + 1) * _GOLDEN % 1.0)).astype(int)


def turns_divergence(turns: np.ndarray, trained_turns: np.ndarray) -> np.ndarray:
    """Returns KL(angles after `turns` || angles after `trained_turns`), nats, elementwise.

    The angle of a position spread evenly over [0, L), after n + f whole and partial turns, has the
    density n + 1 on the first f of a turn and n on the rest, divided by n + f: the histogram of
    DPRoPE (arXiv 2410.01490) with the bins and the steps between positions made infinitely narrow.
    To each density 0.01 of the uniform one is mixed, so that an angle never seen costs a finite
    amount.
    """
    (f, low, high), (g, trained_low, trained_high) = _density(turns), _density(trained_turns)
    first, last = np.minimum(f, g), np.maximum(f, g)
    middle = np.where(f > g, high, low), np.where(f > g, trained_low, trained_high)
    divergence = first * high * np.log(high / trained_high)
    divergence = divergence + (last - first) * middle[0] * np.log(middle[0] / middle[1])
    return divergence + (1 - last) * low * np.log(low / trained_low)


def _decay(prefilter: Prefilter, inv_freq_R: np.ndarray) -> np.ndarray:
    """Returns the mean over m <= target_len of relu(-B_m) / R, of frequencies [..., R]."""
    bound_M = decay_bound(inv_freq_R, distances(prefilter.target_len))
    return np.maximum(-bound_M, 0.0).mean(axis=-1) / inv_freq_R.shape[-1]


def _divergence(prefilter: Prefilter, inv_freq_R: np.ndarray) -> np.ndarray:
    """Returns the mean over pairs of the divergence from training, of frequencies [..., R]."""
    plain_R = rope.base_inv_freq(prefilter.theta, 2 * inv_freq_R.shape[-1])
    trained_R = plain_R / np.array(prefilter.trained_factors)
    turns_R = inv_freq_R * prefilter.target_len / (2 * np.pi)
    trained_turns_R = trained_R * prefilter.trained_len / (2 * np.pi)
    return turns_divergence(turns_R, trained_turns_R).mean(axis=-1)


SCORES: dict[str, Callable] = {"decay": _decay, "divergence": _divergence}


def _density(turns):
    """Returns (partial turn, density above it, density within it) in turns, smoothed."""
    whole = np.floor(turns)
    low, high = (_SMOOTHING + (1 - _SMOOTHING) * count / turns for count in (whole, whole + 1))
    return turns - whole, low, high
