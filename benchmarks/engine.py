"""A program to be timed, in a process and an environment of its own: reads a JSON object a line and
answers with one. Those of `serve`: {"make": case} prepares a case, {"run": true} runs it once,
{"versions": true} asks for those of its libraries.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self

ROOT = Path(__file__).resolve().parent.parent


class Engine:
    """The side that asks; use it as a context manager."""

    def __init__(self, command: Sequence[str | Path], environment: Mapping[str, str]):
        """Starts it."""
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._process = subprocess.Popen(command, env=environment, cwd=ROOT, **pipes)

    @classmethod
    def of_module(cls, python: str, module: str) -> Self:
        """Starts `python -m module` of this checkout."""
        return cls([python, "-m", module], os.environ | {"PYTHONPATH": str(ROOT)})

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

    def versions(self) -> dict[str, str]:
        """Returns those of its libraries."""
        return self.ask({"versions": True})

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
