"""Factors that are put into a GGUF file of others' making: nothing else of it changes."""

import dataclasses

import gguf_models
import gguf_routes
import hf_models
import numpy as np
import pytest
from convert_gguf_model_test import block_bytes, split

from jaxrope import rope
from jaxrope.convert import (
    exporting,
    gguf_export,
    gguf_header,
    gguf_patch,
    pretrained,
    rope_export,
)
from jaxrope.errors import InputError
from tests.rope_samples import LONG, SHORT, rope_of, rows, run, saved

gguf = pytest.importorskip("gguf", reason="needs the package gguf (the test extra has it)")
_LLAMA = hf_models.CASES["llama"] | dict(hidden_size=256, max_position_embeddings=32)
_RAW = b"\xff\xfe not UTF-8"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def of_others(path, config=_LLAMA, kind="Q4_K", **metadata):
    """A file with quantised matrices, odd values and an alignment of its own."""
    kind = gguf.GGMLQuantizationType[kind]
    rest = hf_models.random_tensors(config, 0, np.float32)
    del rest["model.embed_tokens.weight"]

    def more(writer):
        writer.add_custom_alignment(64)
        raw = block_bytes(kind, np.random.default_rng(3))
        writer.add_tensor("token_embd.weight", raw, raw_dtype=kind)
        writer.add_uint64("general.size", 2**40)
        writer.add_key_value("general.tags", ["a", "b"], *_TEXTS)
        writer.add_key_value("x.numbers", [1.5, 2.5], gguf.GGUFValueType.ARRAY, _FLOAT64)
        tokens = [_RAW, *(f"t{number}".encode() for number in range(95))]
        writer.add_token_list(tokens)

    return gguf_models.write(path, config, rest, tokenizer=more, extra=[*metadata.items()])


_TEXTS = (gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.STRING)
_FLOAT64 = gguf.GGUFValueType.FLOAT64


def content(path):
    """({key: (types, bytes of the value)}, {tensor: (type, bytes)})."""
    reader = gguf.GGUFReader(path)
    values = {
        key: (field.types, b"|".join(bytes(part) for part in field.parts[1:]))
        for key, field in reader.fields.items()
        if not key.startswith("GGUF.")
    }
    return values, {t.name: (t.tensor_type.name, bytes(t.data)) for t in reader.tensors}


ROPES = {
    "one set": rope_of(buckets=rows(256, attention=(1.2, 1.2))),
    "two sets": rope_of(),
    "yarn": rope.make("yarn", head_dim=16, theta=1e4, original_len=32, factor=8.0),
    "own borders": rope.make(
        "yarn", head_dim=16, theta=1e4, original_len=32, factor=8.0, beta_fast=20.0
    ),
}
KINDS = ("Q4_K", "Q6_K", "Q8_0", "IQ4_XS")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ROPES)
def test_only_the_rope_changes(tmp_path, name, kind):
    source = of_others(tmp_path / "in.gguf", kind=kind)
    raw = source.read_bytes()
    path = saved(tmp_path, ROPES[name])
    gguf_patch.patch(source, tmp_path / "out.gguf", path)
    (before, tensors), (after, others) = content(source), content(tmp_path / "out.gguf")
    changed = {key for key in before if before[key] != after.get(key)}
    assert changed == {"llama.context_length"}
    new = {key for key in {*after} - {*before} if not key.startswith("llama.rope.scaling.")}
    assert new == {"jaxrope.provenance"} and source.read_bytes() == raw
    assert {key: others[key] for key in tensors} == tensors
    one_set = {"rope_freqs.weight"}
    factors = {"one set": one_set, "own borders": one_set, "yarn": set()}
    pair = {"rope_factors_long.weight", "rope_factors_short.weight"}
    assert {*others} - {*tensors} == factors.get(name, pair)
    model = pretrained.load(tmp_path / "out.gguf")
    assert rope_export.difference(model.rope_fn, ROPES[name]) < 3e-7
    assert model.config.max_len == 256


