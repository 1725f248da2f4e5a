"""The search itself: ask, evaluate, journal, tell, until there is a reason to stop.

Letters: P candidates, W samples.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxrope import hosts, rope
from jaxrope.errors import InputError
from jaxrope.search import evaluator as evaluators
from jaxrope.search import evolution, journal
from jaxrope.search.evaluator import Evaluator
from jaxrope.search.evolution import SearchState
from jaxrope.search.objective import Objective


class Measured(NamedTuple):
    """One batch.

    Attributes:
      indices: of its candidates.
      losses_PW: float64; a row of infinities where memory did not suffice for one candidate.
      fitness_P: float64; +inf has failed.
      failure: "out of memory", or "".
      seconds: that the whole batch took.
    """

    indices: list[int]
    losses_PW: np.ndarray
    fitness_P: np.ndarray
    failure: str
    seconds: float


class Bench:
    """An evaluator that gives way when memory runs out.

    Attributes:
      evaluator: of the batch size that fits.
      objective: what it computes.
      path: the journal.
    """

    def __init__(self, evaluator: Evaluator, objective: Objective, path: Path):
        self.evaluator, self.objective, self.path = evaluator, objective, path

    def measure(
        self, ropes: Sequence[rope.Rope], *, known: set[int], generation: int
    ) -> Iterator[Measured]:
        """Yields each batch of `ropes`.

        Batches begin at multiples of the batch size, so that a resumed search has the batches of an
        undisturbed one; one whose members are all `known` is passed over.
        """
        begin = 0
        while begin < len(ropes):
            indices = list(range(begin, min(begin + self.evaluator.batch_size, len(ropes))))
            start = time.perf_counter()
            if not known.issuperset(indices):
                found = self._losses([ropes[i] for i in indices])
                seconds = time.perf_counter() - start
                if found is None:
                    self._give_way(generation, seconds)
                    continue
                losses_PW, failure = found
                yield Measured(indices, losses_PW, self._fitness(losses_PW), failure, seconds)
            begin += len(indices)

    def _losses(self, ropes: list[rope.Rope]) -> tuple[np.ndarray, str] | None:
        """Returns (losses_PW, failure); None if a smaller batch may fit."""
        try:
            return evaluators.evaluate(self.evaluator, ropes), ""
        except evaluators.OutOfMemory:
            if hosts.count() > 1:  # perhaps not on the others, who would wait for this one for ever
                fits = self.evaluator.batch_size // 2
                raise InputError(
                    f"search.batch_size: {self.evaluator.batch_size} candidates at one time do not "
                    f"fit into the memory of process {hosts.index()}. Set it to {fits} or less, or "
                    "spread the sequence over more devices (mesh.context)."
                ) from None
            if self.evaluator.per_device > 1:
                return None
            return np.full((len(ropes), self.objective.num_samples), np.inf), "out of memory"

    def _fitness(self, losses_PW: np.ndarray) -> np.ndarray:
        mean_P = self.objective.mean(losses_PW)
        # NaN, not the value: the exponential of a loss of -inf would be the best fitness of all
        mean_P = np.where(np.isfinite(mean_P), mean_P, np.nan)
        with np.errstate(over="ignore"):
            return evolution.clean_fitness(self.objective.fitness_fn(mean_P))

    def _give_way(self, generation: int, seconds: float) -> None:
        row = {"event": "out_of_memory", "generation": generation}
        row |= {"batch_size": self.evaluator.batch_size, "seconds": round(seconds, 3)}
        journal.append(self.path, [row])
        self.evaluator = evaluators.halve(self.evaluator)


def evolve(
    state: SearchState,
    known: dict[int, dict],
    bench: Bench,
    *,
    rope_fn: Callable[[np.ndarray, int, float], rope.Rope],
    report_fn: Callable[[SearchState, list[dict]], None],
) -> SearchState:
    """Runs a search to its end; every batch is in the journal before the next one starts.

    Args:
      state: where the search stands.
      known: rows of the unfinished generation, by index.
      bench: measures.
      rope_fn: (factors, start tokens, attention factor) -> candidate.
      report_fn: is told the state and the new rows after every batch.
    """
    known = dict(known)
    while evolution.stop_reason(state) is None:
        population_PG = evolution.ask(state)
        ropes = [rope_fn(*evolution.decode(state, genome)) for genome in population_PG]
        for batch in bench.measure(ropes, known=set(known), generation=state.generation):
            rows = [row for row in _rows(state, batch) if row["index"] not in known]
            journal.append(bench.path, rows)
            known |= {row["index"]: row for row in rows}
            report_fn(state, rows)
        fitness_P = [journal.fitness_of(known[i]) for i in range(len(population_PG))]
        state, known = evolution.tell(state, np.array(fitness_P)), {}
    return state


def _rows(state: SearchState, batch: Measured) -> list[dict]:
    rows = []
    for i, index in enumerate(batch.indices):
        failure = batch.failure or ("" if np.isfinite(batch.fitness_P[i]) else "not a number")
        rows.append(
            journal.candidate_row(
                state,
                index,
                batch.losses_PW[i],
                fitness=batch.fitness_P[i],
                failure=failure,
                seconds=batch.seconds,
            )
        )
    return rows
