"""Measures a model over lengths and rope methods: perplexity on held-out text, retrieval, tasks.

  python -m jaxrope.evaluate --config=configs/eval.py --workdir=runs/eval --config.model.path=MODEL
  ... --config.suites='("perplexity","passkey","ruler")'
  ... --tasks=arc_challenge,hellaswag,mmlu,truthfulqa_mc2

Rows are the configured model and rope, `config.eval.methods` and `config.eval.checkpoints`; columns
are `config.eval.lengths`. All rows of a column answer the same items. Writes eval.json, eval.md,
eval_nll.npz (every scored token's NLL), eval.png and eval_maps.png into the workdir, and prints the
tables. Finished items are stored in items.jsonl and items/: the same command continues from there.
--tasks runs tasks of lm-evaluation-harness (an optional extra) in place of the suites.
"""

from collections.abc import Sequence

from jaxrope.errors import InputError
from jaxrope.shell import Program, cli


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line; see `cli.main`."""
    cli.main(PROGRAM, argv=argv)


def run(config, workdir) -> None:
    """Evaluates, and prints the tables."""
    from jaxrope import evaluate

    evaluate.evaluate(config, workdir)


def with_tasks(argv: Sequence[str]) -> list[str]:
    """Returns arguments in which --tasks=A,B is written as the config keys that it stands for.

    It runs the suite "harness" alone, unless a later argument names suites.

    Raises:
      InputError: no task is named.
    """
    rewritten = []
    for argument in argv:
        name, equals, names = argument.partition("=")
        if name not in ("--tasks", "-tasks"):
            rewritten.append(argument)
            continue
        if not equals or not names.strip(" ,"):
            raise InputError(
                f"--tasks names tasks of lm-eval, got '{argument}'. For example "
                "--tasks=hellaswag,mmlu."
            )
        named = [task.strip() for task in names.split(",") if task.strip()]
        rewritten += [
            "--config.eval.suites=('harness',)",
            f"--config.eval.harness.tasks={tuple(named)}",
        ]
    return rewritten


PROGRAM = Program(
    package="jaxrope.evaluate",
    doc=__doc__,
    run=run,
    survives="every item that was evaluated",
    rewrite=with_tasks,
)

if __name__ == "__main__":
    main()
