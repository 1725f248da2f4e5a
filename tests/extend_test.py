"""python -m jaxrope.extend: the request, the plan, the recipe, the exports, and going on."""

import dataclasses
import html
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from jaxrope import data, rope, schema, search
from jaxrope.errors import InputError
from jaxrope.extend import __main__ as extend
from jaxrope.extend import consumers, cost, planning, recipes, request
from jaxrope.extend.recipes import Facts
from jaxrope.recipe.stages import parse
from jaxrope.shell import duration, load
from jaxrope.store import sealed
from tests import processes
from tests.search_config import write_texts

MODEL = Path(__file__).resolve().parent.parent / "jaxrope" / "models" / "stdlib-3m"


@pytest.mark.parametrize(
    "text, wanted", [("45m", 2700), ("2h", 7200), ("90s", 90), ("1h30m", 5400), (" 5M ", 300)]
)
def test_budgets_are_times(text, wanted):
    assert request.seconds(text) == wanted


@pytest.mark.parametrize("text", ["", "45", "m", "0m", "-5m", "1m1h", "soon"])
def test_what_is_no_time_is_refused(text):
    with pytest.raises(InputError, match="--budget must be a time such as 45m"):
        request.seconds(text)


@pytest.mark.parametrize(
    "first, last, count, wanted",
    [
        (512, 4096, 5, (512, 1024, 2048, 4096)),
        (512, 8192, 5, (512, 1024, 2048, 4096, 8192)),
        (512, 8192, 3, (512, 1024, 8192)),
        (512, 8192, 2, (512, 8192)),
        (384, 3000, 5, (384, 768, 1536, 3000)),
        (512, 700, 5, (512, 700)),
    ],
)
def test_lengths_are_doublings_and_the_last(first, last, count, wanted):
    assert recipes.lengths(first, last, count) == wanted


def asked(**changes) -> request.Request:
    fields = dict(model="m", target_len=4096, text=("a.txt",), eval_text=(), exclude=(), budget=0)
    fields |= dict(finetune="none", control=False, programs=("transformers",), chat=())
    return request.Request(**fields | changes)


FACTS = Facts(
    length=512,
    num_params=10**6,
    num_devices=1,
    num_texts=5,
    num_windows=16,
    windows_per_doc=1,
    form="monotone",
    taught_keys=6,
    asked_keys=6,
    least_asked=400,
    two_sets=True,
    chat_len=256,
    num_chats=16,
)


@pytest.mark.parametrize("finetune", request.FINETUNES)
def test_efforts_go_down(finetune):
    """From the default settings of a search to the least; a training loses a half for a step."""
    efforts = list(recipes.efforts(asked(finetune=finetune), FACTS))
    first, last = efforts[0], efforts[-1]
    assert (first.samples, first.ramps, first.steps, first.judged) == (2, 10, 18, 8)
    assert first.windows == 16 and last.windows == 5 and not last.trials
    assert (first.train_steps, last.train_steps) == ((0, 0) if finetune == "none" else (200, 15))
    few = list(recipes.efforts(asked(), dataclasses.replace(FACTS, num_windows=3)))
    assert {effort.windows for effort in few} == {3}


@pytest.mark.parametrize(
    "finetune, params, rate",
    [
        ("full", 7e9, 2e-5),
        ("full", 5e8, 1e-4),
        ("full", 6e6, 5e-4),
        ("lora", 7e9, 2e-4),
        ("none", 7e9, 2e-5),
    ],
)
def test_the_recipe_is_an_experiment_file(tmp_path, finetune, params, rate):
    """That the schema reads, with the stages of what was asked for."""
    wanted = asked(finetune=finetune, eval_text=("b.txt",), chat=("c.jsonl",))
    facts = dataclasses.replace(FACTS, num_params=int(params))
    effort = next(recipes.efforts(wanted, facts))
    (tmp_path / "config.py").write_text(recipes.text(wanted, facts, effort))
    config = schema.read(load(str(tmp_path / "config.py")))
    trained = ["tuned"] * bool(effort.train_steps)
    measured = ["recovery", "join", "conversations", "scores", "retrieval"]
    assert [name for name, _, _ in config.recipe] == ["search", *trained, *measured]
    stages = {stage.name: stage.config for stage in parse(config)}
    assert stages["recovery"].target_len == 512 and not stages["join"].join.weights
    assert stages["recovery"].search.objective.num_samples == 5  # there are no more texts
    spoken = stages["conversations"]
    assert spoken.data.train_files == ("c.jsonl",) and spoken.eval.lengths == (256,)
    if trained:
        mixed = stages["tuned"].data  # a tenth of all rows, half of which are text
        assert mixed.train_files == ("a.txt", "c.jsonl") and mixed.chat_share == 0.2
        assert mixed.mode == "pack" and mixed.held_out == 0.1
    assert config.optimizer.learning_rate == rate
    assert config.train.seq_len == (4096 if trained else 512)
    assert config.lora.rank == (8 if finetune == "lora" else 0)
    assert config.data.eval_files == config.data.exclude == ("b.txt",)
    assert not config.data.held_out
    assert config.search.gradient.steps == 18
    assert not trained or config.train.steps == effort.train_steps


