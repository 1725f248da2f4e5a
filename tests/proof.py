"""What the TPU compiler proves of this code, on slices that are not here: `make proof`.

  python tests/proof.py [--only=TEXT,...] [--jobs=N] [--write]

Every figure is the compiler's own, for the heads of Llama-3-8B and the steps of configs/. Each row
is compiled by a process of its own and kept in .proof/ with the digests of the code it came from:
the next run compiles what is missing, or whose code, compiler or jax has changed. At the end it
prints the tables of docs/performance.md from all rows that are there (--write: puts them there),
and each figure beyond its limit; exit code 0 if there is none and no row failed. It needs libtpu
(`make aot`).
"""

import argparse
import hashlib
import inspect
import json
import math
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402

from jaxrope import topology  # noqa: E402
from jaxrope.shell import Progress, duration  # noqa: E402
from jaxrope.store import write_json_atomic  # noqa: E402
from tests import proof_rows  # noqa: E402
from tests.proof_rows import ROWS, SAVED, Attention, Figures, Row, Step  # noqa: E402

KEPT = ROOT / ".proof"
PAGE = ROOT / "docs" / "performance.md"
BEGIN, END = "<!-- made by `make proof`: {} -->", "<!-- end -->"
_MIB, _GIB = 2**20, 2**30
# The compiler's peak of MaxText's ring by the same measure is 323 MiB forward and 553 MiB with the
# backward pass (its kernels of August 2026, libtpu 0.0.52).
FORWARD_LIMIT, GRADIENT_LIMIT = 245 * _MIB, 553 * _MIB
FLAT = 0.01  # as length and devices grow together


def measure(row: Row) -> None:
    """Compiles a row and keeps what it gives."""
    began = time.monotonic()
    figures = row.measure()
    names = [
        str(Path(module.__file__).relative_to(ROOT))
        for name, module in sorted(sys.modules.items())
        if name.partition(".")[0] == "jaxrope" and module.__file__
    ]
    names += [f"configs/{row.config.partition(':')[0]}"] if isinstance(row, Step) else []
    record = {
        "row": row.name,
        "versions": versions(),
        "code": {name: digest(name) for name in (*names, *_OWN)},
        "seconds": round(time.monotonic() - began, 1),
        "figures": figures,
    }
    KEPT.mkdir(exist_ok=True)
    write_json_atomic(path_of(row), record)


_OWN = ("Attention", "Step", "lower_attention", "ring", "hops")  # of proof_rows; not all its rows


def digest(name: str) -> str:
    """Returns the SHA-256 of a file of the project, or of the source of a name of proof_rows."""
    if name in _OWN:
        return hashlib.sha256(inspect.getsource(getattr(proof_rows, name)).encode()).hexdigest()
    path = ROOT / name
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else ""


def versions() -> dict[str, str]:
    """Returns those of what compiles."""
    return {"libtpu": topology.libtpu_version(), "jax": jax.__version__}


def path_of(row: Row) -> Path:
    """Returns the file of a row."""
    return KEPT / (re.sub(r"[^\w.]+", "-", row.name) + ".json")


def last(row: Row) -> dict[str, Any] | None:
    """Returns what was kept of a row, perhaps of older code."""
    path = path_of(row)
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def kept(row: Row) -> dict[str, Any] | None:
    """Returns what was kept of a row if it is of this code and this compiler."""
    record = last(row)
    if record is None or record["row"] != row.name or record["versions"] != versions():
        return None
    code = record["code"]
    return record if all(digest(name) == before for name, before in code.items()) else None


