"""Damages files of finished workdirs and reads them as a restart would: nothing may change unseen.

  python tests/kill.py --count=500 --programs=60 --seed=0

A case flips a bit of one file of a finished search, training or evaluation, cuts its end off, or
deletes it. In process, all readers of a restart then either give what they give for the whole
workdir, or say in one line what is damaged, or say that the result is not finished, so that it is
measured again. As processes, the programs go on, export, generate and report; they end with the
same results, or with one line and no traceback. Exit code 1: a case does neither.
"""

import argparse
import collections
import contextlib
import io
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import numpy as np  # noqa: E402

from jaxrope import evaluate, report, rope, search, train  # noqa: E402
from jaxrope.convert import pretrained  # noqa: E402
from jaxrope.errors import InputError  # noqa: E402
from jaxrope.evaluate.journal import Journal  # noqa: E402
from tests import search_config, tiny_eval, tiny_run  # noqa: E402
from tests.processes import environment  # noqa: E402

# Of these a restart reads no number: pictures, texts for people, and logs.
EXEMPT = {
    ".png": "a picture",
    ".md": "tables for people; eval.json has the numbers",
    ".txt": "command.txt, what was typed",
    "metrics.jsonl": "the log of a training; a damaged line is told",
    ".lock": "who runs",
}


def configs(folder: Path) -> dict[str, Any]:
    """Returns the config of each kind of workdir."""
    trained = tiny_run.make_config(folder / "texts")
    trained.train.steps, trained.train.eval_every, trained.eval.suites = 6, 0, ()
    measured = tiny_eval.get_config(str(folder / "eval_text"))
    measured.eval.suites, measured.eval.lengths = ("perplexity", "passkey"), (256,)
    measured.eval.num_windows, measured.eval.passkey_trials = 2, 2
    return {
        "search": search_config.tiny(folder / "search_files"),
        "train": trained,
        "evaluate": measured,
    }


def make(folder: Path, settings: dict[str, Any]) -> None:
    """Runs the three programs in workdirs of `folder` that are called as they are."""
    tiny_run.write_texts(folder / "texts")
    search.search(settings["search"], folder / "search")
    assert train.train(settings["train"], folder / "train") == 0
    evaluate.evaluate(settings["evaluate"], folder / "evaluate")


def readers(settings: dict[str, Any], workdir: Path) -> dict[str, Callable[[], Any]]:
    """Returns what a restart and other programs read of a workdir."""
    kind = workdir.name
    page = workdir.parent / f"{kind}.html"
    found = {"report": lambda: report.write([workdir], page)}
    if kind == "search":
        found["finished"] = lambda: search.finished(settings[kind], workdir)
        found["rope"] = lambda: repr(rope.load(workdir / "rope.json").buckets)
    elif kind == "train":
        found["finished"] = lambda: train.finished(settings[kind], workdir)
        found["dry run"] = lambda: train.dry_run(settings[kind], workdir, timing=False) and ""
        found["weights"] = lambda: arrays_of(workdir)
    else:
        found["finished"] = lambda: evaluate.finished(settings[kind], workdir)
        found["items"] = lambda: items_of(workdir)
    return found


def arrays_of(workdir: Path) -> Any:
    """Returns the weights, or the notes that say why they are of an earlier step."""
    loaded = pretrained.load(workdir)
    if loaded.notes:
        return None
    leaves = {"/".join(path): leaf for path, leaf in flat(loaded.params)}
    return {name: np.asarray(leaf).tobytes() for name, leaf in leaves.items()}, repr(loaded.config)


def flat(tree, path=()):
    """Yields (path, leaf) of nested dicts."""
    for name, value in tree.items():
        yield from (
            flat(value, (*path, name)) if isinstance(value, dict) else [((*path, name), value)]
        )


def items_of(workdir: Path) -> Any:
    """Returns the answers that are read again, or None where one was said to be damaged."""
    lines: list[str] = []
    journal = Journal(workdir, lines.append)
    stored = {}
    for key, line in journal._lines.items():
        stored[repr(key)] = repr(journal.find(journal_place(line), [line["item"]], [line["how"]]))
    return None if lines else stored


def journal_place(line: dict):
    """Returns the place of a stored line."""
    from jaxrope.evaluate.journal import Place

    return Place(*(line[name] for name in Place._fields))


