"""The last word: the best candidates and the best baselines, judged on text that chose nothing.

Whoever searches keeps the best of many, and of many the luckiest: on the text of the search a
result always looks better than it is. So the best few and the best baselines are measured on fresh
samples, the same for all of them, and the best there is the result, whatever it is. Its difference
from the best baseline has an interval: of the mean of paired differences, by Student's t.

A measurement is a line of the journal of kind "judged"; with search.judge.num_samples 0 the samples
of the search stand for fresh ones.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import special

from jaxrope.search import candidates
from jaxrope.search.candidates import Candidate
from jaxrope.search.judging import Judge
from jaxrope.search.loop import Bench
from jaxrope.search.problem import Problem

# Baselines that are judged: the best on the text of the search, the second only where it is near.
BASELINES, NEAR = 2, 1.03
LEAST = 5  # draws for an interval: fewer say nothing about their spread
_CONFIDENCE = 0.95


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
            return (
                f"The result is a baseline, {self.result.name}: {where} nothing that was searched "
                "is better."
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
    """Returns the samples that judge."""
    return problem.unseen() if problem.config.search.judge.num_samples else problem.objective


def run(problem: Problem, bench: Bench, pool: Sequence[Candidate], judge: Judge) -> Verdict:
    """Returns the verdict on the candidates of a search.

    Args:
      problem: of the search.
      bench: of the search.
      pool: all candidates that may be the result, and the baselines; those not measured are judged
        in any case.
      judge: of `judge_of`.
    """
    chosen = finalists(pool, problem.config.search.judge.finalists)
    fresh = judge is not problem.objective
    judging = bench.on(judge, problem.mesh) if fresh else bench
    named = [(candidate.name, candidate.bucket) for candidate in chosen]
    rows = candidates.measure(problem, judging, "judged", named)
    losses_PW = np.array([[np.inf if x is None else x for x in row["losses"]] for row in rows])
    return decide(chosen, judge.draws(losses_PW), fresh=fresh)


def most(problem: Problem) -> int:
    """Returns how many candidates are judged, at most."""
    searched = problem.gradient.starts + 1 if problem.gradient else 0
    if problem.method.breeds:
        searched = max(searched, problem.config.search.judge.finalists)
    return searched + (BASELINES if problem.config.search.compare else 0)


def finalists(pool: Sequence[Candidate], count: int) -> list[Candidate]:
    """Returns who is judged: all that are not measured, as many more of the search as `count` has
    room for, and the best baselines; best first.
    """
    unmeasured = [c for c in pool if np.isnan(c.fitness)]
    ranked = sorted((c for c in pool if np.isfinite(c.fitness)), key=lambda c: c.fitness)
    searched = [c for c in ranked if not c.is_baseline][: max(0, count - len(unmeasured))]
    return [*unmeasured, *searched, *_near(ranked)]


def _near(ranked: Sequence[Candidate]) -> list[Candidate]:
    """Returns the baselines that are judged; of candidates best first."""
    known = [c for c in ranked if c.is_baseline and np.isfinite(c.fitness)][:BASELINES]
    return [c for c in known if c.fitness <= NEAR * known[0].fitness]


def spared(problem: Problem, compared: Sequence[Candidate]) -> int:
    """Returns the forward tokens of the baselines that will not be judged, though planned."""
    if not problem.config.search.compare:
        return 0
    return (BASELINES - len(_near(compared))) * tokens(problem)


def tokens(problem: Problem) -> int:
    """Returns the forward tokens of a candidate that is judged."""
    judge, count = problem.objective, problem.config.search.judge.num_samples
    return (count * judge.cycle or judge.num_samples) * judge.sample_tokens


def decide(chosen: Sequence[Candidate], losses_PB: np.ndarray, *, fresh: bool) -> Verdict:
    """Returns the verdict of losses of the same B draws, one row a candidate."""
    means = losses_PB.mean(axis=1)
    order = np.argsort(np.where(np.isfinite(means), means, np.inf), kind="stable").tolist()
    first = order[0]
    measured = [place for place in order if np.isfinite(means[place])]
    known = next((place for place in measured if chosen[place].is_baseline), None)
    difference, interval = 0.0, None
    if known is not None and known != first:
        difference_B = losses_PB[first] - losses_PB[known]
        difference, interval = float(difference_B.mean()), paired_interval(difference_B)
    return Verdict(
        result=chosen[first],
        losses=[(chosen[place], float(means[place])) for place in order],
        baseline=None if known is None else chosen[known],
        difference=difference,
        interval=interval,
        draws=losses_PB.shape[1],
        fresh=fresh,
    )


def paired_interval(difference_B: np.ndarray) -> tuple[float, float] | None:
    """Returns the 95% interval of a mean of paired differences, by Student's t; None of few."""
    count = len(difference_B)
    if count < LEAST or not np.all(np.isfinite(difference_B)):
        return None
    quantile = special.stdtrit(count - 1, (1 + _CONFIDENCE) / 2)
    reach = quantile * difference_B.std(ddof=1) / np.sqrt(count)
    mean = difference_B.mean()
    return float(mean - reach), float(mean + reach)
