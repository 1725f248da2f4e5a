"""The last word: the best candidates and the best baselines, judged on text that chose nothing.

Whoever searches keeps the best of many, and of many the luckiest: on the text of the search a
result always looks better than it is. So the best few and the best baselines are measured on fresh
samples, the same for all of them, and the best there is the result, whatever it is. Where they do
not tell a baseline from the best, a second look at AGAIN times as many decides between those two
and all others that are as near. The difference from the best baseline has an interval: of the mean
of paired differences, by Student's t, so wide that both looks together are right 95% of the time.

In a recovery, a search for a length that the extended model serves already, its own factors are the
result unless the best is better than they are beyond chance: one set for all lengths is simpler.

A measurement is a line of the journal of kind "judged", or "judged again"; with
search.judge.num_samples 0 the samples of the search stand for fresh ones.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import special

from jaxrope.search import candidates
from jaxrope.search.baselines import CONFIGURED
from jaxrope.search.candidates import Candidate
from jaxrope.search.judging import Judge
from jaxrope.search.loop import Bench
from jaxrope.search.problem import Problem

# Baselines that are judged: all that the text of the search does not tell from the best, by so many
# standard errors of their difference; so many of them are planned, and at most three times as many.
PLANNED, NEAR = 2, 2.0
FIRST_LOOK, SECOND_LOOK = "judged", "judged again"  # kinds of rows of the journal
LEAST = 5  # draws for an interval: fewer say nothing about their spread
AGAIN = 2  # times as many samples of the second look
# Of an interval: one look, and each of two (S. J. Pocock, Biometrika 64, 1977, table 1).
_CONFIDENCE, _OF_TWO_LOOKS = 0.95, 1 - 0.0294


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What a search found.

    Attributes:
      result: the best of the judged.
      losses: of each of them, best first: (candidate, mean loss on the samples that judged).
      baseline: the best baseline among them; None: none was measured.
      difference: mean loss of the result less that of `baseline`, nats for text.
      interval: of the difference, 95%; None: too few draws for one.
      draws: that judged.
      fresh: they chose nothing.
    """

    result: Candidate
    losses: list[tuple[Candidate, float]]
    baseline: Candidate | None
    difference: float
    interval: tuple[float, float] | None
    draws: int
    fresh: bool

    @property
    def is_better(self) -> bool:
        """Whether it is better than the best baseline beyond chance."""
        return self.interval is not None and self.interval[1] < 0

    def sentence(self) -> str:
        """Returns the verdict in words."""
        if self.baseline is None:
            return "There is no baseline to compare with."
        where = f"on {self.draws} {'fresh ' if self.fresh else ''}samples"
        if self.result.is_baseline:
            chance = " beyond chance" if self.result.name == CONFIGURED else ""
            return (
                f"The result is a baseline, {self.result.name}: {where} nothing that was searched "
                f"is better{chance}."
            )
        ends = "" if self.interval is None else " [{:+.4f}, {:+.4f}]".format(*self.interval)
        against = f"{self.difference:+.4f}{ends} against the best baseline, {self.baseline.name}"
        if self.is_better:
            return f"Better than every baseline {where}: {against}."
        if self.interval is None:
            return f"Fewer than {LEAST} samples do not tell chance from gain; {where}: {against}."
        return f"No better than a baseline beyond chance, {where}: {against}."

    def to_json(self) -> dict[str, Any]:
        """Returns it as it stands in result.json and rope.json."""
        return {
            "result": self.result.name,
            "is_baseline": self.result.is_baseline,
            "best_baseline": self.baseline and self.baseline.name,
            "difference": self.difference,
            "interval": self.interval and list(self.interval),
            "is_better": self.is_better,
            "samples": self.draws,
            "fresh": self.fresh,
            "sentence": self.sentence(),
        }


def judge_of(problem: Problem) -> Judge:
    """Returns the samples of the first look."""
    count = problem.config.search.judge.num_samples
    return problem.unseen(0, count) if count else problem.objective


