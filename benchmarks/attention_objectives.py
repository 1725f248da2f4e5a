"""Does looking at attention find better factors? Searches at 8x of --model, without training, that
are judged by the perplexity of text, by that of answers to needles, and by attention: how far its
entropy shifts, how far its pattern of distances, and what it gives the needle; beside NTK and YaRN.

  python -m benchmarks.attention_objectives --workdir=runs/attention_objectives

All are evolutions with the same population and the same children, at equal forward cost: an
objective of attention reads each document of the target length and a twin of the trained length,
and both are counted, so that it has 8 generations where one of text alone has 9 (judging the best
three once more comes on top). Scored on
held-out books by perplexity and by six-key needles, both paired. The stages are those of a recipe:
the same command goes on where it was stopped, also with more --seeds. Prints tables with a sentence
each and writes attention_objectives.md, .json and .png, and attention.json for the page of
python -m jaxrope.report. 36 minutes on one core beside other
work, and most of that for each further seed. --quick: to see it run, without use for its numbers.
"""

import json
import shlex
import sys
from pathlib import Path

from ml_collections import ConfigDict

from benchmarks import on_books, verdict
from benchmarks.paper_stages import measure, write_known
from benchmarks.verdict import Pair, Pool, Table, grid, judge, sentence
from configs import base
from jaxrope import recipe, report, setup
from jaxrope.errors import InputError
from jaxrope.report import attention
from jaxrope.shell import Command, cli, heap
from jaxrope.store import files

FACTOR = 8  # target / original length
# breed: candidates of a generation, the first one and all others; samples: of a candidate.
BUDGETS = {
    "whole": dict(windows=12, trials=96, breed=10, samples=2),
    "quick": dict(windows=2, trials=2, breed=4, samples=1),
}
TEXT = ("perplexity", "needle")
ATTENTION = ("entropy_shift", "pattern", "needle_mass")
BESIDE = ("ntk", "yarn")


def add_arguments(parser) -> None:
    on_books.add_arguments(parser)
    parser.add_argument("--keys", type=int, default=6, help="needles in a document, one asked for")
    parser.add_argument("--seeds", type=int, default=1, help="of the searches, from 0 on")


def planned(args) -> tuple[ConfigDict, dict, int]:
    """Returns (the recipe, what it may spend, the base's length).

    Raises:
      InputError: an argument is wrong.
    """
    if args.seeds < 1:
        raise InputError(f"--seeds must be 1 or more, got {args.seeds}.")
    spent, workdir = BUDGETS["quick" if args.quick else "whole"], on_books.folder(args)
    config = _config(args, spent)
    base_len = setup.model_config(config).original_len
    config.recipe = (
        *_searches(args, spent, base_len),
        *_evaluations(config, workdir, base_len, args.seeds),
    )
    return config, spent, base_len


def run(args) -> int:
    """Runs the stages that are not finished, and prints the tables; returns the exit code.

    Raises:
      InputError: an argument is wrong, or of a stage.
    """
    (config, spent, base_len), workdir = planned(args), on_books.folder(args)
    code = recipe.run(config, workdir)
    if code:
        return code
    scored = [f"scores_{seed}" for seed in range(args.seeds)]
    pool = verdict.read_pool([workdir / name for name in ("base", "known", *scored)])
    asked = pool, FACTOR * base_len, f"needle-{args.keys}", args.seeds
    results = {label(*key): _result(workdir / stage(*key)) for key in keys(args.seeds)}
    made = [scores(pool, base_len, *asked[2:]), retrieval(*asked), perplexity(*asked)]
    verdict.report([*made, cost(results)], _about(args, spent), workdir, "attention_objectives")
    report.tradeoff_figure(points(*asked), workdir / "attention_objectives.png")
    model = {"source": config.model.path, "original_len": base_len}
    files.write_json_atomic(
        workdir / "attention.json",
        {"format": attention.FORMAT, "command": command(), "config": {}, "model": model}
        | {"objectives": found_by(pool, results, asked[1], asked[2])},
    )
    return 0


def command() -> str:
    """Returns what was typed."""
    return f"python -m benchmarks.attention_objectives {shlex.join(sys.argv[1:])}"


