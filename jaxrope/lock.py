"""One job at a time in a run's folder."""

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from jaxrope import hosts
from jaxrope.errors import InputError


@contextlib.contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Holds `folder` for this job: process 0 does, for all of them. The system lets go of it when
    that process ends, however it ends.

    Raises:
      InputError: the folder cannot be written to, or another job holds it (its host and process
        are named).
    """
    with contextlib.ExitStack() as held:

        def take() -> None:
            held.enter_context(_file_lock(folder))

        hosts.from_main("lock of the workdir", take)
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
            raise InputError(
                f"--workdir={folder} is in use by another process ({owner}). Wait for it, stop it, "
                "or give another folder."
            ) from None
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"host {socket.gethostname()}, process {os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(handle)
