"""A killed evaluation goes on where it was, and leaves what an undisturbed one leaves."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from configs import base
from jaxrope import evaluate, generate, rope, schema, setup
from jaxrope.errors import InputError
from jaxrope.evaluate import journal, scoring
from jaxrope.evaluate.journal import Journal, Place
from jaxrope.store import journal as store
from jaxrope.store import sealed
from tests import processes, tiny_eval

ROOT = Path(__file__).resolve().parent.parent
PLACE = Place("row", "none", "perplexity", 64)
TIMES = ("seconds", "tokens_per_second")


def content_of(workdir, *, without=()):
    """Returns eval.json but for the times, and for what is named."""
    content = sealed.read_json(workdir / "eval.json")
    for row in content["rows"]:
        assert all(row.pop(name) > 0 for name in TIMES)
    return {name: value for name, value in content.items() if name not in without}


def arrays_of(workdir):
    digest = sealed.read_json(workdir / "eval.json")["arrays"]
    found = sealed.read_arrays(workdir / "eval_nll.npz", digest)
    return {name: x.tobytes() for name, x in found.items()}


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
    config = schema.read(tiny_eval.get_config(str(folder)))
    return config, setup.load_model(config)


@pytest.fixture
def config(load, monkeypatch):
    config, model = load
    monkeypatch.setattr(setup, "load_model", lambda *_, **__: model)
    return config


@pytest.fixture
def whole(folder, config):
    """The folder of an undisturbed run."""
    if not (folder / "whole" / "eval.json").exists():
        evaluate.evaluate(config, folder / "whole")
    return folder / "whole"


class Killed(Exception):
    """In place of a kill."""


def test_a_run_that_ended_anywhere_goes_on_from_there(config, whole, tmp_path, monkeypatch):
    lines, real = lines_of(whole), store.Journal.append
    assert len(lines) == 2 * (6 + 6 + 4 + 6)
    wanted = content_of(whole)
    for number in (1, 4, 100):  # batches that are finished before it ends
        kept = []

        def append(self, rows, number=number, kept=kept):
            if len(kept) == number:
                raise Killed
            kept.append(len(rows))
            real(self, rows)

        monkeypatch.setattr(store.Journal, "append", append)
        try:
            evaluate.evaluate(config, tmp_path)
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
    evaluate.evaluate(config, tmp_path / "again")
    assert content_of(tmp_path / "again") == content_of(whole)
    rows = [sealed.read_json(d / "eval.json")["rows"] for d in (tmp_path / "again", whole)]
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
    config = schema.replace(config, {"eval.passkey_trials": 5})  # other depths: other prompts
    evaluate.evaluate(config, tmp_path / "more")
    new = [json.loads(line) for line in lines_of(tmp_path / "more")[len(lines_of(whole)) :]]
    assert {line["suite"] for line in new} == {"passkey"} and len(new) == 2 * 5


@pytest.fixture
def small(tmp_path):
    """The config of two windows of a text by a model in a folder; both may be changed."""
    model = tmp_path / "model"
    shutil.copytree(ROOT / "jaxrope" / "models" / "stdlib-3m", model)
    (tmp_path / "text.txt").write_text((ROOT / "LICENSE").read_text(encoding="utf-8")[:3000])
    changes = {
        "model.path": str(model),
        "data.eval_files": (str(tmp_path / "text.txt"),),
        "data.cache_dir": str(tmp_path / "cache"),
        "eval.suites": ("perplexity",),
        "eval.lengths": (64,),
        "eval.num_windows": 2,
        "eval.bootstrap_samples": 100,
    }
    return schema.replace(schema.read(base.get_config()), changes)


def test_a_finished_result_is_reused_only_for_what_it_was_made_of(small, tmp_path, capsys):
    """Under the same names other weights, texts and factors are measured."""
    workdir, model = tmp_path / "run", tmp_path / "model"
    assert evaluate.finished(small, workdir) is None
    columns = evaluate.evaluate(small, workdir)
    assert evaluate.finished(small, workdir) == columns
    lines = len(lines_of(workdir))

    def again(asked):
        """Returns the items that are asked when it is started again."""
        nonlocal lines
        before, lines = lines, 0
        assert evaluate.finished(small, workdir) is None
        assert evaluate.evaluate(small, workdir) == evaluate.finished(small, workdir)
        lines = len(lines_of(workdir))
        assert lines - before == asked
        return sealed.read_json(workdir / "eval.json")["rows"][0]["metrics"]["nll"]

    path = model / "model.safetensors"
    raw = bytearray(path.read_bytes())
    first = columns["perplexity at 64"]
    raw[-1] ^= 1  # a bit of the exponent of the last weight
    path.write_bytes(raw)
    again(asked=2)
    text = tmp_path / "text.txt"
    text.write_text(text.read_text().replace("e", "a"))
    assert np.exp(again(asked=2)) > 1.01 * first
    shape = setup.model_config(small)
    geometry = dict(head_dim=shape.head_dim, theta=shape.theta, original_len=shape.original_len)
    rope.save(model / "rope.json", rope.make("pi", factor=2.0, **geometry), {})
    again(asked=2)
    content = sealed.read_json(workdir / "eval.json")
    assert {*content["identity"]["content"]} == {"text", "tokenizer", "weights of pi", "rope of pi"}


def test_what_changes_no_number_is_reused(small, tmp_path, monkeypatch):
    workdir = tmp_path / "run"
    columns = evaluate.evaluate(small, workdir)
    monkeypatch.setattr(evaluate.plan, "load", lambda *_: pytest.fail("weights were read"))
    moved = tmp_path / "moved"
    (tmp_path / "model").rename(moved)
    more = {"model.path": str(moved), "data.cache_dir": str(tmp_path / "other"), "train.steps": 7}
    assert evaluate.evaluate(schema.replace(small, more), workdir) == columns
    for key, value in (("eval.num_windows", 3), ("train.param_dtype", "bfloat16"), ("seed", 1)):
        assert evaluate.finished(schema.replace(small, more | {key: value}), workdir) is None


@pytest.mark.parametrize("name", ["eval.json", "eval_nll.npz"])
def test_a_damaged_result_is_told_and_written_anew_from_its_items(small, tmp_path, name, capsys):
    workdir = tmp_path / "run"
    columns = evaluate.evaluate(small, workdir)
    whole = (workdir / name).read_bytes()
    damaged = bytearray(whole)
    middle = len(whole) // 2
    # a digit becomes another: JSON stays JSON
    damaged[next(i for i in range(middle, len(whole)) if whole[i : i + 1].isdigit())] ^= 1
    (workdir / name).write_bytes(damaged)
    assert evaluate.finished(small, workdir) is None
    before = len(lines_of(workdir))
    capsys.readouterr()
    assert evaluate.evaluate(small, workdir) == columns
    assert f"{name} is damaged" in capsys.readouterr().out
    assert len(lines_of(workdir)) == before and evaluate.finished(small, workdir) == columns


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
    told = []
    again = Journal(tmp_path, say=told.append)
    assert not told  # what a kill tears is no damage
    found = again.find(PLACE, ["b", "d", "c", "x", "a"])
    assert sorted(found) == [0, 2, 4] and again.recalled_seconds == 4.0
    assert found[0]["nll"].tolist() == [3.0, 4.0, 5.0]
    assert found[4]["nll"].tolist() == [0.0, 1.0, 2.0]
    assert found[2]["text"] == "1"
    again.add(PLACE, [{"item": "d", "seconds": 1.0}], {"nll": np.zeros((1, 3))})
    assert again.find(PLACE, ["d"])[0]["nll"].tolist() == [0.0] * 3
    assert again.find(PLACE, ["a"])[0]["nll"].tolist() == [0.0, 1.0, 2.0]
    assert len(told) == 1 and "000002.npz cannot be read (No such file" in told[0]


@pytest.mark.parametrize("name", ["items.jsonl", "items/000001.npz"])
def test_every_flipped_bit_is_told_in_a_line_and_asked_anew(tmp_path, name):
    nll = np.arange(6.0, dtype=np.float32).reshape(2, 3)
    first = Journal(tmp_path)
    first.add(PLACE, [{"item": item, "seconds": 1.5} for item in "ab"], {"nll": nll})
    first.add(PLACE, [{"item": "c", "seconds": 1.0, "text": "1"}])
    whole = (tmp_path / name).read_bytes()
    header = whole.index(b"\n") + 1 if name == "items.jsonl" else 0
    for bit in np.random.default_rng(0).integers(8 * header, 8 * len(whole), 40):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        (tmp_path / name).write_bytes(damaged)
        told = []
        found = Journal(tmp_path, say=told.append).find(PLACE, ["a", "b", "c"])
        assert len(found) < 3 and len(told) == 1
        assert "damaged" in told[0] and "measured again" in told[0] and "\n" not in told[0]
        for i in {0, 1} & {*found}:
            np.testing.assert_array_equal(found[i]["nll"], nll[i])


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
    with pytest.raises(InputError, match="line 1: damaged, or not a journal of this version"):
        Journal(tmp_path)
    store.Journal(tmp_path / "other.jsonl", "other", ordered=True).begin({})
    path.write_bytes((tmp_path / "other.jsonl").read_bytes())
    with pytest.raises(InputError, match="format must be 'jaxrope.items/2', got 'other'. Use ano"):
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