def compile_rows(rows: Sequence[Row], num_jobs: int) -> list[Row]:
    """Compiles rows, each in a process of its own; returns those that failed."""
    waiting, running, failed, done = list(rows), {}, [], 0
    KEPT.mkdir(exist_ok=True)
    with Progress(len(rows), unit="rows") as progress:
        try:
            while waiting or running:
                while waiting and len(running) < num_jobs:
                    row = waiting.pop(0)
                    before = last(row)
                    took = f", which took {duration(before['seconds'])} before" if before else ""
                    progress.write(f"compiling {row.name}{took}")
                    running[_start(row)] = row
                time.sleep(0.2)
                for process in [process for process in running if process.poll() is not None]:
                    row, done = running.pop(process), done + 1
                    record = None if process.returncode else kept(row)
                    if record is None:
                        failed.append(row)
                    progress.write(_outcome(row, record))
                    progress.update(done)
        finally:
            for process in running:
                process.kill()
                process.wait()
    return failed


def _start(row: Row) -> subprocess.Popen:
    command = [sys.executable, str(Path(__file__).resolve()), f"--row={row.name}"]
    with path_of(row).with_suffix(".txt").open("w", encoding="utf-8") as log:
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)


def _outcome(row: Row, record: dict[str, Any] | None) -> str:
    log = path_of(row).with_suffix(".txt")
    if record is None:
        lines = log.read_text(encoding="utf-8").strip().splitlines() or ["it was killed"]
        return f"FAILED {row.name}: {lines[-1]} (whole output: {log})"
    return f"{row.name}: {record['figures']['peak'] / _GIB:.2f} GiB, {duration(record['seconds'])}"


