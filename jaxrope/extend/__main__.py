"""Makes a model serve longer texts, in one command: plan, search, training, proof, export, page.

  python -m jaxrope.extend MODEL --target_len=32768 --text='books/*.txt' --out=runs/longer
  python -m jaxrope.extend MODEL --target_len=32768 --text='books/*.txt' --out=runs/longer \\
      --budget=45m --finetune=lora --for=transformers,llama.cpp

MODEL is a Hugging Face folder, a GGUF file, a model of the hub (ORG/NAME) or a workdir. What fits
the budget on this machine is measured first, for a minute, and is kept: plan.json, and the recipe,
config.py, every key of which can be changed. Then factors are searched, the model is trained on if
asked for, measured beside NTK, YaRN and its own window on text that nothing has read, exported for
each program, opened in transformers if that is here, and shown on a page, report.html. The same
command goes on after a kill. --dry_run prints the plan.
"""

from collections.abc import Sequence

from jaxrope.shell import Command, cli, heap
from jaxrope.store import files


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line; see `cli.arguments`."""
    if argv is None:
        heap.keep()
    cli.arguments(COMMAND, doc=__doc__, argv=argv)


def add_arguments(parser) -> None:
    """Declares the arguments of the program."""
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--target_len", type=int, required=True, help="tokens to serve")
    parser.add_argument(
        "--text", required=True, metavar="FILES", help="text to search and train on: globs, commas"
    )
    parser.add_argument(
        "--eval_text",
        default="",
        metavar="FILES",
        help="held-out text; by default the last tenth of --text",
    )
    parser.add_argument(
        "--chat",
        default="",
        metavar="FILES",
        help="conversations, for an instruct model: a tenth of the training, and measured",
    )
    parser.add_argument(
        "--exclude", default="", metavar="FILES", help="globs of files to leave out of --text"
    )
    parser.add_argument(
        "--budget", default="", metavar="TIME", help="45m, 2h: the plan is made to fit"
    )
    parser.add_argument(
        "--finetune", default="none", help="none (the factors alone), lora or full; none by default"
    )
    parser.add_argument(
        "--control",
        action="store_true",
        help="also train at the model's own length, on as many tokens, and compare",
    )
    parser.add_argument(
        "--for",
        dest="programs",
        default="transformers,vllm",
        metavar="NAMES",
        help="of transformers, vllm, llama.cpp: what to export for; the first two by default",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the results")


def run(args) -> int:
    """Extends a model."""
    from jaxrope.extend import planning, request
    from jaxrope.extend.run import run as run_plan

    asked, folder = request.of(args), files.absolute(args.out)
    plan = planning.make(asked, folder)
    begin(plan, folder)
    return run_plan(plan, folder)


def begin(plan, folder) -> None:
    """Shows the plan, and stores it where it is new."""
    from jaxrope.extend import planning

    cli.print_line(plan.text())
    if not (folder / "plan.json").exists():
        planning.store(plan, folder)


def dry_run(args) -> str:
    """Returns the plan."""
    from jaxrope.extend import planning, request

    return planning.make(request.of(args), files.absolute(args.out)).text()


COMMAND = Command(arguments=add_arguments, run=run, dry_run=dry_run)


if __name__ == "__main__":
    main()
