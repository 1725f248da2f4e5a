"""Fine-tunes a model with a rope, trains one from scratch, or runs all stages of a recipe.

  python -m jaxrope.train --config=configs/base.py --workdir=runs/first --config.model.path=MODEL \\
      --config.data.train_files='books/*.txt' --config.rope="{'method': 'file', 'path':
      'rope.json'}"
  python -m jaxrope.train --config=configs/recipe_books.py --workdir=runs/recipe_books

Started again with the same --workdir it goes on from its newest checkpoint. SIGTERM and Ctrl-C save
and stop (exit codes 143 and 130); a second one stops at once. Exit code 1: the loss was not finite
too often, or a checkpoint could not be written.

A recipe (config.recipe) has stages that search, train, join factors or evaluate, each in a folder
of the workdir; --config.stages=NAME,NAME runs some of them. What is finished is not run again.
"""

from collections.abc import Sequence

from jaxrope.schema.training import check_together
from jaxrope.shell import Program, cli


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line; see `cli.main`."""
    cli.main(PROGRAM, argv=argv)


def run(config, workdir) -> int:
    """Trains, and draws the loss, also of a run that was stopped."""
    from jaxrope import report, train
    from jaxrope.mesh import hosts
    from jaxrope.train import metrics

    code = train.train(config, workdir)
    rows = metrics.read(workdir / metrics.FILE)[0] if hosts.is_main() else []
    if rows := [row for row in rows if row.get("loss") is not None]:
        report.training_figure(rows, workdir / "loss.png")
        cli.print_line(f"wrote checkpoints, metrics.jsonl and loss.png into {workdir}")
    return code


def check(config) -> None:
    """Refuses sections that do not go together."""
    check_together(config.train, config.optimizer)


def dry_run(config, workdir, timing) -> str:
    """Returns what the run is, what it takes, and where it stands in the workdir."""
    from jaxrope import train

    return train.dry_run(config, workdir, timing=timing)


def compile_only(config, topology, workdir) -> None:
    """Compiles the step for a TPU slice that need not be here, and says what it takes."""
    from jaxrope.topology import compile_train

    compile_train(config, topology, workdir)


PROGRAM = Program(
    package="jaxrope.train",
    doc=__doc__,
    run=run,
    dry_run=dry_run,
    compile=compile_only,
    check=check,
    recipe="jaxrope.recipe",
)

if __name__ == "__main__":
    main()
