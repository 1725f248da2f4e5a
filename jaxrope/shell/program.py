"""Programs as data: what the command line, a sweep and a recipe need to know of each.

A program that takes a config is a `Program`, declared in the `__main__` of its package; one with
arguments of its own is a `Command`, or several. Their functions import what they need when they are
called: `--help` and a mistake are answered before jax is imported.
"""

import dataclasses
import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from jaxrope.schema import Config


def _nothing(config: Config) -> None:
    """The schema says all that can be said."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """A program that takes a config.

    Attributes:
      package: "jaxrope.search"; its door has `prepare`, and `finished` and `dry_run` if it sweeps.
      doc: what the program is for, shown by --help.
      run: (config, workdir) -> its exit code, or None; prints results, the last line "wrote ...".
      dry_run: (config, workdir, timing) -> the text of --dry_run; None: that of the door, which
        does not depend on the workdir.
      compile: (config, topology, workdir) is --compile_only; topology is "" for the devices of this
        machine, workdir may be None. None: the program has no such flag.
      check: refuses what the schema cannot know to be wrong, without jax.
      survives: what a signal leaves in the workdir, as it ends the program at once; "": the program
        heeds signals itself.
      sweeps: whether `config.sweep` runs it several times.
      recipe: the package of the program for a config with a recipe; "": it takes none.
      rewrite: arguments -> arguments; it rewrites flags of the program's own.
    """

    package: str
    doc: str
    run: Callable[[Config, Path], int | None]
    dry_run: Callable[[Config, Path, bool], str] | None = None
    compile: Callable[[Config, str, Path | None], None] | None = None
    check: Callable[[Config], Any] = _nothing
    survives: str = ""
    sweeps: bool = True
    recipe: str = ""
    rewrite: Callable[[Sequence[str]], list[str]] = list

    @property
    def door(self) -> ModuleType:
        """The package."""
        return importlib.import_module(self.package)

    def start(self, config: Config, workdir: Path) -> int:
        """Runs the program, or what is left of it; returns its exit code."""
        if not self.survives:
            return self.run(config, workdir) or 0
        from jaxrope.shell.interrupt import exit_at_once

        with exit_at_once(f"{workdir} has {self.survives}. The same command goes on from there."):
            return self.run(config, workdir) or 0

    def describe(self, config: Config, workdir: Path, *, timing: bool) -> str:
        """Returns the text of --dry_run; `timing` says whether it may measure for a while."""
        if self.dry_run is not None:
            return self.dry_run(config, workdir, timing)
        return self.door.dry_run(config, timing=timing)


def _legal(_arguments: Any) -> str:
    """What --dry_run says by default."""
    return "the arguments are legal"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """A program, or a command of one, with arguments of its own.

    Attributes:
      arguments: (argparse parser) declares them.
      run: (arguments) -> its exit code, or None; its docstring is the help of a command.
      dry_run: (arguments) -> the text of --dry_run: whatever can be refused is refused; by
        default the arguments alone are.
    """

    arguments: Callable[[Any], None]
    run: Callable[[Any], int | None]
    dry_run: Callable[[Any], str] = _legal
