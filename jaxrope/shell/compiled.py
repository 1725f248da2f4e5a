"""What a program has compiled is kept in the user's cache folder, and the next run reads it.

jax names it by the program, the options of the compiler, the device and the versions of jax and
XLA: what is read is what would be compiled.
"""

import os
from pathlib import Path

import filelock

from jaxrope.store import files

LARGEST = 1 << 30  # bytes; what was not used for longest goes first
_SETTINGS = {
    "JAX_COMPILATION_CACHE_MAX_SIZE": str(LARGEST),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}
_FOLDER = "JAX_COMPILATION_CACHE_DIR"


def keep() -> None:
    """Has jax, which is not imported yet, keep what it compiles.

    Does nothing if the user has said where (JAX_COMPILATION_CACHE_DIR; "": nowhere) and if the
    folder cannot be written to.
    """
    folder = files.cache_root("compiled")
    if _FOLDER in os.environ:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return
    if os.access(folder, os.W_OK):
        _remove_halves(folder)
        os.environ[_FOLDER] = str(folder)
        for name, value in _SETTINGS.items():
            os.environ.setdefault(name, value)


def _remove_halves(folder: Path) -> None:
    """Removes what a killed process was writing: jax would read it, and warn of it, for ever. A
    file is whole once there is one beside it with the time of its last use.
    """
    lock = filelock.FileLock(folder / ".lockfile", blocking=False)  # jax's own
    try:
        with lock:
            for path in folder.glob("*-cache"):
                if not path.with_name(path.name.removesuffix("-cache") + "-atime").exists():
                    path.unlink()
    except filelock.Timeout:
        return  # another process is writing
