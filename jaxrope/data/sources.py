"""Finds the files that patterns name: regular, readable, hashed, each once."""

import fnmatch
import glob
import os
import stat
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from jaxrope.errors import InputError
from jaxrope.store import files, sha256_file


@dataclass(frozen=True)
class SourceFile:
    """A regular file that can be read, as it was when it was hashed."""

    path: Path
    name: str  # relative to the folder that all files have in common; `/` between folders
    size: int  # bytes
    sha256: str
    modified_ns: int


def find_files(
    patterns: Sequence[str], *, exclude: Sequence[str] = (), setting: str
) -> list[SourceFile]:
    """Returns the files that `patterns` name, sorted by name, each once.

    Args:
      patterns: paths or globs; `**` stands for any folders. Files in a bucket (gs://) are copied to
        the user's cache folder first; there only the last part may be a pattern. A folder that a
        glob matches is passed over, one that is named is an error.
      exclude: globs compared with a file's name and its whole path; here `*` also matches `/`, and
        a relative glob may begin at any folder.
      setting: the config key the patterns come from.

    Raises:
      InputError: a pattern matches nothing, a match is not a regular readable file, or all are
        excluded.
    """
    patterns = (patterns,) if isinstance(patterns, (str, Path)) else tuple(patterns)
    if not patterns:
        raise InputError(f"{setting}: no files are given. Set it to files or globs.")
    paths: dict[str, str] = {}
    for pattern in patterns:
        paths = matching_paths(pattern, setting) | paths
    included = [path for path in paths.values() if not _excluded(path, exclude)]
    if not included:
        raise InputError(
            f"{setting}: all {len(paths)} files are excluded. Shorten data.exclude {list(exclude)}."
        )
    status = {path: regular_status(path, setting) for path in included}
    with ThreadPoolExecutor() as pool:
        digests = list(pool.map(lambda path: _hash(path, setting), included))
    folder = os.path.commonpath([os.path.dirname(path) for path in included])
    sources = [
        SourceFile(
            path=Path(path),
            name=Path(os.path.relpath(path, folder)).as_posix(),
            size=status[path].st_size,
            sha256=digest,
            modified_ns=status[path].st_mtime_ns,
        )
        for path, digest in zip(included, digests, strict=True)
    ]
    return sorted(sources, key=lambda file: file.name)


def matching_paths(pattern: str | Path, setting: str) -> dict[str, str]:
    """Returns {real path: path as matched} of one pattern: a link to a file is the same file.

    Raises:
      InputError: it matches nothing.
    """
    matches = _matches(os.path.expanduser(str(pattern)), setting)
    paths: dict[str, str] = {}
    for path in matches:
        paths.setdefault(os.path.realpath(path), os.path.abspath(path))
    return paths


def _matches(pattern: str, setting: str) -> list[str]:
    """Returns the paths of one pattern; a path that exists is itself, whatever its letters."""
    if files.is_remote(pattern):
        return _fetched(pattern, setting)
    if os.path.lexists(pattern):
        if os.path.isdir(pattern):
            raise InputError(
                f"{setting}: '{pattern}' is a folder. Name its files, such as "
                f"'{os.path.join(pattern, '**', '*.txt')}'."
            )
        return [pattern]
    paths = [path for path in glob.glob(pattern, recursive=True) if not os.path.isdir(path)]
    if not paths:
        kind = "no file matches" if glob.has_magic(pattern) else "there is no file"
        raise InputError(
            f"{setting}: {kind} '{pattern}' (looked from '{os.getcwd()}'). Correct the path."
        )
    return paths


def _fetched(pattern: str, setting: str) -> list[str]:
    """Returns local copies of the files in a bucket that a pattern names."""
    folder, _, name = pattern.rpartition("/")
    if glob.has_magic(folder):
        raise InputError(
            f"{setting}: '{pattern}': in a bucket only the last part may be a pattern. Name each "
            "folder."
        )
    place = files.as_path(folder)
    matches = [path for path in place.iterdir() if fnmatch.fnmatchcase(path.name, name)]
    if not matches:
        raise InputError(f"{setting}: no file matches '{pattern}'. Correct the path.")
    local = files.fetch(place, [path.name for path in matches])
    return [str(local / path.name) for path in matches]


def _excluded(path: str, exclude: Sequence[str]) -> bool:
    exclude = (exclude,) if isinstance(exclude, (str, Path)) else exclude
    for glob_ in map(str, exclude):
        whole = os.path.abspath(os.path.expanduser(glob_))
        forms = ((os.path.basename(path), glob_), (path, whole), (path, f"*/{glob_}"))
        if any(fnmatch.fnmatchcase(text, form) for text, form in forms):
            return True
    return False


def regular_status(path: str, setting: str) -> os.stat_result:
    """Returns the status of a regular file, unopened: opening a FIFO would wait for ever."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        kind = "is a link to a file that is not there" if os.path.islink(path) else "is gone"
        raise InputError(f"{setting}: '{path}' {kind}. Mend or exclude it.") from None
    except OSError as error:
        raise InputError(
            f"{setting}: '{path}' cannot be read ({reason(error)}). Mend or exclude it."
        ) from None
    kinds = {stat.S_IFREG: "", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket"}
    kind = (kinds | {stat.S_IFDIR: "a folder"}).get(stat.S_IFMT(status.st_mode), "a device")
    if os.path.realpath(path).startswith(("/proc/", "/sys/")):
        kind = "a file of the kernel"  # regular by its status; to read some takes for ever
    if kind:
        raise InputError(f"{setting}: '{path}' is {kind}, not a regular file. Exclude it.")
    return status


def _hash(path: str, setting: str) -> str:
    try:
        return sha256_file(path)
    except OSError as error:
        raise InputError(
            f"{setting}: '{path}' cannot be read ({reason(error)}). Allow it, or exclude it."
        ) from None


def reason(error: BaseException) -> str:
    """Returns why, in one line."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split())[:200] or type(error).__name__
