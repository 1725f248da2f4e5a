"""Intervals for what was measured, and what they decide: bootstraps over windows, documents or
needles, Wilson's interval of a share of trials.

Everything here is numpy on the host in float64. Legend: W windows or trials, T scored tokens of a
window, J draws, P resamples.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

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


class Interval(NamedTuple):
    """A number with its 95% percentile bootstrap interval.

    Attributes:
      value: of all trials.
      low, high: of the resamples; nan if the number is defined in fewer than half of them.
    """

    value: float
    low: float
    high: float


def verdict(low: float, high: float, *, least: float = 0.0) -> bool | None:
    """Returns whether an interval says that its number is above `least`: True if all of it is,
    False if all of it is below -least, None if it does not decide.
    """
    if low > least:
        return True
    return False if high < -least else None


def bootstrap(
    samples: Sequence[np.ndarray],
    statistic_fn: Callable[..., np.ndarray],
    *,
    num_samples: int,
    seed: int,
    level: float = 0.95,
    paired: bool = False,
) -> tuple[float, float]:
    """Returns the percentile interval of a statistic (Efron & Tibshirani 1993, §13.3).

    Args:
      samples: finite numbers; each array is resampled, `paired` ones together.
      statistic_fn: (*samples [..., W], axis) -> [...].
      num_samples: resamples, at least 1.
      seed: the same seed and samples give the same interval.
      level: of the interval, 0 to 1.
      paired: whether place i of all arrays belongs together.
    """
    from scipy import stats  # half a second, which only who measures has to wait

    samples = [np.asarray(sample, np.float64) for sample in samples]
    if any(sample.ndim != 1 or not len(sample) for sample in samples):
        shapes = [sample.shape for sample in samples]
        raise ValueError(f"A sample is one number or more, got shapes {shapes}.")
    if num_samples < 1:
        raise ValueError(f"num_samples is at least 1, got {num_samples}.")
    # scipy wants two numbers; twice the same one gives that one
    samples = [np.repeat(sample, 2) if len(sample) == 1 else sample for sample in samples]
    interval = stats.bootstrap(
        samples,
        statistic_fn,
        n_resamples=num_samples,
        batch=max(1, _DRAWS_AT_A_TIME // max(map(len, samples))),
        vectorized=True,
        paired=paired,
        confidence_level=level,
        method="percentile",
        random_state=np.random.default_rng(seed),
    ).confidence_interval
    return float(interval.low), float(interval.high)


def bootstrap_interval(
    values_W: np.ndarray, *, num_samples: int, seed: int, level: float = 0.95
) -> tuple[float, float]:
    """Returns the interval of the mean of `values_W`, one number per window; see `bootstrap`."""
    how = dict(num_samples=num_samples, seed=seed, level=level)
    return bootstrap((values_W,), np.mean, **how)


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
      num_samples, seed, level: see `bootstrap`.
    """
    if len(sums_D) != len(counts_D) or not np.all(np.asarray(counts_D) >= 1):
        raise ValueError(f"One sum and one count for each document, got {sums_D}, {counts_D}.")

    def mean(sums, counts, axis):
        return sums.sum(axis=axis) / counts.sum(axis=axis)

    how = dict(num_samples=num_samples, seed=seed, level=level)
    return bootstrap((sums_D, counts_D), mean, paired=True, **how)


def difference_interval(
    one_W: np.ndarray, other_V: np.ndarray, *, num_samples: int, seed: int
) -> tuple[float, float]:
    """Returns the 95% interval of mean(one_W) - mean(other_V) of unpaired samples."""

    def difference(one, other, axis):
        return one.mean(axis=axis) - other.mean(axis=axis)

    return bootstrap((one_W, other_V), difference, num_samples=num_samples, seed=seed)


def grouped_interval(
    statistic_fn: Callable[[np.ndarray], np.ndarray], groups_W, *, num_samples: int, seed: int
) -> Interval:
    """Returns a statistic with its interval, whole groups of trials being resampled.

    Args:
      statistic_fn: counts_PW, how often each trial is in each resample -> numbers_P.
      groups_W: the group of each trial, 0 to their number less one.
      num_samples: resamples.
      seed: of the draws.
    """
    groups_W = np.asarray(groups_W)
    value = float(statistic_fn(np.ones((1, len(groups_W))))[0])
    rng, num_groups = np.random.default_rng(seed), int(groups_W.max()) + 1
    step, numbers = max(1, _DRAWS_AT_A_TIME // len(groups_W)), []
    for start in range(0, num_samples, step):
        counts = _counts(rng, num_groups, min(step, num_samples - start))
        numbers.append(statistic_fn(counts[:, groups_W]))
    numbers_P = np.concatenate(numbers)
    defined = numbers_P[np.isfinite(numbers_P)]
    if 2 * len(defined) < num_samples:
        return Interval(value, float("nan"), float("nan"))
    return Interval(value, *_percentiles(defined))


def crossed_interval(values_JW: np.ndarray, *, num_samples: int, seed: int) -> tuple[float, float]:
    """Returns the 95% interval of the mean, rows and columns being resampled, each on its own."""
    rng, (rows, columns) = np.random.default_rng(seed), values_JW.shape
    row_shares, column_shares = (_counts(rng, n, num_samples) / n for n in (rows, columns))
    means = np.einsum("PJ,JW,PW->P", row_shares, values_JW, column_shares, optimize=True)
    return _percentiles(means)


def _counts(rng: np.random.Generator, size: int, num_samples: int) -> np.ndarray:
    """Returns how often each of `size` is in each resample."""
    counts = rng.multinomial(size, np.full(size, 1 / size), size=num_samples)
    return counts.astype(np.float64)


def _percentiles(numbers_P: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(numbers_P, [0.025, 0.975])
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


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """Returns Wilson's 95% score interval of a share (Wilson 1927; Newcombe 1998, method 3)."""
    from scipy import stats

    interval = stats.binomtest(successes, trials).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


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


def position_curve(
    nll_WT: np.ndarray, *, bins_per_octave: int = 8
) -> tuple[np.ndarray, np.ndarray]:
    """Returns (edges, means) of the NLL by position, averaged over windows and in bins.

    The bins are equally wide on a logarithmic axis, from the longest length down, so that its half,
    its quarter and so on are edges, and hold one position at least: bin i holds the positions
    edges[i] .. edges[i + 1] - 1, where position 0 is the first scored token.
    """
    length = nll_WT.shape[1]
    down = np.arange(math.floor(bins_per_octave * math.log2(length)) + 1) / bins_per_octave
    edges = np.unique(np.rint([0, *(length * 2.0**-down)]).astype(np.int64))
    sums = np.add.reduceat(nll_WT.mean(axis=0, dtype=np.float64), edges[:-1])
    return edges, sums / np.diff(edges)
