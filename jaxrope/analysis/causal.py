"""Do retrieval heads cause retrieval? Mask the best k, and k random others, and test again (Wu et
al., arXiv 2404.15574, section 4).

The caller supplies the test: a function of the parameters that returns for each trial whether it
was answered, such as the suite "needle". The trials are always the same, so that differences are
paired.

Letters: L layers, N heads, W trials, J draws.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from jaxrope.analysis.heads import Head, without_heads
from jaxrope.errors import InputError
from jaxrope.evaluate import statistics


class Causal(NamedTuple):
    """The effect of masking k heads.

    Attributes:
      num_heads: k.
      accuracy: share of trials answered with all heads.
      top: with the best k masked.
      random: with k others masked, mean over the draws.
      random_draws: each draw's.
      effect: random - top: what the best k cost beyond any k.
      low, high: 95% interval of it, trials and draws being resampled.
      heads: those masked, the best first.
    """

    num_heads: int
    accuracy: float
    top: float
    random: float
    random_draws: tuple[float, ...]
    effect: float
    low: float
    high: float
    heads: tuple[Head, ...]


def mask_best(
    params: dict,
    ranking: Sequence[Head],
    answered_fn: Callable[[dict], Sequence[bool]],
    *,
    sizes: Sequence[int],
    num_draws: int,
    num_samples: int,
    seed: int,
) -> list[Causal]:
    """Returns the effect of masking, for each number of heads.

    Args:
      params: of decoder.
      ranking: all heads, the best first (heads.ranked).
      answered_fn: parameters -> whether each trial was answered, always of the same trials; called
        once, and 1 + num_draws times for each size.
      sizes: how many heads are masked; random heads are drawn from outside the best of that size.
      num_draws: sets of heads that are drawn.
      num_samples: resamples of an interval.
      seed: of draws and resamples. A draw for a size is part of that for a larger one where the
        best of both leave it there.

    Raises:
      InputError: a size leaves too few heads to draw from, or a number is no count.
    """
    total = len(ranking)
    _check(total, sizes, num_draws=num_draws, num_samples=num_samples)
    whole_W = np.asarray(answered_fn(params), np.float64)
    rng = np.random.default_rng(seed)
    orders = [rng.permutation(total) for _ in range(num_draws)]
    tested = []
    for size in sizes:
        best = tuple(ranking[:size])
        drawn = [[ranking[i] for i in order if i >= size][:size] for order in orders]
        top_W, *random_JW = (
            np.asarray(answered_fn(without_heads(params, masked)), np.float64)
            for masked in (best, *drawn)
        )
        random_JW = np.stack(random_JW)
        low, high = statistics.crossed_interval(
            random_JW - top_W, num_samples=num_samples, seed=seed
        )
        tested.append(
            Causal(
                num_heads=size,
                accuracy=float(whole_W.mean()),
                top=float(top_W.mean()),
                random=float(random_JW.mean()),
                random_draws=tuple(random_JW.mean(axis=1).tolist()),
                effect=float(random_JW.mean() - top_W.mean()),
                low=low,
                high=high,
                heads=best,
            )
        )
    return tested


def _check(total: int, sizes: Sequence[int], **counts: int) -> None:
    for name, value in counts.items():
        if value < 1:
            raise InputError(f"causal.{name} must be 1 or more, got {value}.")
    for size in sizes:
        if not 1 <= size <= total // 2:
            raise InputError(
                f"causal.sizes must be from 1 to {total // 2}, half of the model's heads, so that "
                f"as many others can be drawn, got {size}."
            )
