"""The benchmarks run, and what they say of arithmetic is right."""

import json
import random
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import (
    attention_statistics,
    gpu,
    on_books,
    ring_package,
    search,
    side_by_side,
    small_models,
    start,
    waste,
)
from configs import base
from jaxrope import data
from jaxrope.mesh import sharding
from jaxrope.search import cost, prepare
from jaxrope.shell import heap

ROOT = Path(__file__).resolve().parent.parent


NOVELS = {"train": "train/*.txt", "held_out": "val/*.txt"}


def run(name, *arguments):
    """Returns (what it printed, exit code)."""
    command = [sys.executable, "-m", f"benchmarks.{name}", "--quick", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)
    return done.stdout + done.stderr, done.returncode


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.slow
def test_attention_runs_and_all_backends_agree(tmp_path):
    file = tmp_path / "results.jsonl"
    text, code = run("attention", "--no_package", f"--jsonl={file}")
    assert code == 0, text
    found = {record["backend"]: record for record in lines(file)}
    assert list(found) == ["ring", "all_gather", "ulysses", "usp", "blockwise", "reference"]
    assert all(record["agrees"] for record in found.values())
    assert found["ring"]["bytes"]["forward"] < found["blockwise"]["bytes"]["forward"]


@pytest.mark.slow
def test_a_step_runs_and_both_sides_have_the_same_loss(tmp_path):
    pytest.importorskip("transformers", reason="needs torch and transformers (Python 3.11)")
    file = tmp_path / "results.jsonl"
    text, code = run("step", f"--jsonl={file}")
    assert code == 0, text
    training, evaluation = lines(file)
    assert (training["name"], evaluation["name"]) == ("training", "evaluation")
    for record in (training, evaluation):
        assert set(record["losses"]) == {"ours", "eager", "sdpa"}
        assert record["losses"]["ours"] == pytest.approx(record["losses"]["sdpa"], rel=1e-3)
        assert len(record["seconds"][record["best"]]) == 2


@pytest.mark.slow
def test_the_parts_for_a_gpu_run_on_any_device(tmp_path):
    file = tmp_path / "results.jsonl"
    text, code = run("gpu", f"--jsonl={file}")
    assert code == 0, text
    parts = {}
    for record in lines(file):
        parts.setdefault(record["part"], []).append(record)
    assert list(parts) == ["conformance", "attention", "training", "search"]
    assert [x["case"] for x in parts["conformance"]][-1] == "ring, packed"
    assert all(x["agrees"] for x in parts["conformance"])
    assert {x["peer"] for x in parts["attention"]} == {
        "ours",
        "ours, packed",
        "ours, window",
        "blocks",
    }
    assert [x["documents"] for x in parts["training"]] == [1, 8]
    assert [x["candidates"] for x in parts["search"]] == [1, 4]
    assert "not torch, flash: " in text


def test_a_part_that_fails_is_said_in_a_line_and_the_next_goes_on(monkeypatch, capsys):
    def command(name):
        programs = {"conformance": "raise ValueError('no such mask')", "attention": "while True: 1"}
        return [sys.executable, "-c", programs.get(name, "print(7)")]

    monkeypatch.setattr(gpu, "_command", lambda argv, name: command(name))
    monkeypatch.setattr(gpu, "PARTS", {name: (None, 1.0) for name in gpu.PARTS})
    assert gpu.main(["--quick"]) == 1
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "conformance: failed (exit code 1): ValueError: no such mask"
    assert said[1] == "attention: not finished within 1 s"
    assert len(said) == 2


