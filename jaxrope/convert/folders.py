"""Folders that a user names: opened with clear errors, written beside and renamed when whole."""

import contextlib
import fcntl
import glob
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from jaxrope.convert import gguf_folder, hub
from jaxrope.errors import InputError
from jaxrope.store import files

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def open_folder(path: Path | str) -> Path:
    """Returns the folder of a model, `~` and relative paths resolved.

    Args:
      path: a folder, a GGUF file, or a model of the Hugging Face Hub (see `hub`), which a local
        folder of that name comes before.

    Raises:
      InputError: there is no such folder, or it holds several GGUF files alone.
    """
    text = os.fspath(path)
    if hub.is_marked(text):
        return _local(hub.fetch(text))
    folder = files.as_path(text)
    if files.is_remote(folder):
        return _open_remote(folder)
    try:
        if folder.is_dir() or gguf_folder.is_gguf(folder):
            return _local(folder)
        exists = folder.exists()
    except (OSError, ValueError) as error:  # a name that is too long, or holds a NUL byte
        raise InputError(
            f"{text[:80]!r} is not a path that can be opened:"
            f" {getattr(error, 'strerror', None) or error}."
        ) from None
    if exists:
        raise InputError(f"{folder} is a file. Name the folder it lies in.")
    if hub.address(text) and hub.is_installed():
        return _local(hub.fetch(text))
    raise InputError(
        f"{folder}: there is no such folder. Nothing is downloaded: give the path of a folder that"
        " is here."
    )


def label(folder: Path) -> str:
    """Returns what a user calls a folder that `open_folder` opened: the GGUF file, the name on the
    hub, or its path.
    """
    if gguf_folder.is_view(folder):
        return gguf_folder.origin(folder)
    return os.fspath(folder) if files.is_remote(folder) else hub.name(folder) or os.fspath(folder)


def _local(path: Path) -> Path:
    """Returns a folder as it is, or the view of a GGUF file, which may be all that it holds."""
    if not path.is_dir():
        return gguf_folder.open_file(path)
    models = gguf_folder.models_in(path)
    if not models or any((path / name).exists() for name in ("config.json", "model.json")):
        return path
    if len(models) > 1:
        names = ", ".join(model.name for model in models[:5])
        raise InputError(f"{path} holds {len(models)} models in GGUF. Name one of them: {names}.")
    return gguf_folder.open_file(models[0])


def _open_remote(folder: Path) -> Path:
    """Returns a workdir in a bucket as it is; a Hugging Face folder is fetched."""
    if (folder / "model.json").exists() or (folder / "meta").exists():
        return folder
    if not (folder / "config.json").exists():
        raise InputError(
            f"{folder} holds no model: neither config.json (Hugging Face) nor model.json (a"
            " workdir). Name the folder that has one."
        )
    return files.fetch(folder)


def check_target(target: Path | str, *, overwrite: bool | None = None) -> Path:
    """Returns the absolute path of a folder that may be written.

    Args:
      target: the folder.
      overwrite: replace a Hugging Face folder of that name; None: the command does not offer it.

    Raises:
      InputError: it exists and is not empty (without `overwrite`), or is no Hugging Face folder.
    """
    if _ADDRESS.match(os.fspath(target)):
        raise InputError(f"{os.fspath(target)}: only folders of this machine are written.")
    try:
        path = Path(target).expanduser().absolute()
        if not _is_occupied(path):
            return path
    except (OSError, ValueError) as error:
        raise _cannot_write(target, error) from None
    if not overwrite:
        way_out = "Name another." if overwrite is None else "Name another, or pass --overwrite."
        raise InputError(f"{path} exists and is not an empty folder. {way_out}")
    is_workdir = (path / "model.json").exists() or (path / "checkpoints").exists()
    if is_workdir or not (path / "config.json").is_file():
        raise InputError(
            f"{path} is not a Hugging Face folder and is not overwritten. Name another."
        )
    return path


@contextlib.contextmanager
def staged(target: Path | str, *, overwrite: bool | None = None) -> Iterator[Path]:
    """Yields a folder beside `target` to write in.

    It is renamed to `target` at the end, and removed on any error. What a process that was killed
    left of such folders for this target is swept. The arguments and errors are those of
    `check_target`.
    """
    path = check_target(target, overwrite=overwrite)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path, ".tmp")
        prefix = f".{path.name[:80]}."
        staging = Path(tempfile.mkdtemp(dir=path.parent, prefix=prefix, suffix=".tmp"))
        handle = os.open(staging, os.O_RDONLY)
        fcntl.flock(handle, fcntl.LOCK_EX)  # the system releases it, however this process ends
    except (OSError, ValueError) as error:
        raise _cannot_write(target, error) from None
    try:
        staging.chmod(0o755)  # mkdtemp makes 0700: a result is for everybody to read
        yield staging
        check_target(target, overwrite=overwrite)  # minutes have passed
        _replace(staging, path, _is_occupied(path))
        _sweep(path, ".old")
    finally:
        os.close(handle)
        shutil.rmtree(staging, ignore_errors=True)


def _sweep(path: Path, suffix: str) -> None:
    """Removes the folders beside `path` that were made for it by processes that are gone."""
    for left in path.parent.glob(f".{glob.escape(path.name[:80])}.????????{suffix}"):
        try:
            handle = os.open(left, os.O_RDONLY | os.O_DIRECTORY)
        except OSError:  # its owner has just renamed it
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(left, ignore_errors=True)
        except BlockingIOError:  # it has an owner
            continue
        finally:
            os.close(handle)


def _is_occupied(path: Path) -> bool:
    try:
        path.lstat()  # os.path.lexists is False for a name that is too long
    except FileNotFoundError:
        return False
    return not path.is_dir() or any(path.iterdir())


def _cannot_write(target: Path | str, error: Exception) -> InputError:
    reason = getattr(error, "strerror", None) or error
    return InputError(f"{os.fspath(target)[:120]!r} cannot be written: {reason}.")


def _replace(staging: Path, target: Path, occupied: bool) -> None:
    """Renames the finished folder.

    What is overwritten is moved aside first, so that there is a whole folder under one name or the
    other at any moment; it goes with the next export that succeeds, if this process is killed.
    """
    if occupied:
        aside = staging.with_suffix(".old")
        os.rename(target, aside)
        os.rename(staging, target)
        shutil.rmtree(aside)
    else:
        os.rename(staging, target)
