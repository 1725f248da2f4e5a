"""LongRoPE's tables in miniature, each with a sentence on whether the paper's ordering holds.

  python train.py --config=configs/recipe_books.py --workdir=runs/recipe_books
  python -m benchmarks.paper_tables --recipe=runs/recipe_books --workdir=runs/paper_tables

--recipe is a finished twin recipe: its base, its searches, its fine-tuned models and its join are
what is measured, its text and its training settings those of what is done beside. That is searches
for 8x and 16x, with and without start tokens, one on the fine-tuned model, and fine-tunings on
equal tokens, the stages of a recipe of their own: the same command goes on where it was stopped.
Prints the tables and writes paper_tables.md and paper_tables.json. Planned for 28 minutes on
2 idle cores. --quick: to see it run, without use for its numbers.
"""

import hashlib
import json
import sys
from pathlib import Path

from benchmarks import paper_stages, paper_verdicts, verdict
from jaxrope import recipe
from jaxrope.errors import InputError
from jaxrope.shell import Command, cli, heap
from jaxrope.store import files

NEEDED = ("search_2x", "search_4x", "finetune_2x", "finetune_4x", "second", "join")


def add_arguments(parser) -> None:
    parser.add_argument("--recipe", required=True, help="workdir of the twin recipe, finished")
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--quick", action="store_true")


def planned(args):
    """Returns (the plan of the stages, what they may spend).

    Raises:
      InputError: the recipe is not finished, or not the one that the workdir was begun with.
    """
    source, workdir = Path(args.recipe).absolute(), Path(args.workdir).absolute()
    _check_source(source, workdir)
    spent = paper_stages.BUDGETS["quick" if args.quick else "whole"]
    return paper_stages.make(source, workdir, spent), spent


def dry_run(args) -> str:
    """Returns what the stages will cost, and which are finished."""
    return recipe.dry_run(planned(args)[0].config, Path(args.workdir).absolute(), timing=False)


def run(args) -> int:
    """Runs the stages that are not finished, and prints the tables; returns the exit code.

    Raises:
      InputError: see planned; or an error of a stage.
    """
    (plan, spent), workdir = planned(args), Path(args.workdir).absolute()
    code = recipe.run(plan.config, workdir)
    if code:
        return code
    pool = verdict.read_pool([workdir / name for name in plan.evaluations])
    made = paper_verdicts.make(pool, plan.base_len)
    about = {
        "title": "LongRoPE's tables in miniature",
        "what": (
            f"Perplexity of {spent['windows']} windows at each length, each of another held-out "
            "book; the columns are tokens. Intervals are of differences, 95%, paired over windows."
            f" Fine-tunings that are compared had {spent['steps']} steps of "
            f"{spent['rows'] * 4 * plan.base_len:,} tokens each."
        ),
        "recipe": str(args.recipe),
        "budget": spent,
    }
    verdict.report(made, about, workdir, "paper_tables")
    return 0


def _check_source(source: Path, workdir: Path) -> None:
    """Refuses a recipe that is not finished, or another one than at the last time."""
    found = {}
    for name in NEEDED:
        said = _stage(source / name)
        if not said or not said.get("finished"):
            raise InputError(
                f"--recipe={source}: stage '{name}' is not finished there. Run train.py "
                f"--config=configs/recipe_books.py --workdir={source} first."
            )
        found[name] = hashlib.sha256((source / name / "stage.json").read_bytes()).hexdigest()
    path = workdir / "recipe_used.json"
    before = _stage(workdir, path.name)
    changed = [name for name in found if before and before.get(name) != found[name]]
    if changed:
        raise InputError(
            f"--workdir={workdir} was begun with another '{changed[0]}' than that of {source}. "
            "Give another --workdir."
        )
    workdir.mkdir(parents=True, exist_ok=True)
    files.write_json_atomic(path, found)


def _stage(folder: Path, name: str = "stage.json") -> dict:
    path = folder / name
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}. Give another folder.") from None


if __name__ == "__main__":
    heap.keep()
    cli.arguments(
        Command(arguments=add_arguments, run=run, dry_run=dry_run), doc=__doc__, argv=sys.argv[1:]
    )
