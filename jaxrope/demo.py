"""jaxrope-extend on the small model that ships with the project: from 256 tokens to 2,048.

  python -m jaxrope.demo
  python -m jaxrope.demo --control --budget=10m --out=runs/control

The text is Python's standard library, of which configs/stdlib.py names the files that are held out.
Six minutes at most on two cores; runs/demo/report.html is the page. Every argument of
`python -m jaxrope.extend` can be given too; the last of two counts.
"""

import importlib.resources
import sys
from collections.abc import Sequence

from jaxrope.extend import __main__ as extend
from jaxrope.shell import cli, heap

NAME = "stdlib-3m"  # of the shipped model, in jaxrope/models


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line; see `cli.arguments`."""
    if argv is None:
        heap.keep()
        argv = sys.argv[1:]
    cli.arguments(extend.COMMAND, doc=__doc__, argv=[*arguments(), *argv])


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
        "--budget=6m",
        "--finetune=full",
        "--out=runs/demo",
    ]


if __name__ == "__main__":
    main()
