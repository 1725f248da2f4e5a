"""YaRN with its ramp moved, pair by pair, to where the loss is lower.

YaRN leaves the pairs up to `low` as they are, divides the frequencies from `high` on by the whole
factor, and ramps between; the two borders are a guess from turns in the trained window. The best
ones are often a pair or two elsewhere: on books-6m at 8x one step at both ends gains two thirds of
what the paper's whole evolution does. A gradient does not find that by itself, for moving a border
changes several fast pairs far. A move goes to the first neighbour that is better, and on in its
direction.
"""

from collections.abc import Callable, Sequence

import numpy as np

from jaxrope import rope
from jaxrope.search import baselines, candidates
from jaxrope.search.candidates import Candidate
from jaxrope.search.loop import Bench
from jaxrope.search.problem import Problem

NAME = "ramp"
Ramp = tuple[int, int]  # (low, high), pairs
_DIRECTIONS = ((1, 1), (-1, -1), (0, 1), (0, -1), (1, 0), (-1, 0), (1, -1), (-1, 1))


def move(problem: Problem, bench: Bench, compared: Sequence[Candidate]) -> Candidate | None:
    """Returns YaRN with the best ramp; None where that is its own, where search.gradient.ramps is
    0, or where YaRN is no baseline (a recovery).

    Args:
      problem: of the search.
      bench: measures, and has the journal.
      compared: the baselines, each with its best attention factor.
    """
    start = _borders(problem)
    if start is None:
        return None
    yarn = next(candidate for candidate in compared if candidate.name == "yarn")
    number = yarn.bucket.attention_factor
    found = {start: yarn}

    def measure(ramp: Ramp) -> float:
        if ramp not in found:
            bucket = _bucket(problem, ramp, number)
            (row,) = candidates.measure(
                problem, bench, NAME, [(f"{ramp[0]} {ramp[1]}", bucket)], before=len(found) - 1
            )
            found[ramp] = candidates.of_row(row, NAME)
        return found[ramp].fitness

    best = climb(start, problem.gradient.ramps, measure)
    return None if best == start else found[best]


def most(problem: Problem) -> int:
    """Returns how many ramps `move` may measure."""
    return 0 if _borders(problem) is None else problem.gradient.ramps


def climb(start: Ramp, count: int, measure_fn: Callable[[Ramp], float]) -> Ramp:
    """Returns the best ramp of those measured on the way. It ends where no neighbour is better, and
    after a move already where half of `count` are not: what is left to gain there, descents find.

    Args:
      start: where it begins.
      count: ramps that are measured, at most.
      measure_fn: ramp -> fitness, lower is better; inf: failed. Each ramp is measured once.
    """
    fitness, best, directions = {start: measure_fn(start)}, start, list(_DIRECTIONS)
    patience, later = len(directions), max(2, count // 2)
    while True:
        for direction in directions:
            ramp = best[0] + direction[0], best[1] + direction[1]
            if ramp in fitness or not 0 <= ramp[0] < ramp[1]:
                continue
            if len(fitness) > count or not patience:
                return best
            fitness[ramp] = measure_fn(ramp)
            if fitness[ramp] < fitness[best]:
                best, patience = ramp, later
                directions = [direction, *(d for d in directions if d != direction)]
                break
            patience -= 1
        else:
            return best


def _borders(problem: Problem) -> Ramp | None:
    """YaRN's own."""
    settings, names = problem.gradient, [baseline.name for baseline in problem.baselines]
    base = np.array(problem.space.multiplier or np.ones(problem.space.num_pairs))
    if settings is None or not settings.ramps or "yarn" not in names or base.ndim > 1:
        return None
    return rope.yarn_borders(
        base, theta=problem.model.theta, trained=problem.trained_len, **baselines.BETAS
    )


def _bucket(problem: Problem, ramp: Ramp, attention_factor: float) -> rope.Bucket:
    factor = problem.config.target_len / problem.trained_len
    own_R = rope.ramp_factors(*ramp, problem.space.num_pairs, factor)
    total_R = own_R * np.array(problem.space.multiplier or 1.0)
    return rope.Bucket(problem.config.target_len, rope.as_factors(total_R), 0, attention_factor)
