"""Kills a training run with SIGKILL at random moments until it is done, and compares the result.

  python tests/kill_train.py --kills 20

The run that was killed must have the same parameters, optimizer state, metrics and checkpoints as
one that nobody disturbed, to the bit. Exit code 0 if so.
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests import tiny_run  # noqa: E402

EXPERIMENT = """from pathlib import Path

from tests import tiny_run


def get_config():
    config = tiny_run.make_config(Path({texts!r}))
    config.train.steps = {steps}
    config.train.eval_every = {steps} // 4
    config.checkpoint.every = 5
    config.checkpoint.keep_every = {steps} // 3
    config.optimizer.schedule = dict(name="cosine", warmup_steps=3, final_fraction=0.1)
    return config
"""


def start(folder: Path, name: str) -> subprocess.Popen:
    """Starts train.py; runs share their compilations, so that kills fall into the training."""
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "",
        "JAX_COMPILATION_CACHE_DIR": str(folder / "xla"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    command = [sys.executable, str(ROOT / "train.py"), f"--config={folder / 'experiment.py'}"]
    command.append(f"--workdir={folder / name}")
    with open(folder / f"{name}.log", "a") as log:
        return subprocess.Popen(command, env=environment, stderr=log, stdout=log)


def finish(folder: Path, name: str) -> None:
    """Runs it to its end."""
    code = start(folder, name).wait(timeout=600)
    if code:
        raise SystemExit(f"exit code {code}:\n{(folder / f'{name}.log').read_text()[-3000:]}")


def kill_some(folder: Path, name: str, kills: int, seconds: float, rng: random.Random) -> int:
    """Starts and kills `kills` times, each at a random moment of what a run takes."""
    landed = 0
    for number in range(kills):
        process = start(folder, name)
        time.sleep(rng.uniform(0.2, 1.0) * seconds)
        if process.poll() is None:
            process.kill()
            landed += 1
        code = process.wait()
        step = newest(folder / name)
        print(f"kill {number + 1}/{kills}: exit code {code}, newest whole step {step}", flush=True)
        if code not in (0, -9):
            raise SystemExit((folder / f"{name}.log").read_text()[-3000:])
        if code == 0:  # done already: the rest of the kills begins a new run
            compare(folder, name)
            (folder / name).rename(folder / f"{name}-done-{number}")
    return landed


def newest(workdir: Path) -> int | None:
    from jaxrope import steps

    whole = steps.whole_steps(workdir)
    return whole[-1] if whole else None


def compare(folder: Path, name: str) -> None:
    """Ends the program if a finished run differs from the undisturbed one."""
    found = tiny_run.differences(folder / name, folder / "undisturbed")
    if found:
        raise SystemExit(f"{folder / name} differs: {', '.join(found)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tiny_run.write_texts(folder / "texts")
        text = EXPERIMENT.format(texts=str(folder / "texts"), steps=args.steps)
        (folder / "experiment.py").write_text(text)
        finish(folder, "warm-up")  # compiles
        began = time.perf_counter()
        finish(folder, "undisturbed")
        seconds = time.perf_counter() - began
        print(f"an undisturbed run takes {seconds:.1f} s", flush=True)
        landed = kill_some(folder, "killed", args.kills, seconds, random.Random(args.seed))
        finish(folder, "killed")
        compare(folder, "killed")
        print(f"{landed} of {args.kills} kills hit a running process; every result is bit-equal")


if __name__ == "__main__":
    main()
