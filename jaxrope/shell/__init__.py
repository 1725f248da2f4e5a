"""The shell around the programs: command line, experiment files, sweeps, progress, signals.

Nothing here imports jax before the command line has been checked.
"""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from jaxrope.shell import cli as cli
    from jaxrope.shell import heap as heap
    from jaxrope.shell import sweep as sweep
    from jaxrope.shell.experiment import load as load
    from jaxrope.shell.interrupt import exit_at_once as exit_at_once
    from jaxrope.shell.program import Command as Command
    from jaxrope.shell.program import Program as Program
    from jaxrope.shell.progress import Progress as Progress
    from jaxrope.shell.progress import duration as duration

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["cli", "heap", "sweep"],
    submod_attrs={
        "experiment": ["load"],
        "program": ["Command", "Program"],
        "progress": ["Progress", "duration"],
        "interrupt": ["exit_at_once"],
    },
)
