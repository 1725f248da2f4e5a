"""Timing several programs in turns, so that what else the machine does hits all of them alike, and
telling it: a line for each case on the screen, a JSON object for each in a file.
"""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

_PAUSE_SECONDS = 0.5  # OpenMP's threads spin for 0.2 s after their work, on the other's cores


def seconds(
    fns: Mapping[str, Callable[[], object]], rounds: int, *, warm: int = 0
) -> dict[str, list[float]]:
    """Returns {name: seconds of each round}. The order turns by one from round to round.

    Args:
      fns: each runs one case to its end; they have run once before.
      rounds: how often.
      warm: runs in a row before the one that is timed, a step among others. A program that gives
        its memory back to the system faults it in again, which takes longer after another's turn.
    """
    names, found = list(fns), {name: [] for name in fns}
    for turn in range(rounds):
        for i in range(len(names)):
            name = names[(i + turn) % len(names)]
            time.sleep(_PAUSE_SECONDS)
            for _ in range(warm):
                fns[name]()
            begin = time.perf_counter()
            fns[name]()
            found[name].append(time.perf_counter() - begin)
    return found


def ratio(ours: list[float], theirs: list[float]) -> dict[str, float]:
    """Returns how many times as long `theirs` took: the median over the rounds, and its range."""
    each = [b / a for a, b in zip(ours, theirs, strict=True)]
    return {"median": statistics.median(each), "low": min(each), "high": max(each)}


def machine() -> dict:
    """Returns what a reader needs to know about the machine."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
    }


def write(path: str, records: list[dict]) -> None:
    """Appends records to a JSONL file; no path, no file."""
    if path:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a", encoding="utf-8") as file:
            file.writelines(json.dumps(record) + "\n" for record in records)


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.is_file():
        return platform.processor()
    lines = cpuinfo.read_text(encoding="utf-8").splitlines()
    return next((line.split(":")[1].strip() for line in lines if "model name" in line), "")