def outcome(read: Callable[[], Any]) -> tuple[str, Any]:
    """Returns ("value" | "refused" | "traceback", what)."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            return "value", read()
        except InputError as error:
            return "refused", str(error)
        except Exception as error:  # whatever else is raised is what this looks for
            return "traceback", f"{type(error).__name__}: {error}"


def damage(path: Path, rng: random.Random) -> str:
    """Damages a file; returns how."""
    raw = bytearray(path.read_bytes())
    how = rng.choice(["flip", "flip", "flip", "cut", "delete"])
    if how == "delete" or not raw:
        path.unlink()
        return "delete"
    if how == "cut":
        path.write_bytes(raw[: rng.randrange(len(raw))])
        return how
    bit = rng.randrange(8 * len(raw))
    raw[bit // 8] ^= 1 << bit % 8
    path.write_bytes(raw)
    return f"flip of bit {bit}"


def targets(workdir: Path) -> list[Path]:
    """Returns the files that hold results, relative to the workdir."""
    files = sorted(path.relative_to(workdir) for path in workdir.rglob("*") if path.is_file())
    return [p for p in files if not any(str(p).endswith(end) for end in EXEMPT)]


def in_process(folder: Path, settings, count: int, seed: int) -> tuple[collections.Counter, list]:
    """Returns ({(kind, result): number}, failures)."""
    counts, failures = collections.Counter(), []
    kinds = ("search", "train", "evaluate")
    whole = {kind: folder / kind for kind in kinds}
    spare = {kind: folder / "whole" / kind for kind in kinds}
    for kind in kinds:
        shutil.copytree(whole[kind], spare[kind])
    before = {
        kind: {name: outcome(fn) for name, fn in readers(settings, whole[kind]).items()}
        for kind in kinds
    }
    for kind, results in before.items():  # the control: nothing is damaged
        assert all(result == "value" for result, _ in results.values()), (kind, results)
    for number in range(count):
        rng = random.Random(f"{seed} {number}")
        kind = kinds[number % 3]
        file = rng.choice(targets(spare[kind]))
        how = damage(whole[kind] / file, rng)
        for name, read in readers(settings, whole[kind]).items():
            result, value = outcome(read)
            if result == "refused":
                fine = "\n" not in value
            elif result == "value":  # None: not finished, or said to be damaged
                expected = before[kind][name][1]
                fine = value is None or value == expected
                if name == "items":  # what a kill cut off is asked again
                    fine = fine or value.items() <= expected.items()
                result = "measured again" if value is None else "same"
            else:
                fine = False
            counts[kind, result] += 1
            if not fine:
                shown = value if result in ("traceback", "refused") else "another value"
                failures.append(f"{number}: {kind}/{file}, {how}: {name}: {str(shown)[:300]}")
        shutil.rmtree(whole[kind])
        shutil.copytree(spare[kind], whole[kind])
    return counts, failures


def commands(folder: Path, kind: str, config: Path) -> list[list[str]]:
    """Returns what a user would type next."""
    workdir = str(folder / kind)
    again = ["-m", f"jaxrope.{kind}", f"--config={config}:{folder}", f"--workdir={workdir}"]
    page = ["-m", "jaxrope.report", workdir, f"--out={folder / 'page.html'}"]
    if kind != "train":
        return [again, page]
    export = ["-m", "jaxrope.convert", "export", workdir, str(folder / "hf"), "--overwrite"]
    write = ["-m", "jaxrope.generate", f"--checkpoint={workdir}", "--prompt=a", "--tokenizer=bytes"]
    return [again, page, export, [*write, "--max_new_tokens=4"]]


def result_of(folder: Path, kind: str) -> Any:
    """Returns what a program left, without what a clock measured."""
    workdir = folder / kind
    if kind == "train":
        return arrays_of(workdir)
    if kind == "search":
        return json.loads((workdir / "rope.json").read_text())["buckets"]
    rows = json.loads((workdir / "eval.json").read_text())["rows"]
    return [(row["label"], row["suite"], row["length"], row["metrics"]) for row in rows]


def as_programs(folder: Path, settings, count: int, seed: int) -> tuple[collections.Counter, list]:
    """Returns ({(program, exit code): number}, failures)."""
    counts, failures = collections.Counter(), []
    config = folder / "experiment.py"
    for number in range(count):
        rng = random.Random(f"programs {seed} {number}")
        kind = ("search", "train", "evaluate")[number % 3]
        config.write_text(
            "from pathlib import Path\n\nfrom tests import kill\n\n\ndef get_config(folder):\n"
            f"    return kill.configs(Path(folder))['{kind}']\n"
        )
        spare = folder / "whole" / kind
        expected = result_of(folder, kind)
        file = rng.choice(targets(spare))
        how = damage(folder / kind / file, rng)
        command = rng.choice(commands(folder, kind, config))
        done = subprocess.run(
            [sys.executable, *command], env=environment(), capture_output=True, text=True
        )
        name = " ".join(command[1:3]) if command[1] == "jaxrope.convert" else command[1]
        counts[name, done.returncode] += 1
        where = f"{number}: {kind}/{file}, {how}: {name} ended with {done.returncode}"
        if "Traceback" in done.stderr or done.returncode not in (0, 1, 2):
            failures.append(f"{where}: {done.stderr[-400:]}")
        elif done.returncode == 0 and command[1] == f"jaxrope.{kind}":
            if result_of(folder, kind) != expected:
                failures.append(f"{where}: another result")
        shutil.rmtree(folder / kind)
        shutil.copytree(spare, folder / kind)
    return counts, failures


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=500, help="cases in process (500)")
    parser.add_argument("--programs", type=int, default=60, help="cases as processes (60)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    begin, failures = time.monotonic(), []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        settings = configs(folder)
        make(folder, settings)
        for cases, number in ((in_process, args.count), (as_programs, args.programs)):
            counts, failed = cases(folder, settings, number, args.seed)
            failures += failed
            for (name, result), times in sorted(counts.items(), key=str):
                print(f"{name:<24}{result!s:<16}{times:>6}", flush=True)
    print(*failures, sep="\n")
    print(f"{args.count} + {args.programs} cases in {time.monotonic() - begin:.0f} s, ", end="")
    print(f"{len(failures)} failed")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
