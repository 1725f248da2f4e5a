"""One job at a time in a run's folder.

A file system holds a lock for as long as a process lives. A bucket cannot: there the lock is an
object that its owner rewrites every `_BEAT_SECONDS`; one that is unchanged for
`_DEAD_SECONDS` belongs to a job that was killed.
"""

import contextlib
import fcntl
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from jaxrope.errors import InputError
from jaxrope.mesh import hosts
from jaxrope.store import files

_BEAT_SECONDS, _DEAD_SECONDS = 10.0, 40.0


@contextlib.contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Locks `folder` for this job, and sweeps out what a killed one was writing; process 0 holds
    the lock for all. The system releases it when that process ends, however it ends.

    Raises:
      InputError: the folder cannot be written to, or another job holds it (its host and process
        are named).
    """
    with contextlib.ExitStack() as locks:

        def acquire() -> None:
            lock = _object_lock if files.is_remote(folder) else _file_lock
            locks.enter_context(lock(folder))
            files.sweep(folder)

        hosts.from_main("lock of the workdir", acquire)
        yield


@contextlib.contextmanager
def _file_lock(folder: Path) -> Iterator[None]:
    path = Path(folder) / ".lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise InputError(
            f"--workdir={folder} cannot be written to: {error.strerror}. Give a folder that can be "
            "made and written."
        ) from None
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            owner = os.pread(handle, 200, 0).decode("utf-8", "replace").strip() or "unknown"
            raise _in_use(folder, owner) from None
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{_me()}\n".encode(), 0)
        yield
    finally:
        os.close(handle)


@contextlib.contextmanager
def _object_lock(folder: Path) -> Iterator[None]:
    path, mine = folder / ".lock", secrets.token_hex(8)
    _wait_until_dead(path, folder)
    over = threading.Event()

    def beat() -> None:
        number = 0
        while True:
            path.write_text(f"{mine} {number} {_me()}\n", encoding="utf-8")
            number += 1
            if over.wait(_BEAT_SECONDS):
                return

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        time.sleep(min(_BEAT_SECONDS / 5, 2.0))  # of two that begin at one time the last one wins
        owner = path.read_text(encoding="utf-8") if path.exists() else ""
        if owner and not owner.startswith(mine):
            over.set()
            raise _in_use(folder, owner)
        yield
    finally:
        was_mine = not over.is_set()
        over.set()
        thread.join(_BEAT_SECONDS)
        if was_mine:
            path.unlink(missing_ok=True)


def _wait_until_dead(path: Path, folder: Path) -> None:
    """Returns once there is no lock, or its owner has not rewritten it for `_DEAD_SECONDS`."""
    until = time.monotonic() + _DEAD_SECONDS
    first = path.read_text(encoding="utf-8") if path.exists() else ""
    while first and time.monotonic() < until:
        time.sleep(_BEAT_SECONDS / 4)
        now = path.read_text(encoding="utf-8") if path.exists() else ""
        if now and now != first:
            raise _in_use(folder, now)
        first = now


def _in_use(folder: Path, owner: str) -> InputError:
    owner = owner[owner.find("host") :].strip() or "unknown"
    return InputError(
        f"--workdir={folder} is in use by another process ({owner}). Wait for it, stop it, or give "
        "another folder."
    )


def _me() -> str:
    return f"host {socket.gethostname()}, process {os.getpid()}"
