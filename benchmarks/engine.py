"""A program to be timed, in a process and an environment of its own: reads a JSON object a line and
answers with one. {"make": case} prepares a case, {"run": true} runs it once.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


class Engine:
    """The side that asks; use it as a context manager."""

    def __init__(self, python: str, module: str):
        """Starts `python -m module`, from this checkout."""
        self._process = subprocess.Popen(
            [python, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            cwd=ROOT,
            text=True,
        )
        self.versions = self.ask({"versions": True})

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._process.stdin.close()
        self._process.wait()

    def ask(self, request: dict):
        """Returns the answer; RuntimeError: the process has ended."""
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"exit code {self._process.wait()} at {request}")
        return json.loads(line)

    def run(self) -> float:
        """Runs the case once; returns its loss."""
        return self.ask({"run": True})["loss"]


def serve(versions: dict, make: Callable[[dict], Callable[[], float]]) -> None:
    """The side that answers, until its input ends; `make` returns what runs a case once."""
    answers, sys.stdout = sys.stdout, sys.stderr
    run = None
    for line in sys.stdin:
        request = json.loads(line)
        if "versions" in request:
            found = versions
        elif "make" in request:
            run = None  # frees what the last one held
            run = make(request["make"])
            found = {}
        else:
            begin = time.perf_counter()
            loss = run()
            found = {"loss": loss, "seconds": time.perf_counter() - begin}
        print(json.dumps(found), file=answers, flush=True)