def test_processes_are_timed_with_what_they_start(monkeypatch, tmp_path, capsys):
    """And the second of ours finds the folder of the first, each round a new one."""
    log = tmp_path / "log"
    work = "import os, subprocess, sys; place = os.environ['XDG_CACHE_HOME']; "
    work += f"open({str(log)!r}, 'a').write('again ' if os.path.exists(place) else 'first '); "
    work += "os.makedirs(place, exist_ok=True); subprocess.run([sys.executable, '-c', 'pass'])"
    monkeypatch.setattr(start, "_ours", lambda model: ["-c", work])
    monkeypatch.setattr(start, "THEIRS", "pass")
    assert start.main([f"--jsonl={tmp_path / 'start.jsonl'}", "--rounds=2"]) == 0
    assert log.read_text() == 2 * "first again "
    runs = lines(tmp_path / "start.jsonl")[0]["runs"]
    assert {name: len(found) for name, found in runs.items()} == dict(first=2, again=2, theirs=2)
    assert all(run["processor"] > 0 for found in runs.values() for run in found)
    assert capsys.readouterr().out.count(" times; ") == 3


def test_on_a_gpu_its_own_kernel_is_measured(monkeypatch):
    monkeypatch.setattr(sharding, "platform", lambda mesh: "gpu")
    monkeypatch.setattr(sharding, "capability", lambda mesh: 9.0)
    assert gpu._kernel(128) == ("flash", "cudnn") and gpu._kernel(512)[1] == "blockwise"


CASE = dict(length=64, block=4)


def test_waste_of_whole_blocks():
    """64 tokens in blocks of 4: 136 of 256 blocks are seen, 2,080 pairs count."""
    assert waste.of("reference", CASE, 8, 1)[0] == pytest.approx(64 * 64 / 2080 - 1)
    for backend in ("blockwise", "ulysses"):
        assert waste.of(backend, CASE, 8, 1)[0] == pytest.approx(136 * 16 / 2080 - 1)


def test_the_ring_wastes_only_on_its_own_diagonal():
    """With blocks of one token nothing; and all its devices always do the same."""
    assert waste.of("ring", CASE | {"block": 1}, 8, 1) == pytest.approx((0, 0))
    assert waste.of("usp", CASE | {"block": 1}, 8, 2) == pytest.approx((0, 0))
    total, slowest = waste.of("ring", CASE, 8, 1)
    assert total == slowest == pytest.approx(8 * 2 * (16 - 10) / 2080)


def test_contiguous_parts_keep_the_last_device_busy_in_every_hop():
    """ringattention: of 8 hops all but the first are whole for the last device."""
    total, slowest = waste.of("ringattention", CASE | {"block": 1}, 8, 1)
    assert total == pytest.approx(0)
    assert slowest == pytest.approx(8 * (36 + 7 * 64) / 2080 - 1)


def test_a_round_takes_everybody_in_turn():
    calls = []
    fns = {name: lambda name=name: calls.append(name) for name in "abc"}
    found = side_by_side.seconds(fns, 3)
    assert "".join(calls) == "abcbcacab"
    assert [len(runs) for runs in found.values()] == [3, 3, 3]


def test_a_ratio_is_of_the_same_round():
    found = side_by_side.ratio([1.0, 2.0, 4.0], [2.0, 4.0, 4.0])
    assert found == {"median": 2.0, "low": 1.0, "high": 2.0}


def test_without_an_old_python_the_package_is_passed_over(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 14))
    monkeypatch.setattr(ring_package, "PYTHONS", ("no-such-python",))
    place, why = ring_package.install(str(tmp_path / "there"))
    assert place is None and "no-such-python" in why


def measured(tokens, **changes):
    record = dict(tokens=tokens, program_mib=tokens / 100, peak_rss_mib=500.0, seconds=2.0)
    return record | dict(mass_is_whole=True) | changes


@pytest.mark.parametrize(
    "changes, limit_gib, code, says",
    [
        ({}, 0.6, 0, "ok: 0.49 GiB at most, of 0.6 GiB"),
        ({}, 0.4, 1, "FAILED: 0.49 GiB at most, of 0.4 GiB"),
        (
            dict(program_mib=88.0),
            24.0,
            1,
            "tokens x4.00, program's memory x4.40, peak memory x1.00",
        ),
        (dict(mass_is_whole=False), 24.0, 1, "FAILED"),
    ],
)
def test_growth_of_attention_statistics_is_judged(capsys, changes, limit_gib, code, says):
    records = [measured(2000), measured(8000, **changes)]
    assert attention_statistics.judge(records, limit_gib) == code
    assert says in capsys.readouterr().out
    assert attention_statistics.expected(records[0], 8000) == 32.0


