"""A job of several processes on this machine: each is a program with CPU devices of its own."""

import os
import socket
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# Tests compile more than they compute, and most of the compiling is LLVM and MLIR polishing loops
# that run for milliseconds; without that a test needs half the time. `make full`, `make proof` and
# the README's programs compile in full.
COMPILER_FLAGS = (
    ""
    if os.environ.get("COMPILE_IN_FULL")
    else "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)
# XLA ends a process at a flag that it does not know, and newer ones do not know this one.
if COMPILER_FLAGS and version("jaxlib").startswith("0.10."):
    COMPILER_FLAGS += " --xla_cpu_use_fusion_emitters=false"
# Eight devices share few cores: XLA aborts a process where one comes 40 s late to a meeting point.
COMPILER_FLAGS += (
    " --xla_cpu_collective_call_warn_stuck_timeout_seconds=120"
    " --xla_cpu_collective_call_terminate_timeout_seconds=600"
)


def environment(devices: int = 1, **more: str) -> dict[str, str]:
    """Returns the environment of a program of this project that has `devices` CPU devices."""
    flags = f"{COMPILER_FLAGS} --xla_force_host_platform_device_count={devices}"
    found = {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    return os.environ | found | more


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


class Job:
    """Processes that were started together; use it as a context manager, which ends them all."""

    def __init__(self, folder: Path, *command, processes: int, devices: int, only=None, extra=None):
        """Starts them.

        Args:
          folder: their output goes to 0.log, 1.log, ... here.
          command: of each, after python.
          processes: how many; 1 is started without the variables of a job.
          devices: of each.
          only: the numbers of those that are started; None = all.
          extra: {number: further arguments}.
        """
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        address = f"127.0.0.1:{free_port()}"
        self.processes = {}
        for number in range(processes) if only is None else only:
            own = environment(devices, JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0")
            if processes > 1:
                own["JAX_COORDINATOR_ADDRESS"] = address
                own["JAX_NUM_PROCESSES"] = str(processes)
                own["JAX_PROCESS_ID"] = str(number)
            with open(self._path(number), "w") as log:
                self.processes[number] = subprocess.Popen(
                    [sys.executable, *map(str, command), *(extra or {}).get(number, ())],
                    env=own,
                    cwd=ROOT,
                    stdout=log,
                    stderr=log,
                )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes.values():
            process.kill()
            process.wait()

    def wait(self, seconds: float = 300.0) -> list[int]:
        """Returns the exit codes; a process that is still there after `seconds` is an error."""
        until = time.monotonic() + seconds
        return [p.wait(max(until - time.monotonic(), 0.1)) for p in self.processes.values()]

    def until(self, text: str, *, number: int = 0, seconds: float = 300.0) -> None:
        """Waits until a process has written `text`."""
        until = time.monotonic() + seconds
        while text not in self.log(number):
            assert self.processes[number].poll() is None, self.log(number)
            assert time.monotonic() < until, self.log(number)
            time.sleep(0.02)

    def log(self, number: int) -> str:
        return self._path(number).read_text(errors="replace")

    def _path(self, number: int) -> Path:
        return self.folder / f"{number}.log"
