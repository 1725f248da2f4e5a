"""Thousands of damaged and odd inputs: each must be read, or refused in one line, at once.

  python tests/fuzz.py --count=2000 --seed=0
  python tests/fuzz.py --seed=0 --only=137        one case again, with its traceback

A case mutates one file that comes from outside (config.json, rope.json, weights, tokenizers, GGUF,
what a workdir holds) or the flags of a program, and reads it as a program would. It fails if
anything but an InputError (or an exit with 2 and one line) is raised, if a message is not one short
line, or if it takes more than SECONDS or MEGABYTES. Exit code 1 if a case fails. A case that ends
the process, or hangs in a library, is the one whose number was printed last.
"""

import argparse
import collections
import contextlib
import faulthandler
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("JAX_PLATFORMS", "cpu")


from jaxrope.convert import pretrained  # noqa: E402
from jaxrope.errors import InputError  # noqa: E402
from tests import fuzz_kinds, hf_models  # noqa: E402
from tests.fuzz_kinds import KINDS  # noqa: E402

SECONDS, MEGABYTES = 20, 1000  # of a case; a busy machine is several times slower than an idle one
HANGS = 60  # seconds after which the process is ended


class TooSlow(Exception):
    """A case takes too long."""


def outcome(case: Callable[[], object]) -> tuple[str, str]:
    """Returns ("read", "refused" or "FAILED", what failed) of a case."""
    begin, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    faulthandler.dump_traceback_later(HANGS, exit=True)
    signal.alarm(SECONDS)
    try:
        case()
        result = "read", ""
    except InputError as error:
        text = str(error)
        is_line = text.isprintable() and 10 < len(text) <= 2000
        result = ("refused", "") if is_line else ("FAILED", f"message: {text[:300]!r}")
    except BaseException as error:  # also SystemExit, and panics of libraries
        if isinstance(error, KeyboardInterrupt):
            raise
        result = "FAILED", "".join(traceback.format_exception(error))[-3000:]
    finally:
        signal.alarm(0)
        faulthandler.cancel_dump_traceback_later()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
    if result[0] != "FAILED" and grown > MEGABYTES:
        return "FAILED", f"it took {grown} MB in {time.monotonic() - begin:.1f} s"
    return result


def _stop(number, frame):
    raise TooSlow(f"more than {SECONDS} s")


def fuzz(count: int, seed: int, *, first: int = 0, say: Callable[[str], None] = print):
    """Runs cases `first` to `first + count`; returns ({(kind, outcome): number}, failures)."""
    names = [name for name, kind in KINDS.items() for _ in range(kind.share)]
    counts: collections.Counter = collections.Counter()
    failures, shared = {}, {}
    signal.signal(signal.SIGALRM, _stop)
    with tempfile.TemporaryDirectory() as temporary, _memory_limit():
        fuzz_kinds.SHAPES[:] = [hf_models_config(Path(temporary))]
        for number in range(first, first + count):
            rng = random.Random(f"{seed}:{number}")
            name = rng.choice(names)
            folder = Path(temporary) / name
            if name not in shared:
                folder.mkdir()
                shared[name] = KINDS[name].prepare(folder)
            say(f"\r{number} {name:<20}")
            result, why = outcome(lambda n=name, f=folder, r=rng: KINDS[n].case(f, shared[n], r))
            counts[name, result] += 1
            if why:
                failures[number] = f"{name}: {why}"
    return counts, failures


def hf_models_config(folder: Path):
    """Returns the shape of a small model, for the ids of its tokenizer."""
    hf_models.write(folder / "shape", hf_models.CASES["llama"])
    return pretrained.read_config(folder / "shape")


@contextlib.contextmanager
def _memory_limit():
    """Makes an allocation fail that would take the machine with it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (4 << 30), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="number of the one case to run")
    args = parser.parse_args()
    first, count = (0, args.count) if args.only is None else (args.only, 1)
    begin = time.monotonic()
    counts, failures = fuzz(
        count, args.seed, first=first, say=lambda text: print(text, end="", flush=True)
    )
    print(f"\r{'':<40}\r{'':<16}{'read':>8}{'refused':>10}{'failed':>10}")
    for name in KINDS:
        row = [counts[name, result] for result in ("read", "refused", "FAILED")]
        print(f"{name:<16}{row[0]:>8}{row[1]:>10}{row[2]:>10}")
    for number, why in failures.items():
        print(f"\n--seed={args.seed} --only={number}  {why}")
    seconds = time.monotonic() - begin
    print(f"{count} cases in {seconds:.0f} s, {len(failures)} failed {sorted(failures) or ''}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
