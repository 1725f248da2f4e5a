"""journal.jsonl: the measurements of a search, one line a candidate, on disk before the next batch.

The first line is the header: everything that the results depend on. Then, in order:

    a known method   {"baseline", "factors", "start_tokens", "attention_factor", "losses",
                      "fitness", ...}
    a moved ramp     {"ramp", ... as a known method}
    a step           {"descent", "step", ...}, see descent.py
    a candidate      {"generation", "index", "genome", "factors", "start_tokens",
                      "attention_factor", "losses", "fitness", "failure", "seconds"}
    a batch that     {"event": "out_of_memory", "generation", "batch_size", "seconds"}
    did not fit

Numbers are written so that they read back exactly; a fitness that is not a number is null. Only
`seconds`, of the candidate's whole batch, differs between two runs of one search. The state of the
evolution is a function of these lines, so a killed search goes on from them bit for bit.

Letters: P candidates.
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from jaxrope.errors import InputError
from jaxrope.mesh import hosts
from jaxrope.search import evolution
from jaxrope.store import files

FORMAT = "jaxrope.journal/1"


def open_journal(path: Path, header: dict[str, Any]) -> list[dict]:
    """Returns the rows after the header; starts the file if it is not there, repairs a torn end.

    Args:
      path: of the file.
      header: JSON values that results depend on. Its "versions" are recorded, not compared.

    Raises:
      InputError: the journal is of another search, or broken.
    """
    header = json.loads(json.dumps({"format": FORMAT, **header}, allow_nan=False))
    try:
        rows = files.read_jsonl(path, repair=True)
    except ValueError as error:
        raise InputError(str(error)) from None
    if not rows:
        files.write_text_atomic(path, json.dumps(header) + "\n")
        return []
    _check_header(path, rows[0], header)
    return rows[1:]


def append(path: Path, rows: list[dict]) -> None:
    """Appends rows and returns when they are on disk; of several processes, process 0 does it."""
    if hosts.is_main():
        files.append_jsonl(path, rows, durable=True)


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


def spared(rows: list[dict], num_samples: int) -> int:
    """Returns the samples that candidates were spared by races."""
    return sum(num_samples - row["raced"] for row in rows if "raced" in row)


def replay(
    path: Path, rows: list[dict], state: evolution.SearchState
) -> tuple[evolution.SearchState, dict[int, dict]]:
    """Replays the rows onto a fresh state.

    Returns:
      (state, rows of its unfinished generation by index).

    Raises:
      InputError: the rows are not those of this search.
    """
    done: dict[int, dict] = {}
    for row in candidates(rows):
        generation, index = row["generation"], row["index"]
        population_PG = evolution.ask(state)
        if (
            generation != state.generation
            or index in done
            or index >= len(population_PG)
            or row["genome"] != population_PG[index].tolist()
        ):
            raise InputError(
                f"{path}: generation {generation}, index {index} is not the candidate that this "
                "search would ask for there (another version of numpy or jaxrope?). Use another "
                "--workdir."
            )
        done[index] = row
        if len(done) == len(population_PG):
            fitness_P = [fitness_of(done[i]) for i in range(len(population_PG))]
            state, done = evolution.tell(state, np.array(fitness_P)), {}
    return state, done


def _check_header(path: Path, stored: dict, header: dict) -> None:
    if stored.get("format") != FORMAT:
        raise InputError(
            f"{path}: format must be '{FORMAT}', got {stored.get('format')!r}. Use another "
            "--workdir."
        )
    before, now = _flat(stored), _flat(header)
    names = [name for name in {**before, **now} if not name.startswith("versions.")]
    different = [name for name in names if before.get(name) != now.get(name)]
    if different:
        changes = ", ".join(
            f"{name} ({_short(before.get(name))}, now {_short(now.get(name))})"
            for name in different
        )
        raise InputError(
            f"{path} is of another search: {changes}. Undo the change, or use another --workdir."
        )


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        return {prefix: value}
    parts = [_flat(item, f"{prefix}.{name}" if prefix else name) for name, item in value.items()]
    return {name: item for part in parts for name, item in part.items()}


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."
