"""Whether a search in bfloat16 finds what one in float32 finds: both with the same seeds, results
compared in float32 on text that nothing saw, window by window.

  python -m benchmarks.search_dtypes --model=MODEL --workdir=runs/search_dtypes

Searches of eight times the model's length without training, all settings as in configs/base.py but
forward.compute_dtype. For the shipped model:
  --model=jaxrope/models/stdlib-3m --train=stdlib --held_out=stdlib --offset=0
Prints tables and writes search_dtypes.md and .json. The same command goes on where it was stopped.
--quick: to see it run.
"""

import sys
from pathlib import Path

from ml_collections import ConfigDict

from benchmarks import default_search, on_books, paper_stages, verdict
from benchmarks.default_search import FACTOR
from benchmarks.verdict import Pair, Table, grid, judge, sentence
from jaxrope import recipe
from jaxrope.shell import Command, cli, heap

DTYPES, BESIDE = ("float32", "bfloat16"), ("none", "yarn")


def planned(args) -> tuple[ConfigDict, int]:
    """Returns (the recipe of searches and their evaluation, the base's length)."""
    config, base_len = default_search.planned(args)
    searches = tuple(
        (name, "search", (("seed", seed), ("forward.compute_dtype", dtype)))
        for name, (dtype, seed) in named(args.seeds).items()
    )
    ropes = {name: name for name in BESIDE}
    ropes |= {name: f"{{{name}}}/rope.json" for name in named(args.seeds)}
    rows = [(name, config.model.path, how) for name, how in ropes.items()]
    config.recipe = (*searches, paper_stages.measure("text", rows, (base_len, FACTOR * base_len)))
    return config, base_len


def named(seeds: int) -> dict[str, tuple[str, int]]:
    """Returns {how a search and its result are called: (dtype, seed)}."""
    return {f"{dtype}_{seed}": (dtype, seed) for seed in range(seeds) for dtype in DTYPES}


def run(args) -> int:
    """Searches, measures, and prints the tables; returns the exit code.

    Raises:
      InputError: an argument is wrong, or of a stage.
    """
    (config, base_len), workdir = planned(args), on_books.folder(args)
    code = recipe.run(config, workdir)
    if code:
        return code
    pool = verdict.read_pool([workdir / "text"])
    lengths, labels = (base_len, FACTOR * base_len), [*BESIDE, *named(args.seeds)]
    pairs = [Pair(f"bfloat16_{seed}", "yarn", lengths[-1]) for seed in range(args.seeds)]
    verdicts = judge(pool, pairs)
    line = sentence("searched in bfloat16 below YaRN", verdicts, whose="What a search is for")
    gaps = ", ".join(_gap(pool, seed, lengths[-1]) for seed in range(args.seeds))
    line += f"\n\nPerplexity of what bfloat16 found above that of float32's, by seed: {gaps}."
    table = Table("Perplexity", "by tokens", grid(pool, labels, lengths), line, verdicts)
    verdict.report([table], _about(args, workdir), workdir, "search_dtypes")
    return 0


def _gap(pool: verdict.Pool, seed: int, length: int) -> str:
    labels = f"bfloat16_{seed}", f"float32_{seed}"
    mean, low, high = verdict.perplexity_gap(pool, *labels, length)
    return f"{mean:+.2f}% [{low:+.2f}%, {high:+.2f}%]"


def _about(args, workdir: Path) -> dict:
    found = [default_search.result(workdir / name) for name in named(args.seeds)]
    tokens = ", ".join(f"{each['forward_tokens']:,}" for each in found)
    return {
        "title": f"Searches in bfloat16 and in float32 on {Path(args.model).name}",
        "what": (
            f"{FACTOR} times longer, no training. Perplexity in float32 of {args.windows} held-out "
            f"texts, a window each. Forward tokens of the searches: {tokens}."
        ),
    }


if __name__ == "__main__":
    heap.keep()
    cli.arguments(
        Command(
            arguments=default_search.add_arguments,
            run=run,
            dry_run=on_books.dry_run(planned),
        ),
        doc=__doc__,
        argv=sys.argv[1:],
    )
