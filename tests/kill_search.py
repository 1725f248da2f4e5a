"""Kills a search with SIGKILL at random moments until it has finished, and compares what it leaves.

  python tests/kill_search.py --kills 20

Half of the kills come at a random number of journal lines, so that they fall into the evaluation;
the others at a random time after the start, so that they also fall into loading, compiling and the
writing of results. rope.json, the journal, result.json and the search state must equal those of an
undisturbed run bit for bit; seconds, and nothing else, are left out. Exit code 1: they do not.
"""

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

from jaxrope import search  # noqa: E402
from jaxrope.search import journal, problem  # noqa: E402
from tests import tiny_run  # noqa: E402
from tests.search_config import get_config, tiny  # noqa: E402

ITERATIONS = 30
# of Algorithm 1: header, baselines, candidates, judged, beside; of descents at most: header,
# baselines, ramps, steps, judged, beside
LINES = {"": 1 + 10 + 6 + (ITERATIONS - 1) * 4 + 5 + 2, "default:": 1 + 11 + 1 + ITERATIONS + 4 + 2}
KILLS_A_SEARCH = 5  # then it may finish


def start(folder: Path, workdir: Path, kind: str) -> subprocess.Popen:
    """Starts search.py, or goes on with it; `kind`: of LINES."""
    command = [sys.executable, str(ROOT / "search.py"), f"--workdir={workdir}"]
    command += [f"--config={ROOT / 'tests' / 'search_config.py'}:{kind}{folder}"]
    command += [f"--config.search.algorithm.iterations={ITERATIONS}"]
    command += [f"--config.search.gradient.steps={ITERATIONS - 1}"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def finish(folder: Path, workdir: Path, kind: str) -> float:
    """Runs a search to its end; returns the seconds."""
    begin = time.monotonic()
    process = start(folder, workdir, kind)
    _, errors = process.communicate()
    if process.returncode:
        raise SystemExit(f"search.py ended with {process.returncode}:\n{errors.decode()}")
    return time.monotonic() - begin


def kill(folder: Path, workdir: Path, kind: str, seconds: float, rng: random.Random) -> bool:
    """Starts a search and kills it; False if it had already finished."""
    path = workdir / "journal.jsonl"
    have = num_lines(path)
    most = LINES[kind]
    wanted = rng.randint(have + 1, most) if have < most and rng.random() < 0.5 else None
    deadline = time.monotonic() + rng.uniform(0, seconds)
    process = start(folder, workdir, kind)
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


def outcome(folder: Path, workdir: Path, kind: str) -> dict:
    """Returns all that must be equal; the state's arrays as bytes."""
    result = json.loads((workdir / "result.json").read_text())
    config = get_config(f"{kind}{folder}")
    config.search.algorithm.iterations = ITERATIONS
    config.search.gradient.steps = ITERATIONS - 1
    made = search.prepare(config)
    record = journal.Record(workdir / "journal.jsonl", problem.header(made))
    state = None
    if made.method.breeds:
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
        expected, seconds = {}, {}
        for kind in LINES:
            finish(folder, folder / f"first{kind}", kind)  # fills the cache of tokens
            seconds[kind] = finish(folder, folder / f"undisturbed{kind}", kind)
            expected[kind] = outcome(folder, folder / f"undisturbed{kind}", kind)
        kills, trials = 0, 0
        while kills < num_kills:
            workdir, kind = folder / f"killed{trials}", list(LINES)[trials % len(LINES)]
            moments = []
            while len(moments) < min(KILLS_A_SEARCH, num_kills - kills):
                if not kill(folder, workdir, kind, seconds[kind], rng):
                    break  # it was faster than the killer
                moments.append(num_lines(workdir / "journal.jsonl"))
            # the machine may be less busy now
            seconds[kind] = min(seconds[kind], finish(folder, workdir, kind))
            found, wanted = outcome(folder, workdir, kind), expected[kind]
            different = [key for key, value in wanted.items() if found[key] != value]
            print(f"killed at line {moments} of {LINES[kind]}: {different or 'equal'}", flush=True)
            if different:
                print(*(f"{k}:\n  {wanted[k]}\n  {found[k]}" for k in different), sep="\n")
                return 1
            kills, trials = kills + len(moments), trials + 1
    print(f"{kills} kills in {trials} searches: every result equals the undisturbed one")
    return 0


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    sys.exit(tiny_run.kills(__doc__, main))
