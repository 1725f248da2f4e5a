"""What a search finds on text that it has not seen, against what it costs: evolution as the paper
has it (P 64, T 40: 1,312 candidates), and descents along the gradient in each form.

  python -m benchmarks.search --model=MODEL --factor=8 --workdir=runs/search_cost

MODEL is a Hugging Face folder; with the shipped one go the texts of the demo:
  --model=jaxrope/models/stdlib-3m --train=stdlib --held_out=stdlib --offset=0

The whole evolution has the attention factor of the su law and judges a candidate by --samples texts
where the paper has five: its traces in benchmarks/traces stand for it (--traces="" runs it anew).
Descents get a thirtieth and a tenth of its cost for everything: baselines, moved ramps, gradients
and the last word on fresh text. A token in a forward pass is 1, in a gradient 3. Each search is a
folder of the workdir and goes on where it was killed. Prints a table and writes points.jsonl and
cost.png. --quick: one seed, fewer generations.
"""

import json
import sys
from pathlib import Path

from benchmarks import on_books
from jaxrope.errors import choose
from jaxrope.shell import Command, cli, heap

GRADIENT_COST = 3
SHARES = (1 / 40, 1 / 20, 1 / 10, 1 / 4, 1 / 2, 1)  # of the cost of the paper's search
# Settings of a search for a share of the cost, by --samples: 44 and 131 texts of forward passes of
# one sample, 88 and 262 of two.
DESCENTS = {
    1: {
        1 / 30: {"objective.num_samples": 1, "gradient.ramps": 3, "judge.num_samples": 1},
        1 / 10: {"objective.num_samples": 1, "gradient.ramps": 12, "judge.num_samples": 5},
    },
    2: {
        1 / 30: {"objective.num_samples": 2, "gradient.ramps": 5, "judge.num_samples": 5},
        1 / 10: {"objective.num_samples": 2, "gradient.ramps": 12, "judge.num_samples": 8},
    },
}
FORMS = ("monotone", "free", "yarn", "ntk", "piecewise", "critical")
METHODS = ("evolution", *FORMS)


def add_arguments(parser) -> None:
    parser.add_argument("--model", default="../shared/models/books-6m", help="a folder")
    parser.add_argument("--factor", type=int, default=8, help="target / original length")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--samples", type=int, choices=tuple(DESCENTS), default=2, help="of a candidate"
    )
    parser.add_argument("--windows", type=int, default=16, help="held-out books, a window each")
    on_books.add_text_arguments(parser)
    parser.add_argument("--methods", default="evolution,monotone,free,yarn", help="or other forms")
    parser.add_argument("--shares", default="30,10", help="of descents: 30 is a thirtieth")
    parser.add_argument("--traces", default="benchmarks/traces")
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--quick", action="store_true")


def run(args) -> int:
    """Runs the searches that are not finished, and scores them all; returns the exit code.

    Raises:
      InputError: an argument is wrong, or of a search.
    """
    for method in args.methods.split(","):
        choose("--methods", method, dict.fromkeys(METHODS))
    workdir = Path(args.workdir)
    seeds = 1 if args.quick else args.seeds
    traces = [
        dict(method=method, seed=seed, share=share, points=points)
        for method in args.methods.split(",")
        for seed in range(seeds)
        for share, points in _traces(args, workdir, method, seed).items()
    ]
    points = _score(args, workdir, traces)
    print(_table(points))
    from jaxrope import report

    report.cost_figure(_at_mean_cost(points), workdir / "cost.png")
    print(f"wrote points.jsonl and cost.png into {workdir}")
    return 0


def _traces(args, workdir: Path, method: str, seed: int) -> dict[float, list[dict]]:
    """Returns, of each run of a method, by its share of the paper's cost, what it had found after
    which cost, best last."""
    name = f"{Path(args.model).name}_{args.factor}x_samples{args.samples}_{method}_seed{seed}"
    if method == "evolution":
        kept = Path(args.traces) / f"{name}.jsonl"
        if args.traces and kept.exists():
            return {1.0: _read(kept)}
        keys = {"search.method": "evolution", "search.attention_factor": "su"}
        keys |= {"search.objective.num_samples": args.samples, "search.judge.num_samples": 0}
        return {1.0: evolution_trace(_run(args, workdir / name, seed, keys))}
    found = {}
    for share, settings in DESCENTS[args.samples].items():
        if str(round(1 / share)) not in args.shares.split(","):
            continue
        keys = {"search.form": method} | {f"search.{k}": v for k, v in settings.items()}
        keys["search.gradient.steps"] = _steps(args, share, keys)
        folder = workdir / f"{name}_{round(1 / share)}"
        _run(args, folder, seed, keys)
        found[share] = [result_point(json.loads((folder / "result.json").read_text()))]
    return found


