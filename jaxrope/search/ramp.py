"""Where descents begin: YaRN with its ramp moved, pair by pair, to where the loss is lower.

YaRN leaves the pairs up to `low` as they are, divides the frequencies from `high` on by the whole
factor, and ramps between; the two borders are a guess from turns in the trained window. The best
borders are often a pair or two elsewhere: on books-6m at 8x one step at both ends gains two thirds
of what the paper's whole evolution does. A gradient does not find that by itself, for moving a
border changes several factors far.

A move looks at all eight neighbours and takes the best, while one is better; each candidate is a
line of the journal, {"ramp": [low, high], "factors", "attention_factor", "losses", "fitness"}.

Letters: R rotary pairs.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from jaxrope import rope
from jaxrope.search import baselines, journal
from jaxrope.search.baselines import Baseline
from jaxrope.search.loop import Bench
from jaxrope.search.problem import Problem, build_rope

Ramp = tuple[int, int]  # (low, high), pairs


class Moved(NamedTuple):
    """YaRN with another ramp, and its fitness with the attention factor of the search."""

    baseline: Baseline
    fitness: float


def climb(start: Ramp, moves: int, measure_fn: Callable[[list[Ramp]], Sequence[float]]) -> Ramp:
    """Returns the best ramp of those measured on the way.

    Args:
      start: where it begins.
      moves: the most moves.
      measure_fn: ramps, none of them measured before -> fitness of each, lower is better; inf:
        failed. It is called with `start` alone first.
    """
    fitness = {start: measure_fn([start])[0]}
    best = start
    for _ in range(moves):
        low, high = best
        neighbours = [(low + i, high + j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
        new = [ramp for ramp in neighbours if ramp not in fitness and ramp[0] < ramp[1]]
        fitness |= dict(zip(new, measure_fn(new), strict=True)) if new else {}
        candidate = min(fitness, key=fitness.get)
        if fitness[candidate] >= fitness[best]:
            break
        best = candidate
    return best


def run(problem: Problem, bench: Bench, compared: list[dict]) -> Moved | None:
    """Returns YaRN with the best ramp; None where that is its own, where
    search.gradient.ramp_moves is 0, or where YaRN is no baseline (a recovery).

    Args:
      problem: of the search.
      bench: measures, and has the journal.
      compared: the baselines, measured.
    """
    start = _start(problem)
    if start is None:
        return None
    done_rows = [row for row in bench.record.rows if "ramp" in row]
    fitness = {tuple(row["ramp"]): journal.fitness_of(row) for row in done_rows}
    fitness[start] = [journal.fitness_of(row) for row in compared if row["baseline"] == "yarn"][-1]

    def measure(ramps: list[Ramp]) -> list[float]:
        buckets = [_bucket(problem, ramp) for ramp in ramps]
        ropes = [build_rope(problem, b.factors, 0, b.attention_factor) for b in buckets]
        done = {i for i, ramp in enumerate(ramps) if ramp in fitness}
        for batch in bench.measure(ropes, done=done, generation=0):
            new = []
            for i, index in enumerate(batch.indices):
                if index not in done:
                    row = _row(ramps[index], buckets[index], batch.losses_PW[i])
                    new.append(row | {"fitness": journal.number(batch.fitness_P[i])})
                    fitness[ramps[index]] = float(batch.fitness_P[i])
            bench.record.append(new)
        return [fitness[ramp] for ramp in ramps]

    best = climb(start, problem.gradient.ramp_moves, measure)
    if best == start:
        return None
    return Moved(Baseline("ramp", _bucket(problem, best), True), fitness[best])


def most_candidates(problem: Problem) -> int:
    """Returns how many candidates `run` may judge: 8 for the first move, at most 5 for others."""
    if _start(problem) is None:
        return 0
    return 8 + 5 * (problem.gradient.ramp_moves - 1)


def _start(problem: Problem) -> Ramp | None:
    """YaRN's own borders."""
    settings, names = problem.gradient, [baseline.name for baseline in problem.baselines]
    tuned = np.array(problem.space.multiplier or np.ones(problem.space.num_pairs))
    if settings is None or not settings.ramp_moves or "yarn" not in names or tuned.ndim > 1:
        return None
    return baselines.yarn_borders(
        tuned, theta=problem.model.theta, trained=problem.trained_len, **baselines.BETAS
    )


def _factor(problem: Problem) -> float:
    return problem.config.target_len / problem.trained_len


def _bucket(problem: Problem, ramp: Ramp) -> rope.Bucket:
    own_R = baselines.ramp_factors(*ramp, problem.space.num_pairs, _factor(problem))
    total_R = own_R * np.array(problem.space.multiplier or 1.0)
    length, number = problem.config.target_len, problem.attention_factor
    return rope.Bucket(length, rope.as_factors(total_R), 0, number)


def _row(ramp: Ramp, bucket: rope.Bucket, losses_W: np.ndarray) -> dict:
    return {
        "ramp": list(ramp),
        "factors": np.array(bucket.factors).tolist(),
        "start_tokens": bucket.start_tokens,
        "attention_factor": bucket.attention_factor,
        "losses": [journal.number(loss) for loss in losses_W],
    }
