"""Our GGUF files in llama.cpp itself: `make serve` runs this."""

import dataclasses
import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from jaxrope import data, rope
from jaxrope.convert import (
    exporting,
    gguf_export,
    gguf_patch,
    gguf_splits,
    gguf_vocabulary,
    pretrained,
)
from tests import gguf_routes, gguf_vocabularies
from tests.serve import routes
from tests.serve.comparing import MEDIAN, MOST, greedy_agrees, log_probs, off_by

_PYTHON = os.environ.get("SERVE_PYTHON", "")
_SCRIPT = Path(__file__).with_name("llama_cpp.py")
pytestmark = pytest.mark.skipif(not _PYTHON, reason="needs llama.cpp; `make serve` has it")


def run(folder: Path, requests: list[dict]) -> dict[str, np.ndarray]:
    """What llama.cpp answers, see llama_cpp.py."""
    (folder / "requests.json").write_text(json.dumps(requests))
    files = [str(folder / name) for name in ("requests.json", "answers.npz")]
    done = subprocess.run([_PYTHON, _SCRIPT, *files], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return dict(np.load(folder / "answers.npz"))


# llama.cpp computes Gemma's GELU by a table in float16, at every length.
LIMITS = {"f32": (MEDIAN, MOST), "gemma3": (5e-4, 5e-3)}


@pytest.mark.parametrize("name", gguf_routes.ROUTES)
def test_every_rope_on_both_sides_of_the_switch(tmp_path, record, name):
    """Inside the original length and twice beyond it, and a short text in a long context."""
    model, file = gguf_routes.model(tmp_path, name), tmp_path / "m.gguf"
    gguf_export.export(model, file, exporting.Settings(dtype="f32"))
    ids = np.random.default_rng(1).integers(3, 300, 1000)
    sizes = ((200, 256), (400, 512), (1000, 1024), (200, 1024))
    borders = {}
    if name == "qwen3, yarn's borders":  # by the command line alone
        borders["borders"] = [gguf_routes.BORDERS[key] for key in ("beta_fast", "beta_slow")]
    requests = [dict(model=str(file), ids=ids[:n].tolist(), context=c) for n, c in sizes]
    answers = run(tmp_path, [request | borders for request in requests])
    median, most = LIMITS[gguf_routes.ROUTES[name][2] if "gemma3" in name else "f32"]
    for number, (length, context) in enumerate(sizes):
        if model.config.max_len < context and "plain" in name:
            continue
        ours = gguf_routes.logits(model, ids[:length], min(context, 1000))
        off = off_by(ours, answers[f"{number}_logits"], ids[:length])
        where = "inside" if context <= gguf_routes.ORIGINAL else "beyond"
        cells = {where: (np.median(off), off.max())}
        record(f"random {name}", f"llama.cpp {answers['version']}", **cells)
        assert np.median(off) < median and off.max() < most


def answers_to(folder: Path, files: list[Path], ids: np.ndarray) -> dict[str, np.ndarray]:
    sizes = ((300, 512), (1000, 1024), (2000, 2048))
    requests = [
        dict(model=str(file), ids=ids[:length].tolist(), context=context, greedy=16)
        for file in files
        for length, context in sizes
    ]
    return run(folder, requests)


def compare(model, ids, length: int, answers: dict, number: int) -> dict:
    """Our probabilities and choices against those of an answer; clear choices must be equal."""
    greedy, theirs = answers[f"{number}_greedy"], answers[f"{number}_logits"]
    mine = gguf_routes.logits(model, np.concatenate([ids[:length], greedy]))
    off, both = off_by(mine[:length], theirs, ids[:length]), log_probs(mine[:length])
    divergence = (np.exp(both) * (both - log_probs(theirs))).sum(-1).mean()
    same = (mine[:length].argmax(-1) == theirs.argmax(-1)).mean()
    return {
        "off": (np.median(off), off.max()),
        "rare": np.quantile(off, 0.999),
        "greedy": greedy_agrees(mine, greedy, off.max()),
        "divergence": divergence,
        "same": same,
    }


@pytest.mark.parametrize(
    "kind", sorted(routes.KINDS.keys() - {"two attention factors", "dynamic ntk"})
)
def test_a_real_model_on_a_book(tmp_path, record, books_6m, book_ids, kind):
    """Its probabilities and its continuations, on both sides of the switch."""
    model, file = routes.extended(books_6m, kind), tmp_path / "m.gguf"
    gguf_export.export(model, file, exporting.Settings(dtype="f32"))
    answers = answers_to(tmp_path, [file], book_ids)
    for number, length in enumerate(routes.LENGTHS):
        found = compare(model, book_ids, length, answers, number)
        cells = {routes.where(length): found["off"], "greedy": found["greedy"]}
        record(f"{kind}, GGUF f32", f"llama.cpp {answers['version']}", **cells)
        assert found["off"][0] < MEDIAN and found["off"][1] < MOST


# What llama.cpp rounds the other side of every product to: float16, bfloat16, 8 bits. On the same
# weights in float32 it gives our numbers; so many first choices of this small model are as near.
SAME = {"f16": 0.995, "bf16": 0.99, "q8_0": 0.975}


@pytest.mark.parametrize("dtype", SAME)
def test_a_real_model_in_other_dtypes(tmp_path, record, books_6m, book_ids, dtype):
    model = routes.extended(books_6m, "yarn")
    files = [tmp_path / f"{name}.gguf" for name in (dtype, "dequantised")]
    gguf_export.export(model, files[0], exporting.Settings(dtype=dtype))
    dequantised = dataclasses.replace(pretrained.load(files[0]), rope_fn=model.rope_fn)
    gguf_export.export(dequantised, files[1], exporting.Settings(dtype="f32"))
    answers = answers_to(tmp_path, files, book_ids)
    for number, length in enumerate(routes.LENGTHS):
        found = compare(dequantised, book_ids, length, answers, number)
        cells = {routes.where(length): found["off"], "greedy": found["greedy"]}
        cells |= dict(KL=found["divergence"], first_choices=found["same"])
        record(f"yarn, GGUF {dtype}", f"llama.cpp {answers['version']}", **cells)
        assert found["divergence"] < 1e-3 and found["same"] > SAME[dtype]
        assert dtype != "f16" or found["rare"] < 5e-3
        found = compare(dequantised, book_ids, length, answers, number + 3)
        assert found["off"][0] < MEDIAN and found["off"][1] < MOST


def test_factors_that_are_put_into_a_file_are_those_of_an_export(tmp_path, books_6m, book_ids):
    model = routes.extended(books_6m, "two sets")
    rope.save(tmp_path / "rope.json", model.rope_fn, {})
    plain, settings = pretrained.load(books_6m, dtype=None), exporting.Settings(dtype="q8_0")
    gguf_export.export(plain, tmp_path / "plain.gguf", settings)
    gguf_patch.patch(tmp_path / "plain.gguf", tmp_path / "put.gguf", tmp_path / "rope.json")
    gguf_export.export(model, tmp_path / "written.gguf", settings)
    ids = book_ids[:700].tolist()
    files = [str(tmp_path / f"{name}.gguf") for name in ("put", "written", "plain")]
    answers = run(tmp_path, [dict(model=file, ids=ids, context=1024) for file in files])
    put, whole, plain = (answers[f"{number}_logits"] for number in range(3))
    np.testing.assert_array_equal(put, whole)
    assert np.abs(put - plain).max() > 0.1


def test_tokens_are_those_of_the_tokenizer(tmp_path, books_6m):
    """Of every way of splitting, both kinds of merges, and a real one."""
    values = [gguf_vocabularies.byte_level(name) for name in gguf_splits.NAMES.values()]
    values += [gguf_vocabularies.sentencepiece(add_space_prefix=x) for x in (True, False)]
    requests, expected = [], []
    texts = [gguf_vocabularies.TEXT, gguf_vocabulary.PLAIN, "a<|im_start|> b", ""]
    for number, vocabulary in enumerate([*values, None]):
        file = books_6m
        if vocabulary:
            file = gguf_vocabularies.write(tmp_path / f"in{number}.gguf", vocabulary)
        model = pretrained.load(file, dtype=None)
        gguf_export.export(model, tmp_path / f"{number}.gguf")
        requests.append(dict(model=str(tmp_path / f"{number}.gguf"), texts=texts))
        tokenizer = data.load_tokenizer(model.tokenizer_dir)
        expected.append([tokenizer.prompt(text) for text in texts])
    answers = run(tmp_path, requests)
    for number, row in enumerate(expected):
        for place, ids in enumerate(row):
            np.testing.assert_array_equal(answers[f"{number}_ids_{place}"], ids)