def _full_cost(args) -> int:
    length = args.factor * _original_len(args.model)
    return 1312 * args.samples * length // (10 if args.quick else 1)


def _steps(args, share: float, keys: dict) -> int:
    """Returns the steps of a descent that, with everything else, cost `share` at most."""
    from jaxrope.search import cost, prepare

    problem = prepare(_config(args, 0, keys | {"search.gradient.steps": 1}))
    phases = cost.planned(problem)
    step = GRADIENT_COST * problem.objective.sample_tokens
    left = share * _full_cost(args) - sum(phases.values())
    return max(1, 1 + int(left / step))


def _run(args, folder: Path, seed: int, keys: dict) -> list[dict]:
    """Runs a search, or goes on with it; returns the rows of its journal."""
    from jaxrope import search
    from jaxrope.store import files

    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "result.json").exists():
        print(f"{folder.name}: searching", flush=True)
        search.search(_config(args, seed, keys), folder)
    return files.read_jsonl(folder / "journal.jsonl")


def _config(args, seed: int, keys: dict):
    from configs import base

    config = base.get_config()
    with config.unlocked():
        config.model = base.checkpoint_model(args.model)
    config.seed = seed
    config.target_len = args.factor * _original_len(args.model)
    config.data = on_books.texts(args)
    config.search.objective.offset_tokens = args.offset
    if args.quick:
        config.search.algorithm.iterations = 4
    with config.ignore_type():
        config.update_from_flattened_dict(keys)
    return config


def evolution_trace(rows: list[dict]) -> list[dict]:
    """Returns the best candidate so far each time it changed, with the cost until then."""
    number, found, tokens = rows[0]["attention_factor"], [], 0
    for row in rows:
        if "fitness" not in row:
            continue
        tokens += row.get("raced", len(row["losses"])) * rows[0]["target_len"]
        if "genome" in row and row["fitness"] is not None:
            if not found or row["fitness"] < found[-1]["fitness"]:
                found.append(_point(row, tokens, row.get("attention_factor", number)))
    found.append(found[-1] | {"tokens": tokens})
    return found


def result_point(content: dict) -> dict:
    """Returns the result of a whole search, with what all of it cost."""
    fitness = {"fitness": content[content["unit"]]}
    best = content["best"]
    return _point(best | fitness, content["forward_tokens"], best["attention_factor"])


def _point(row: dict, tokens: int, attention_factor: float) -> dict:
    kept = {name: row[name] for name in ("fitness", "factors", "start_tokens")}
    return kept | {"tokens": tokens, "attention_factor": attention_factor}


def _score(args, workdir: Path, traces: list[dict]) -> list[dict]:
    """Returns a point for each cost: method, seed, share of the paper's cost, tokens, fitness,
    held-out perplexity."""
    held_out = HeldOut(args)
    nothing = {"seed": 0, "share": 0.0, "tokens": 0}
    points = [
        {"method": name, **nothing, "perplexity": held_out.perplexity(choice)}
        for name, choice in held_out.known().items()
    ]
    for trace in traces:
        whole = trace["points"][-1]["tokens"]
        costs = {trace["share"]: whole}
        if len(trace["points"]) > 1:
            costs = {share: int(share * whole) for share in SHARES}
        for share, tokens in costs.items():
            reached = [point for point in trace["points"] if point["tokens"] <= tokens]
            if not reached:
                continue
            point = {"method": trace["method"], "seed": trace["seed"], "share": share}
            point |= {"tokens": tokens, "fitness": reached[-1]["fitness"]}
            points.append(point | {"perplexity": held_out.perplexity(reached[-1])})
            print(json.dumps(points[-1]), flush=True)
    workdir.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(point) + "\n" for point in points]
    (workdir / "points.jsonl").write_text("".join(lines), encoding="utf-8")
    return points


