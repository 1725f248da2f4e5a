"""Import: hostile weights get one line; what is good arrives bit for bit, within its memory."""

import importlib.util
import json
import os
import pickle
import struct
import subprocess
import sys
import time
import zipfile

import ml_dtypes
import numpy as np
import pytest
from hf_models import CASES, random_tensors, write
from safetensors.numpy import save_file

from jaxrope.convert import importing, pretrained, safetensors_io
from jaxrope.errors import InputError
from jaxrope.store import sealed

LLAMA, TIED = CASES["llama"], CASES["llama tied with biases"]
Q = "model.layers.0.self_attn.q_proj.weight"


def refuse(folder, message, **keywords):
    start = time.process_time()  # a busy machine is no fault of ours
    with pytest.raises(InputError, match=message) as caught:
        pretrained.load(folder, **keywords)
    assert time.process_time() - start < 1
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


def write_sharded(folder, config=LLAMA, *, shards=3):
    """A sharded copy of `write`; returns the index."""
    tensors = write(folder, config)
    (folder / "model.safetensors").unlink()
    names, weight_map = sorted(tensors), {}
    for i in range(shards):
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        weight_map |= {name: file for name in names[i::shards]}
        save_file({name: tensors[name] for name in names[i::shards]}, folder / file)
    write_index(folder, weight_map)
    return weight_map


def write_index(folder, weight_map):
    text = json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map})
    (folder / "model.safetensors.index.json").write_text(text)


def header(content, body=b""):
    raw = json.dumps(content).encode() if not isinstance(content, bytes) else content
    return struct.pack("<Q", len(raw)) + raw + body


def row(shape, begin, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


FILES = {
    "empty": (b"", "is not a whole safetensors file"),
    "short": (b"\x01\x02", "is not a whole safetensors file"),
    "header of 2^63 bytes": (struct.pack("<Q", 2**63) + b"{}", "is not a whole safetensors file"),
    "header of 200 MB": (struct.pack("<Q", 200_000_000) + b"{}", "not a whole safetensors file"),
    "header is not json": (header(b"{{{{"), "is not a whole safetensors file"),
    "header is not utf-8": (header(b"\xff\xff\xff\xff"), "is not a whole safetensors file"),
    "header is deep": (header(b'{"a":' + b"[" * 100_000), "is not a whole safetensors file"),
    "truncated body": (header({"a": row([4], 0, 16)}, bytes(8)), "not a whole safetensors file"),
    "trailing bytes": (header({"a": row([2], 0, 8)}, bytes(20)), "not a whole safetensors file"),
    "overlap": (
        header({"a": row([2], 0, 8), "b": row([2], 4, 12)}, bytes(12)),
        "is not a whole safetensors file",
    ),
    "negative offset": (header({"a": row([2], -8, 0)}), "is not a whole safetensors file"),
    "unknown dtype": (header({"a": row([2], 0, 8, "Q9")}, bytes(8)), "not a whole safetensors"),
    "huge shape": (header({"a": row([2**40, 2**40], 0, 8)}, bytes(8)), "not a whole safetensors"),
    "name twice": (
        header(
            b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
            b'"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
            bytes(4),
        ),
        'gives "a" twice',
    ),
    "integers": (header({"a": row([2], 0, 16, "I64")}, bytes(16)), "'a' has dtype I64; known are"),
    "git-lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git-LFS pointer"),
    "a web page": (b"\n<!DOCTYPE html><html><body>404</body></html>", "is a web page"),
    "a pickle": (pickle.dumps({"a": 1}), "is a pickle"),
}


@pytest.mark.parametrize("name", FILES)
def test_hostile_file(tmp_path, name):
    write(tmp_path, LLAMA)
    content, message = FILES[name]
    (tmp_path / "model.safetensors").write_bytes(content)
    refuse(tmp_path, message)


def test_torch_zip_under_another_name(tmp_path):
    write(tmp_path, LLAMA)
    with zipfile.ZipFile(tmp_path / "model.safetensors", "w") as file:
        file.writestr("archive/data.pkl", b"x")
    refuse(tmp_path, "is a pickle")


@pytest.mark.parametrize("name", ("pytorch_model.bin", "consolidated.00.pth", "model.pt"))
def test_pickle_only(tmp_path, name):
    write(tmp_path, LLAMA)
    (tmp_path / "model.safetensors").rename(tmp_path / name)
    refuse(tmp_path, f"as pickle only \\({name}\\), which can run code and is never read")


