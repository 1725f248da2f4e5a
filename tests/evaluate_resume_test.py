"""A killed evaluation goes on where it was, and leaves what an undisturbed one leaves."""

import dataclasses
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from jaxrope import generate, rope, setup
from jaxrope.errors import InputError
from jaxrope.evaluate import journal, program, scoring
from jaxrope.evaluate.journal import Journal, Place
from jaxrope.shell import experiment
from jaxrope.store import files
from tests import processes

ROOT = Path(__file__).resolve().parent.parent
PLACE = Place("row", "none", "perplexity", 64)
TIMES = ("seconds", "tokens_per_second")


def content_of(workdir, *, without=()):
    """Returns eval.json but for the times, and for what is named."""
    content = json.loads((workdir / "eval.json").read_text())
    for row in content["rows"]:
        assert all(row.pop(name) > 0 for name in TIMES)
    return {name: value for name, value in content.items() if name not in without}


def arrays_of(workdir):
    with np.load(workdir / "eval_nll.npz") as found:
        return {name: found[name].tobytes() for name in found.files}


def lines_of(workdir):
    return (workdir / "items.jsonl").read_text().splitlines()[1:]


def keys_of(lines):
    found = map(json.loads, lines)
    return sorted((line["row"], line["suite"], line["item"]) for line in found)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Of the text, its tokens, and an undisturbed run."""
    return tmp_path_factory.mktemp("eval")


@pytest.fixture(scope="module")
def load(folder):
    """The config, with a model that is drawn once."""
    config = experiment.load(f"{ROOT / 'tests' / 'tiny_eval.py'}:{folder}")
    return config, setup.load_model(config)


@pytest.fixture
def config(load, monkeypatch):
    config, model = load
    monkeypatch.setattr(setup, "load_model", lambda config: model)
    return config.copy_and_resolve_references()


@pytest.fixture
def whole(folder, config):
    """The folder of an undisturbed run."""
    if not (folder / "whole" / "eval.json").exists():
        program.run(config, folder / "whole", False)
    return folder / "whole"


class Killed(Exception):
    """In place of a kill."""


def test_a_run_that_ended_anywhere_goes_on_from_there(config, whole, tmp_path, monkeypatch):
    lines, real = lines_of(whole), files.append_jsonl
    assert len(lines) == 2 * (6 + 6 + 4 + 6)
    wanted = content_of(whole)
    for number in (1, 4, 100):  # batches that are finished before it ends
        kept = []

        def append(path, rows, number=number, kept=kept, **more):
            if len(kept) == number:
                raise Killed
            kept.append(len(rows))
            real(path, rows, **more)

        monkeypatch.setattr(files, "append_jsonl", append)
        try:
            program.run(config, tmp_path, False)
            assert number == 100
        except Killed:
            continue
        assert content_of(tmp_path) == wanted
        assert arrays_of(tmp_path) == arrays_of(whole)
        assert 0 < sum(kept) < len(lines)
    assert keys_of(lines_of(tmp_path)) == keys_of(lines)


def test_a_finished_run_that_is_started_again_runs_nothing(config, whole, tmp_path, monkeypatch):
    shutil.copytree(whole, tmp_path / "again")
    (tmp_path / "again" / "eval.json").unlink()
    monkeypatch.setattr(scoring, "score_batch", lambda *_, **__: pytest.fail("it ran"))
    monkeypatch.setattr(generate, "stream", lambda *_, **__: pytest.fail("it ran"))
    program.run(config, tmp_path / "again", False)
    assert content_of(tmp_path / "again") == content_of(whole)
    rows = [json.loads((d / "eval.json").read_text())["rows"] for d in (tmp_path / "again", whole)]
    for again, first in zip(*rows, strict=True):  # what it took is what it took the first time
        assert again["seconds"] > 0.3 * first["seconds"]


def test_every_item_has_its_hash_in_the_record(config, whole):
    rows = content_of(whole)["rows"]
    assert [row["suite"] for row in rows] == ["perplexity", "passkey", "needle-1", "kv"] * 2
    for row, other in zip(rows[:4], rows[4:], strict=True):
        prints = row["items"]["item"]
        assert len({*prints}) == len(prints) and {len(text) for text in prints} == {64}
        assert prints == other["items"]["item"]  # both rows were asked the same
    known = {json.loads(line)["item"] for line in lines_of(whole)}
    assert {text for row in rows for text in row["items"]["item"]} == known


def test_a_changed_question_is_asked_anew_and_no_other(config, whole, tmp_path, monkeypatch):
    shutil.copytree(whole, tmp_path / "more")
    with config.unlocked():
        config.eval.passkey_trials = 5  # other depths: other prompts, but for the first
    program.run(config, tmp_path / "more", False)
    new = [json.loads(line) for line in lines_of(tmp_path / "more")[len(lines_of(whole)) :]]
    assert {line["suite"] for line in new} == {"passkey"} and len(new) == 2 * 5


def test_other_weights_are_asked_anew(config, whole, tmp_path, load, monkeypatch):
    shutil.copytree(whole, tmp_path / "other")
    model = load[1]
    params = dict(model.params)
    name = next(name for name, leaf in params.items() if hasattr(leaf, "at"))
    params[name] = params[name].at[(0,) * params[name].ndim].add(1e-3)
    other = dataclasses.replace(model, params=params)
    monkeypatch.setattr(setup, "load_model", lambda config: other)
    with config.unlocked():
        config.eval.suites = ("perplexity",)
        config.eval.methods = ("none",)
    program.run(config, tmp_path / "other", False)
    assert len(lines_of(tmp_path / "other")) == len(lines_of(whole)) + 6


def test_the_report_has_costs_maps_and_what_is_at_floor(config, whole):
    text = (whole / "eval.md").read_text()
    assert "## Cost: tokens read and written, and tokens per second" in text
    assert (whole / "eval_maps.png").stat().st_size > 5_000
    # no length of this run lies inside the window of 256 tokens
    assert "At floor" not in text


def start(folder, cwd):
    command = [sys.executable, "-m", "jaxrope.evaluate", "--workdir=run"]
    command.append(f"--config={ROOT / 'tests' / 'tiny_eval.py'}:{folder}")
    cwd.mkdir(exist_ok=True)
    return subprocess.Popen(
        command, cwd=cwd, env=processes.environment(), stdout=subprocess.DEVNULL
    )


@pytest.mark.slow
def test_a_process_that_is_killed_goes_on_and_leaves_the_same_bits(tmp_path):
    """SIGKILL among the batches of perplexity and among those of answers; then the same command."""
    assert start(tmp_path, tmp_path / "a").wait() == 0
    path = tmp_path / "b" / "run" / "items.jsonl"
    for wanted in (3, 19):
        process = start(tmp_path, tmp_path / "b")
        while not path.exists() or path.read_bytes().count(b"\n") < 1 + wanted:
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert not (tmp_path / "b" / "run" / "eval.json").exists()
    assert start(tmp_path, tmp_path / "b").wait() == 0
    a, b = tmp_path / "a" / "run", tmp_path / "b" / "run"
    assert json.dumps(content_of(a)) == json.dumps(content_of(b))
    assert arrays_of(a) == arrays_of(b)
    assert len(lines_of(a)) == len(lines_of(b)) == 2 * (6 + 6 + 4 + 6)


def on_two_processes(folder, workdir):
    """Rows spread over both; process 0 keeps the items."""
    return processes.Job(
        workdir.parent / f"{workdir.name}.logs",
        *("-m", "jaxrope.evaluate", f"--workdir={workdir}", "--config.mesh.data=2"),
        f"--config={ROOT / 'tests' / 'tiny_eval.py'}:{folder}",
        processes=2,
        devices=1,
    )


@pytest.mark.slow
def test_two_processes_that_are_killed_go_on_and_leave_the_same_bits(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    with on_two_processes(tmp_path, a) as job:
        assert job.wait() == [0, 0], job.log(0) + job.log(1)
    path = b / "items.jsonl"
    with on_two_processes(tmp_path, b) as job:
        while not path.exists() or path.read_bytes().count(b"\n") < 1 + 14:
            assert job.processes[0].poll() is None, "it ended before it could be killed"
            time.sleep(0.002)
        for process in job.processes.values():
            process.send_signal(signal.SIGKILL)
        assert job.wait() == [-signal.SIGKILL] * 2
    assert not (b / "eval.json").exists()
    with on_two_processes(tmp_path, b) as job:
        assert job.wait() == [0, 0], job.log(0) + job.log(1)
    contents = [content_of(workdir, without=("command", "config")) for workdir in (a, b)]
    assert json.dumps(contents[0]) == json.dumps(contents[1])
    assert arrays_of(a) == arrays_of(b)
    assert len(lines_of(a)) == len(lines_of(b)) == 2 * (6 + 6 + 4 + 6)


def test_a_torn_line_and_a_lost_part_are_asked_anew(tmp_path):
    first = Journal(tmp_path)
    lines = [{"item": name, "seconds": 1.5} for name in "ab"]
    first.add(PLACE, lines, {"nll": np.arange(6.0).reshape(2, 3)})
    first.add(PLACE, [{"item": "c", "seconds": 1.0, "text": "1"}])
    first.add(PLACE, [{"item": "d", "seconds": 1.0}], {"nll": np.ones((1, 3))})
    with open(tmp_path / "items.jsonl", "a", encoding="utf-8") as file:
        file.write('{"row": "row", "sui')
    (tmp_path / "items" / "000002.npz").unlink()
    again = Journal(tmp_path)
    found = again.find(PLACE, ["b", "d", "c", "x", "a"])
    assert sorted(found) == [0, 2, 4] and again.recalled_seconds == 4.0
    assert again.arrays(found[0])["nll"].tolist() == [3.0, 4.0, 5.0]
    assert again.arrays(found[4])["nll"].tolist() == [0.0, 1.0, 2.0]
    assert found[2]["text"] == "1"
    again.add(PLACE, [{"item": "d", "seconds": 1.0}], {"nll": np.zeros((1, 3))})
    assert again.arrays(again.find(PLACE, ["d"])[0])["nll"].tolist() == [0.0] * 3
    assert again.arrays(again.find(PLACE, ["a"])[0])["nll"].tolist() == [0.0, 1.0, 2.0]


@pytest.mark.parametrize("field", ["row", "suite", "length"])
def test_an_answer_is_found_only_at_its_place(tmp_path, field):
    found = Journal(tmp_path)
    found.add(PLACE, [{"item": "a", "seconds": 1.0, "how": "10 tokens"}])
    assert found.find(PLACE, ["a"], ["10 tokens"]) and not found.find(PLACE, ["a"], ["11 tokens"])
    other = PLACE._replace(**{field: 65 if field == "length" else "other"})
    assert not found.find(other, ["a"], ["10 tokens"])
    assert found.find(PLACE._replace(label="renamed"), ["a"], ["10 tokens"])


def test_a_journal_without_a_folder_or_a_row_keeps_nothing(tmp_path):
    for place, kept in ((PLACE, Journal()), (PLACE._replace(row=""), Journal(tmp_path))):
        kept.add(place, [{"item": "a", "seconds": 1.0}])
        assert not kept.find(place, ["a"])


def test_a_journal_of_another_program_or_a_broken_one_is_refused(tmp_path):
    path = tmp_path / "items.jsonl"
    path.write_text('{"format": "other"}\n')
    with pytest.raises(InputError, match="format must be 'jaxrope.items/1', got 'other'. Use ano"):
        Journal(tmp_path)
    path.write_text('{"format": "jaxrope.items/1"}\nbroken\n{"row": 1}\n')
    with pytest.raises(InputError, match="items.jsonl, line 2: not JSON"):
        Journal(tmp_path)


def test_the_digest_of_a_row_knows_all_of_its_factors():
    def digest(identity="weights", factors=(1.0, 2.0, 4.0, 4.0), **values):
        usual = dict(theta=1e4, start_tokens=0, attention_factor=1.0)
        return journal.row_digest(identity, rope.build(factors, **usual | values))

    others = [
        digest("other"),
        digest(factors=(1.0, 2.0, 4.0, 4.5)),
        digest(theta=5e3),
        digest(start_tokens=4),
        digest(attention_factor=1.1),
    ]
    assert len({digest(), *others}) == 6 and digest() == digest()
    assert journal.row_digest("", None) == ""


def test_rows_say_what_their_model_is(whole):
    rows = content_of(whole)["rows"]
    assert len({row["weights"] for row in rows}) == 1 and len(rows[0]["weights"]) == 64
    assert {row["original_len"] for row in rows} == {256}
