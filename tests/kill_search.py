"""Kills a search with SIGKILL at random moments until it has finished, and compares what it leaves.

  python tests/kill_search.py --kills 20

Half of the kills come at a random number of journal lines, so that they fall into the evaluation;
the others at a random time after the start, so that they also fall into loading, compiling and the
writing of results. rope.json, the journal, result.json and the search state must equal those of an
undisturbed run bit for bit; seconds, and nothing else, are left out. Exit code 1: they do not.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402
import numpy as np  # noqa: E402

from jaxrope.search import journal, problem  # noqa: E402
from tests.search_config import tiny  # noqa: E402

ITERATIONS = 30
LINES = 1 + 8 + 6 + (ITERATIONS - 1) * 4  # header, baselines, candidates
KILLS_A_SEARCH = 5  # then it may finish


def start(folder: Path, workdir: Path) -> subprocess.Popen:
    """Starts search.py, or goes on with it."""
    command = [sys.executable, str(ROOT / "search.py")]
    command += [f"--config={ROOT / 'tests' / 'search_config.py'}:{folder}", f"--workdir={workdir}"]
    command += [f"--config.search.algorithm.iterations={ITERATIONS}"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def finish(folder: Path, workdir: Path) -> float:
    """Runs a search to its end; returns the seconds."""
    begin = time.monotonic()
    process = start(folder, workdir)
    _, errors = process.communicate()
    if process.returncode:
        raise SystemExit(f"search.py ended with {process.returncode}:\n{errors.decode()}")
    return time.monotonic() - begin


def kill(folder: Path, workdir: Path, seconds: float, rng: random.Random) -> bool:
    """Starts a search and kills it; False if it had already finished."""
    path = workdir / "journal.jsonl"
    have = num_lines(path)
    wanted = rng.randint(have + 1, LINES) if have < LINES and rng.random() < 0.5 else None
    deadline = time.monotonic() + rng.uniform(0, seconds)
    process = start(folder, workdir)
    while process.poll() is None:
        if time.monotonic() > deadline if wanted is None else num_lines(path) >= wanted:
            time.sleep(rng.uniform(0, 0.01))
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.001)
    process.communicate()
    if process.returncode not in (0, -signal.SIGKILL):
        raise SystemExit(f"search.py ended with {process.returncode}")
    return process.returncode == -signal.SIGKILL


def num_lines(path: Path) -> int:
    """Returns the whole lines of a file, 0 if there is none."""
    return path.read_bytes().count(b"\n") if path.exists() else 0


def outcome(folder: Path, workdir: Path) -> dict:
    """Returns all that must be equal; the state's arrays as bytes."""
    result = json.loads((workdir / "result.json").read_text())
    config = tiny(folder)
    config.search.algorithm.iterations = ITERATIONS
    made = problem.prepare(config)
    record = journal.Record(workdir / "journal.jsonl", problem.header(made))
    state, _ = journal.replay(record, problem.first_state(made))
    for row in record.rows:
        row.pop("seconds", None)
    del result["seconds"], result["sha256"]
    return {
        "rope.json": (workdir / "rope.json").read_bytes(),
        "journal.jsonl": record.rows,
        "result.json": result,
        "config.json": (workdir / "config.json").read_bytes(),
        "state": [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state)],
        "files": sorted(path.name for path in workdir.iterdir()),
    }


def main(num_kills: int, seed: int) -> int:
    """Returns the exit code."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tiny(folder)
        finish(folder, folder / "first")  # fills the cache of tokens
        seconds = finish(folder, folder / "undisturbed")
        expected = outcome(folder, folder / "undisturbed")
        kills, trials = 0, 0
        while kills < num_kills:
            workdir = folder / f"killed{trials}"
            moments = []
            while len(moments) < min(KILLS_A_SEARCH, num_kills - kills):
                if not kill(folder, workdir, seconds, rng):
                    break  # it was faster than the killer
                moments.append(num_lines(workdir / "journal.jsonl"))
            seconds = min(seconds, finish(folder, workdir))  # the machine may be less busy now
            found = outcome(folder, workdir)
            different = [key for key, value in expected.items() if found[key] != value]
            print(f"killed at line {moments} of {LINES}: {different or 'equal'}", flush=True)
            if different:
                print(*(f"{k}:\n  {expected[k]}\n  {found[k]}" for k in different), sep="\n")
                return 1
            kills, trials = kills + len(moments), trials + 1
    print(f"{kills} kills in {trials} searches: every result equals the undisturbed one")
    return 0


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}")
    sys.exit(main(arguments.kills, arguments.seed))
