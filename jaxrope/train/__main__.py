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

from jaxrope.shell import cli


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line; see `cli.main`."""
    cli.main(run, doc=__doc__, compile_fn=compile_only, runs_recipes=True, argv=argv)


def run(config, workdir, dry_run):
    """Trains; jax is imported only once the command line is known to be right."""
    if config.recipe:
        from jaxrope import recipe

        return recipe.run(config, workdir, dry_run)
    from jaxrope import train

    if dry_run:
        return cli.print_line(train.dry_run(config, workdir))
    return train.train(config, workdir)


def compile_only(config, topology, workdir):
    """Compiles the step for a TPU slice that need not be here, and says what it takes."""
    if config.recipe:
        from jaxrope import recipe

        return recipe.compile_stages(config, topology, workdir)
    from jaxrope.topology import compile_train

    return compile_train(config, topology, workdir)


if __name__ == "__main__":
    main()