def run(problem: Problem, bench: Bench, pool: Sequence[Candidate], judge: Judge) -> Verdict:
    """Returns the verdict on the candidates of a search.

    Args:
      problem: of the search.
      bench: of the search.
      pool: all candidates that may be the result, and the baselines; those not measured are judged
        in any case.
      judge: of `judge_of`.
    """
    chosen = finalists(pool, problem.config.search.judge.finalists, problem.objective)
    kept = CONFIGURED if problem.recovers else ""
    bench.meter.extend("judging", max(0, len(chosen) - most(problem)) * tokens(problem))
    if judge is problem.objective:
        losses_PB = _losses(problem, bench, FIRST_LOOK, judge, chosen)
        return decide(chosen, losses_PB, fresh=False, kept=kept)
    on_fresh = bench.on(judge, problem.mesh)
    losses_PB = _losses(problem, on_fresh, FIRST_LOOK, judge, chosen)
    left, again = undecided(chosen, losses_PB), {}
    if left:
        count = problem.config.search.judge.num_samples
        more = problem.unseen(count, AGAIN * count)
        bench.meter.extend("judging", len(left) * more.candidate_tokens)
        on_more, named = bench.on(more, problem.mesh), [chosen[place] for place in left]
        rows = _losses(problem, on_more, SECOND_LOOK, more, named)
        again = dict(zip(left, rows, strict=True))
    return decide(chosen, losses_PB, again=again, fresh=True, kept=kept)


def _losses(problem: Problem, bench: Bench, kind: str, judge: Judge, chosen) -> np.ndarray:
    """Returns the losses of draws, [P, draws]; inf where a candidate failed."""
    named = [(candidate.name, candidate.bucket) for candidate in chosen]
    rows = candidates.measure(problem, bench, kind, named)
    losses = [[np.inf if x is None else x for x in row["losses"]] for row in rows]
    return judge.draws(np.array(losses))


def undecided(chosen: Sequence[Candidate], losses_PB: np.ndarray) -> list[int]:
    """Returns the places of those between whom a second look decides: the best, and all that the
    first does not tell from it; none where no baseline is among them, and of too few draws.
    """
    if losses_PB.shape[1] < LEAST or not np.isfinite(losses_PB).all(axis=1).any():
        return []
    first, left = int(np.argmin(_means(losses_PB))), []
    for place, losses_B in enumerate(losses_PB):
        interval = paired_interval(losses_PB[first] - losses_B, _OF_TWO_LOOKS)
        if interval and interval[1] >= 0 and not np.array_equal(losses_B, losses_PB[first]):
            left.append(place)
    is_open = left and any(chosen[place].is_baseline for place in (first, *left))
    return sorted([first, *left]) if is_open else []


def most(problem: Problem) -> int:
    """Returns how many candidates are judged, at most."""
    searched = problem.gradient.starts + 1 if problem.gradient else 0
    if problem.method.breeds:
        searched = max(searched, problem.config.search.judge.finalists)
    return searched + (PLANNED if problem.config.search.compare else 0)


def most_beyond(problem: Problem) -> int:
    """Returns the forward tokens that judging may need beyond those of `most`: for baselines that
    are as good, and for the second look.
    """
    count = problem.config.search.judge.num_samples
    more = 2 * PLANNED if problem.config.search.compare else 0
    again = AGAIN * (most(problem) + more) if count >= LEAST else 0
    return (more + again) * tokens(problem)


def finalists(pool: Sequence[Candidate], count: int, judge: Judge) -> list[Candidate]:
    """Returns who is judged: all that are not measured, as many more of the search as `count` has
    room for, and the best baselines by `judge`, which measured them; best first.
    """
    unmeasured = [c for c in pool if np.isnan(c.fitness)]
    ranked = sorted((c for c in pool if np.isfinite(c.fitness)), key=lambda c: c.fitness)
    searched = [c for c in ranked if not c.is_baseline][: max(0, count - len(unmeasured))]
    return [*unmeasured, *searched, *_near(ranked, judge)]


