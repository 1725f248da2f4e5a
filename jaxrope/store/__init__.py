"""Files that outlive a process: atomic writes, locks, journals, checkpoints and their steps."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from jaxrope.store import checkpoint as checkpoint
    from jaxrope.store import files as files
    from jaxrope.store import journal as journal
    from jaxrope.store import leaves as leaves
    from jaxrope.store import sealed as sealed
    from jaxrope.store import steps as steps
    from jaxrope.store import strict_json as strict_json
    from jaxrope.store.checkpoint import CheckpointError as CheckpointError
    from jaxrope.store.checkpoint import Checkpoints as Checkpoints
    from jaxrope.store.files import sha256_file as sha256_file
    from jaxrope.store.files import write_json_atomic as write_json_atomic
    from jaxrope.store.journal import Journal as Journal
    from jaxrope.store.lock import run_lock as run_lock
    from jaxrope.store.steps import describe as describe
    from jaxrope.store.steps import whole_steps as whole_steps

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["checkpoint", "files", "journal", "leaves", "sealed", "steps", "strict_json"],
    submod_attrs={
        "files": ["sha256_file", "write_json_atomic"],
        "lock": ["run_lock"],
        "journal": ["Journal"],
        "checkpoint": ["CheckpointError", "Checkpoints"],
        "steps": ["describe", "whole_steps"],
    },
)
