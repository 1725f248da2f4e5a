"""What the default search finds on a model, against the best it knew before, on text nothing saw.

  python -m benchmarks.default_search --model=MODEL --workdir=runs/default_search

Searches of eight times the model's length without training, one for each of three seeds, all
settings as in configs/base.py. Then the model as it is, PI, NTK, YaRN, its own window sliding, the
results and the best baseline of each (with the attention factor that suited it best) at five
lengths, on --windows held-out texts, each with one set of factors for all lengths; pass keys,
needles and six-key needles at the model's own length and at the longest. For the shipped model:
  --model=jaxrope/models/stdlib-3m --train=stdlib --held_out=stdlib --offset=0
Prints tables and writes
default_search.md and .json. The same command goes on where it was stopped. --quick: to see it run.
"""

import json
import sys
from pathlib import Path

from ml_collections import ConfigDict

from benchmarks import on_books, paper_stages, verdict
from benchmarks.verdict import Pair, Pool, Table, grid, judge, sentence
from configs import base
from jaxrope import recipe, rope, setup
from jaxrope.shell import Command, cli, heap
from jaxrope.store import files

FACTOR, KEYS = 8, (1, 6)
LENGTHS = (1, 2, 4, 6, 8)  # times the model's own
BESIDE = ("pi", "ntk", "yarn", "sliding")
LEAST = 400  # tokens of a document with six needles
RETRIEVAL = ("passkey", *(f"needle-{keys}" for keys in KEYS))


def add_arguments(parser) -> None:
    on_books.add_arguments(parser)
    parser.add_argument("--seeds", type=int, default=3, help="of the searches, from 0 on")
    parser.add_argument("--windows", type=int, default=16, help="of perplexity, a text each")
    parser.add_argument("--trials", type=int, default=24, help="pass keys, needles, at a length")


def planned(args) -> tuple[ConfigDict, int]:
    """Returns (the recipe of the searches, the base's length)."""
    config = base.get_config()
    config.model = base.checkpoint_model(str(files.absolute(args.model)))
    config.data = on_books.texts(args)
    config.data.tokenizer = args.tokenizer
    config.search.objective.offset_tokens = config.eval.offset_tokens = args.offset
    config.eval.suites = ()
    config.eval.num_windows = 2 if args.quick else args.windows
    config.eval.windows_per_doc = 1
    trials = 2 if args.quick else args.trials
    config.eval.passkey_trials = config.eval.needle_trials = trials
    config.eval.needle_keys = KEYS
    if args.quick:
        config.search.gradient.update(steps=1, ramps=0)
    base_len = setup.model_config(config).original_len
    config.target_len = config.eval.rope_len = FACTOR * base_len
    config.recipe = tuple((stage(seed), "search", (("seed", seed),)) for seed in range(args.seeds))
    return config, base_len


def run(args) -> int:
    """Searches, measures, and prints the tables; returns the exit code.

    Raises:
      InputError: an argument is wrong, or of a stage.
    """
    (config, base_len), workdir = planned(args), on_books.folder(args)
    code = recipe.run(config, workdir)
    if code:
        return code
    results = [result(workdir / stage(seed)) for seed in range(args.seeds)]
    with config.unlocked():
        config.recipe = (*config.recipe, *_evaluations(config, results, workdir, base_len))
    code = recipe.run(config, workdir)
    if code:
        return code
    pool = verdict.read_pool([workdir / "text", workdir / "retrieval"])
    tables = [_perplexity(pool, results, base_len), _retrieval(pool, results, base_len)]
    verdict.report(tables, _about(args, results), workdir, "default_search")
    return 0


def stage(seed: int) -> str:
    """Returns the folder of a search."""
    return f"search_{seed}"


def searched(seed: int) -> str:
    """Returns how its result is called in tables."""
    return f"searched, seed {seed}"