def test_a_control_is_trained_on_as_many_tokens_at_the_models_own_length(tmp_path):
    """On text alone, with as many tokens in a part; its window slides in the measurement."""
    wanted = asked(finetune="full", control=True, target_len=2000, exclude=("*.md",))
    effort = next(recipes.efforts(wanted, FACTS))
    (tmp_path / "config.py").write_text(recipes.text(wanted, FACTS, effort))
    config = schema.read(load(str(tmp_path / "config.py")))
    control = {stage.name: stage for stage in parse(config)}["control"].resolved(tmp_path)
    assert control.train.seq_len == 512 and control.train.batch_size == 8 * 4  # 2,048 for 2,000
    assert (control.train.steps, control.train.accumulation) == (effort.train_steps, 8)
    assert not control.data.needle_share and not control.data.short_share
    assert control.rope.method == "model" and config.data.exclude == ("*.md",)
    scores = next(rest for name, _, rest in config.recipe if name == "scores")
    assert ("control at 512 tokens", "{control}", "sliding") in dict(scores)["eval.checkpoints"]


def test_needles_are_taught_and_asked_for_where_they_have_room():
    wanted = asked(finetune="full")
    for keys, share in ((6, 0.25), (2, 0.25), (0, None)):
        facts = dataclasses.replace(FACTS, taught_keys=keys)
        made = recipes._training_keys(wanted, facts, next(recipes.efforts(wanted, facts)))
        assert made.get("data.needle_share") == share
        assert made.get("data.needle_keys") == (keys or None)
    effort = next(recipes.efforts(wanted, FACTS))
    for least, lengths in ((400, (512, 4096)), (600, (4096,)), (5000, ())):
        facts = dataclasses.replace(FACTS, least_asked=least)
        assert recipes.retrieval_lengths(facts, effort) == lengths


@pytest.fixture
def place(tmp_path):
    """The arguments of an extension of the shipped model from 256 to 512 tokens."""
    write_texts(tmp_path / "texts", documents=12, words=800)
    arguments = [str(MODEL), "--target_len=512", f"--text={tmp_path}/texts/*.txt"]
    return [*arguments, f"--out={tmp_path / 'out'}"]


@pytest.mark.parametrize(
    "more, message",
    [
        (["--target_len=0"], "--target_len must be 1 token or more, got 0"),
        (["--target_len=256"], "target_len must exceed original_len 256"),
        (["--for=ollama"], "Unknown --for 'ollama'"),
        (["--finetune=some"], "Unknown --finetune 'some'"),
        (["--text="], "--text names no file"),
        (["--text=none/*.txt"], "data.train_files"),
        (["--target_len=9000"], "need documents of 9,000 tokens"),
        (["--control"], "--control is for --finetune=lora or full"),
        (["--budget=1s"], "--budget=1s is too small: the least that is worth doing takes"),
    ],
)
def test_what_cannot_be_is_said_first(place, more, message, tmp_path, capsys, monkeypatch):
    """Before anything is written."""
    monkeypatch.setattr(search, "measured", lambda *_: SimpleNamespace(tokens=1000.0, ready=1.0))
    with pytest.raises(SystemExit) as stopped:
        extend.main([*place, *more])
    assert stopped.value.code == 2 and message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_full_disk_is_said_first(place, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2**20))
    with pytest.raises(SystemExit):
        extend.main(place)
    assert "the results take about 0.0 GiB, and 0.0 GiB are free" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "took, windows, trials",
    [(60, 16, 24), (120, 16, 12), (300, 5, 0), (900, 5, 0)],
)
def test_less_is_measured_where_the_clock_ran_away(tmp_path, monkeypatch, took, windows, trials):
    """100 s were planned for the search, 4 s for each text of the measurement, of 300 s in all."""

    def seconds(request, facts, effort, *, speed, ready):
        measured = 4 * effort.windows + 4 * effort.trials
        return {"search": 100, "measurement": measured, "exports": 5}

    monkeypatch.setattr(cost, "seconds", seconds)
    wanted = asked(budget=300)
    effort = next(recipes.efforts(wanted, FACTS))
    plan = planning.Plan(wanted, FACTS, effort, {"planning": 5}, 1.0, 1.0, "", ())
    plan = dataclasses.replace(plan, seconds=plan.seconds | plan.foreseen)
    planning.store(plan, tmp_path)
    (tmp_path / "search").mkdir()
    sealed.write_json(tmp_path / "search" / "stage.json", {"seconds": took})
    shorter = planning.cut_down(plan, tmp_path)
    assert (shorter.effort.windows, shorter.effort.trials) == (windows, trials)
    assert planning.stored(wanted, tmp_path) == shorter
    assert f"config.search.gradient.steps = {effort.steps}" in (tmp_path / "config.py").read_text()
    if shorter != plan:
        assert shorter.notes[-1].startswith(f"so far it took {duration(took)}")
        (tmp_path / "config.py").write_text("# edited")
        assert planning.cut_down(plan, tmp_path) is plan  # it is the user's now


