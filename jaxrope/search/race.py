"""Racing: candidates are judged on few samples first, and those clearly worse than the parents
are not judged on the rest.

Successive halving with a paired test (Maron and Moore, "Hoeffding races"; irace): all candidates
read the same samples, so that the test is of the mean of differences, whose standard deviation is a
tenth of that of the losses. A candidate leaves when it is worse than the worst parent by more than
chance: it would not have become a parent, and nothing else depends on it. Over a whole search, the
probability to lose a candidate that would have become one is at most `risk`, if the differences
between samples are normally distributed.

Letters: P candidates, W samples judged so far.
"""

import dataclasses
from collections.abc import Iterable

import numpy as np
from scipy import special

from jaxrope import schema
from jaxrope.search.evolution import SearchState


@dataclasses.dataclass
class Race:
    """A race through a whole search.

    Attributes:
      first: samples that all candidates read.
      risk: of each of them.
      scale_W: weight of each sample's loss in a candidate's mean; 1 on average.
      full_losses: losses_W of every candidate judged on all samples, by its genome.
    """

    first: int
    risk: float
    scale_W: np.ndarray
    full_losses: dict[tuple, np.ndarray] = dataclasses.field(default_factory=dict)

    def remember(self, rows: Iterable[dict]) -> None:
        """Stores the losses of rows of the journal."""
        for row in rows:
            self.full_losses[tuple(row["genome"])] = self.losses(row)

    def losses(self, row: dict) -> np.ndarray:
        """Returns the losses of a row, float64 [W]; NaN where it has none."""
        return np.array(row["losses"], np.float64)

    def losses_of(self, state: SearchState) -> np.ndarray:
        """Returns the losses of the worst parent, [W]: a worse candidate becomes no parent."""
        last = int(np.sum(np.isfinite(state.parent_fitness_K))) - 1
        return self.full_losses[tuple(state.parents_KG[last].tolist())]

    def losers(self, losses_PW: np.ndarray, rival_W: np.ndarray) -> np.ndarray:
        """Returns which candidates need no further samples, bool [P]; losses of the first W."""
        scale_W = self.scale_W[: self.first]
        return losers(losses_PW * scale_W, rival_W * scale_W, risk=self.risk)


def make(
    settings: schema.search.Racing,
    *,
    candidates: int,
    weights_W: np.ndarray,
) -> Race:
    """Returns the race of a search of `candidates`; weights_W of the losses of its samples."""
    return Race(settings.first, settings.risk / candidates, weights_W / weights_W.mean())


def losers(losses_PW: np.ndarray, rival_W: np.ndarray, *, risk: float) -> np.ndarray:
    """Returns which candidates are worse than the rival, bool [P]: a paired t-test, one-sided.

    The variance of a candidate's differences is its own, or the one that the median over all
    candidates implies if that is larger: with two samples its own alone says little. The
    quantile is that of a variance pooled over all candidates.

    Args:
      losses_PW: on the first samples; not finite: lost.
      rival_W: losses of the rival on the same samples.
      risk: the probability to call a candidate worse that is as good as the rival.
    """
    finite_P = np.all(np.isfinite(losses_PW), axis=1)
    difference_PW = np.where(finite_P[:, None], losses_PW, np.inf) - rival_W
    num_candidates, num_samples = losses_PW.shape
    with np.errstate(invalid="ignore"):
        own_P = np.where(finite_P, difference_PW.var(axis=1, ddof=1), np.nan)
    freedom = num_samples - 1
    typical = 2 * special.gammaincinv(freedom / 2, 0.5) / freedom  # median / mean of a variance
    common = float(np.nanmedian(own_P)) / typical if finite_P.any() else 0.0
    quantile = special.stdtrit(num_candidates * freedom, 1 - risk)
    least_P = quantile * np.sqrt(np.fmax(own_P, common) / num_samples)
    return difference_PW.mean(axis=1) > least_P
