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


def finish(folder: Path, name: str, process: subprocess.Popen | None = None) -> None:
    """Runs it, or the process given, to its end."""
    code = (process or start(folder, name)).wait()
    if code:
        raise SystemExit(f"exit code {code}:\n{(folder / f'{name}.log').read_text()[-3000:]}")


def begun(folder: Path, name: str, since: int) -> bool:
    """Returns whether a process said, after `since` bytes of its log, that it trains now."""
    said = (folder / f"{name}.log").read_bytes()[since:]
    return b"a new run of" in said or b"going on from step" in said


def measure(folder: Path) -> tuple[float, float]:
    """Runs undisturbed; returns the seconds until training began, and those of the training."""
    started = time.perf_counter()
    process = start(folder, "undisturbed")
    while process.poll() is None and not begun(folder, "undisturbed", 0):
        time.sleep(0.02)
    training = time.perf_counter()
    finish(folder, "undisturbed", process)
    return training - started, time.perf_counter() - training


def kill_once(folder: Path, name: str, seconds: tuple[float, float], rng: random.Random) -> int:
    """Starts a run and kills it: one time in four while it starts, else while it trains."""
    log = folder / f"{name}.log"
    since = log.stat().st_size if log.exists() else 0
    process = start(folder, name)
    if rng.random() < 0.25:
        time.sleep(rng.uniform(0.1, 1.0) * seconds[0])
    else:
        while process.poll() is None and not begun(folder, name, since):
            time.sleep(0.01)
        time.sleep(rng.uniform(0.0, 0.25) * seconds[1])
    process.kill()
    return process.wait()


def kill_some(folder: Path, kills: int, seconds: tuple[float, float], rng: random.Random) -> None:
    """Kills until `kills` kills have hit a process that was running; checks each run that ends."""
    landed, runs = 0, 0
    while landed < kills:
        name = f"killed-{runs}"
        code = kill_once(folder, name, seconds, rng)
        landed += code == -9
        print(
            f"kill {landed}: exit code {code}, newest whole step {newest(folder / name)}",
            flush=True,
        )
        if code not in (0, -9):
            raise SystemExit((folder / f"{name}.log").read_text()[-3000:])
        if code == 0:
            compare(folder, name)
            runs += 1
    finish(folder, name)
    compare(folder, name)


def newest(workdir: Path) -> int | None:
    from jaxrope.store import steps

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
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tiny_run.write_texts(folder / "texts")
        text = EXPERIMENT.format(texts=str(folder / "texts"), steps=args.steps)
        (folder / "experiment.py").write_text(text)
        finish(folder, "warm-up")  # compiles
        seconds = measure(folder)
        print(f"undisturbed: {seconds[0]:.1f} s to start, {seconds[1]:.1f} s to train", flush=True)
        kill_some(folder, args.kills, seconds, random.Random(args.seed))
        print(f"{args.kills} kills hit a running process; every result is bit-equal")


if __name__ == "__main__":
    main()
