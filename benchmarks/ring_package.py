"""The package `ringattention` (PyPI, 0.1.2), which imports only under an old jax: it gets an
environment of its own and runs in a process of its own, run by run at our command.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks import engine

# The newest jax that it was seen to import under here; of Python 3.10 to 3.12.
PINS = ("ringattention==0.1.2", "jax==0.4.31", "jaxlib==0.4.31", "flax==0.9.0", "numpy<2", "einops")
PYTHONS = ("python3.12", "python3.11", "python3.10")
WORKER = Path(__file__).with_name("ring_worker.py")


class Package(engine.Engine):
    """A running worker; use it as a context."""

    def __init__(self, folder: Path, num_devices: int):
        flags = f"--xla_force_host_platform_device_count={num_devices}"
        environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
        environment.pop("PYTHONPATH", None)
        super().__init__([folder / "bin" / "python", WORKER], environment)

    def start(self, case: dict) -> dict:
        """Returns {"bytes": {name: bytes on a device}, "sums": [of |out|, of |dq|]} of a case."""
        return self.ask({"case": case})

    def runner(self, name: str) -> Callable[[], None]:
        """Returns what runs the case once; `name` is "forward" or "both"."""
        return lambda: self.ask({"run": name})


def install(folder: str) -> tuple[Path | None, str]:
    """Returns (the environment, "") or (None, why there is none); makes it where it is missing.

    Args:
      folder: where; "" = the user's cache folder.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    place = Path(folder) if folder else cache / "jaxrope" / "ringattention-0.1.2"
    if (place / "complete").is_file():
        return place, ""
    fits = (3, 10) <= sys.version_info[:2] <= (3, 12)
    python = sys.executable if fits else next(filter(None, map(shutil.which, PYTHONS)), None)
    if python is None:
        return None, f"jax 0.4.31 needs one of {', '.join(PYTHONS)}"
    place.parent.mkdir(parents=True, exist_ok=True)
    pip = [place / "bin" / "python", "-m", "pip", "--disable-pip-version-check", "install", "-q"]
    for command in ([python, "-m", "venv", "--clear", place], [*pip, *PINS]):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            lines = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
            return None, f"{Path(command[0]).name} failed: {lines[-1]}"
    (place / "complete").touch()
    return place, ""
