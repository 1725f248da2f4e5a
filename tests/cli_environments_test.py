"""Programs in odd environments, each in a process of its own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from jaxrope.shell import cli

ROOT = Path(__file__).resolve().parent.parent
BASE = f"--config={ROOT / 'configs' / 'base.py'}"


PROGRAM = """
'''Frobnicates \u2014 n\u0302.'''
from jaxrope.shell import cli
from jaxrope.shell.program import Program

def run(config, workdir):
    cli.print_line(f'n\u0302 = {workdir.name}')
    if config.seed == 1:
        import jax
        jax.devices()

if __name__ == '__main__':
    cli.main(Program(package="jaxrope.search", doc=__doc__, run=run))
"""


def start(tmp_path, *argv, **environment):
    path = tmp_path / "program.py"
    path.write_text(PROGRAM, encoding="utf-8")
    drop = ("HOME", "XLA_FLAGS", "LANG", "LC_ALL", "PYTHONUTF8", "PYTHONIOENCODING")
    kept = {name: value for name, value in os.environ.items() if name not in drop}
    return subprocess.run(
        [sys.executable, path, BASE, *argv],
        env=kept | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        stdin=subprocess.DEVNULL,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize(
    "environment",
    [
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"PYTHONIOENCODING": "latin-1", "TERM": "dumb"},
        {"PYTHONIOENCODING": "ascii:strict"},
    ],
)
def test_no_home_no_terminal_and_no_utf_8(tmp_path, environment):
    done = start(tmp_path, f"--workdir={tmp_path / 'a'}", **environment)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == b"n\\u0302 = a\n"
    assert start(tmp_path, "--help", **environment).returncode == 0


def test_no_tpu(tmp_path):
    done = start(tmp_path, f"--workdir={tmp_path}", "--config.seed=1", JAX_PLATFORMS="tpu")
    if done.returncode == 0:
        pytest.skip("this machine has a TPU")
    assert done.returncode == 2
    last = done.stderr.decode().splitlines()[-1]
    assert re.match(r"error: Unable to initialize backend 'tpu': .*JAX_PLATFORMS is 'tpu'", last)
    assert b"Traceback" not in done.stderr


def test_a_reader_that_has_read_enough(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM, encoding="utf-8")
    command = (
        f"'{sys.executable}' program.py '{BASE}' --print_config | true; echo ${{PIPESTATUS[0]}}"
    )
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert done.stderr == b""
    assert done.stdout.strip() in (b"141", b"0")  # 0: it had written all before the pipe was closed


@pytest.mark.parametrize("program", ["train.py", "search.py"])
def test_the_command_is_kept_as_it_can_be_typed_again(program, tmp_path, monkeypatch):
    argv = [f"/some/where/{program}", "--config=a b.py", "--config.seed=3"]
    monkeypatch.setattr(sys, "argv", argv)
    cli.write_command(tmp_path)
    text = (tmp_path / "command.txt").read_text()
    assert text == f"python {program} '--config=a b.py' --config.seed=3\n"


def test_another_program_leaves_no_command(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/some/where/pytest", "--config=a.py"])
    cli.write_command(tmp_path)
    assert not list(tmp_path.iterdir())
