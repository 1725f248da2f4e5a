"""Our Hugging Face folders in transformers 4 and 5 and in vLLM: `make serve` runs this."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxrope import rope
from jaxrope.convert import exporting, pretrained, rope_formats
from tests import gguf_routes
from tests.serve import routes
from tests.serve.comparing import MEDIAN, MOST, greedy_agrees, log_probs, own

_PYTHONS = {
    "transformers 4": os.environ.get("TRANSFORMERS_4_PYTHON", ""),
    "transformers 5": sys.executable if os.environ.get("SERVE_PYTHON") else "",
    "vllm": os.environ.get("VLLM_PYTHON", ""),
}
_SCRIPT = Path(__file__).with_name("programs.py")
GREEDY, BEFORE = 16, 8  # tokens of a continuation; those that it begins before the border
# Kind, layout. Phi-3 has longrope alone: YaRN becomes one set.
LAYOUTS = [(kind, "llama") for kind in routes.KINDS if kind != "two attention factors"]
LAYOUTS += [("two sets", "phi3"), ("two sets by the law", "phi3"), ("yarn", "phi3")]
OVERRIDES = ("two attention factors", "own yarn", "pi", "ntk", "llama3")


def ask(program: str, folder: Path, requests: list[dict]) -> dict:
    """What a program answers, see programs.py."""
    python = _PYTHONS[program]
    if not python:
        pytest.skip(f"needs {program}; `make serve` has it")
    (folder / "requests.json").write_text(json.dumps(requests))
    words = [python, _SCRIPT, program.split()[0], folder / "requests.json", folder / "answers.json"]
    # vLLM would bind its threads to processors that others may have
    more = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "PYTHONPATH": ""}
    done = subprocess.run(words, capture_output=True, text=True, env=os.environ | more, cwd=folder)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads((folder / "answers.json").read_text())


def request(folder: Path, ids, lengths, **more) -> dict:
    prompts = [ids[:length].tolist() for length in lengths]
    return dict(model=str(folder), prompts=prompts, greedy=GREEDY, more=more)


def line_to_paste(notes: list[str]) -> dict:
    """Returns the arguments that the lines of an export name for vLLM."""
    lengths = {int(n) for note in notes for n in re.findall(r"--max-model-len=(\d+)", note)}
    assert len(lengths) < 2
    return {"max_model_len": lengths.pop()} if lengths else {}


@pytest.fixture(scope="module")
def exports(tmp_path_factory, books_6m) -> dict:
    """(kind, layout) -> (folder, what is said of it)."""
    place, made = tmp_path_factory.mktemp("exports"), {}
    for kind, arch in LAYOUTS:
        model, settings = routes.extended(books_6m, kind), exporting.Settings(arch=arch)
        folder = place / f"{kind} {arch}"
        exporting.export_folder(model, folder, settings)
        made[kind, arch] = folder, exporting.applied(model, settings)
    return made


@pytest.fixture(scope="module")
def answers(tmp_path_factory, exports, book_ids):
    """(program) -> (its name with its version, (kind, layout) -> its answer); once for each."""
    done = {}

    def of(program: str):
        if program not in done:
            requests = []
            for folder, notes in exports.values():
                more = line_to_paste(notes) if program == "vllm" else {}
                lengths = (*routes.LENGTHS, routes.ORIGINAL - BEFORE)
                requests.append(request(folder, book_ids, lengths, **more))
            found = ask(program, tmp_path_factory.mktemp("asked"), requests)
            name = f"{program.split()[0]} {found['version']}"
            done[program] = name, dict(zip(exports, found["answers"], strict=True))
        return done[program]

    return of


def check(model, ids, answer: dict, number: int, factors_of: int) -> dict:
    """Compares a prompt and its continuation with our forward pass, which has the factors for
    `factors_of` tokens; returns the cells of the table.
    """
    text, greedy = answer["logprobs"][number], answer["greedy"][number]
    length = len(text) + 1
    whole = np.concatenate([ids[:length], np.array(greedy, np.int32)])
    mine = gguf_routes.logits(model, whole, factors_of)
    off = np.abs(own(mine, whole) - [*text, *answer["chosen"][number]])
    assert np.median(off) < MEDIAN and off.max() < MOST
    column = routes.where(length)
    return {column: (np.median(off), off.max()), "greedy": greedy_agrees(mine, greedy, off.max())}


@pytest.mark.parametrize("kind,arch", LAYOUTS)
@pytest.mark.parametrize("program", ["transformers 4", "transformers 5"])
def test_transformers(record, answers, books_6m, book_ids, program, kind, arch):
    """At a length inside and two beyond, each with the factors of its own length."""
    name, found = answers(program)
    answer, route = found[kind, arch], f"{kind}, {arch}"
    if program == "transformers 4" and arch == "phi3" and kind != "two sets by the law":
        # "transformers 4 refuses this config"
        assert "must be a dictionary with three fields" in answer["error"]
        record(route, name, opens="refused, as we say")
        return
    model = routes.extended(books_6m, kind)
    if kind == "dynamic ntk":  # grows with every token; keys of before are kept
        answer["greedy"] = answer["chosen"] = [[]] * 4
    for number, length in enumerate(routes.LENGTHS):
        record(route, name, **check(model, book_ids, answer, number, length))


@pytest.mark.parametrize("kind,arch", LAYOUTS)
@pytest.mark.parametrize("program", ["transformers 4", "transformers 5"])
def test_generation_across_the_switch(record, answers, books_6m, book_ids, program, kind, arch):
    """Phi-3 computes its cache anew; others keep the keys of the short side, as we say."""
    name, found = answers(program)
    if "error" in found[kind, arch] or not kind.startswith("two sets"):
        return
    model, answer = routes.extended(books_6m, kind), found[kind, arch]
    start, greedy = routes.ORIGINAL - BEFORE, answer["greedy"][3]
    whole = np.concatenate([book_ids[:start], greedy])
    # token t was chosen after start + t others, with the factors of that length
    short, long = (gguf_routes.logits(model, whole, n) for n in (routes.ORIGINAL, len(whole)))
    after = np.arange(start, len(whole))[:, None]
    mine = np.where(after <= routes.ORIGINAL, short[start - 1 : -1], long[start - 1 : -1])
    off = np.abs(log_probs(mine)[np.arange(GREEDY), greedy] - answer["chosen"][3])
    inside, beyond = off[: BEFORE + 1], off[BEFORE + 1 :]
    assert inside.max() < MOST
    assert (beyond.max() < MOST) == (arch == "phi3")
    cells = dict(inside=(np.median(inside), inside.max()), beyond=(np.median(beyond), beyond.max()))
    record(f"{kind}, {arch}, decoding over the border", name, **cells)


@pytest.mark.parametrize("kind,arch", LAYOUTS)
def test_vllm(record, answers, exports, books_6m, book_ids, kind, arch):
    """With the line that the export names it serves the whole length, by one set of factors."""
    name, found = answers("vllm")
    answer, route = found[kind, arch], f"{kind}, {arch}"
    if kind == "dynamic ntk":
        assert any("vLLM 0.32 does not extend by it" in note for note in exports[kind, arch][1])
        assert np.isnan(np.array(answer["logprobs"][1], float)).any()
        record(route, name, opens="yes, but NaN beyond, as we say")
        return
    assert answer["max_len"] == routes.LONGEST
    model = routes.extended(books_6m, kind)
    for number in range(4):
        record(route, name, **check(model, book_ids, answer, number, routes.LONGEST))


def test_vllm_unless_it_is_told(tmp_path, record, exports, books_6m, book_ids):
    """What the lines say of the length at which it opens, and of the set that it then takes."""
    kinds = [(kind, "llama") for kind in ("two sets", "pi", "yarn", "ntk")]
    requests = [request(exports[key][0], book_ids, routes.LENGTHS[:1]) for key in kinds]
    found = ask("vllm", tmp_path, requests)
    opened = [answer["max_len"] for answer in found["answers"]]
    assert opened == [routes.ORIGINAL, 4 * routes.LONGEST, routes.LONGEST, routes.LONGEST]
    model = routes.extended(books_6m, "two sets")
    cells = check(model, book_ids, found["answers"][0], 0, routes.ORIGINAL)
    record("two sets, llama, opened at 512", f"vllm {found['version']}", **cells)


def test_vllm_by_overrides(tmp_path, record, books_6m, book_ids):
    """`convert rope --format=vllm`, for the model as it was, as the shell reads the line."""
    requests = []
    for kind in OVERRIDES:
        file, line = tmp_path / f"{kind}.json", tmp_path / f"{kind}.txt"
        rope.save(file, routes.extended(books_6m, kind).rope_fn, {}, max_len=routes.LONGEST)
        said = rope_formats.convert(file, line, rope_formats.Settings("vllm"))
        assert said[-1] == f"Serve the model so: xargs -a {shlex.quote(str(line))} vllm serve MODEL"
        words = subprocess.run(
            [
                "xargs",
                "-a",
                line,
                sys.executable,
                "-c",
                "import sys; print(*sys.argv[1:], sep='\\n')",
            ],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()
        flag, overrides, length = words
        assert flag == "--hf-overrides" and length == f"--max-model-len={routes.LONGEST}"
        more = dict(hf_overrides=json.loads(overrides), max_model_len=routes.LONGEST)
        requests.append(request(books_6m, book_ids, routes.LENGTHS, **more))
    found = ask("vllm", tmp_path, requests)
    for kind, answer in zip(OVERRIDES, found["answers"], strict=True):
        model = routes.extended(books_6m, kind)
        for number in range(len(routes.LENGTHS)):
            cells = check(model, book_ids, answer, number, routes.LONGEST)
            record(f"{kind}, --format=vllm", f"vllm {found['version']}", **cells)
    assert pretrained.read_config(books_6m).max_len == routes.ORIGINAL
