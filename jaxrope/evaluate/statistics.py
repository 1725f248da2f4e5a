"""Intervals for what was measured: bootstrap over windows, Wilson's for a share of trials.

Everything here is numpy on the host in float64. Legend: W windows, T scored tokens of a window.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np

Z_95 = 1.959963984540054  # the normal quantile of 0.975
_DRAWS_AT_A_TIME = 1 << 22  # indices held at one time: 32 MiB of int64


@dataclasses.dataclass(frozen=True)
class Difference:
    """A paired difference: the mean over windows of (a - b), and its bootstrap interval.

    Attributes:
      mean: nats per token; below 0 when `a` predicts better.
      low: lower end of the interval.
      high: upper end of the interval.
      num_windows: pairs compared.
    """

    mean: float
    low: float
    high: float
    num_windows: int

    @property
    def decided(self) -> bool:
        """Whether the interval excludes 0."""
        return self.low > 0 or self.high < 0


def bootstrap_interval(
    values_W: np.ndarray, *, num_samples: int, seed: int, level: float = 0.95
) -> tuple[float, float]:
    """Returns the percentile interval of the mean of `values_W` (Efron & Tibshirani 1993, §13.3).

    Args:
      values_W: one finite number per window; windows are what is resampled.
      num_samples: resamples, at least 1.
      seed: the same seed and values give the same interval.
      level: of the interval, 0 to 1.
    """
    values_W = np.asarray(values_W, np.float64)
    if values_W.ndim != 1 or not len(values_W):
        raise ValueError(f"values_W is one number per window, got shape {values_W.shape}.")
    if num_samples < 1:
        raise ValueError(f"num_samples is at least 1, got {num_samples}.")
    rng = np.random.default_rng(seed)
    means, step = [], max(1, _DRAWS_AT_A_TIME // len(values_W))
    for start in range(0, num_samples, step):
        draws = rng.integers(len(values_W), size=(min(step, num_samples - start), len(values_W)))
        means.append(values_W[draws].mean(axis=1))
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def clustered_interval(
    sums_D: Sequence[float],
    counts_D: Sequence[int],
    *,
    num_samples: int,
    seed: int,
    level: float = 0.95,
) -> tuple[float, float]:
    """Returns the percentile interval of sum(sums_D) / sum(counts_D), documents being resampled.

    It is for a mean over parts of documents, which are no independent draws (Davison & Hinkley
    1997, §3.8).

    Args:
      sums_D: of each document's values.
      counts_D: of each document's values, at least 1.
      num_samples, seed, level: see `bootstrap_interval`.
    """
    sums_D, counts_D = np.asarray(sums_D, np.float64), np.asarray(counts_D, np.float64)
    if sums_D.shape != counts_D.shape or sums_D.ndim != 1 or not np.all(counts_D >= 1):
        raise ValueError(f"One sum and one count for each document, got {sums_D}, {counts_D}.")
    rng = np.random.default_rng(seed)
    draws_ND = rng.integers(len(sums_D), size=(num_samples, len(sums_D)))
    means_N = sums_D[draws_ND].sum(axis=1) / counts_D[draws_ND].sum(axis=1)
    low, high = np.quantile(means_N, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def compare(
    nll_a_WT: np.ndarray, nll_b_WT: np.ndarray, *, num_samples: int, seed: int
) -> Difference:
    """Returns the difference of mean NLL per window, a - b, with its 95% bootstrap interval.

    Both settings must have scored the same tokens: pairing removes the difference between the
    windows themselves, which is far larger than the one between two settings.

    Raises:
      ValueError: the shapes differ, so the tokens do.
    """
    if nll_a_WT.shape != nll_b_WT.shape:
        raise ValueError(
            f"A paired comparison needs the same scored tokens, got shapes {nll_a_WT.shape} and "
            f"{nll_b_WT.shape}."
        )
    difference_W = (nll_a_WT.astype(np.float64) - nll_b_WT.astype(np.float64)).mean(axis=1)
    low, high = bootstrap_interval(difference_W, num_samples=num_samples, seed=seed)
    return Difference(float(difference_W.mean()), low, high, len(difference_W))


def wilson_interval(successes: int, trials: int, *, z: float = Z_95) -> tuple[float, float]:
    """Returns Wilson's score interval of a share (Wilson 1927; Newcombe 1998, method 3).

    Args:
      successes: 0 to trials.
      trials: at least 1.
      z: normal quantile; the default gives 95%.
    """
    if not 0 <= successes <= trials or trials < 1:
        raise ValueError(f"0 <= successes <= trials and trials >= 1, got {successes} of {trials}.")
    share = successes / trials
    centre = share + z * z / (2 * trials)
    spread = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    # at 0 and at all of them an end is exactly 0 or 1; rounding leaves 1e-17 there
    low = 0.0 if successes == 0 else (centre - spread) / scale
    high = 1.0 if successes == trials else (centre + spread) / scale
    return low, high


def token_mean(nll_WT: np.ndarray, doc_ids_W: np.ndarray, parts: Sequence[tuple[int, int]]):
    """A value per window of text: the mean over all its tokens."""
    return np.mean(nll_WT, axis=1, dtype=np.float64)


def window_mean(nll_WT: np.ndarray, doc_ids_W: np.ndarray, parts: Sequence[tuple[int, int]]):
    """A value per window of text: the mean over its forward windows of their means.

    It is what the scripts of YaRN and LongRoPE report (`eval/perplexity.py`): with a sliding window
    the first one, full length and with little context, weighs as much as a later one's few tokens.
    """
    means = [np.mean(nll_WT[:, begin:end], axis=1, dtype=np.float64) for begin, end in parts]
    return np.mean(means, axis=0)


def doc_mean(nll_WT: np.ndarray, doc_ids_W: np.ndarray, parts: Sequence[tuple[int, int]]):
    """A value per document: the mean over its tokens, however many windows it has."""
    docs = np.unique(doc_ids_W)
    return np.array([np.mean(nll_WT[doc_ids_W == doc], dtype=np.float64) for doc in docs])


# (nll_WT, the document of each window, (begin, end) of what each forward window scores) -> NLL of
# each unit. Their mean is the score, and they are what its interval resamples.
AGGREGATIONS: dict[str, Callable[..., np.ndarray]] = {
    "token_mean": token_mean,
    "window_mean": window_mean,
    "doc_mean": doc_mean,
}


def position_curve(nll_WT: np.ndarray, *, num_bins: int = 96) -> tuple[np.ndarray, np.ndarray]:
    """Returns (edges, means) of the NLL by position, averaged over windows and in bins.

    The bins are equally wide on a logarithmic axis and hold one position at least: bin i holds the
    positions edges[i] .. edges[i + 1] - 1, where position 0 is the first scored token.
    """
    length = nll_WT.shape[1]
    edges = np.unique(np.rint(np.geomspace(1, length + 1, num_bins + 1)).astype(np.int64)) - 1
    sums = np.add.reduceat(nll_WT.mean(axis=0, dtype=np.float64), edges[:-1])
    return edges, sums / np.diff(edges)
