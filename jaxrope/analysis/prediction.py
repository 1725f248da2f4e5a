"""Does a number tell failures from successes? Area under the ROC curve and correlations, over all
trials and with the length accounted for.

Zhong et al. (arXiv 2406.13282, section 3.3) read from a picture that uncertain attention goes with
wrong answers. Both grow with the length, so that a correlation over all lengths proves little:
beside it stand the correlation with the length taken out of both, and the area of pairs of equal
length. Intervals resample needles, each with all its cells, which are no independent draws.

All of it is numpy in float64. What is not defined, such as an area without a failure, is nan.

Letters: W trials, U their different values, P resamples.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from jaxrope.evaluate import statistics
from jaxrope.evaluate.statistics import Interval


class Prediction(NamedTuple):
    """How well a number predicts failure.

    Attributes:
      auroc: the probability that a failure has the higher number, ties half; 0.5 is chance, below
        it low numbers go with failure.
      auroc_within: the same among trials of equal length.
      point_biserial: correlation with failure (0, 1).
      partial: the same with ln(length) taken out of both.
      trials, failures: counted.
    """

    auroc: Interval
    auroc_within: Interval
    point_biserial: Interval
    partial: Interval
    trials: int
    failures: int


def judge(
    measures: Mapping[str, np.ndarray],
    failed_W,
    lengths_W,
    needles_W,
    *,
    num_samples: int,
    seed: int,
) -> dict[str, Prediction]:
    """Returns, for each measure, how well it predicts failure; all on the same resamples.

    Args:
      measures: name -> finite numbers, one a trial: entropy / ln n, needle mass, ...
      failed_W: whether the answer was wrong.
      lengths_W: tokens of the trial.
      needles_W: which needle a trial has: whole needles are resampled.
      num_samples: resamples, at least 1.
      seed: the same seed and numbers give the same intervals.
    """
    strata_W = _groups(lengths_W, len(lengths_W))
    needles_W = _groups(needles_W, len(strata_W))
    if num_samples < 1:
        raise ValueError(f"num_samples is at least 1, got {num_samples}.")
    one_stratum_W = np.zeros_like(strata_W)
    controls = np.log(np.asarray(lengths_W, np.float64))[:, None]
    predictions = {}
    for name, scores_W in measures.items():
        scores_W, failed = _trials(scores_W, failed_W)
        numbers = {
            "auroc": (_auroc, (scores_W, failed, one_stratum_W)),
            "auroc_within": (_auroc, (scores_W, failed, strata_W)),
            "point_biserial": (_partial, (scores_W, failed, controls[:, :0])),
            "partial": (_partial, (scores_W, failed, controls)),
        }
        intervals = {
            key: statistics.grouped_interval(
                lambda counts_PW, fn=fn, args=args: fn(*args, counts_PW),
                needles_W,
                num_samples=num_samples,
                seed=seed,
            )
            for key, (fn, args) in numbers.items()
        }
        predictions[name] = Prediction(**intervals, trials=len(failed), failures=int(failed.sum()))
    return predictions


def _auroc(scores_W, failed_W, strata_W, counts_PW) -> np.ndarray:
    """The area of each resample: pairs are counted among sorted values, never made."""
    order = np.lexsort((scores_W, strata_W))
    scores, strata, failed = scores_W[order], strata_W[order], failed_W[order]
    changed = (np.diff(scores) != 0) | (np.diff(strata) != 0)
    starts = np.concatenate([[0], 1 + np.flatnonzero(changed)])
    counts = counts_PW[:, order]
    failures_PU = np.add.reduceat(counts * failed, starts, axis=1)
    successes_PU = np.add.reduceat(counts * (1 - failed), starts, axis=1)
    won, pairs = np.zeros(len(counts)), np.zeros(len(counts))
    for stratum in np.unique(strata):
        here = strata[starts] == stratum
        f, s = failures_PU[:, here], successes_PU[:, here]
        lower = np.cumsum(s, axis=1) - s
        won += np.sum(f * (lower + s / 2), axis=1)
        pairs += f.sum(axis=1) * s.sum(axis=1)
    return np.divide(won, pairs, out=np.full(len(won), np.nan), where=pairs > 0)


def _partial(x_W, y_W, controls_WX, counts_PW) -> np.ndarray:
    """The partial correlation of each resample, from the covariances of x, y and the controls."""
    columns = np.concatenate([x_W[:, None], y_W[:, None], controls_WX], axis=1)
    scale = columns.std(axis=0)
    columns = (columns - columns.mean(axis=0)) / np.where(scale > 0, scale, 1.0)
    total_P = counts_PW.sum(axis=1)
    means = counts_PW @ columns / total_P[:, None]
    products = np.einsum("PW,WI,WJ->PIJ", counts_PW, columns, columns, optimize=True)
    cov = products / total_P[:, None, None] - means[:, :, None] * means[:, None, :]
    both, cross, controls_cov = cov[:, :2, :2], cov[:, :2, 2:], cov[:, 2:, 2:]
    inverse = np.linalg.pinv(controls_cov, rcond=1e-10, hermitian=True)
    residual_cov = both - cross @ inverse @ cross.swapaxes(1, 2)
    variance = residual_cov[:, 0, 0] * residual_cov[:, 1, 1]
    # what remains of a constant, or of a multiple of a control, is rounding
    defined = (residual_cov[:, 0, 0] > 1e-12) & (residual_cov[:, 1, 1] > 1e-12)
    undefined = np.full(len(variance), np.nan)
    return np.divide(
        residual_cov[:, 0, 1], np.sqrt(np.where(defined, variance, 1)), undefined, where=defined
    )


def _trials(scores_W, failed_W) -> tuple[np.ndarray, np.ndarray]:
    scores_W, failed_W = np.asarray(scores_W, np.float64), np.asarray(failed_W)
    if scores_W.ndim != 1 or not len(scores_W) or failed_W.shape != scores_W.shape:
        raise ValueError(
            f"One score and one failure for each trial, got {scores_W.shape}, {failed_W.shape}."
        )
    if not np.all(np.isfinite(scores_W)):
        raise ValueError(f"scores are finite, got {scores_W[~np.isfinite(scores_W)][0]}.")
    if not np.all((failed_W == 0) | (failed_W == 1)):
        raise ValueError("failed_W has only True and False, or 1 and 0.")
    return scores_W, failed_W.astype(np.float64)


def _groups(values_W, size: int) -> np.ndarray:
    """Numbers from 0 on for equal values; None: all are equal."""
    if values_W is None:
        return np.zeros(size, np.int64)
    groups_W = np.unique(np.asarray(values_W), return_inverse=True)[1].reshape(-1)
    if len(groups_W) != size:
        raise ValueError(f"One value for each of {size} trials, got {len(groups_W)}.")
    return groups_W