def test_nothing_there(tmp_path):
    refuse(tmp_path / "nowhere", "there is no such folder. Nothing is downloaded")
    refuse(tmp_path, "holds no model: neither config.json")
    write(tmp_path, LLAMA)
    refuse(tmp_path / "config.json", "is a file. Name the folder")
    refuse(tmp_path, "is not a workdir .* so it has no step 3", step=3)
    (tmp_path / "model.safetensors").unlink()
    refuse(tmp_path, "holds neither model.safetensors nor model.safetensors.index.json")
    (tmp_path / "model.safetensors").mkdir()
    refuse(tmp_path, "is not a regular file")


def test_a_pipe_does_not_hang(tmp_path):
    write(tmp_path, LLAMA)
    (tmp_path / "model.safetensors").unlink()
    os.mkfifo(tmp_path / "model.safetensors")
    refuse(tmp_path, "is not a regular file")


@pytest.mark.parametrize("address", ("gs://bucket/model", "https://host/x", "s3://b/m"))
def test_addresses(tmp_path, address, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    needs = "gs:// needs the package gcsfs" if address.startswith("gs") else "or begin with gs://"
    refuse(address, f"{address}: .*{needs}")
    with pytest.raises(InputError, match="only folders of this machine are written"):
        importing.import_folder(write(tmp_path, LLAMA) and tmp_path, address)


def test_impossible_paths(tmp_path):
    refuse(tmp_path / ("x" * 300), "can be opened: File name too long")
    refuse("a\0b", "can be opened: embedded null|there is no such folder")
    write(tmp_path / "in", LLAMA)
    with pytest.raises(InputError, match="cannot be written"):
        importing.import_folder(tmp_path / "in", tmp_path / ("x" * 300))


def test_unusual_paths(tmp_path, monkeypatch):
    folder = tmp_path / "a folder, größer ☃" / "m"
    tensors = write(folder, LLAMA)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(folder)
    for path in (folder, f"{folder}/", "~/a folder, größer ☃/m", ".", "../m"):
        params = pretrained.load(path).params
        np.testing.assert_array_equal(params["embed_VD"], tensors["model.embed_tokens.weight"])


WRONG_INDEX = {
    "upwards": ("../model-00001-of-00003.safetensors", "must be the plain name"),
    "absolute": ("/etc/passwd.safetensors", "must be the plain name"),
    "a folder": ("x/model.safetensors", "must be the plain name"),
    "hidden": (".model.safetensors", "must be the plain name"),
    "a number": (7, "must be the plain name of a .safetensors file in the folder, got 7"),
    "a pickle": ("pytorch_model.bin", "must be the plain name"),
    "missing": ("model-00009-of-00009.safetensors", "is missing from the folder"),
    "the wrong shard": ("model-00001-of-00003.safetensors", "the index says"),
}


@pytest.mark.parametrize("name", WRONG_INDEX)
def test_hostile_index(tmp_path, name):
    weight_map = write_sharded(tmp_path / "model")
    file, message = WRONG_INDEX[name]
    key = next(key for key, value in weight_map.items() if value != file)
    write_index(tmp_path / "model", weight_map | {key: file})
    refuse(tmp_path / "model", message)


def test_index_and_shards_disagree(tmp_path):
    weight_map = write_sharded(tmp_path)
    write_index(tmp_path, weight_map | {"more": "model-00001-of-00003.safetensors"})
    refuse(tmp_path, "tensor 'more' is not in model-00001-of-00003.safetensors")
    first = next(iter(weight_map))
    write_index(tmp_path, {key: value for key, value in weight_map.items() if key != first})
    refuse(tmp_path, f"tensor '{first}' is in .*; the index says nothing of it")
    for content in ({}, {"weight_map": {}}, {"weight_map": [1]}):
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(content))
        refuse(tmp_path, "weight_map must be an object")
    write_index(tmp_path, weight_map)
    file = weight_map[first]
    extra = tmp_path / "model-00004-of-00004.safetensors"
    extra.write_bytes((tmp_path / file).read_bytes())
    refuse(tmp_path, "model-00004-of-00004.safetensors lies in the folder and is not in the index")
    write_index(tmp_path, weight_map | {"another": extra.name})
    refuse(tmp_path, "is in two shards, ")


def test_links_that_leave_the_folder(tmp_path):
    weight_map = write_sharded(tmp_path / "model")
    shard = tmp_path / "model" / next(iter(weight_map.values()))
    shard.rename(tmp_path / "elsewhere.safetensors")
    shard.symlink_to(tmp_path / "elsewhere.safetensors")
    refuse(tmp_path / "model", "is a link that leaves the folder")
    write(tmp_path / "one", LLAMA)
    (tmp_path / "one" / "model.safetensors").rename(tmp_path / "whole.safetensors")
    (tmp_path / "one" / "model.safetensors").symlink_to(tmp_path / "whole.safetensors")
    refuse(tmp_path / "one", "model.safetensors is a link that leaves the folder")