def _near(ranked: Sequence[Candidate], judge: Judge) -> list[Candidate]:
    """Returns the baselines that are judged; of candidates best first.

    The spread of a difference is estimated from few draws: half of the variance is its own, half
    that of the middle of all baselines.
    """
    known = [c for c in ranked if c.is_baseline and np.isfinite(c.fitness)]
    if len(known) < 2:
        return known
    losses_PB = judge.draws(np.array([c.losses for c in known]))
    differences_PB = losses_PB[1:] - losses_PB[0]
    count = differences_PB.shape[1]
    if count < 2:
        return known[:PLANNED]
    variances_P = differences_PB.var(axis=1, ddof=1)
    errors_P = np.sqrt((variances_P + np.median(variances_P)) / (2 * count))
    near = differences_PB.mean(axis=1) <= NEAR * errors_P
    return [known[0], *itertools.compress(known[1:], near)][: 3 * PLANNED]


def spared(problem: Problem, compared: Sequence[Candidate]) -> int:
    """Returns the forward tokens of the baselines that will not be judged, though planned."""
    if not problem.config.search.compare:
        return 0
    return max(0, PLANNED - len(_near(compared, problem.objective))) * tokens(problem)


def tokens(problem: Problem) -> int:
    """Returns the forward tokens of a candidate that is judged."""
    judge, count = problem.objective, problem.config.search.judge.num_samples
    return (count * judge.cycle or judge.num_samples) * judge.sample_tokens


def decide(
    chosen: Sequence[Candidate],
    losses_PB: np.ndarray,
    *,
    fresh: bool,
    again: dict | None = None,
    kept: str = "",
) -> Verdict:
    """Returns the verdict of losses of the same B draws, one row a candidate.

    Args:
      chosen: who is judged.
      losses_PB: of the first look.
      fresh: they chose nothing.
      again: place -> losses of the draws of a second look. Of all others the loss is that of the
        best, and the difference of the first look.
      kept: name of the baseline that is the result unless the best is better beyond chance.
    """
    again, means = again or {}, _means(losses_PB)
    read = {place: np.append(losses_PB[place], more) for place, more in again.items()}
    if read:
        best = min(read, key=lambda place: read[place].mean())
        means += read[best].mean() - means[best]
        for place, losses in read.items():
            means[place] = losses.mean()
    places = np.arange(len(chosen))
    order = np.lexsort([places, means, [place not in read for place in places]]).tolist()
    read = read or dict(enumerate(losses_PB))
    confidence = _OF_TWO_LOOKS if fresh else _CONFIDENCE
    for place in (place for place in order[1:] if chosen[place].name == kept and place in read):
        interval = paired_interval(read[order[0]] - read[place], confidence)
        if interval is None or interval[1] >= 0:
            order = [place, *(other for other in order if other != place)]
    first = order[0]
    measured = [place for place in order if np.isfinite(means[place])]
    known = next((place for place in measured if chosen[place].is_baseline), None)
    difference, interval = 0.0, None
    if known is not None and known != first:
        difference_B = read[first] - read[known]
        difference = float(difference_B.mean())
        interval = paired_interval(difference_B, confidence)
    return Verdict(
        result=chosen[first],
        losses=[(chosen[place], float(means[place])) for place in order],
        baseline=None if known is None else chosen[known],
        difference=difference,
        interval=interval,
        draws=len(read[first]),
        fresh=fresh,
    )


def _means(losses_PB: np.ndarray) -> np.ndarray:
    """Returns mean losses; inf where one is not finite."""
    means = losses_PB.mean(axis=1)
    return np.where(np.isfinite(means), means, np.inf)


def paired_interval(difference_B: np.ndarray, confidence: float) -> tuple[float, float] | None:
    """Returns the interval of a mean of paired differences, by Student's t; None of few."""
    count = len(difference_B)
    if count < LEAST or not np.all(np.isfinite(difference_B)):
        return None
    quantile = special.stdtrit(count - 1, (1 + confidence) / 2)
    reach = quantile * difference_B.std(ddof=1) / np.sqrt(count)
    mean = difference_B.mean()
    return float(mean - reach), float(mean + reach)
