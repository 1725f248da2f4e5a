"""The baselines, measured: each with its own attention factor, the best of them with the one that
suits it best.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from jaxrope import rope
from jaxrope.search import candidates, journal
from jaxrope.search.candidates import Candidate, Named
from jaxrope.search.loop import Bench
from jaxrope.search.problem import Problem

# Baselines whose attention factor is searched: those that are best with their own, the second only
# where it is near enough: the attention factor gains 4% of a perplexity at most (books-6m, NTK).
_SCANNED, _CATCHES_UP = 2, 1.05
_NEAR = 0.005  # of ln(attention factor): what lies nearer to a measured one is not measured


def run(problem: Problem, bench: Bench) -> list[dict]:
    """Returns the rows of all baselines, after what the journal has of them; [] where
    search.compare is False.
    """
    if not problem.config.search.compare:
        return []
    rows = candidates.measure(problem, bench, "baseline", own(problem))
    if problem.attention_is_searched:
        for name in _best_names(rows)[:_SCANNED]:
            start = next(b.bucket for b in problem.baselines if b.name == name)
            for pick_fn in (_spread, _bottom):
                numbers = pick_fn(problem, _of(rows, name))
                new = [(name, _with(start, number)) for number in numbers]
                rows += candidates.measure(problem, bench, "baseline", new, before=len(rows))
    return rows


def own(problem: Problem) -> list[Named]:
    """Returns each baseline with its own attention factor; where the search has one for all of
    them, also with that, and with that alone where it is the model's, which goes on to have it at
    other lengths.
    """
    pairs, number = [], problem.attention_factor
    for baseline in problem.baselines:
        if problem.config.search.attention_factor == "rope":
            pairs.append((baseline.name, _with(baseline.bucket, number)))
            continue
        pairs.append((baseline.name, baseline.bucket))
        if not problem.attention_is_searched and baseline.bucket.attention_factor != number:
            pairs.append((baseline.name, _with(baseline.bucket, number)))
    return pairs


def rounds(problem: Problem) -> tuple[int, ...]:
    """Returns how many are measured together, one round after another, at most."""
    if not problem.config.search.compare:
        return ()
    scanned = min(_SCANNED, len(problem.baselines)) if problem.attention_is_searched else 0
    return (len(own(problem)), *(2, 1) * scanned)


def most(problem: Problem) -> int:
    """Returns how many rows there will be, at most."""
    return sum(rounds(problem))


def best(rows: Sequence[dict]) -> list[Candidate]:
    """Returns each baseline as its best row has it, best first."""
    chosen = [min(_of(rows, name), key=journal.fitness_of) for name in _names(rows)]
    found = [candidates.of_row(row, row["baseline"], is_baseline=True) for row in chosen]
    return sorted(found, key=lambda candidate: candidate.fitness)


def _names(rows: Sequence[dict]) -> list[str]:
    return list(dict.fromkeys(row["baseline"] for row in rows))


def _of(rows: Sequence[dict], name: str) -> list[dict]:
    return [row for row in rows if row["baseline"] == name]


def _best_names(rows: Sequence[dict]) -> list[str]:
    """Returns the names of the baselines that are near to the best, best first, by their first
    rows.
    """
    first = {name: journal.fitness_of(_of(rows, name)[0]) for name in _names(rows)}
    limit = _CATCHES_UP * min(first.values(), default=0.0)
    near = (name for name, fitness in first.items() if math.isfinite(fitness) and fitness <= limit)
    return sorted(near, key=first.get)


def _spread(problem: Problem, rows: Sequence[dict]) -> list[float]:
    """Returns two of these that are not measured: that of the su law, the number between it and the
    attention factor of what is there, and the latter.
    """
    none = next(baseline.bucket for baseline in problem.baselines if baseline.name == "none")
    least, law = none.attention_factor, problem.attention_factor
    return _new([law, math.sqrt(least * law), least], rows)[:2]


def _bottom(problem: Problem, rows: Sequence[dict]) -> list[float]:
    """Returns the bottom of the parabola in ln(attention factor) through the best three rows."""
    best = sorted(rows, key=journal.fitness_of)[:3]
    if len(best) < 3 or not math.isfinite(journal.fitness_of(best[-1])):
        return []
    numbers = np.log([row["attention_factor"] for row in best])
    losses = [np.mean(row["losses"]) for row in best]
    curvature, slope, _ = np.polyfit(numbers - numbers[0], losses, 2)
    if curvature <= 0:
        return []
    lowest, largest = problem.attention_range
    bottom = numbers[0] - slope / (2 * curvature)  # of an all but flat parabola it is anywhere
    bottom = math.exp(np.clip(bottom, math.log(lowest), math.log(largest)))
    return _new([min(max(bottom, lowest), largest)], rows)


def _new(numbers: Sequence[float], rows: Sequence[dict]) -> list[float]:
    measured = [math.log(row["attention_factor"]) for row in rows]
    new: list[float] = []
    for number in numbers:
        if all(abs(math.log(number) - other) > _NEAR for other in measured):
            measured.append(math.log(number))
            new.append(number)
    return new


def _with(bucket: rope.Bucket, attention_factor: float) -> rope.Bucket:
    return dataclasses.replace(bucket, attention_factor=attention_factor)
