"""What may be the result of a search, and how it is measured: exact, not rounded to a grid.

Each is a row of the journal, under the name of its kind:

    {KIND: its name, "max_len", "factors", "start_tokens", "attention_factor", "losses", "fitness",
     "seconds"}
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxrope import rope
from jaxrope.search import journal
from jaxrope.search.loop import Bench
from jaxrope.search.problem import Problem, build_rope


class Candidate(NamedTuple):
    """What may be the result of a search.

    Attributes:
      name: of a baseline, of the start of a descent, "ramp" or "evolution".
      bucket: its factors.
      fitness: on the samples of the objective; inf: it failed; nan: not measured.
      is_baseline: it was there before the search.
      losses: on the samples of the objective; () where it was not measured or failed.
    """

    name: str
    bucket: rope.Bucket
    fitness: float
    is_baseline: bool = False
    losses: tuple[float, ...] = ()


Named = tuple[str, rope.Bucket]


def measure(
    problem: Problem, bench: Bench, kind: str, named: Sequence[Named], *, before: int = 0
) -> list[dict]:
    """Returns a row for each, those that the journal has already among them.

    Args:
      problem: of the search.
      bench: measures.
      kind: "baseline", "ramp", "judged" or "judged again".
      named: names and factors.
      before: rows of this kind in front of these.
    """
    recorded = [row for row in bench.record.rows if kind in row]
    rows = recorded[before : before + len(named)]
    ropes = [rope_of(problem, bucket) for _, bucket in named]
    for batch in bench.measure(ropes, done=set(range(len(rows)))):
        new = []
        for i, index in enumerate(batch.indices):
            if index >= len(rows):
                name, bucket = named[index]
                new.append({kind: name} | plain(bucket) | _outcome(batch, i))
        bench.record.append(new)
        rows += new
    return rows


def of_row(row: dict, name: str, *, is_baseline: bool = False) -> Candidate:
    """Returns the candidate of a row of the journal."""
    factors = rope.as_factors(np.array(row["factors"]))
    bucket = rope.Bucket(row["max_len"], factors, row["start_tokens"], row["attention_factor"])
    losses = () if row["fitness"] is None else tuple(row["losses"])
    return Candidate(name, bucket, journal.fitness_of(row), is_baseline, losses)


def rope_of(problem: Problem, bucket: rope.Bucket) -> rope.Rope:
    """Returns the rope of a bucket."""
    return build_rope(problem, bucket.factors, bucket.start_tokens, bucket.attention_factor)


def plain(bucket: rope.Bucket) -> dict[str, Any]:
    """Returns a bucket as JSON reads it back."""
    return dataclasses.asdict(bucket) | {"factors": np.array(bucket.factors).tolist()}


def _outcome(batch, place: int) -> dict[str, Any]:
    return {
        "losses": [journal.number(loss) for loss in batch.losses_PW[place]],
        "fitness": journal.number(batch.fitness_P[place]),
        "seconds": round(batch.seconds, 3),
    }