class HeldOut:
    """Perplexity on windows of books that no search has seen."""

    def __init__(self, args):
        import jax
        import numpy as np

        from jaxrope import data, decoder
        from jaxrope.convert import pretrained
        from jaxrope.search import objective

        self.length = args.factor * _original_len(args.model)
        loaded = pretrained.load(Path(args.model), dtype="float32")
        tokenizer = data.load_tokenizer(loaded.tokenizer_dir, vocab_size=loaded.config.vocab_size)
        documents = data.load_documents(
            on_books.texts(args).eval_files, tokenizer, settings=data.ReadSettings("--held_out")
        )
        windows = data.eval_windows(
            documents,
            length=self.length,
            num_windows=args.windows,
            offset_tokens=args.offset,
            bos_id=tokenizer.bos_id,
        )
        settings = decoder.ForwardSettings()
        self.model, self.params = loaded.config, jax.device_put(loaded.params)
        self.samples = decoder.lay_out(settings, np.asarray(windows.tokens_WT, np.int32))
        self.loss_fn = jax.jit(objective.mean_nll(loaded.config, settings))
        self.found: dict[str, float] = {}

    def known(self) -> dict[str, dict]:
        """Returns YaRN with its own and with the search's attention factor."""
        from jaxrope import rope

        model, factor = self.model, self.length / self.model.original_len
        bucket = rope.make("yarn", **model.geometry, factor=factor).bucket(self.length)
        su = rope.attention_factor("su", factor=factor, original_len=model.original_len)
        plain = {"factors": bucket.factors, "start_tokens": 0}
        return {
            "yarn": plain | {"attention_factor": bucket.attention_factor},
            "yarn@su": plain | {"attention_factor": su},
        }

    def perplexity(self, choice: dict) -> float:
        """Returns the token mean over all windows."""
        import numpy as np

        from jaxrope import rope

        names = ("factors", "start_tokens", "attention_factor")
        key = json.dumps([choice[name] for name in names])
        if key not in self.found:
            r = rope.build(
                choice["factors"],
                theta=self.model.theta,
                start_tokens=choice["start_tokens"],
                attention_factor=choice["attention_factor"],
            )
            losses = [
                float(self.loss_fn(self.params, r, {k: v[i] for k, v in self.samples.items()}))
                for i in range(len(self.samples["tokens_BT"]))
            ]
            self.found[key] = float(np.exp(np.mean(losses)))
        return self.found[key]


def _table(points: list[dict]) -> str:
    """Returns a line for each method and cost: the mean over seeds, and each seed."""
    lines = [f"{'method':<12}{'forward tokens':>16}{'held-out perplexity':>22}  seeds"]
    for method in dict.fromkeys(point["method"] for point in points):
        some = [point for point in points if point["method"] == method]
        for share in sorted({point["share"] for point in some}):
            alike = [point for point in some if point["share"] == share]
            tokens = sum(point["tokens"] for point in alike) / len(alike)
            mean = sum(point["perplexity"] for point in alike) / len(alike)
            each = " ".join(f"{point['perplexity']:.3f}" for point in alike)
            lines.append(f"{method:<12}{tokens:>16,.0f}{mean:>22.3f}  {each}")
    return "\n".join(lines)


def _at_mean_cost(points: list[dict]) -> list[dict]:
    """Returns the searches' points, those of a method and a share at the mean of their costs."""
    costs: dict[tuple, list[int]] = {}
    for point in points:
        costs.setdefault((point["method"], point["share"]), []).append(point["tokens"])
    means = {key: sum(tokens) / len(tokens) for key, tokens in costs.items()}
    return [
        point | {"tokens": means[point["method"], point["share"]]}
        for point in points
        if point["tokens"]
    ]


def _original_len(model: str) -> int:
    from jaxrope.convert import pretrained
    from jaxrope.store import files

    return pretrained.read_config(files.as_path(model)).original_len


def _read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


if __name__ == "__main__":
    heap.keep()
    cli.arguments(Command(arguments=add_arguments, run=run), doc=__doc__, argv=sys.argv[1:])
