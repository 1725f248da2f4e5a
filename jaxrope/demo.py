"""jaxrope-extend on the small model that ships with the project: from 256 tokens to 2,048.

  python -m jaxrope.demo
  python -m jaxrope.demo --control --out=runs/control

The text is Python's standard library, of which configs/stdlib.py names the files that are held out.
What is done is the same on every machine; runs/demo/report.html is the page. Every argument of
`python -m jaxrope.extend` can be given too; the last of two counts.
"""

import importlib.resources
import sys
from collections.abc import Sequence

from jaxrope import extend
from jaxrope.extend import __main__ as program
from jaxrope.shell import Command, cli, heap
from jaxrope.store import files

NAME, LENGTH = "stdlib-3m", 256  # of the shipped model, in jaxrope/models
# As recipes.Effort has it; unless there is a --budget.
EFFORT = dict(samples=2, ramps=5, steps=9, judged=5, recovers=False, train_steps=80, rows=4)
EFFORT |= dict(windows=16, trials=20)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line; see `cli.arguments`."""
    if argv is None:
        heap.keep()
        argv = sys.argv[1:]
    cli.arguments(COMMAND, doc=__doc__, argv=[*arguments(), *argv])


def arguments() -> list[str]:
    """Returns the arguments of jaxrope.extend."""
    from jaxrope.configs import base, stdlib

    texts = base.data()
    stdlib.texts(texts)
    return [
        str(importlib.resources.files("jaxrope") / "models" / NAME),
        "--target_len=2048",
        f"--text={','.join(texts.train_files)}",
        f"--eval_text={','.join(texts.eval_files)}",
        f"--exclude={','.join(texts.exclude)}",
        "--finetune=full",
        "--out=runs/demo",
    ]


def run(args) -> int:
    """Extends the model."""
    plan, folder = _plan(args), files.absolute(args.out)
    program.begin(plan, folder)
    return extend.run.run(plan, folder)


def dry_run(args) -> str:
    """Returns the plan."""
    return _plan(args).text()


def _plan(args):
    asked = extend.request.of(args)
    effort = extend.recipes.Effort(**EFFORT, lengths=(LENGTH, asked.target_len))
    efforts = () if asked.budget else (effort,)
    return extend.planning.make(asked, files.absolute(args.out), efforts)


COMMAND = Command(arguments=program.add_arguments, run=run, dry_run=dry_run)


if __name__ == "__main__":
    main()
