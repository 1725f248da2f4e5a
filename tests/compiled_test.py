"""What programs compile is kept, whole, for the next run."""

import os
import subprocess
import sys
from pathlib import Path

import filelock
import pytest

from jaxrope.shell import compiled

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = """
from jaxrope.shell import Command, cli

def run(args):
    import jax
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    misses = []
    jax.monitoring.register_event_listener(lambda name, **_: misses.append(name))
    print(jax.jit(lambda x: x * 3)(14), misses.count("/jax/compilation_cache/cache_hits"))

cli.arguments(Command(arguments=lambda parser: None, run=run), doc="")
"""


def run(cache: Path, **more: str) -> tuple[str, int]:
    """Returns what the program printed, and how many files it has left."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_COMP", "JAX_PERS"))}
    kept |= {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(cache)} | more
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=kept, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout, len(list(cache.glob("jaxrope/compiled/*-cache")))


def test_the_second_run_compiles_nothing(tmp_path):
    printed, count = run(tmp_path)
    assert printed == "42 0\n" and count > 0
    printed, again = run(tmp_path)
    assert printed == f"42 {count}\n" and again == count


def test_what_a_killed_run_was_writing_is_removed(tmp_path):
    _, count = run(tmp_path)
    path = next(tmp_path.glob("jaxrope/compiled/*-cache"))
    path.write_bytes(path.read_bytes()[:20])
    path.with_name(path.name.replace("-cache", "-atime")).unlink()
    assert run(tmp_path) == (f"42 {count - 1}\n", count)


def test_who_wants_another_folder_or_none_has_it(tmp_path):
    assert run(tmp_path, JAX_COMPILATION_CACHE_DIR="") == ("42 0\n", 0)
    other = tmp_path / "other"
    assert run(tmp_path, JAX_COMPILATION_CACHE_DIR=str(other)) == ("42 0\n", 0)
    assert list(other.glob("*-cache"))


def test_a_folder_that_cannot_be_is_done_without(tmp_path):
    (tmp_path / "jaxrope").write_text("")
    assert run(tmp_path) == ("42 0\n", 0)


@pytest.fixture
def environment(tmp_path, monkeypatch):
    """The environment of a user who has set nothing; what is set in it ends with the test."""
    before = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    monkeypatch.setattr(os, "environ", before | {"XDG_CACHE_HOME": str(tmp_path)})
    return os.environ


def test_nothing_waits_for_a_process_that_writes(environment, tmp_path):
    folder = tmp_path / "jaxrope" / "compiled"
    folder.mkdir(parents=True)
    (folder / "a-cache").write_text("")
    with filelock.FileLock(folder / ".lockfile"):
        compiled.keep()
    assert (folder / "a-cache").exists()
    assert environment["JAX_COMPILATION_CACHE_DIR"] == str(folder)