def tables(figures: Mapping[Row, Figures]) -> dict[str, list[str]]:
    """Returns the lines of each table of docs/performance.md, of the rows that are there."""
    pairs = _pairs(figures)
    memory = ["| tokens | slice | ring | forward | forward and backward |", "|---|---|---|---|---|"]
    hidden = ["| slice | ring | forward | forward and backward |", "|---|---|---|---|"]
    for (where, context, tokens), (forward, both) in pairs.items():
        first = tokens // context == 4096
        size = f"| {tokens // 1024}k | {where} | {context} "
        cells = [f"{f['peak'] / _MIB:.1f} MiB" if f else "" for f in (forward, both)]
        memory += [size + f"| {cells[0]} | {cells[1]} |"] * first
        cells = [_hidden(f) if f else "" for f in (forward, both)]
        hidden += [f"| {where} | {context} | {cells[0]} | {cells[1]} |"] * (tokens == 2**18)
    steps = [
        "| config | slice | remat | fsdp x context | peak of a device | usable | predicted step | "
        "MFU of at most | exposed hops |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    steps += [_step(row, figures[row]) for row in ROWS if isinstance(row, Step) and row in figures]
    return {"memory": memory, "hops": hidden, "steps": steps}


def _pairs(figures: Mapping[Row, Figures]) -> dict[tuple, list[Figures | None]]:
    """Returns {(slice, ring, tokens): figures of the (forward, forward and backward) pass}."""
    pairs: dict[tuple, list[Figures | None]] = {}
    for row in ROWS:
        if isinstance(row, Attention) and row in figures:
            pair = pairs.setdefault((row.where, row.context, row.tokens), [None, None])
            pair[row.gradient] = figures[row]
    return pairs


def _hidden(found: Figures) -> str:
    text = f"{found['hidden']} of {found['hops']} hidden"
    return text + f"; the other {found['home']} return dK and dV" * bool(found["home"])


def _step(row: Step, found: Figures) -> str:
    named = [change for change in row.changes if change != SAVED]  # that has a column
    name = ", ".join((row.config, *named, f"{found['rows']} rows"))
    mesh, peak, usable = found["mesh"], found["peak"] / _GIB, found["usable"] / _GIB
    exposed = f"{_size(found['exposed'])} of {_size(found['sent'])}"
    return (
        f"| {name} | {row.where} | {found['remat']} | {mesh['fsdp']} x {mesh['context']} | "
        f"{peak:.1f} GiB | {usable:.2f} GiB | {found['step']:.3g} s | {found['mfu']:.1%} of "
        f"{found['ceiling']:.1%} | {exposed} |"
    )


def _size(number: float) -> str:
    if not number:
        return "0"
    power = min(max(int(math.log2(number) // 10), 2), 4)  # MiB, GiB or TiB
    return f"{number / 1024**power:.3g} {('MiB', 'GiB', 'TiB')[power - 2]}"


def beyond(figures: Mapping[Row, Figures]) -> Iterator[str]:
    """Yields a line for every figure beyond its limit, of the rows that are there."""
    flat = {
        row: found["peak"]
        for row, found in figures.items()
        if isinstance(row, Attention) and row.gradient and row.tokens // row.context == 4096
    }
    for row, found in figures.items():
        if found["unknown_loops"]:
            yield f"{row.name}: loops of unknown length {found['unknown_loops']}"
        if isinstance(row, Step):
            if found["peak"] > found["usable"]:
                yield f"{row.name}: {_size(found['peak'])} of {_size(found['usable'])} usable"
            if found["exposed"] > row.exposed * found["sent"]:
                share = found["exposed"] / found["sent"]
                yield f"{row.name}: {share:.2%} of its hops are exposed, not {row.exposed:.2%}"
            if found["mfu"] < row.reaches * found["ceiling"]:
                share = found["mfu"] / found["ceiling"]
                yield f"{row.name}: {share:.1%} of the highest MFU, not {row.reaches:.1%}"
            continue
        if row in flat and found["peak"] > (1 + FLAT) * min(flat.values()):
            yield f"{row.name}: {_size(found['peak'])}, not within {FLAT:.0%} of shorter rows"
        limit = GRADIENT_LIMIT if row.gradient else FORWARD_LIMIT
        if row.where == "v5p:4x4x4" and found["peak"] > limit:
            yield f"{row.name}: {_size(found['peak'])}, not {_size(limit)} or less"
        if found["exposed"] or not found["hidden"] or found["home"] > 2 * row.gradient:
            yield f"{row.name}: {_hidden(found)}, {found['exposed']} exposed, not none"


def write_page(lines: Mapping[str, Sequence[str]]) -> None:
    """Puts tables between their marks in docs/performance.md."""
    text = PAGE.read_text(encoding="utf-8")
    for name, table in lines.items():
        begin = f"\n{BEGIN.format(name)}\n"
        before, mark, rest = text.partition(begin)
        _, end, after = rest.partition(f"\n{END}\n")
        if not (mark and end):
            raise ValueError(f"{PAGE} has no place for the table '{name}': {begin.strip()}, {END}")
        text = "".join((before, mark, "\n".join(table), end, after))
    PAGE.write_text(text, encoding="utf-8")


def main() -> int:
    """Compiles what is missing and prints all tables; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default="", help="rows whose name has one of these texts")
    parser.add_argument("--jobs", type=int, default=1, help="rows that are compiled at one time")
    parser.add_argument("--write", action="store_true", help="into docs/performance.md")
    parser.add_argument("--row", help="compile this one in this process")
    args = parser.parse_args()
    if args.row:
        measure(next(row for row in ROWS if row.name == args.row))
        return 0
    chosen = [row for row in ROWS if any(text in row.name for text in args.only.split(","))]
    missing = [row for row in chosen if kept(row) is None]
    print(f"{len(chosen)} rows: {len(chosen) - len(missing)} are kept from before", flush=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        failed = compile_rows(missing, args.jobs)
    except KeyboardInterrupt:
        print("interrupted: the rows that are done are kept")
        return 130
    figures = {row: record["figures"] for row in ROWS if (record := kept(row))}
    lines = tables(figures)
    for table in lines.values():
        print("\n".join(("", *table)))
    print("\n" + ", ".join(f"{name} {version}" for name, version in versions().items()))
    wrong = [*beyond(figures)]
    print("\n".join(f"BEYOND ITS LIMIT: {line}" for line in wrong), end="\n" * bool(wrong))
    if args.write and len(figures) < len(ROWS):
        print(f"not written: {len(ROWS) - len(figures)} of {len(ROWS)} rows are missing")
        return 1
    if args.write:
        write_page(lines)
    return int(bool(failed or wrong))


if __name__ == "__main__":
    sys.exit(main())