@pytest.mark.slow
def test_attention_statistics_of_two_lengths_in_one_command(tmp_path):
    file, model = tmp_path / "found.jsonl", ROOT / "jaxrope" / "models" / "stdlib-3m"
    command = [sys.executable, "-m", "benchmarks.attention_statistics", f"--model={model}"]
    command += ["--lengths=256,512", "--block=64", f"--text={__file__}", f"--jsonl={file}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "256 -> 512: tokens x2.00" in done.stdout and "ok: " in done.stdout
    one, two = lines(file)
    assert (one["tokens"], two["tokens"], two["queries"]) == (256, 512, 512)
    assert one["pairs"] * 3.9 < two["pairs"] < one["pairs"] * 4
    assert one["program_mib"] < two["program_mib"] < 2.1 * one["program_mib"]
    for record in (one, two):
        assert record["mass_is_whole"] and record["peak_rss_mib"] > 100
        assert all(0 < share < 1 for share in record["normalised_entropy"])


def journal():
    """A header, and three candidates judged by two texts, one of them by one text alone."""
    header = {"target_len": 100, "attention_factor": 1.5}
    known = dict(factors=[1.0, 2.0], start_tokens=0, attention_factor=1.2)
    return [
        header,
        known | {"baseline": "yarn", "losses": [3.0, 3.0], "fitness": 20.0},
        known | {"genome": [1], "losses": [2.0, 2.0], "fitness": 7.4},
        known | {"genome": [2], "losses": [1.0, None], "fitness": 2.7, "raced": 1},
        known | {"genome": [3], "losses": [1.5, 1.5], "fitness": 4.5},
    ]


def test_a_trace_has_the_best_so_far_and_its_cost():
    points = search.evolution_trace(journal())
    assert [(p["fitness"], p["tokens"]) for p in points] == [(7.4, 400), (2.7, 500), (2.7, 700)]


def test_a_whole_search_is_one_point_with_all_of_its_cost():
    best = dict(factors=[1.0, 2.0], start_tokens=0, attention_factor=1.2, max_len=100)
    content = dict(unit="perplexity", perplexity=2.7, forward_tokens=700, best=best)
    found = search.result_point(content)
    assert (found["fitness"], found["tokens"], found["attention_factor"]) == (2.7, 700, 1.2)
    assert (found["factors"], found["start_tokens"]) == ([1.0, 2.0], 0)


@pytest.mark.parametrize(
    "samples, share", [(n, share) for n, row in search.DESCENTS.items() for share in row]
)
def test_steps_of_a_descent_stay_within_their_share(samples, share):
    args = SimpleNamespace(
        samples=samples,
        factor=8,
        quick=False,
        offset=0,
        model=str(ROOT / "jaxrope/models/stdlib-3m"),
        train=on_books.STDLIB,
        held_out=on_books.STDLIB,
    )
    keys = {f"search.{name}": value for name, value in search.DESCENTS[samples][share].items()}
    steps = search._steps(args, share, keys)
    keys["search.gradient.steps"] = steps
    problem = prepare(search._config(args, 0, keys))
    phases, whole = cost.planned(problem), 1312 * samples * 8 * 256
    planned = sum(phases.values())
    assert steps > 1 and planned <= share * whole < planned + samples * 3 * 8 * 256


@pytest.mark.parametrize(
    "name",
    ["ablation", "attention_objectives", "data_modes", "paper_tables", "search", "small_models"],
)
def test_a_benchmark_has_a_command_line(name, monkeypatch, capsys):
    monkeypatch.setattr(heap, "keep", lambda: None)
    monkeypatch.setattr(sys, "argv", [f"benchmarks/{name}.py", "--help"])
    with pytest.raises(SystemExit) as caught:
        runpy.run_module(f"benchmarks.{name}", run_name="__main__")
    assert caught.value.code in (0, None) and "--dry_run" in capsys.readouterr().out


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    novel = tmp_path_factory.mktemp("novels") / "novel.txt"
    novel.write_text("".join(random.Random(0).choices("abcdefgh ", k=10_000)))
    texts = base.data()
    texts.train_files = (str(novel),)
    return small_models.Rows(texts, data.load_tokenizer("bytes"))


@pytest.mark.parametrize(("kind", "digits"), [("passkeys", (5,)), ("needles", range(7, 43, 7))])
def test_what_counts_most_in_a_row_are_the_digits_of_numbers_in_it(rows, kind, digits):
    batch = rows.of_kinds([kind] * 4, 1500, step=3)
    for tokens, targets, weights in zip(*(value[0] for value in batch.values()), strict=True):
        answer = rows.tokenizer.decode(targets[weights == small_models.ANSWER].tolist())
        assert answer.isdigit() and len(answer) in digits
        text, size = rows.tokenizer.decode(tokens.tolist()), digits[0]
        numbers = [answer[first : first + size] for first in range(0, len(answer), size)]
        occurring = 3 if kind == "passkeys" else 2  # its line and the answer
        assert [text.count(number) for number in numbers] == [occurring] * len(numbers)


@pytest.mark.parametrize(("length", "size"), [(128, 7), (32, 3)])
def test_a_copy_counts_where_its_token_stood_before(rows, length, size):
    batch = rows.of_kinds(["copies"] * 4, length, step=5)
    for tokens, targets, weights in zip(*(value[0] for value in batch.values()), strict=True):
        places = (weights == small_models.COPY).nonzero()[0]
        assert places[-1] == length - 2 and len(places) == length - 1 - places[0]
        some = tokens[places[0] + 1 : places[0] + 1 + size]
        begins = [i for i in range(places[0]) if (tokens[i : i + size] == some).all()]
        assert begins and tokens[begins[0] - 1] == tokens[places[0]]  # the whole segment
        assert weights[begins[0] - 1] == weights[places[0] - 1] == 0  # which nobody can foresee
        assert (targets[:-1] == tokens[1:]).all()


def test_rows_depend_on_the_number_of_their_step_alone(rows):
    phase = small_models.Phase(64, 8, 1, (0.5, 0.5, 0, 0))
    one, same, other = (rows.batch(phase, step)["tokens_BT"] for step in (1, 1, 2))
    assert (one == same).all() and (one != other).any()


@pytest.mark.slow
def test_a_small_model_is_trained_and_exported_and_goes_on(shared, tmp_path):
    transformers = pytest.importorskip("transformers")
    places = [f"--{name}={shared / 'books' / part}" for name, part in NOVELS.items()]
    places.append(f"--tokenizer={shared / 'models' / 'books-6m'}")
    for _ in range(2):
        text, code = run("small_models", "--model=qwen3", f"--workdir={tmp_path}", *places)
        assert code == 0, text
    assert [row["step"] for row in lines(tmp_path / "fresh.jsonl")] == [2]
    network = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    assert network.config.model_type == "qwen3"
    assert network.num_parameters() == 4_001_152
    assert "perplexity at 512" in (tmp_path / "hf" / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mixture", "hybrid"])
def test_transformers_classes_are_trained_on_those_rows_and_go_on(name, shared, tmp_path):
    torch = pytest.importorskip("torch", reason="needs torch and transformers (Python 3.11)")
    places = [f"--{key}={shared / 'books' / part}" for key, part in NOVELS.items()]
    places += [f"--tokenizer={shared / 'models' / 'books-6m'}", f"--workdir={tmp_path}"]
    for _ in range(2):
        text, code = run("torch_models", f"--model={name}", *places)
        assert code == 0, text
    assert [row["step"] for row in lines(tmp_path / "fresh.jsonl")] == [2]
    assert torch.load(tmp_path / "checkpoint.pt")["step"] == 2
    assert "perplexity at 256" in (tmp_path / "hf" / "README.md").read_text()
    text, code = run("torch_models", f"--model={name}", *places, "--compute_dtype=float32")
    assert code == 2 and "is of another training. Give another --workdir." in text
