"""What the benchmarks that run a recipe on a model of novels have in common."""

from collections.abc import Callable
from pathlib import Path

from jaxrope import recipe


def add_arguments(parser) -> None:
    parser.add_argument("--model", default="../shared/models/books-6m", help="a folder")
    parser.add_argument("--train", default="../shared/books/train/*.txt")
    parser.add_argument("--held_out", default="../shared/books/val/*.txt")
    parser.add_argument("--tokenizer", default="", help='folder, or "bytes"; "": the model\'s')
    parser.add_argument("--offset", type=int, default=20_000, help="tokens passed over in a book")
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--quick", action="store_true")


def folder(args) -> Path:
    """Returns the workdir."""
    return Path(args.workdir).absolute()


def dry_run(planned: Callable) -> Callable:
    """Returns the function of arguments that says what the stages of `planned` will cost."""
    return lambda args: recipe.dry_run(planned(args)[0], folder(args), timing=False)