@pytest.mark.parametrize("bos_id", [None, 0])
def test_texts_to_compare_on_begin_as_the_model_wants_them(tmp_path, bos_id):
    """A model without a begin token has none there."""
    write_texts(tmp_path)
    tokenizer = data.load_tokenizer("bytes")
    documents = data.load_documents([f"{tmp_path}/*.txt"], tokenizer, cache_dir=tmp_path / "cache")
    texts = consumers.held_out(documents, bos_id, 20, 50)
    assert [len(tokens_T) for tokens_T in texts] == [21, 51]
    assert all((tokens_T[0] == bos_id) == (bos_id is not None) for tokens_T in texts)


def content(folder):
    """What must be the same however often it was killed."""
    buckets = rope.load(folder / "join" / "rope.json").buckets
    rows = json.loads((folder / "scores" / "eval.json").read_text())["rows"]
    scores = [(row["label"], row["length"], row["metrics"]) for row in rows]
    weights = (folder / "hf" / "model.safetensors").read_bytes()
    exports = json.loads((folder / "exports.json").read_text())["exports"]
    return buckets, scores, weights, [row["largest"] for row in exports]


LEAST = """
import dataclasses, sys
from jaxrope import search
from jaxrope.extend import __main__ as program, recipes

efforts = recipes.efforts
recipes.efforts = lambda *facts: [dataclasses.replace(list(efforts(*facts))[-1], recovers=True)]
search.measured = search.measured if sys.argv[1] == "measured" else None
program.main(sys.argv[2:])
"""


def extended(*arguments) -> str:
    """Returns what the program printed that extends with the least effort: on one device, as rows
    are padded to one for each, and compiled in full."""
    command = [sys.executable, "-c", LEAST, *arguments]
    done = subprocess.run(
        command, env=processes.environment(XLA_FLAGS=""), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_a_model_is_extended_and_goes_on(place, tmp_path, capsys):
    """All of it once; then the rest after the exports are lost, with the plan that is there."""
    programs = "--for=transformers,vllm,llama.cpp"
    folder, printed = tmp_path / "out", extended("measured", *place, programs)
    assert "of the documents of --text, the last ones, are held out" in printed
    assert f"vllm serve {folder / 'hf'} --max-model-len=512" in printed
    assert f"wrote {folder}: report.html is the page" in printed
    verdict = next(line for line in printed.splitlines() if "at 512 tokens searched is" in line)
    page = (folder / "report.html").read_text()
    assert "sliding window" in verdict and "; loss at 256: " in verdict
    assert "memory" in printed and "; again for 256 tokens" in printed
    assert verdict.partition(" (")[0] in html.unescape(page)
    rows = {
        row["program"]: row for row in json.loads((folder / "exports.json").read_text())["exports"]
    }
    if rows["transformers"]["largest"] is not None:
        assert rows["transformers"]["largest"] < 1e-3 and "are the same" in printed
    before = content(folder)
    for name in ("exports.json", "report.html"):
        (folder / name).unlink()
    (folder / "search" / "result.json").unlink()
    extended("the plan is stored", *place, programs)
    assert content(folder) == before
    with pytest.raises(SystemExit):
        extend.main([*place, "--finetune=full"])
    assert "has an extension with" in capsys.readouterr().err
