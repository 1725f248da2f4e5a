"""How much better a result is than a rival on the same text, and whether that is decided."""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np

from jaxrope.report.tables import LEAST_WINDOWS

Ends = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Gap:
    """A paired difference of mean loss from a rival, nats per token.

    Attributes:
      rival: in words.
      label: of its row.
      mean: below 0 where the result is better.
      ends: of the 95% interval; None: too few windows for one.
      windows: of text; 0 = unknown.
    """

    rival: str
    label: str
    mean: float
    ends: Ends | None
    windows: int

    @property
    def word(self) -> str:
        """Returns "better", "worse" or "not decided"."""
        if self.ends is None or self.ends[0] <= 0 <= self.ends[1]:
            return "not decided"
        return "better" if self.mean < 0 else "worse"

    def percent(self) -> str:
        """Returns the difference of perplexity, with its interval."""
        mean, *ends = (100 * math.expm1(min(n, 700.0)) for n in (self.mean, *(self.ends or ())))
        return f"{mean:+.1f}%" + (" [{:+.1f}, {:+.1f}]".format(*ends) if ends else "")

    def nats(self) -> str:
        """Returns the difference of the loss, with its interval."""
        ends = "" if self.ends is None else " [{:+.3f}, {:+.3f}]".format(*self.ends)
        return f"{self.mean:+.3f}{ends}"


def gap(rival: str, label: str, ours: Sequence[float], theirs: Sequence[float], ends_fn) -> Gap:
    """Returns the difference of losses by window; `ends_fn` is `students` or of `bootstrap`."""
    difference_W = np.subtract(ours, theirs, dtype=np.float64)
    ends = None
    if len(difference_W) >= LEAST_WINDOWS:
        ends = ends_fn(difference_W) if np.ptp(difference_W) else (float(difference_W[0]),) * 2
    return Gap(rival, label, float(difference_W.mean()), ends, len(difference_W))


def students(difference_W: np.ndarray) -> Ends:
    """Returns Student's 95% interval of a mean, as that of a search's last word."""
    from scipy import stats

    interval = stats.ttest_1samp(difference_W, 0.0).confidence_interval(0.95)
    return float(interval.low), float(interval.high)


def bootstrap(num_samples: int, seed: int) -> Callable[[np.ndarray], Ends]:
    """Returns the function for the 95% percentile bootstrap of a mean, as an evaluation has it."""
    from scipy import stats

    def ends(difference_W: np.ndarray) -> Ends:
        interval = stats.bootstrap(
            (difference_W,),
            np.mean,
            n_resamples=num_samples,
            method="percentile",
            random_state=np.random.default_rng(seed),
        ).confidence_interval
        return float(interval.low), float(interval.high)

    return ends
