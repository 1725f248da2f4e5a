"""What the benchmarks that run a recipe on a model of novels have in common."""

from collections.abc import Callable
from pathlib import Path

from ml_collections import ConfigDict

from configs import base, stdlib
from jaxrope import recipe

STDLIB = "stdlib"  # the texts of the demo: Python's standard library, and files of it held out


def add_arguments(parser) -> None:
    parser.add_argument("--model", default="../shared/models/books-6m", help="a folder")
    add_text_arguments(parser)
    parser.add_argument("--tokenizer", default="", help='folder, or "bytes"; "": the model\'s')
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--quick", action="store_true")


def add_text_arguments(parser) -> None:
    parser.add_argument("--train", default="../shared/books/train/*.txt", help="files, or stdlib")
    parser.add_argument("--held_out", default="../shared/books/val/*.txt", help="files, or stdlib")
    parser.add_argument("--offset", type=int, default=20_000, help="tokens passed over in a book")


def texts(args) -> ConfigDict:
    """Returns config.data with the files that are learned from, and those held out; STDLIB: those
    of the demo.
    """
    section = base.data()
    stdlib.texts(section)
    if args.train != STDLIB:
        section.train_files, section.exclude = (args.train,), ()
    if args.held_out != STDLIB:
        section.eval_files = (args.held_out,)
    return section


def folder(args) -> Path:
    """Returns the workdir."""
    return Path(args.workdir).absolute()


def dry_run(planned: Callable) -> Callable:
    """Returns the function of arguments that says what the stages of `planned` will cost."""
    return lambda args: recipe.dry_run(planned(args)[0], folder(args), timing=False)
