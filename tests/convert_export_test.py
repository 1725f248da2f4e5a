"""Export: bit for bit, whole or absent, every rope Hugging Face can say, and words for the rest."""

import dataclasses
import json
import shutil
import subprocess
import sys
import time

import ml_dtypes
import numpy as np
import pytest
from hf_models import CASES, random_tensors, write
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from jaxrope import rope
from jaxrope.convert import (
    exporting,
    folders,
    importing,
    pretrained,
    rope_export,
    safetensors_io,
)
from jaxrope.errors import InputError
from tests import tiny_tokenizers
from tests.rope_samples import run

LLAMA, PHI3 = CASES["llama"], CASES["phi3"]
SHORT, LONG = (CASES["phi3"]["rope_scaling"][key] for key in ("short_factor", "long_factor"))
LOSSY = exporting.Settings(allow_lossy=True)
TOKENIZER = {"model": {"type": "WordLevel", "vocab": {"a": 0, "b": 3}}, "added_tokens": []}


def model_of(folder, config):
    write(folder, config)
    return pretrained.load(folder, dtype=None)


def bucket(max_len, factors=LONG, start_tokens=0, attention_factor="su"):
    row = dict(max_len=max_len, factors=factors, start_tokens=start_tokens)
    return row | {"attention_factor": attention_factor}


def with_method(model, method, **constants):
    """The model with another rope, trained at 32 tokens; constants as for `rope.make`."""
    config = model.config
    geometry = dict(head_dim=config.head_dim, rotary_dim=config.rotary_dim, theta=config.theta)
    made = rope.make(method, **geometry, original_len=32, **constants)
    return dataclasses.replace(model, rope_fn=made)


def export(model, folder, settings=None):
    lost = exporting.export_folder(model, folder, settings)
    return json.loads((folder / "config.json").read_text()), lost


@pytest.mark.parametrize("name", CASES)
def test_export_is_bit_equal(tmp_path, name):
    tensors = write(tmp_path / "in", CASES[name])
    first = pretrained.load(tmp_path / "in", dtype=None)
    exporting.export_folder(first, tmp_path / "out")
    np.testing.assert_equal(load_file(tmp_path / "out" / "model.safetensors"), tensors)
    second = pretrained.load(tmp_path / "out", dtype=None)
    np.testing.assert_equal(second.params, first.params)
    assert rope_export.difference(second.rope_fn, first.rope_fn) < 1e-14
    kept = [key for key in vars(first.config) if key != "rope"]  # yarn's law becomes its number
    assert all(getattr(first.config, key) == getattr(second.config, key) for key in kept)


@pytest.mark.parametrize("name", ("llama tied with biases", "phi3 partial"))
def test_import_export_import_is_bit_equal(tmp_path, name):
    tensors = write(tmp_path / "in", CASES[name], dtype=ml_dtypes.bfloat16)
    importing.import_folder(tmp_path / "in", tmp_path / "work")
    first = pretrained.load(tmp_path / "work", dtype=None)
    exporting.export_folder(first, tmp_path / "out")
    np.testing.assert_equal(load_file(tmp_path / "out" / "model.safetensors"), tensors)
    importing.import_folder(tmp_path / "out", tmp_path / "again")
    again = pretrained.load(tmp_path / "again", dtype=None)
    np.testing.assert_equal(again.params, first.params)
    assert again.config == first.config


def test_shards_and_index(tmp_path):
    model = model_of(tmp_path / "in", LLAMA)
    settings = exporting.Settings(shard_bytes=20_000)
    exporting.export_folder(model, tmp_path / "out", settings)
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    count = len(files)
    assert count > 3
    assert files == [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
    assert all((tmp_path / "out" / file).stat().st_size < 24_000 for file in files)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    tensors = load_file(tmp_path / "in" / "model.safetensors")
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in tensors.values())
    assert index["weight_map"].keys() == tensors.keys()
    np.testing.assert_equal(pretrained.load(tmp_path / "out", dtype=None).params, model.params)
    with safe_open(tmp_path / "out" / files[0], framework="numpy") as file:
        assert file.metadata() == {"format": "pt"}