def found_by(pool: Pool, results: dict[str, dict], length: int, needle: str) -> list[dict]:
    """Returns for the page what each search cost, and which share of held-out needles it finds."""
    made = []
    for name, result in results.items():
        metrics = pool[needle, name, length].metrics
        row = {"objective": name, "forward_tokens": result["forward_tokens"]}
        row |= {"score": metrics["accuracy"], "low": metrics["low"], "high": metrics["high"]}
        made.append(row)
    return made


def keys(seeds: int) -> list[tuple[str, int]]:
    """Returns (objective, seed) of every search."""
    return [(name, seed) for seed in range(seeds) for name in (*TEXT, *ATTENTION)]


def label(objective: str, seed: int) -> str:
    """Returns how a search is called in tables."""
    return f"{objective}, seed {seed}" if seed else objective


def stage(objective: str, seed: int) -> str:
    """Returns the folder of a search."""
    return f"{objective}_{seed}"


def scores(pool: Pool, base_len: int, needle: str, seeds: int) -> Table:
    """What every rope is worth on held-out books."""
    lengths = base_len, FACTOR * base_len
    labels = ["none", *BESIDE, *(label(*key) for key in keys(seeds))]
    text, found = (grid(pool, labels, lengths, suite) for suite in (verdict.PERPLEXITY, needle))
    cells = [[*a, *b[1:]] for a, b in zip(text, found, strict=True)]
    suites = ["perplexity"] * 2 + [needle] * 2
    cells[0][1:] = [f"{s}, {n}" for s, n in zip(suites, cells[0][1:], strict=True)]
    told = "The model as it was trained is measured inside its window, all others beyond it."
    return Table("Scores", f"what judges a search, {FACTOR}x untrained", cells, told, ())


def retrieval(pool: Pool, length: int, needle: str, seeds: int) -> Table:
    """Whether searches by attention find more needles than those by text, and than YaRN."""
    pairs = [
        Pair(label(name, seed), other, length, needle)
        for seed in range(seeds)
        for name in ATTENTION
        for other in (*(label(text, seed) for text in TEXT), "yarn")
    ]
    ordering = "searches by attention find more needles than those by text and than YaRN"
    return _judged(pool, "Needles", ordering, pairs)


def perplexity(pool: Pool, length: int, needle: str, seeds: int) -> Table:
    """Whether looking at attention costs perplexity."""
    pairs = [
        Pair(label("perplexity", seed), other, length)
        for seed in range(seeds)
        for other in (*(label(name, seed) for name in ("needle", *ATTENTION)), "yarn")
    ]
    ordering = "the search by perplexity has the lowest, and lower than YaRN"
    return _judged(pool, "Perplexity", ordering, pairs)


def _judged(pool: Pool, name: str, ordering: str, pairs: list[Pair]) -> Table:
    judged = judge(pool, pairs)
    cells = [["", "verdict"], *([one.told, one.verdict] for one in judged)]
    told = sentence(ordering, judged, whose="What was to be expected")
    return Table(name, "pair by pair, on the same items", cells, told, judged)


def cost(results: dict[str, dict]) -> Table:
    """What every search has read: of each candidate all documents, both twins counted.

    Args:
      results: label -> content of result.json.
    """
    cells = [["", "candidates", "forward tokens", "minutes", "unit", "first generation", "best"]]
    for name, result in results.items():
        best = [result["generations"][i]["best"] for i in (0, -1)]
        seen = [f"{result['evaluations']:,}", f"{result['forward_tokens']:,}"]
        seen += [f"{result['seconds'] / 60:.1f}", result["unit"]]
        cells.append([name, *seen, *(f"{fitness:.4g}" for fitness in best)])
    tokens = [result["forward_tokens"] for result in results.values()]
    most, least = max(tokens), min(tokens)
    told = f"Every search has read {most:,} tokens in forward passes."
    if most > least:
        told = (
            f"The searches have read {least:,} to {most:,} tokens in forward passes, "
            f"{100 * (most / least - 1):.1f}% apart."
        )
    return Table("Cost", "what the searches have read", cells, told, ())