def test_a_snapshot_of_the_cache_is_read(tmp_path):
    write(tmp_path / "in", LLAMA)
    snapshot, blobs = tmp_path / "models--x" / "snapshots" / "abc", tmp_path / "models--x" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for i, path in enumerate((tmp_path / "in").iterdir()):
        path.rename(blobs / f"hash{i}")
        (snapshot / path.name).symlink_to(f"../../blobs/hash{i}")
    assert pretrained.load(snapshot).config.num_layers == 2


def resave(folder, tensors):
    save_file(tensors, folder / "model.safetensors")


def test_tensors_unlike_the_config(tmp_path):
    tensors = write(tmp_path, LLAMA)
    resave(tmp_path, {key: value for key, value in tensors.items() if "layers.1.mlp" not in key})
    refuse(tmp_path, "3 tensors are missing .*: model.layers.1.mlp")
    resave(tmp_path, tensors | {"model.layers.2.x": tensors[Q], "y": tensors[Q]})
    refuse(tmp_path, "2 tensors belong to no part of the model .*: model.layers.2.x, y")
    resave(tmp_path, tensors | {Q: tensors[Q][:-1].copy()})
    refuse(tmp_path, r"q_proj.weight must have shape \[64, 32\] by config.json, has \[63, 32\]")


def test_padded_vocabulary(tmp_path):
    tensors = write(tmp_path, LLAMA)
    vocab = {f"t{i}": i for i in range(90)}
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocab}}))
    notes = importing.import_folder(tmp_path, tmp_path / "out")
    assert any("6 rows more than the tokenizer has ids" in note for note in notes)
    embed = np.pad(tensors["model.embed_tokens.weight"], ((0, 8), (0, 0)))
    resave(tmp_path, tensors | {"model.embed_tokens.weight": embed})
    refuse(tmp_path, r"embed_tokens.weight must have shape \[96, 32\] by config.json")


@pytest.mark.parametrize("bad", (-1, 2**32 - 1, True, "7"))
def test_token_ids_that_are_none(tmp_path, bad):
    write(tmp_path, LLAMA)
    content = {"model": {"vocab": {"a": 0}}, "added_tokens": [{"id": bad}]}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="every id must be a whole number from 0 to 2147483647"):
        importing.import_folder(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_heads_and_ties(tmp_path):
    tensors = write(tmp_path, TIED)
    embed = tensors["model.embed_tokens.weight"]
    resave(tmp_path, tensors | {"lm_head.weight": embed})
    loaded = pretrained.load(tmp_path)
    assert "head_DV" not in loaded.params and any("one copy is kept" in n for n in loaded.notes)
    resave(tmp_path, tensors | {"lm_head.weight": embed + 1})
    refuse(tmp_path, "ties the head to the embedding .* but lm_head.weight holds other values")


def test_an_absent_head(tmp_path):
    tensors = write(tmp_path, LLAMA)
    resave(tmp_path, {key: value for key, value in tensors.items() if key != "lm_head.weight"})
    refuse(tmp_path, "1 tensors are missing .*lm_head.weight. Set tie_word_embeddings to true")
    silent = {key: value for key, value in LLAMA.items() if key != "tie_word_embeddings"}
    (tmp_path / "config.json").write_text(json.dumps(silent))
    loaded = pretrained.load(tmp_path)
    assert loaded.config.tie_embeddings and "the head is the embedding" in loaded.notes[0]
    assert pretrained.read_config(tmp_path) == loaded.config


def test_old_rotary_buffers_are_passed_over(tmp_path):
    tensors = write(tmp_path, LLAMA)
    buffer = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(8, np.float32)}
    resave(tmp_path, tensors | buffer)
    assert "1 rotary buffers" in pretrained.load(tmp_path).notes[0]


def test_dtypes(tmp_path):
    tensors = write(tmp_path, LLAMA, dtype=ml_dtypes.bfloat16)
    stored = pretrained.load(tmp_path, dtype=None).params["embed_VD"]
    assert stored.dtype == ml_dtypes.bfloat16
    wide = pretrained.load(tmp_path).params["embed_VD"]
    assert wide.dtype == np.float32
    np.testing.assert_array_equal(wide, tensors["model.embed_tokens.weight"].astype(np.float32))
    refuse(tmp_path, "Unknown dtype 'int8'. .*Known: bfloat16", dtype="int8")
    large = random_tensors(LLAMA) | {Q: np.full((64, 32), 1e6, np.float32)}
    resave(tmp_path, large)
    refuse(tmp_path, "q_proj.weight has values beyond the range of float16", dtype="float16")