def test_a_rope_that_was_there_is_replaced(tmp_path):
    """Of every kind, by every other."""
    yarn = _LLAMA | dict(rope_scaling=hf_models.CASES["llama yarn"]["rope_scaling"])
    file = of_others(tmp_path / "0.gguf", yarn | dict(max_position_embeddings=128))
    for number, name in enumerate(("two sets", "one set", "yarn", "two sets"), 1):
        path, out = saved(tmp_path, ROPES[name]), tmp_path / f"{number}.gguf"
        said = gguf_patch.patch(file, out, path)
        assert any("the rope that the file had" in line for line in said)
        assert rope_export.difference(pretrained.load(out).rope_fn, ROPES[name]) < 3e-7
        file = out
    names = [tensor.name for tensor in gguf.GGUFReader(file).tensors]
    assert len({*names}) == len(names) and "rope_freqs.weight" not in names


def test_a_file_that_is_replaced_by_itself(tmp_path, capsys):
    file, path = of_others(tmp_path / "m.gguf"), saved(tmp_path, rope_of())
    tensors = content(file)[1]
    arguments = ("gguf", file, file, f"--rope={path}")
    code, _, err = run(capsys, *arguments)
    assert code == 2 and "exists. Name another, or pass --overwrite" in err
    assert run(capsys, *arguments, "--overwrite")[0] == 0
    assert tensors.items() <= content(file)[1].items()
    code, out, err = run(capsys, "gguf", file, tmp_path / "n.gguf", f"--rope={path}", "--dry_run")
    assert code == 0 and out.startswith("llama.cpp takes one set for a context")
    assert "note: the rope that the file had, longrope, is replaced" in out
    assert not (tmp_path / "n.gguf").exists()


def test_a_qwen2_becomes_the_llama_that_an_export_makes(tmp_path):
    model = gguf_routes.model(tmp_path, "qwen2, two sets")
    plain = rope.make("none", **dataclasses.asdict(model.rope_fn.geometry))
    for dtype in ("f32", "q8_0"):
        settings = exporting.Settings(dtype=dtype, overwrite=True)
        gguf_export.export(dataclasses.replace(model, rope_fn=plain), tmp_path / "q.gguf", settings)
        gguf_export.export(model, tmp_path / "whole.gguf", settings)
        assert gguf_header.read(tmp_path / "q.gguf", ()).values["general.architecture"] == "qwen2"
        path, out = saved(tmp_path, model.rope_fn), tmp_path / "put.gguf"
        said = gguf_patch.patch(tmp_path / "q.gguf", out, path, overwrite=True)
        assert any("it is written as a llama with biases" in line for line in said)
        (values, tensors), (others, expected) = content(out), content(tmp_path / "whole.gguf")
        assert tensors == expected
        unlike = {key for key in {*values, *others} if values.get(key) != others.get(key)}
        assert unlike == {"general.name", "jaxrope.provenance"}


def test_what_cannot_be_put_into_a_file_is_one_line(tmp_path):
    file = of_others(tmp_path / "m.gguf")
    qwen2 = of_others(tmp_path / "q.gguf", hf_models.CASES["qwen2"] | dict(hidden_size=256))
    (tmp_path / "no.gguf").write_bytes(b"text")
    whole = gguf_models.write(
        tmp_path / "w.gguf",
        hf_models.CASES["llama"],
        hf_models.random_tensors(hf_models.CASES["llama"], 0, np.float32),
    )
    part = split(whole, 2)[1]
    layered = [row | dict(factors=[SHORT, LONG]) for row in rows(32, 256)]
    cases = [
        (file, rope_of(theta=2e4), "theta must equal the model's, 10000.0, got 20000.0"),
        (file, rope_of(buckets=rows(32, 64, 256)), "3 length buckets"),
        (file, rope_of(buckets=layered), "factors of each layer's own"),
        (qwen2, rope.make("ntk", head_dim=64, theta=1e4, original_len=32, factor=4.0), None),
        (
            part,
            rope_of(),
            "is one of 2 parts of a model. Join them first: llama-gguf-split --merge",
        ),
        (tmp_path / "no.gguf", rope_of(), "is not a whole GGUF file"),
        (tmp_path, rope_of(), "is no GGUF file. Name one"),
    ]
    for source, rope_fn, message in cases:
        path, out = saved(tmp_path, rope_fn), tmp_path / "out.gguf"
        if message is None:  # what llama.cpp computes itself, it has for every architecture
            gguf_patch.patch(source, out, path, overwrite=True)
            continue
        with pytest.raises(InputError, match=message) as error:
            gguf_patch.patch(source, out, path, overwrite=True)
        assert "\n" not in str(error.value)
