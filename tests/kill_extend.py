"""Kills jaxrope-extend with SIGKILL at random moments until it has finished, and compares the end.

  python tests/kill_extend.py --kills 20

A tiny model is searched, trained, recovered, joined, measured and exported. Plan, recipe, factors,
journals, checkpoints, measurements and exports must equal those of an undisturbed run, to the bit;
seconds, speeds and digests of files that have them are left out. Runs with a budget, whose plan is
measured, begin with the plan of the undisturbed one. Exit code 1: they do not.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import numpy as np  # noqa: E402

from tests import search_config, tiny_instruct, tiny_run  # noqa: E402

TIMES = ("seconds", "speed", "ready", "timing", "tokens_per_second", "sha256")
# pictures, tables with speeds, and what orders compilations or processes
PASSED_OVER = (".png", ".md", ".html", ".lock", "command.txt")
FINETUNE = ("full", "lora")  # of runs, in turns
BUDGETS = {"lora": "30m"}  # ten times what it takes
PLAN = ("plan.json", "config.py")


def start(folder: Path, finetune: str) -> subprocess.Popen:
    """Starts jaxrope-extend, or goes on with it; runs share their compilations."""
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "XDG_CACHE_HOME": str(folder / "cache"),
        "JAX_COMPILATION_CACHE_DIR": str(folder / "xla"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    command = [sys.executable, "-m", "jaxrope.extend", str(folder / "model"), "--target_len=256"]
    command += [f"--text={folder}/texts/*.txt", f"--finetune={finetune}", f"--out={folder}/out"]
    command += [f"--chat={folder}/chat.jsonl"]
    command += [f"--budget={BUDGETS[finetune]}"] if finetune in BUDGETS else []
    with open(folder / "log", "a") as log:
        return subprocess.Popen(
            command, env=environment, stderr=log, stdout=log, start_new_session=True
        )


def finish(folder: Path, finetune: str, name: str) -> float:
    """Runs it to its end and renames the results; returns the seconds."""
    began = time.monotonic()
    code = start(folder, finetune).wait()
    if code:
        raise SystemExit(f"exit code {code}:\n{(folder / 'log').read_text()[-3000:]}")
    (folder / "out").rename(folder / name)
    return time.monotonic() - began


def kill(folder: Path, finetune: str, seconds: float) -> bool:
    """Starts it and kills its process group after a while; False: it had finished."""
    process = start(folder, finetune)
    try:
        code = process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return True
    if code:
        raise SystemExit(f"exit code {code}:\n{(folder / 'log').read_text()[-3000:]}")
    return False


def newest(folder: Path) -> str:
    """Returns what was written last, for the log."""
    files = [path for path in (folder / "out").rglob("*") if path.is_file()]
    last = max(files, key=lambda path: path.stat().st_mtime, default=None)
    return str(last.relative_to(folder / "out")) if last else "nothing"


def content(folder: Path) -> dict:
    """Returns all that must be equal, by file."""
    found = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = str(path.relative_to(folder))
        if name.endswith(PASSED_OVER) or path.name.startswith("."):
            continue
        if {"checkpoints", "tensorboard"} & set(path.relative_to(folder).parts):
            continue  # of the former below; the latter logs every start
        if path.suffix == ".json":
            found[name] = timeless(json.loads(path.read_text()))
        elif path.suffix == ".jsonl":
            found[name] = [timeless(json.loads(line)) for line in path.read_text().splitlines()]
        elif path.suffix == ".npz":
            with np.load(path) as arrays:
                found[name] = {key: arrays[key].tobytes() for key in arrays}
        else:
            found[name] = path.read_bytes()
    return found


def timeless(value):
    """Returns JSON without what a clock changes."""
    if isinstance(value, list):
        return [timeless(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {key: timeless(item) for key, item in value.items() if key not in TIMES}


def differences(folder: Path, reference: Path) -> list[str]:
    """Returns what differs between two finished runs."""
    ours, theirs = content(folder), content(reference)
    found = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
    return found + tiny_run.differences(folder / "tuned", reference / "tuned")


def main(num_kills: int, seed: int) -> int:
    """Returns the exit code."""
    rng, seconds, kills, runs = random.Random(seed), {}, 0, 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "model").mkdir()
        tiny_instruct.write_base(folder / "model", ids=tiny_instruct.IDS | dict(pad_token_id=3))
        (folder / "model" / "chat_template.jinja").write_text(tiny_instruct.TEMPLATE)
        search_config.write_texts(folder / "texts", documents=12, words=800)
        tiny_instruct.write_chats(folder / "chat.jsonl")
        for finetune in FINETUNE:
            finish(folder, finetune, f"first-{finetune}")  # compiles
            seconds[finetune] = finish(folder, finetune, finetune)
            print(f"{finetune}: undisturbed {seconds[finetune]:.1f} s", flush=True)
        while kills < num_kills:
            finetune = FINETUNE[runs % len(FINETUNE)]
            (folder / "out").mkdir()
            for part in PLAN if finetune in BUDGETS else ():
                shutil.copy2(folder / finetune / part, folder / "out" / part)
            while kills < num_kills and kill(folder, finetune, rng.uniform(0, seconds[finetune])):
                kills += 1
                print(f"kill {kills}, {finetune}: {newest(folder)} was written last", flush=True)
            finish(folder, finetune, f"killed{runs}")
            different = differences(folder / f"killed{runs}", folder / finetune)
            print(f"run {runs}: {different or 'equal'}", flush=True)
            if different:
                return 1
            runs += 1
    print(f"{kills} kills in {runs} runs: every result equals the undisturbed one")
    return 0


if __name__ == "__main__":
    sys.exit(tiny_run.kills(__doc__, main))
