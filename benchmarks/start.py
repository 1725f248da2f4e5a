"""The whole process that continues a text by 48 tokens: ours at the first run, ours again, and that
of transformers; seconds of a processor, in turns.

  python -m benchmarks.start --model=MODEL --torch=PYTHON [--jsonl=start.jsonl]

MODEL is a Hugging Face folder, or smollm2_135m: random weights of that shape, and the tokenizer of
the shipped model. PYTHON is that of an environment with torch and transformers. "First": what was
compiled is kept in an empty folder, from which the second run reads it. --quick: one round.
"""

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import engine, side_by_side, step

PROMPT, TOKENS = "import os\n\n\ndef walk(", 48
THEIRS = f"""
import sys, transformers
folder = sys.argv[1]
tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
ids = tokenizer({PROMPT!r}, return_tensors="pt").input_ids
how = dict(max_new_tokens={TOKENS}, do_sample=False, pad_token_id=0)
print(tokenizer.decode(model.generate(ids, **how)[0]))
"""


def main(argv=None) -> int:
    """Runs the benchmark; returns the exit code."""
    parser = argparse.ArgumentParser(prog="benchmarks.start", description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", default=step.SHIPPED, help=f"a folder, or {step.RANDOM}")
    parser.add_argument("--torch", default=sys.executable, help="Python that has torch")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--jsonl", default="", help="append the results to this file")
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args(argv)
    about = side_by_side.machine()
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    found: dict[str, list[dict]] = {}
    with tempfile.TemporaryDirectory() as folder:
        model = args.model
        if model == step.RANDOM:
            model = _random(Path(folder) / "model", args.torch)
        ours, theirs = [sys.executable, *_ours(model)], [args.torch, "-c", THEIRS, str(model)]
        programs = {"first": ours, "again": ours, "theirs": theirs}
        for turn in range(1 if args.quick else args.rounds):
            kept = Path(folder) / f"compiled_{turn}"
            for name, command in programs.items():
                found.setdefault(name, []).append(_run(command, kept))
    of_theirs, _ = _medians(found["theirs"])
    for name, runs in found.items():
        processor, wall = _medians(runs)
        spent = sorted(run["processor"] for run in runs)
        print(
            f"{name:6}  {processor:.1f} s of a processor ({spent[0]:.1f} to {spent[-1]:.1f}), "
            f"{processor / of_theirs:.2f} times; {wall:.1f} s in all"
        )
    record = dict(model=os.path.basename(args.model.rstrip("/")), machine=about, runs=found)
    side_by_side.write(args.jsonl, [record])
    return 0


def _medians(runs: list[dict]) -> tuple[float, float]:
    return tuple(statistics.median(run[key] for run in runs) for key in ("processor", "wall"))


def _ours(model) -> list[str]:
    how = [f"--checkpoint={model}", f"--prompt={PROMPT}", f"--max_new_tokens={TOKENS}"]
    return ["-m", "jaxrope.generate", *how]


def _random(folder: Path, python: str) -> Path:
    with engine.Engine.of_module(python, "benchmarks.step_torch") as torch:
        torch.ask({"make": dict(name="write", model=str(folder))})
        torch.run()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(engine.ROOT / step.SHIPPED / name, folder)
    return folder


def _run(command: list[str], kept: Path) -> dict[str, float]:
    """Returns the seconds of a process and of all that it starts.

    Raises:
      subprocess.CalledProcessError: it failed.
    """
    places = os.environ | {"XDG_CACHE_HOME": str(kept), "PYTHONPATH": str(engine.ROOT)}
    how = dict(env=places, cwd=engine.ROOT, stdout=subprocess.DEVNULL, check=True)
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, **how)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"processor": spent, "wall": time.perf_counter() - began}


if __name__ == "__main__":
    sys.exit(main())
