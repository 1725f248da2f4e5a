"""The files of a folder of any origin."""

import os
from pathlib import Path

from jaxrope.errors import InputError
from jaxrope.store import files


def find(folder: Path, name: str) -> Path | None:
    """Returns the file `name` of a folder of any origin; None: there is none.

    What lies in such a folder is read, copied and handed on. So a link that leaves it is refused,
    wherever it leads; but for those of Hugging Face's own cache, snapshots/REVISION/file ->
    ../../blobs/HASH.

    Raises:
      InputError: a link that leaves the folder or leads nowhere, a folder, a pipe.
    """
    path = folder / name
    if files.is_remote(folder):
        return path if path.exists() else None
    if not os.path.lexists(path):
        return None
    real, root = Path(os.path.realpath(path)), Path(os.path.realpath(folder))
    blobs = root.parent.parent / "blobs"
    shared_blobs = root.parents[min(2, len(root.parents) - 1)] / "blobs"  # newer ones share files
    is_cached = root.parent.name == "snapshots" and (
        real.parent == blobs or real.parent.parent == shared_blobs
    )
    if not (real.is_relative_to(root) or is_cached):
        raise InputError(
            f"{folder}: {name} is a link that leaves the folder. Put the file itself there."
        )
    if not path.is_file():
        raise InputError(f"{path} is not a regular file, or a link to nothing.")
    return path
