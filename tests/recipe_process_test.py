"""A whole recipe as a process: killed, signalled, and as two of them."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from jaxrope import recipe, rope
from jaxrope.recipe import record
from tests import tiny_recipe, tiny_run
from tests.processes import Job, environment

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts") / "texts"
    tiny_recipe.make_config(folder)
    return folder


@pytest.fixture(scope="module")
def whole(texts, tmp_path_factory):
    """The workdir of a recipe that nobody disturbed."""
    workdir = tmp_path_factory.mktemp("recipe") / "run"
    assert recipe.run(tiny_recipe.make_config(texts), workdir) == 0
    return workdir


def start(texts, workdir, *flags):
    config = f"--config={ROOT / 'tests' / 'tiny_recipe.py'}:{texts}"
    return subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), config, f"--workdir={workdir}", *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(),
    )


@pytest.mark.slow
def test_a_recipe_killed_in_its_stages_equals_an_undisturbed_one(texts, tmp_path):
    """SIGKILL as soon as a stage has begun, once for each kind of them; then it may finish."""
    undisturbed = start(texts, tmp_path / "whole")
    out, _ = undisturbed.communicate()
    assert undisturbed.returncode == 0, out
    for name in ("search_4x", "finetune_4x", "join", "compare"):
        process = start(texts, tmp_path / "killed")
        stage = tmp_path / "killed" / name / "stage.json"
        while not stage.exists() and process.poll() is None:
            time.sleep(0.01)
        time.sleep(0.2)
        process.kill()
        process.communicate()
    process = start(texts, tmp_path / "killed")
    out, _ = process.communicate()
    assert process.returncode == 0, out
    for name in tiny_recipe.NAMES:
        ours, theirs = (tiny_recipe.left(tmp_path / which / name) for which in ("killed", "whole"))
        text = json.dumps(ours).replace(str(tmp_path / "killed"), str(tmp_path / "whole"))
        assert json.loads(text) == json.loads(json.dumps(theirs)), name


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "code"), [("search_2x", 143), ("finetune_2x", 143)])
def test_a_signal_ends_the_recipe_as_the_stage_does(texts, tmp_path, stage, code):
    flags = ["--config.train.steps=100000", "--config.search.algorithm.iterations=100000"]
    flag = flags[0] if stage == "finetune_2x" else flags[1]
    process = start(texts, tmp_path / "run", flag)
    begun = "journal.jsonl" if stage == "search_2x" else "metrics.jsonl"
    while not (tmp_path / "run" / stage / begun).exists():
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == code and "Traceback" not in out
    assert not record.read(tmp_path / "run" / stage)["finished"]


@pytest.mark.slow
def test_two_processes_leave_what_one_does(texts, tmp_path, whole):
    """Four devices each, the mesh of the recipe in this process: the same numbers."""
    command = [
        "train.py",
        f"--config=tests/tiny_recipe.py:{texts}",
        f"--workdir={tmp_path / 'run'}",
    ]
    with Job(tmp_path / "logs", *command, processes=2, devices=4) as job:
        assert job.wait(600) == [0, 0], job.log(0) + job.log(1)
        assert "stage 9 of 9" in job.log(0) and "stage 9" not in job.log(1)
    for name in ("finetune_2x", "second", "join"):
        ours, theirs = (
            rope.load(place / name / "rope.json").buckets for place in (tmp_path / "run", whole)
        )
        assert [b.max_len for b in ours] == [b.max_len for b in theirs]
    arrays = [tiny_run.final_arrays(place / "join") for place in (tmp_path / "run", whole)]
    for name, leaf in arrays[0].items():
        np.testing.assert_allclose(leaf, arrays[1][name], rtol=0, atol=1e-4)