def points(pool: Pool, length: int, needle: str, seeds: int) -> list[dict]:
    """Returns for report.tradeoff_figure what every rope gives and costs."""
    found = [(name, name) for name in BESIDE]
    found += [(objective, label(objective, seed)) for objective, seed in keys(seeds)]
    made = []
    for group, name in found:
        metrics = pool[needle, name, length].metrics
        gap = verdict.perplexity_gap(pool, name, "yarn", length)
        share = tuple(metrics[key] for key in ("accuracy", "low", "high"))
        made.append({"label": group, "percent": gap, "share": share})
    return made


def _about(args, spent: dict) -> dict:
    return {
        "title": "Objectives of attention, at equal forward cost",
        "what": (
            f"Evolutions of {spent['breed']} candidates in each generation, each judged by "
            f"{spent['samples']} texts. Perplexity of {spent['windows']} windows at each length, "
            "each of another held-out book, and the share of numbers found among "
            f"{args.keys} keys in {spent['trials']} held-out documents with Wilson's 95% interval; "
            "the columns are tokens. Differences of perplexity have 95% intervals, paired over "
            "windows; those of needles the sign test over documents."
        ),
        "budget": spent | {"seeds": args.seeds},
    }


def _result(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text(encoding="utf-8"))


def _config(args, spent: dict) -> ConfigDict:
    config = base.get_config()
    config.model = base.checkpoint_model(str(files.absolute(args.model)))
    config.data.train_files, config.data.eval_files = (args.train,), (args.held_out,)
    config.data.tokenizer = args.tokenizer
    config.eval.suites = ()
    config.eval.num_windows, config.eval.windows_per_doc = spent["windows"], 1
    config.eval.offset_tokens = args.offset
    config.eval.needle_keys, config.eval.needle_trials = (args.keys,), spent["trials"]
    section, breed = config.search, spent["breed"]
    section.method, section.compare = "evolution", False
    section.judge.num_samples = 0  # equal cost, whatever a document reads
    section.algorithm.update(
        population=breed,
        parents=max(1, breed // 2),
        mutations=breed - breed // 2,
        crossovers=breed // 2,
        mutation_probability=0.1,  # few candidates: small steps from a good start
    )
    return config


def _searches(args, spent: dict, base_len: int) -> tuple:
    """Returns the searches. Where a generation has as many children as the first has candidates, n
    generations of f + 1 original lengths cost what n (f + 1) / f of f do."""
    made = []
    for name, seed in keys(args.seeds):
        needles = dict(num_keys=args.keys, place="spread")
        objective = {
            "perplexity": dict(name=name, offset_tokens=args.offset),
            "needle": dict(name=name) | needles,
        }.get(name) or base.attention_objective(name) | needles
        changes = (
            ("seed", seed),
            ("target_len", FACTOR * base_len),
            ("search.training_len", base_len),
            ("search.objective", objective | dict(num_samples=spent["samples"])),
            ("search.algorithm.iterations", FACTOR + (name in TEXT)),
        )
        made.append((stage(name, seed), "search", changes))
    return tuple(made)


def _evaluations(config: ConfigDict, workdir: Path, base_len: int, seeds: int) -> tuple:
    """Returns a stage for what is known and one for each seed, so that seeds can be added."""
    model, suites, length = config.model.path, ("perplexity", "needle"), FACTOR * base_len
    known = write_known(config, BESIDE, workdir / "ropes", length)
    made = [
        measure("base", [("none", model, "model")], (base_len,), suites),
        measure("known", [(name, model, path) for name, path in known], (length,), suites),
    ]
    for seed in range(seeds):
        rows = [
            (label(name, seed), model, f"{{{stage(name, seed)}}}/rope.json")
            for name in (*TEXT, *ATTENTION)
        ]
        made.append(measure(f"scores_{seed}", rows, (length,), suites))
    return tuple(made)


if __name__ == "__main__":
    heap.keep()
    cli.arguments(
        Command(arguments=add_arguments, run=run, dry_run=on_books.dry_run(planned)),
        doc=__doc__,
        argv=sys.argv[1:],
    )
