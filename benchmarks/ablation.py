"""LongRoPE2's ablation in miniature: what judges a search, where it may change factors, and short
rows with the original rope in training.

  python -m benchmarks.ablation --workdir=runs/ablation

At 8x on --model, without training: searches of all dimensions by the perplexity of text, by that of
answers to needles, and by both; the critical dimension alone (NTK below, the factor itself from it
on), and with a search from it on; beside YaRN and NTK. Then fine-tunings at 4x on equal tokens, all
of long rows or a quarter of short ones. Scored on held-out books by perplexity and by six-key
needles. The stages are those of a recipe: the same command goes on where it was stopped. Prints
tables with a sentence each and writes ablation.md and ablation.json. Planned for 22 minutes on
2 idle cores. --quick: to see it run, without use for its numbers.
"""

import dataclasses
import sys
from pathlib import Path

from ml_collections import ConfigDict

from benchmarks import on_books, verdict
from benchmarks.paper_stages import measure, write_known
from benchmarks.verdict import Pair, Pool, Table, grid, judge, sentence
from configs import base
from jaxrope import recipe, setup
from jaxrope.errors import InputError
from jaxrope.shell import Command, cli, heap
from jaxrope.store import files

SHORT_SHARE = 0.25
# descent: its steps, of two samples each; critical: population, children, generations; samples of a
# candidate; trials of needles; steps and rows of 4x of both fine-tunings.
BUDGETS = {
    "whole": dict(
        windows=12, trials=96, descent=24, critical=(20, 12, 6), samples=2, steps=30, rows=8
    ),
    "quick": dict(windows=2, trials=2, descent=1, critical=(6, 2, 2), samples=2, steps=2, rows=4),
}
# label -> stage. "all": all dimensions; "critical": NTK below the critical one; after the comma,
# what judges a candidate. "critical, needles" is LongRoPE2.
SEARCHED = {
    "all, perplexity": "all_text",
    "all, needles": "all_needle",
    "all, both": "all_mix",
    "critical alone": "critical_alone",
    "critical, perplexity": "critical_text",
    "critical, needles": "critical_needle",
}
BESIDE = ("ntk", "yarn")


def add_arguments(parser) -> None:
    on_books.add_arguments(parser)
    parser.add_argument("--critical", default="16,20", help="lowest and highest pair, from 0")
    parser.add_argument("--keys", type=int, default=6, help="needles in a document, one asked for")


