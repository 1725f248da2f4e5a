"""journal.jsonl: the measurements of a search, one line a candidate, on disk before the next batch.

The first line is the header, which has the identity of the search: everything that the results
depend on. Then, in order:

    a candidate      {"baseline", "ramp", "judged" or "judged again": name, ...}, see candidates.py
    a step           {"descent", "step", ...}, see descent.py
    a child          {"generation", "index", "genome", "factors", "start_tokens",
                      "attention_factor", "losses", "fitness", "failure", "seconds"}
    a batch that     {"event": "out_of_memory", "generation", "batch_size", "seconds"}
    did not fit

Numbers are written so that they read back exactly; a fitness that is not a number is null. Only
`seconds`, of the candidate's whole batch, differs between two runs of one search. The state of the
evolution is a function of these lines, so a killed search goes on from them bit for bit, and one
with a damaged line from the lines before it.

Letters: P candidates.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np

from jaxrope.errors import InputError
from jaxrope.mesh import hosts
from jaxrope.schema import Identity
from jaxrope.search import evolution
from jaxrope.store import Journal

FORMAT = "jaxrope.journal/2"


class Record:
    """The rows of a search, the same in all processes; process 0 has them in the file.

    Attributes:
      path: of the file.
      rows: after the header.
      notes: lines for the user: what was damaged.
    """

    def __init__(self, path: Path, header: dict[str, Any]):
        """Reads the journal, or starts it.

        Args:
          path: of the file.
          header: has the "identity" of the search.

        Raises:
          InputError: the journal is of another search, or of another format.
        """
        self.path = path
        self._journal: Journal | None = None
        rows, self.notes = hosts.from_main("journal", lambda: self._open(header))
        self.rows = list(rows)

    def append(self, rows: list[dict]) -> None:
        """Appends rows and returns when they are on disk."""
        self.rows += rows
        if self._journal is not None:
            self._journal.append(rows)

    def _open(self, header: dict[str, Any]) -> tuple[list[dict], list[str]]:
        found = Journal(self.path, FORMAT, ordered=True, repair=False)
        if found.header is not None:  # what is of another search is left as it is
            before = Identity.from_json(found.header["identity"])
            changes = before.changes(Identity.from_json(header["identity"]))
            if changes:
                raise InputError(
                    f"{self.path} is of another search: {', '.join(changes)}. Undo the change, or "
                    "use another --workdir."
                )
        self._journal = Journal(self.path, FORMAT, ordered=True)
        if found.header is None:
            self._journal.begin(header)
        return self._journal.rows, self._journal.notes


def candidate_row(
    state: evolution.SearchState,
    index: int,
    losses_W: np.ndarray,
    *,
    fitness: float,
    failure: str,
    seconds: float,
) -> dict:
    """Returns the row of candidate `index` of the state's population."""
    genome_G = state.population_PG[index]
    choice = evolution.decode(state, genome_G)
    return {
        "generation": state.generation,
        "index": index,
        "genome": genome_G.tolist(),
        "factors": choice.factors.tolist(),
        "start_tokens": choice.start_tokens,
        "attention_factor": choice.attention_factor,
        "losses": [number(loss) for loss in losses_W],
        "fitness": number(fitness),
        "failure": failure,
        "seconds": round(seconds, 3),
    }


def number(value: float) -> float | None:
    """Returns a number as JSON can hold it: None for NaN and infinity."""
    return float(value) if math.isfinite(value) else None


def fitness_of(row: dict) -> float:
    """Returns the fitness of a row; +inf where it failed."""
    return math.inf if row["fitness"] is None else row["fitness"]


def candidates(rows: list[dict]) -> list[dict]:
    """Returns the candidates' rows."""
    return [row for row in rows if "genome" in row]


def described(rows: list[dict]) -> str:
    """Returns what the journal has, in words."""
    kinds = {"baseline": "baselines", "ramp": "ramps", "descent": "steps of descents"}
    kinds |= {
        "genome": "candidates of the evolution",
        "judged": "judged",
        "judged again": "judged again",
    }
    counts = {word: sum(kind in row for row in rows) for kind, word in kinds.items()}
    return ", ".join(f"{count} {word}" for word, count in counts.items() if count)


def spared(rows: list[dict], num_samples: int) -> int:
    """Returns the samples that candidates were spared by races."""
    return sum(num_samples - row["raced"] for row in rows if "raced" in row)


def replay(
    record: Record, state: evolution.SearchState
) -> tuple[evolution.SearchState, dict[int, dict]]:
    """Replays the rows onto a fresh state.

    Returns:
      (state, rows of its unfinished generation by index).

    Raises:
      InputError: the rows are not those of this search.
    """
    done: dict[int, dict] = {}
    for row in candidates(record.rows):
        generation, index = row["generation"], row["index"]
        population_PG = evolution.ask(state)
        if (
            generation != state.generation
            or index in done
            or index >= len(population_PG)
            or row["genome"] != population_PG[index].tolist()
        ):
            raise InputError(
                f"{record.path}: generation {generation}, index {index} is not the candidate "
                "that this search would ask for there (another version of numpy or jaxrope?). Use "
                "another --workdir."
            )
        done[index] = row
        if len(done) == len(population_PG):
            fitness_P = [fitness_of(done[i]) for i in range(len(population_PG))]
            state, done = evolution.tell(state, np.array(fitness_P)), {}
    return state, done