def test_dtype(tmp_path):
    model = model_of(tmp_path / "in", LLAMA)
    config, _ = export(model, tmp_path / "out", exporting.Settings(dtype="bfloat16"))
    assert config["dtype"] == config["torch_dtype"] == "bfloat16"
    stored = load_file(tmp_path / "out" / "model.safetensors")
    for name, value in random_tensors(LLAMA).items():
        np.testing.assert_array_equal(stored[name], value.astype(ml_dtypes.bfloat16))
    with pytest.raises(InputError, match="Unknown dtype 'bf16'. Did you mean 'bfloat16'"):
        exporting.export_folder(model, tmp_path / "x", exporting.Settings(dtype="bf16"))
    model.params["layers"]["q_LDNH"][1, 2, 3, 4] = 70_000.0
    with pytest.raises(InputError, match="q_proj.weight has values beyond the range of float16"):
        exporting.export_folder(model, tmp_path / "x", exporting.Settings(dtype="float16"))
    model.params["layers"]["q_LDNH"][1, 2, 3, 4] = np.nan
    with pytest.raises(InputError, match="layers.1.self_attn.q_proj.weight holds NaN"):
        exporting.export_folder(model, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_files_beside_the_weights(tmp_path):
    write(tmp_path / "in", LLAMA)
    texts = {"tokenizer.json": json.dumps(TOKENIZER), "tokenizer_config.json": "{}"}
    texts |= {"special_tokens_map.json": "{ }", "chat_template.jinja": "{{ messages }}"}
    texts |= {"generation_config.json": '{"eos_token_id": [2, 5]}'}
    for name, text in texts.items():
        (tmp_path / "in" / name).write_text(text)
    importing.import_folder(tmp_path / "in", tmp_path / "work")
    export(pretrained.load(tmp_path / "work", dtype=None), tmp_path / "out")
    for name, text in texts.items():
        assert (tmp_path / "out" / name).read_text() == text
    assert all(path.stat().st_mode & 0o077 == 0o044 for path in (tmp_path / "out").iterdir())


def test_longrope_is_written_for_every_reader(tmp_path):
    model = model_of(tmp_path / "in", LLAMA)
    config, lost = export(with_method(model, "longrope", buckets=[bucket(256)]), tmp_path / "out")
    section = config["rope_parameters"]
    assert not lost and config["rope_scaling"] == section
    assert config["original_max_position_embeddings"] == 32
    assert section["original_max_position_embeddings"] == 32
    assert config["max_position_embeddings"] == 256 and section["factor"] == 8.0
    assert section["rope_theta"] == config["rope_theta"] == 10_000.0
    assert section["short_factor"] == section["long_factor"] == LONG
    # sqrt(1 + ln 8 / ln 32) = sqrt(1.6)
    assert section["attention_factor"] == pytest.approx(1.6**0.5, rel=1e-12)
    assert "short_mscale" not in section
    assert "The factors are the same at every length" in (tmp_path / "out/README.md").read_text()


def test_two_buckets(tmp_path):
    model = model_of(tmp_path / "in", LLAMA)
    rows = [bucket(32, SHORT, attention_factor=1.5), bucket(256, attention_factor=1.5)]
    config, lost = export(with_method(model, "longrope", buckets=rows), tmp_path / "out")
    section = config["rope_parameters"]
    assert not lost and (section["short_factor"], section["long_factor"]) == (SHORT, LONG)
    assert section["attention_factor"] == section["short_mscale"] == section["long_mscale"] == 1.5
    card = (tmp_path / "out" / "README.md").read_text()
    for words in ("`--max-model-len` exceeds 32", "at every length", "is not the usual", "GGUF"):
        assert words in card


LOSSES = {
    "start tokens": ([bucket(256, start_tokens=4)], "start_tokens 4: the first positions"),
    "three buckets": (
        [bucket(n, attention_factor=1.2) for n in (32, 64, 256)],
        r"3 length buckets \(up to 32, 64, 256\): only the one for 32 tokens and the last",
    ),
    "border": (
        [bucket(64, SHORT, attention_factor=1.2), bucket(256, attention_factor=1.2)],
        "the border between the buckets, 64, would become the original length, 32",
    ),
    "attention": (
        [bucket(32, attention_factor=1.0), bucket(256, attention_factor=1.2)],
        r"differing attention factors \(1, 1.2\): that of the last bucket, 1.2",
    ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_what_cannot_be_said(tmp_path, name):
    rows, message = LOSSES[name]
    model = with_method(model_of(tmp_path / "in", LLAMA), "longrope", buckets=rows)
    with pytest.raises(InputError, match=f"cannot express this rope: {message}.*--allow_lossy"):
        exporting.export_folder(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    config, lost = export(model, tmp_path / "out", LOSSY)
    assert (
        len(lost) == 1
        and lost[0].removeprefix("lost: ") in (tmp_path / "out/README.md").read_text()
    )
    assert config["rope_parameters"]["long_factor"] == LONG


def test_every_loss_at_once(tmp_path):
    rows = [bucket(64, SHORT, 2, 1.0), bucket(128, SHORT, 0, 1.1), bucket(256, LONG, 8, 1.2)]
    model = with_method(model_of(tmp_path / "in", LLAMA), "longrope", buckets=rows)
    config, lost = export(model, tmp_path / "out", LOSSY)
    assert [line.split()[1] for line in lost] == ["start_tokens", "3", "differing"]
    assert config["rope_parameters"]["short_factor"] == SHORT


METHODS = {
    "none": ({}, "default", 128),
    "pi": ({"factor": 8.0}, "linear", 256),
    "ntk": ({"factor": 8.0}, "default", 256),
    "abf": ({"new_theta": 5e5}, "default", 128),
    "yarn": ({"factor": 8.0, "beta_fast": 4.0, "beta_slow": 0.5}, "yarn", 256),
    "llama3": ({"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 3.0}, "llama3", 256),
    "dynamic_ntk": ({"factor": 8.0}, "dynamic", 32),
}


@pytest.mark.parametrize("method", METHODS)
def test_methods(tmp_path, method):
    constants, kind, max_len = METHODS[method]
    model = with_method(model_of(tmp_path / "in", LLAMA), method, **constants)
    config, lost = export(model, tmp_path / "out")
    section = config["rope_parameters"]
    assert not lost and section["rope_type"] == kind
    assert config["max_position_embeddings"] == max_len
    assert config["rope_scaling"] == (None if kind == "default" else section)
    read = pretrained.load(tmp_path / "out").rope_fn
    for length in (20, 100, 3000):
        one, two = read.bucket(length), model.rope_fn.bucket(length)
        freq_one, freq_two = (
            fn.geometry.base_inv_freq / np.asarray(b.factors)
            for fn, b in ((read, one), (model.rope_fn, two))
        )
        np.testing.assert_allclose(freq_one, freq_two, rtol=1e-13)
        assert one.attention_factor == two.attention_factor


def test_ntk_is_another_theta(tmp_path):
    model = with_method(model_of(tmp_path / "in", LLAMA), "ntk", factor=4.0)
    config, _ = export(model, tmp_path / "out")
    assert config["rope_theta"] == pytest.approx(1e4 * 4 ** (16 / 14), rel=1e-12)
    assert config["rope_parameters"]["rope_theta"] == config["rope_theta"]


def test_phi3_says_every_method_as_longrope(tmp_path):
    model = model_of(tmp_path / "in", PHI3)
    law, _ = export(with_method(model, "longrope", buckets=[bucket(256)]), tmp_path / "law")
    three = {"type": "longrope", "short_factor": LONG, "long_factor": LONG}
    assert law["rope_scaling"] == three  # transformers 4 wants exactly three keys
    yarn = with_method(model, "yarn", factor=8.0, beta_fast=4.0, beta_slow=0.5)
    config, lost = export(yarn, tmp_path / "yarn")
    assert not lost and config["rope_parameters"]["rope_type"] == "longrope"
    assert config["rope_scaling"] == config["rope_parameters"]
    assert "transformers 4 refuses this config" in (tmp_path / "yarn/README.md").read_text()
    dynamic = with_method(model, "dynamic_ntk", factor=8.0)
    with pytest.raises(InputError, match="computes factors from the length of each sequence"):
        exporting.export_folder(dynamic, tmp_path / "dynamic")


def test_nothing_to_extend(tmp_path):
    plain = bucket(32) | dict(factors=[1.0] * 8)
    model = with_method(model_of(tmp_path / "in", LLAMA), "longrope", buckets=[plain])
    with pytest.raises(InputError, match="longest length must exceed the original one, 32, got 32"):
        exporting.export_folder(model, tmp_path / "out")


def test_target(tmp_path):
    model = model_of(tmp_path / "in", LLAMA)
    (tmp_path / "empty").mkdir()
    exporting.export_folder(model, tmp_path / "empty")
    with pytest.raises(InputError, match="exists and is not an empty folder. .*--overwrite"):
        exporting.export_folder(model, tmp_path / "empty")
    again = exporting.Settings(overwrite=True, dtype="bfloat16")
    assert export(model, tmp_path / "empty", again)[0]["dtype"] == "bfloat16"
    importing.import_folder(tmp_path / "in", tmp_path / "work")
    (tmp_path / "work" / "config.json").write_text("{}")
    (tmp_path / "file").write_text("x")
    for name in ("work", "file"):
        with pytest.raises(InputError, match="is not a Hugging Face folder and is not overwritten"):
            exporting.export_folder(model, tmp_path / name, again)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "file", "in", "work"]


def test_what_was_written_is_read_again(tmp_path, monkeypatch):
    model = model_of(tmp_path / "in", LLAMA)
    real = safetensors_io.save_file

    def save_one_bit_off(arrays, path, metadata):
        arrays = {name: value.copy() for name, value in arrays.items()}
        arrays["model.norm.weight"].view(np.uint8)[5] ^= 1
        real(arrays, path, metadata=metadata)

    monkeypatch.setattr(safetensors_io, "save_file", save_one_bit_off)
    with pytest.raises(RuntimeError, match="model.norm.weight reads back with other values"):
        exporting.export_folder(model, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


def test_a_transposed_tensor_would_be_written_wrong(tmp_path):
    """Why every tensor is made contiguous: the library writes the bytes as they lie."""
    values = np.arange(6, dtype=np.float32).reshape(2, 3).T
    save_file({"a": values}, tmp_path / "x.safetensors")
    assert not np.array_equal(load_file(tmp_path / "x.safetensors")["a"], values)
    with pytest.raises(AssertionError, match="a"):
        safetensors_io.write(tmp_path, [("a", values)], [{"a": 24}])


_EXPORT_FOR_EVER = """
import sys
from jaxrope.convert import pretrained
from jaxrope.convert import exporting
model = pretrained.load(sys.argv[1], dtype=None)
while True:
    exporting.export_folder(model, sys.argv[2], exporting.Settings(overwrite=True))
"""


@pytest.mark.parametrize("delay", (0.0, 0.013, 0.137))
def test_killed_at_any_moment(tmp_path, delay):
    model = model_of(tmp_path / "in", LLAMA)
    process = subprocess.Popen(
        [sys.executable, "-c", _EXPORT_FOR_EVER, tmp_path / "in", tmp_path / "out"]
    )
    while not any(path.name.startswith(".out.") for path in tmp_path.iterdir()):
        assert process.poll() is None
        time.sleep(0.002)
    time.sleep(delay)
    process.kill()
    process.wait()
    if (tmp_path / "out").exists():
        np.testing.assert_equal(pretrained.load(tmp_path / "out").params, model.params)
        assert (tmp_path / "out" / "README.md").exists()
    exporting.export_folder(model, tmp_path / "out", exporting.Settings(overwrite=True))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


def test_only_what_has_no_owner_is_swept(tmp_path):
    for name in (".out.abcdefgh.tmp", ".out.abcdefgh.old", ".other.abcdefgh.tmp", ".out.tmp"):
        (tmp_path / name).mkdir()
    with folders.staged(tmp_path / "out") as theirs:
        with folders.staged(tmp_path / "out") as ours:
            assert theirs.is_dir() and ours != theirs
            assert not (tmp_path / ".out.abcdefgh.tmp").exists()
            assert (tmp_path / ".out.abcdefgh.old").exists()  # it may be the only whole one
            (ours / "config.json").write_text("{}")
        assert theirs.is_dir()
        (theirs / "config.json").write_text("{}")
        shutil.rmtree(tmp_path / "out")
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == [".other.abcdefgh.tmp", ".out.tmp", "out"]


def test_the_card_says_how_the_factors_were_found(tmp_path):
    """Also those that a training took from a search, and a join from several."""
    model = model_of(tmp_path / "in", LLAMA)
    search = {"made_by": "search", "seed": 7, "search": {"form": "yarn", "samples": "/a/b"}}
    search |= {"identity": {"settings": {"seed": 7}}, "unfinished": "the best so far"}
    found = {"made_by": "train.py", "file": search, "joined": [{"file": "x.json", "length": 64}]}
    rope.save(tmp_path / "rope.json", with_method(model, "pi", factor=4.0).rope_fn, found)
    model = pretrained.with_rope(model, tmp_path / "rope.json")
    exporting.export_folder(model, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    for row in ("file.seed | 7", "file.search.form | yarn", "joined.length | 64"):
        assert f"| {row} |" in card
    assert "identity" not in card and "/a/b" not in card
    assert "## Unfinished\n\n- rope.json: its factors are unfinished, the best so far." in card


def test_a_growing_rope_is_not_cut_off_by_the_tokenizer(tmp_path):
    """max_position_embeddings has to be the original length there."""
    model = with_method(model_of(tmp_path / "in", LLAMA), "dynamic_ntk", factor=4.0)
    place = tiny_tokenizers.write(tmp_path / "t", tokenizer_config={"model_max_length": 32})
    exporting.export_folder(dataclasses.replace(model, tokenizer_dir=place), tmp_path / "out")
    settings = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["max_position_embeddings"], settings["model_max_length"]) == (32, 128)


def test_command_line(tmp_path, capsys):
    model = model_of(tmp_path / "in", LLAMA)
    rows = [bucket(256, start_tokens=4)]
    rope_fn = with_method(model, "longrope", buckets=rows).rope_fn
    rope.save(tmp_path / "rope.json", rope_fn, {"generations": 40, "where": "/a/b"})
    code, out, _ = run(capsys, "import", tmp_path / "in", tmp_path / "work")
    assert (code, out) == (0, f"wrote {tmp_path / 'work'}\n")
    export_it = ("export", tmp_path / "work", tmp_path / "out", f"--rope={tmp_path}/rope.json")
    code, _, err = run(capsys, *export_it)
    assert code == 2 and err.startswith("error: Hugging Face cannot") and err.count("\n") == 1
    code, _, err = run(capsys, *export_it, "--allow_lossy")
    assert code == 0 and "note: lost: start_tokens 4" in err
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| generations | 40 |" in card and "/a/b" not in card
    code, _, err = run(capsys, *export_it)
    assert code == 2 and "exists and is not an empty folder" in err
    code, _, err = run(capsys, *export_it, "--alow_lossy")
    assert code == 2 and "Unknown flag '--alow_lossy'. Did you mean '--allow_lossy'" in err


def test_the_program_starts(tmp_path):
    command = [sys.executable, "-m", "jaxrope.convert", "export", tmp_path / "no", tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert "there is no such folder" in done.stderr


def test_rope_of_another_model(tmp_path):
    model = model_of(tmp_path / "in", LLAMA)
    other = rope.make("pi", head_dim=32, theta=1e4, original_len=32, factor=4.0)
    rope.save(tmp_path / "rope.json", other, {})
    with pytest.raises(InputError, match="head_dim must equal the model's, 16, got 32"):
        pretrained.with_rope(model, tmp_path / "rope.json")
    with pytest.raises(InputError, match="nothing.json: there is no such file"):
        pretrained.with_rope(model, tmp_path / "nothing.json")


def test_ntk_to_the_critical_pair_is_said_as_longrope(tmp_path):
    constants = dict(factor=8.0, critical_pair=3)
    model = with_method(model_of(tmp_path / "in", LLAMA), "ntk_rcd", **constants)
    config, lost = export(model, tmp_path / "out")
    section = config["rope_parameters"]
    assert not lost and section["rope_type"] == "longrope"
    expected = 8.0 ** (np.minimum(np.arange(len(LONG)), 3) / 3)
    assert section["short_factor"] == section["long_factor"]
    np.testing.assert_allclose(section["long_factor"], expected, rtol=1e-12)
    assert section["attention_factor"] == 1.0