def best_known(result: dict) -> str:
    """Returns how the best baseline of a search is called: METHOD@ATTENTION FACTOR."""
    row = next(row for row in result["judged"] if row["is_baseline"])
    return f"{row['name']}@{row['attention_factor']:.4f}"


def _evaluations(config: ConfigDict, results: list[dict], workdir: Path, base_len: int) -> tuple:
    """Returns the stages that measure; writes the best baselines as rope.json files."""
    shape, rows = setup.model_config(config), []
    for seed, result in enumerate(results):
        row = next(row for row in result["judged"] if row["is_baseline"])
        bucket = {key: row[key] for key in ("max_len", "factors", "start_tokens")}
        bucket["attention_factor"] = row["attention_factor"]
        path = workdir / "ropes" / f"{best_known(result)}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        known = rope.make("longrope", **shape.geometry, buckets=[bucket])
        rope.save(path, known, {"made_by": "benchmarks.default_search"})
        rows += [(searched(seed), f"{{{stage(seed)}}}/rope.json"), (best_known(result), str(path))]
    rows += [(name, name) for name in BESIDE]
    others = [(label, config.model.path, how) for label, how in dict(rows).items()]
    labelled = [("none", config.model.path, "none"), *others]
    measure, ends = paper_stages.measure, _ends(base_len)
    retrieving = [row for row in labelled if row[0] != "sliding"]
    return (
        measure("text", labelled, tuple(n * base_len for n in LENGTHS)),
        measure("retrieval", retrieving, ends, ("passkey", "needle")),
    )


def _ends(base_len: int) -> tuple[int, ...]:
    """Returns the lengths of retrieval; six needles have no room in a short window."""
    return tuple(n for n in (base_len, FACTOR * base_len) if n >= LEAST)


def _labels(results: list[dict]) -> list[str]:
    known = dict.fromkeys(map(best_known, results))
    return ["none", *BESIDE, *known, *(searched(seed) for seed in range(len(results)))]


def _perplexity(pool: Pool, results: list[dict], base_len: int) -> Table:
    """Whether every result is better than the best of what was known."""
    lengths = [n * base_len for n in LENGTHS]
    pairs = [
        Pair(searched(seed), best_known(result), lengths[-1]) for seed, result in enumerate(results)
    ]
    verdicts = judge(pool, pairs)
    told = [result["verdict"]["sentence"] for result in results]
    line = sentence("searched below the best known method", verdicts, whose="What a search is for")
    line += "\n\nThe searches themselves: " + " ".join(told)
    return Table("Perplexity", "by tokens", grid(pool, _labels(results), lengths), line, verdicts)


def _retrieval(pool: Pool, results: list[dict], base_len: int) -> Table:
    """What the results retrieve."""
    labels, ends = [x for x in _labels(results) if x != "sliding"], _ends(base_len)
    columns = [grid(pool, labels, ends, suite) for suite in RETRIEVAL]
    rows = zip(*columns, strict=True)
    cells = [[row[0][0], *(cell for part in row for cell in part[1:])] for row in rows]
    headed = [f"{suite}, {n:,}" for suite in RETRIEVAL for n in ends]
    cells[0] = ["", *headed]
    return Table("Retrieval", "share that is retrieved, 95% interval", cells, "", ())


def _about(args, results: list[dict]) -> dict:
    tokens = ", ".join(f"{result['forward_tokens']:,}" for result in results)
    return {
        "title": f"The default search on {Path(args.model).name}, {FACTOR} times longer",
        "what": (
            f"No training. Perplexity of {args.windows} held-out texts, a window each, with one "
            f"set of factors for all lengths. Forward tokens of the searches: {tokens}."
        ),
    }


def result(folder: Path) -> dict:
    """Returns what a search has found."""
    return json.loads((folder / "result.json").read_text(encoding="utf-8"))


if __name__ == "__main__":
    heap.keep()
    cli.arguments(
        Command(arguments=add_arguments, run=run, dry_run=on_books.dry_run(planned)),
        doc=__doc__,
        argv=sys.argv[1:],
    )
