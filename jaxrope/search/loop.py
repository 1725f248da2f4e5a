"""The search itself: ask, evaluate, journal, tell, until there is a reason to stop.

Letters: P candidates, W samples.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh

from jaxrope import rope
from jaxrope.errors import InputError
from jaxrope.mesh import hosts
from jaxrope.search import evaluator as evaluators
from jaxrope.search import evolution, journal
from jaxrope.search.evaluator import Evaluator
from jaxrope.search.evolution import SearchState
from jaxrope.search.journal import Record
from jaxrope.search.meter import Meter
from jaxrope.search.objective import Judge
from jaxrope.search.race import Race


class Measured(NamedTuple):
    """One batch.

    Attributes:
      indices: of its candidates.
      losses_PW: float64; a row of infinities where memory did not suffice for one candidate.
      fitness_P: float64; +inf: failed.
      failure: "out of memory", or "".
      seconds: of the whole batch.
    """

    indices: list[int]
    losses_PW: np.ndarray
    fitness_P: np.ndarray
    failure: str
    seconds: float


class Bench:
    """An evaluator that halves its batch when memory runs out.

    Attributes:
      evaluator: of the batch size that fits.
      objective: what it computes.
      record: the journal.
      meter: what is told of every batch.
    """

    def __init__(self, evaluator: Evaluator, objective: Judge, record: Record, meter: Meter):
        self.evaluator, self.objective = evaluator, objective
        self.record, self.meter = record, meter

    def on(self, objective: Judge, mesh: Mesh, per_device: int = 0) -> "Bench":
        """Returns a bench of the same function with the samples of another objective, and another
        batch size if one is given.
        """
        samples = evaluators.place(objective, mesh)
        per_device = per_device or self.evaluator.per_device
        evaluator = dataclasses.replace(self.evaluator, samples=samples, per_device=per_device)
        return Bench(evaluator, objective, self.record, self.meter)

    def measure(
        self, ropes: Sequence[rope.Rope], *, done: set[int], generation: int = 0
    ) -> Iterator[Measured]:
        """Yields each batch of `ropes`.

        Batches begin at multiples of the batch size, so that a resumed search has the batches of an
        undisturbed one; a batch whose candidates are all `done` is skipped.
        """
        begin = 0
        while begin < len(ropes):
            indices = list(range(begin, min(begin + self.evaluator.batch_size, len(ropes))))
            start = time.perf_counter()
            if not done.issuperset(indices):
                outcome = self._losses([ropes[i] for i in indices])
                seconds = time.perf_counter() - start
                if outcome is None:
                    self._halve_batch(generation, seconds)
                    continue
                losses_PW, failure = outcome
                self.meter.add(losses_PW.size * self.objective.sample_tokens)
                yield Measured(indices, losses_PW, self.fitness(losses_PW), failure, seconds)
            begin += len(indices)

    def losses(self, ropes: Sequence[rope.Rope], chosen: slice, generation: int) -> np.ndarray:
        """Returns losses_PW of the chosen samples."""
        batches, done, start = [], 0, time.perf_counter()
        while done < len(ropes):
            batch = self._losses(ropes[done : done + self.evaluator.batch_size], chosen)
            if batch is None:
                self._halve_batch(generation, time.perf_counter() - start)
            else:
                batches.append(batch[0])
                done += len(batch[0])
                self.meter.add(batch[0].size * self.objective.sample_tokens)
        return np.concatenate(batches)

    def _losses(
        self, ropes: Sequence[rope.Rope], chosen: slice = slice(None)
    ) -> tuple[np.ndarray, str] | None:
        """Returns (losses_PW, failure); None if a smaller batch may fit."""
        try:
            return evaluators.evaluate(evaluators.part(self.evaluator, chosen), ropes), ""
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
            count = len(range(self.objective.num_samples)[chosen])
            return np.full((len(ropes), count), np.inf), "out of memory"

    def fitness(self, losses_PW: np.ndarray) -> np.ndarray:
        mean_P = self.objective.mean(losses_PW)
        # NaN, not the value: the exponential of a loss of -inf would be the best fitness of all
        mean_P = np.where(np.isfinite(mean_P), mean_P, np.nan)
        with np.errstate(over="ignore"):
            return evolution.clean_fitness(self.objective.fitness_fn(mean_P))

    def _halve_batch(self, generation: int, seconds: float) -> None:
        row = {"event": "out_of_memory", "generation": generation}
        row |= {"batch_size": self.evaluator.batch_size, "seconds": round(seconds, 3)}
        self.record.append([row])
        self.evaluator = evaluators.halve(self.evaluator)


def evolve(
    state: SearchState,
    done: dict[int, dict],
    bench: Bench,
    *,
    rope_fn: Callable[[np.ndarray, int, float], rope.Rope],
    report_fn: Callable[[SearchState, list[dict]], None],
    race: Race | None = None,
) -> SearchState:
    """Runs a search to its end; every batch is in the journal before the next one starts.

    Args:
      state: where the search stands.
      done: rows of the unfinished generation, by index.
      bench: measures.
      rope_fn: (factors, start tokens, attention factor) -> candidate.
      report_fn: called with the state and the new rows after every batch.
      race: whether, and how, candidates that lose on few samples skip the rest.
    """
    done = dict(done)
    while evolution.stop_reason(state) is None:
        population_PG = evolution.ask(state)
        ropes = [rope_fn(*evolution.decode(state, genome)) for genome in population_PG]
        if race is not None and state.generation:
            for rows in _run_race(state, dict(done), bench, ropes, race):
                bench.record.append(rows)
                done |= {row["index"]: row for row in rows}
                report_fn(state, rows)
        for batch in bench.measure(ropes, done=set(done), generation=state.generation):
            rows = [row for row in _rows(state, batch) if row["index"] not in done]
            bench.record.append(rows)
            done |= {row["index"]: row for row in rows}
            report_fn(state, rows)
        if race is not None:
            race.remember(done.values())
        fitness_P = [journal.fitness_of(done[i]) for i in range(len(population_PG))]
        state, done = evolution.tell(state, np.array(fitness_P)), {}
    return state


def _run_race(
    state: SearchState, done: dict, bench: Bench, ropes: Sequence[rope.Rope], race: Race
) -> Iterator[list[dict]]:
    """Yields the rows of all candidates of a generation that `done` lacks: first the losers,
    judged by the first samples, then the others batch by batch.

    Which candidates lose depends on the whole generation, not on how much of it is done already.
    """
    rival_W = race.losses_of(state)
    early, late = slice(race.first), slice(race.first, None)
    new = [i for i in range(len(ropes)) if i not in done]
    if not new:
        return
    losses_PW = np.full((len(ropes), len(rival_W)), np.nan)
    for index, row in done.items():
        losses_PW[index] = race.losses(row)
    begin = time.perf_counter()
    losses_PW[new, early] = bench.losses([ropes[i] for i in new], early, state.generation)
    lost_P = race.losers(losses_PW[:, early], rival_W[early])
    shift_P1 = losses_PW[:, early].mean(axis=1, keepdims=True) - rival_W[early].mean()
    lost = [i for i in new if lost_P[i]]
    rows = _race_rows(state, bench, lost, losses_PW, rival_W + shift_P1, begin)
    yield [row | {"raced": race.first} for row in rows]
    remaining = [i for i in new if not lost_P[i]]
    while remaining:
        begin = time.perf_counter()
        batch_size = bench.evaluator.batch_size
        batch, remaining = remaining[:batch_size], remaining[batch_size:]
        losses_PW[batch, late] = bench.losses([ropes[i] for i in batch], late, state.generation)
        yield _race_rows(state, bench, batch, losses_PW, losses_PW, begin)


def _race_rows(state, bench: Bench, chosen: list[int], losses_PW, judged_PW, begin) -> list[dict]:
    """Returns the rows of the chosen candidates, with the fitness of `judged_PW`."""
    if not chosen:
        return []
    fitness_P = bench.fitness(judged_PW[chosen])
    seconds = time.perf_counter() - begin
    return [
        journal.candidate_row(
            state,
            index,
            losses_PW[index],
            fitness=fitness,
            failure="" if np.isfinite(fitness) else "not a number",
            seconds=seconds,
        )
        for index, fitness in zip(chosen, fitness_P, strict=True)
    ]


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
