"""search.py as a process: SIGKILL, SIGTERM, its exit codes and what it says."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.processes import environment
from tests.search_config import tiny

ROOT = Path(__file__).resolve().parent.parent


def search_py(folder, *flags):
    config = f"--config={ROOT / 'tests' / 'search_config.py'}:{folder}"
    return subprocess.Popen(
        [sys.executable, str(ROOT / "search.py"), config, *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )


@pytest.mark.slow
def test_killed_searches_equal_an_undisturbed_one():
    """Two kills; `python tests/kill_search.py --kills 20` is the proof at full size."""
    command = [sys.executable, str(ROOT / "tests" / "kill_search.py"), "--kills=2", "--seed=1"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 kills in " in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_end_a_search_at_once(tmp_path, number, code):
    tiny(tmp_path)
    workdir = tmp_path / "run"
    process = search_py(
        tmp_path, f"--workdir={workdir}", "--config.search.algorithm.iterations=100000"
    )
    while not (workdir / "journal.jsonl").exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    process.send_signal(number)
    begin = time.monotonic()
    _, errors = process.communicate()
    assert process.returncode == code
    assert f"{workdir} has every batch that was finished" in errors
    assert "Traceback" not in errors
    assert time.monotonic() - begin < 10  # with a compilation under way; at once on an idle machine


@pytest.mark.slow
def test_the_program_from_end_to_end(tmp_path):
    tiny(tmp_path)
    process = search_py(tmp_path, f"--workdir={tmp_path / 'run'}")
    out, errors = process.communicate()
    assert process.returncode == 0, errors
    assert "result: " in out and "wrote rope.json" in out
    names = sorted(path.name for path in (tmp_path / "run").iterdir() if path.name[0] != ".")
    wanted = ["config.json", "journal.jsonl", "result.json", "rope.json", "search.png"]
    assert names == ["command.txt", *wanted]
    command = (tmp_path / "run" / "command.txt").read_text()
    assert command.startswith("python search.py ") and f"--workdir={tmp_path / 'run'}" in command

    process = search_py(tmp_path, f"--workdir={tmp_path / 'run'}", "--config.target_len=32")
    _, errors = process.communicate()
    assert process.returncode == 2
    assert errors.startswith("error: ") and "target_len (64, now 32)" in errors
    assert errors.count("\n") == 1

    process = search_py(tmp_path, f"--workdir={tmp_path / 'dry'}", "--dry_run")
    out, _ = process.communicate()
    assert "forward tokens" in out and not (tmp_path / "dry").exists()
