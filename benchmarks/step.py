"""Our training step and our search against transformers and torch: the same model, batch, length
and precision, on the same cores, in turns, each in a process and an environment of its own.

  python -m benchmarks.step --model=MODEL --jsonl=step.jsonl [--torch=PYTHON]

MODEL is a Hugging Face folder, or smollm2_135m: random weights of that shape. PYTHON is that of an
environment with torch and transformers, for example of `make test` on 3.11, and this program runs
in ours. --cases: training (a step of all weights), lora (of adapters on q, k, v and o alone) and
evaluation (candidates of a search on one text). torch runs with its eager and its sdpa attention
(--attention=sdpa: eager has all weights of attention in memory), and the faster one counts. After
a few steps of each the last of three in a row is timed. "times" is how many times as long it took,
the median of the rounds, with the range. --quick: one small case of each. Exit code 1: the two
disagree.
"""

import argparse
import contextlib
import json
import os
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks import engine, side_by_side

SIZES = dict(  # rows (candidates of an evaluation) x tokens
    training=("8x512", "2x2048"),
    evaluation=("8x512", "2x2048", "1x4096"),
    lora=("1x2048",),
)
RANK = 16
WARM_UP = 3  # runs that are not timed: a process takes memory that it then keeps (shell.heap)
WARM = 2  # runs in a row before each that is timed
SHIPPED = "jaxrope/models/stdlib-3m"
RANDOM = "smollm2_135m"
TOLERANCE = dict(float32=1e-3, bfloat16=2e-2)  # of the loss, relative


def main(argv=None) -> int:
    """Runs the benchmark; returns the exit code."""
    parser = argparse.ArgumentParser(prog="benchmarks.step", description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", default=SHIPPED, help=f"a Hugging Face folder, or {RANDOM}")
    parser.add_argument("--torch", default=sys.executable, help="Python that has torch")
    parser.add_argument("--cases", default="training,evaluation", help=", ".join(SIZES))
    parser.add_argument("--sizes", default="", help="rows x tokens, such as 1x2048,1x4096")
    parser.add_argument("--dtypes", default="float32", help=", ".join(TOLERANCE))
    parser.add_argument("--attention", default="eager,sdpa", help="of torch")
    parser.add_argument("--threads", type=int, default=0, help="cores to use; 0: all")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--jsonl", default="", help="append the results to this file")
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args(argv)
    if args.model != RANDOM and not (Path(args.model) / "config.json").is_file():
        parser.error(f"--model: {args.model} has no config.json: give a Hugging Face folder")
    if args.threads:  # of the processes that it starts, too
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])
    about = side_by_side.machine()
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    with contextlib.ExitStack() as stack:
        engines = {
            "ours": stack.enter_context(engine.Engine.of_module(sys.executable, _of("ours")))
        }
        for name in args.attention.split(","):
            engines[name] = stack.enter_context(engine.Engine.of_module(args.torch, _of("torch")))
        model = args.model
        if model == RANDOM:
            model = stack.enter_context(tempfile.TemporaryDirectory())
            engines[name].ask({"make": dict(name="write", model=model)})
            engines[name].run()
        records = []
        for case in _cases(args, model):
            record = _run(case, engines, 2 if args.quick else args.rounds)
            record |= dict(model=os.path.basename(args.model.rstrip("/")), machine=about)
            print(_line(record), flush=True)
            records.append(record)
            side_by_side.write(args.jsonl, [record])
    return int(not all(record["agree"] for record in records))


def _of(name: str) -> str:
    return f"benchmarks.step_{name}"


def _cases(args, model: str):
    for name in args.cases.split(","):
        sizes = args.sizes.split(",") if args.sizes else SIZES[name]
        for size in ("2x64",) if args.quick else sizes:
            rows, tokens = map(int, size.split("x"))
            for dtype in args.dtypes.split(","):
                yield dict(name=name, model=model, dtype=dtype, rows=rows, tokens=tokens)


def _run(case: dict, engines: dict, rounds: int) -> dict:
    request = case | _numbers(case)
    for name, each in engines.items():
        each.ask({"make": request | {"attention": name}})
    losses = {name: each.run() for name, each in engines.items()}  # also compiles
    apart = max(abs(loss / losses["ours"] - 1) for loss in losses.values())
    fns = {name: each.run for name, each in engines.items()}
    first = side_by_side.seconds(fns, 1)
    fastest = min(runs[0] for name, runs in first.items() if name != "ours")
    fns = {n: fn for n, fn in fns.items() if n == "ours" or first[n][0] <= 2 * fastest}
    for fn in WARM_UP * tuple(fns.values()):
        fn()
    found = side_by_side.seconds(fns, rounds, warm=WARM)
    peers = {n: side_by_side.ratio(found["ours"], found[n]) for n in found if n != "ours"}
    return case | dict(
        seconds=found,
        peers=peers,
        best=min(peers, key=lambda name: peers[name]["median"]),
        losses=losses,
        agree=bool(apart < TOLERANCE[case["dtype"]]),
        versions=dict(pair for each in engines.values() for pair in each.versions().items()),
    )


def _numbers(case: dict) -> dict:
    """Returns the tokens of a case, and factors of its candidates or the rank of its adapters."""
    config = json.loads((Path(case["model"]) / "config.json").read_text())
    dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    rows = 1 if case["name"] == "evaluation" else case["rows"]
    shape = (rows, case["tokens"] + 1)
    ids = np.random.default_rng(0).integers(0, config["vocab_size"], shape)
    factors_PR = np.linspace(1.0, np.linspace(2.0, 8.0, case["rows"]), dim // 2, axis=-1)
    rank = RANK if case["name"] == "lora" else 0
    return dict(ids=ids.tolist(), factors=factors_PR.tolist(), rank=rank)


def _line(record: dict) -> str:
    found, best = record["peers"][record["best"]], record["best"]
    times = f"{found['median']:.2f} times ({found['low']:.2f} to {found['high']:.2f}), {best}"
    medians = {name: sorted(runs)[len(runs) // 2] for name, runs in record["seconds"].items()}
    each = ", ".join(f"{name} {value:.3f} s" for name, value in medians.items())
    size = f"{record['rows']} x {record['tokens']}"
    verdict = "" if record["agree"] else f"  THE LOSSES DIFFER: {record['losses']}"
    return f"{record['name']:10} {size:>9} {record['dtype']:8}  {times:36}  {each}{verdict}"


if __name__ == "__main__":
    sys.exit(main())