def test_layers_of_two_dtypes_are_widened(tmp_path):
    tensors = write(tmp_path, LLAMA, dtype=ml_dtypes.bfloat16)
    resave(tmp_path, tensors | {Q: random_tensors(LLAMA, seed=3)[Q]})
    params = pretrained.load(tmp_path, dtype=None).params["layers"]
    assert (params["q_LDNH"].dtype, params["k_LDKH"].dtype) == (np.float32, ml_dtypes.bfloat16)
    later = tensors[Q.replace("layers.0", "layers.1")].astype(np.float32)
    np.testing.assert_array_equal(params["q_LDNH"][1].reshape(32, 64), later.T)


def test_sharded_equals_single(tmp_path):
    write(tmp_path / "one", LLAMA)
    write_sharded(tmp_path / "many")
    one, many = pretrained.load(tmp_path / "one").params, pretrained.load(tmp_path / "many").params
    np.testing.assert_equal(one, many)


def test_layout(tmp_path):
    tensors = write(tmp_path, LLAMA)
    params = pretrained.load(tmp_path).params
    q = tensors[Q].reshape(4, 16, 32)  # heads, head dim, inputs
    np.testing.assert_array_equal(params["layers"]["q_LDNH"][0], q.transpose(2, 0, 1))
    o = tensors["model.layers.1.self_attn.o_proj.weight"].reshape(32, 4, 16)
    np.testing.assert_array_equal(params["layers"]["o_LNHD"][1], o.transpose(1, 2, 0))


_MEMORY = """
import resource, sys
from jaxrope.convert import pretrained
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
pretrained.load(sys.argv[1], dtype=None)
before = peak()
params = pretrained.load(sys.argv[2], dtype=None).params
print(peak() - before)
"""


def test_memory_is_the_model_and_one_shard(tmp_path):
    config = LLAMA | dict(hidden_size=512, intermediate_size=2048, num_hidden_layers=9)
    weight_map = write_sharded(tmp_path / "big", config, shards=6)
    write(tmp_path / "small", LLAMA)
    model = sum(path.stat().st_size for path in (tmp_path / "big").glob("*.safetensors"))
    shard = max((tmp_path / "big" / file).stat().st_size for file in set(weight_map.values()))
    program = [sys.executable, "-c", _MEMORY, tmp_path / "small", tmp_path / "big"]
    grown = int(subprocess.run(program, capture_output=True, check=True, text=True).stdout)
    assert model > 100e6 and grown < model + shard + 20e6


def test_import_is_whole_or_absent(tmp_path, monkeypatch):
    write(tmp_path / "in", LLAMA)
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    with pytest.raises(InputError, match="used exists and is not an empty folder. Name another.$"):
        importing.import_folder(tmp_path / "in", tmp_path / "used")

    def fail(entries):
        raise KeyboardInterrupt

    monkeypatch.setattr(safetensors_io, "read_tensors", fail)
    with pytest.raises(KeyboardInterrupt):
        importing.import_folder(tmp_path / "in", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "used"]


def test_a_workdir_is_read_as_its_source(tmp_path):
    write(tmp_path / "in", CASES["phi3 partial"], dtype=ml_dtypes.bfloat16)
    importing.import_folder(tmp_path / "in", tmp_path / "work")
    direct = pretrained.load(tmp_path / "in", dtype=None)
    for path in (tmp_path / "work", tmp_path / "work" / "checkpoints" / "00000000"):
        loaded = pretrained.load(path, dtype=None)
        assert loaded.config == direct.config == pretrained.read_config(path)
        np.testing.assert_equal(loaded.params, direct.params)
    wide = pretrained.load(tmp_path / "work").params
    assert wide["embed_VD"].dtype == np.float32
    shape = sealed.read_json(tmp_path / "work" / "model.json")
    for keys, message in (
        ({"mlp_dim": 50}, "mlp|gate|shape"),
        ({"theta": "x"}, "model.json: model.theta must be a number above 1, got 'x'"),
        ({"more": 1}, "model.json: missing or unknown keys: more"),
    ):
        sealed.write_json(tmp_path / "work" / "model.json", shape | keys)
        with pytest.raises(InputError, match=message):
            pretrained.load(tmp_path / "work")