def planned(args) -> tuple[ConfigDict, dict, int]:
    """Returns (the recipe, what it may spend, the base's length).

    Raises:
      InputError: an argument is wrong.
    """
    spent, workdir = BUDGETS["quick" if args.quick else "whole"], on_books.folder(args)
    config = _config(args, spent)
    base_len = setup.model_config(config).original_len
    config.recipe = (
        *_searches(args, spent, base_len),
        *_trainings(spent, base_len),
        *_evaluations(config, workdir, base_len),
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
    pool = verdict.read_pool([workdir / name for name in ("base", "searches", "mixed")])
    asked = pool, base_len, f"needle-{args.keys}"
    made = [table_fn(*asked) for table_fn in (objectives, dimensions, mixed_window)]
    about = {
        "title": "LongRoPE2's ablation in miniature",
        "what": (
            f"Perplexity of {spent['windows']} windows at each length, each of another held-out "
            f"book, and the share of numbers found among {args.keys} keys in {spent['trials']} "
            "held-out documents with Wilson's 95% interval; the columns are tokens. Differences of "
            "perplexity have 95% intervals, paired over windows; those of needles the sign test "
            "over documents."
        ),
        "budget": spent,
    }
    verdict.report(made, about, workdir, "ablation")
    return 0


def objectives(pool: Pool, base_len: int, needle: str) -> Table:
    """What judges a candidate: LongRoPE2's table 6 has needles before perplexity."""
    length = 8 * base_len
    labels = ["all, perplexity", "all, needles", "all, both"]
    cells = _scores(pool, ["none", *BESIDE, *labels], (base_len, length), needle)
    pairs = [
        Pair("all, needles", "all, perplexity", length, needle),
        Pair("all, both", "all, perplexity", length, needle),
        Pair("all, perplexity", "all, needles", length),
    ]
    ordering = (
        "searches by needles, or by both, find more of them than one by perplexity, which has the "
        "lower perplexity"
    )
    return _table(pool, "Objective", "what judges a search, 8x untrained", cells, ordering, pairs)


def dimensions(pool: Pool, base_len: int, needle: str) -> Table:
    """Where factors may change: LongRoPE2's tables 5, 6 and 10."""
    length = 8 * base_len
    labels = ["critical alone", "critical, perplexity", "critical, needles"]
    cells = _scores(
        pool, [*BESIDE, "all, perplexity", "all, needles", *labels], (base_len, length), needle
    )
    pairs = [
        Pair("critical alone", "ntk", length),
        Pair("critical alone", "ntk", length, needle),
        Pair("critical, needles", "all, needles", length, needle),
        Pair("critical, needles", "critical, perplexity", length, needle),
        Pair("critical, needles", "yarn", length, needle),
    ]
    ordering = (
        "NTK with a critical dimension above NTK; the search from the critical dimension on above "
        "that of all dimensions, the one by needles above the one by perplexity, and above YaRN"
    )
    return _table(pool, "Dimensions", "where factors are searched", cells, ordering, pairs)


def mixed_window(pool: Pool, base_len: int, needle: str) -> Table:
    """Short rows with the original rope: LongRoPE2's table 7."""
    length = 4 * base_len
    labels = ["none", "long rows", "long rows, original rope", "mixed", "mixed, original rope"]
    cells = _scores(pool, labels, (base_len, length), needle)
    pairs = [Pair("mixed, original rope", "long rows, original rope", base_len)]
    pairs += [Pair("mixed, original rope", "long rows", base_len)]
    pairs += [Pair("mixed, original rope", "long rows, original rope", base_len, needle)]
    ordering = "short rows with the original rope keep the original length"
    title = f"mixed context window, {SHORT_SHARE:.0%} short rows, fine-tuned at 4x on equal tokens"
    found = _table(pool, "Mixed window", title, cells, ordering, pairs)
    price = judge(pool, [Pair("mixed", "long rows", length)])[0]
    told = {
        "holds": "better beside it",
        "does not hold": "worse for it",
        "not decided": "neither better nor worse",
    }[price.verdict]
    more = f"{found.sentence} The long length is {told}: {price.told}."
    return dataclasses.replace(found, sentence=more, judged=(*found.judged, price))


def _table(pool: Pool, name: str, title: str, cells, ordering: str, pairs) -> Table:
    judged = judge(pool, pairs)
    return Table(name, title, cells, sentence(ordering, judged), judged)


def _scores(pool: Pool, labels, lengths: tuple[int, int], needle: str) -> list[list[str]]:
    """Returns cells: perplexity at both lengths, then needles at both."""
    parts = [grid(pool, labels, lengths, suite) for suite in (verdict.PERPLEXITY, needle)]
    joined = [[*text, *found[1:]] for text, found in zip(*parts, strict=True)]
    suites = ["perplexity"] * 2 + [needle] * 2
    joined[0][1:] = [f"{s}, {n}" for s, n in zip(suites, joined[0][1:], strict=True)]
    return joined


def _config(args, spent: dict) -> ConfigDict:
    config = base.get_config()
    config.model = base.checkpoint_model(str(files.absolute(args.model)))
    config.data.train_files, config.data.eval_files = (args.train,), (args.held_out,)
    config.data.tokenizer = args.tokenizer
    config.forward.remat = "none"
    config.eval.suites = ()
    config.eval.num_windows, config.eval.windows_per_doc = spent["windows"], 1
    config.eval.offset_tokens = args.offset
    config.eval.needle_keys, config.eval.needle_trials = (args.keys,), spent["trials"]
    config.search.attention_factor = "su"  # what differs is where factors may
    config.search.gradient.steps, config.search.gradient.batch = spent["descent"], 2
    config.search.judge.num_samples = min(8, spent["windows"])
    if args.quick:
        config.search.gradient.ramps = 0
    config.optimizer.learning_rate, config.optimizer.b2 = 5e-4, 0.95
    warmup = min(5, spent["steps"] // 4)
    config.optimizer.schedule = dict(name="linear", warmup_steps=warmup, final_fraction=0.0)
    config.checkpoint.keep_last, config.checkpoint.every = 1, 20
    return config


def _objective(name: str, args, spent: dict) -> dict:
    text, found = dict(offset_tokens=args.offset), dict(num_keys=args.keys, place="spread")
    arguments = {
        "perplexity": text,
        "needle": found,
        "mix": text | found | dict(text_weight=1.0, needle_weight=1.0),
    }[name]
    return dict(name=name, num_samples=spent["samples"], **arguments)


def _searches(args, spent: dict, base_len: int) -> tuple:
    low, high = _critical(args.critical)
    population, children, generations = spent["critical"]

    def stage(label: str, objective: str, changes) -> tuple:
        judged = ("search.objective", _objective(objective, args, spent))
        return SEARCHED[label], "search", (("target_len", 8 * base_len), judged, *changes)

    def algorithm(bound: float, population: int, generations: int):
        numbers = dict(
            bound=bound,
            population=population,
            parents=max(1, population // 2),
            iterations=generations,
            mutations=children // 2,
            crossovers=children // 2,
        )
        return (
            ("search.method", "evolution"),
            ("search.form", "critical"),
            ("search.critical_pairs", (low, high)),
            ("search.compare", False),  # the result is of this form, whatever is better
            ("search.judge.num_samples", 0),
            *((f"search.algorithm.{name}", number) for name, number in numbers.items()),
        )

    descends = (("search.method", "gradient"),)
    alone = algorithm(1.0, high - low + 4, 1)  # every pair that may be critical, and the seeds
    searched = algorithm(2.0, population, generations)
    return (
        stage("all, perplexity", "perplexity", descends),
        stage("all, needles", "needle", descends),
        stage("all, both", "mix", descends),
        stage("critical alone", "mix", alone),
        stage("critical, perplexity", "perplexity", searched),
        stage("critical, needles", "needle", searched),
    )


def _critical(text: str) -> tuple[int, int]:
    try:
        low, high = map(int, text.split(","))
    except ValueError:
        raise InputError(f"--critical is two whole numbers, such as 16,20, got '{text}'.") from None
    return low, high


def _trainings(spent: dict, base_len: int) -> tuple:
    yarn = dict(method="yarn", factor=4.0)
    changes = (
        ("rope", yarn),
        ("target_len", 4 * base_len),
        ("train.seq_len", 4 * base_len),
        ("train.batch_size", spent["rows"]),
        ("train.steps", spent["steps"]),
        ("train.log_every", max(1, spent["steps"] // 3)),
    )
    mixed = ("data.short_share", SHORT_SHARE)
    return ("long_rows", "train", changes), ("mixed_rows", "train", (*changes, mixed))


def _evaluations(config: ConfigDict, workdir: Path, base_len: int) -> tuple:
    model, suites = config.model.path, ("perplexity", "needle")
    fixed = write_known(config, BESIDE, workdir / "ropes", 8 * base_len)
    found = [(label, f"{{{stage}}}/rope.json") for label, stage in SEARCHED.items()]
    rows = [(label, model, path) for label, path in (*fixed, *found)]
    trained = [
        (label + more, place, method)
        for label, place in (("long rows", "{long_rows}"), ("mixed", "{mixed_rows}"))
        for more, method in (("", "model"), (", original rope", "none"))
    ]
    return (
        measure("base", [("none", model, "model")], (base_len,), suites),
        measure("searches", rows, (base_len, 8 * base_len), suites),
        measure("mixed", trained, (base_len, 4 * base_len), suites),
    )


if __name__ == "__main__":
    heap.keep()
    cli.arguments(
        Command(arguments=add_arguments, run=run, dry_run=on_books.dry_run(planned)),
        doc=__doc__,
        argv=sys.argv[1:],
    )
