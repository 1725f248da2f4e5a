"""Runs all stages of a recipe: what `python -m jaxrope.train` does with a config that has one.

  python -m jaxrope.recipe --config=configs/recipe_books.py --workdir=runs/recipe_books

Stages (config.recipe) search, train, join factors or evaluate, each in a folder of the workdir;
--config.stages=NAME,NAME runs some of them. What is finished is not run again.
"""

from collections.abc import Sequence

from jaxrope.errors import InputError
from jaxrope.shell import Program, cli


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line; see `cli.main`."""
    cli.main(PROGRAM, argv=argv)


def run(config, workdir) -> int:
    """Runs the stages."""
    from jaxrope import recipe

    return recipe.run(config, workdir)


def dry_run(config, workdir, timing) -> str:
    """Returns what the stages are, what they cost, and which are finished."""
    from jaxrope import recipe

    return recipe.dry_run(config, workdir, timing=timing)


def compile_only(config, topology, workdir) -> None:
    """Compiles each stage that has something to compile."""
    from jaxrope import recipe

    recipe.compile_stages(config, topology, workdir)


def check(config) -> None:
    """Refuses stages that are malformed, or whose keys break their rules."""
    from jaxrope.recipe import stages

    if not config.recipe:
        raise InputError("config.recipe has no stages. Give the --config of a recipe.")
    stages.chosen(config, stages.parse(config))


PROGRAM = Program(
    package="jaxrope.recipe",
    doc=__doc__,
    run=run,
    dry_run=dry_run,
    compile=compile_only,
    check=check,
    recipe="jaxrope.recipe",
    sweeps=False,
)

if __name__ == "__main__":
    main()
