"""Folders that somebody else made: what they claim, where their links lead, what weights they hold.

Each ends in one line, at once; nothing of what lies outside of a folder is handed on.
"""

import json
import os
import resource
import struct
import time
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxrope import rope
from jaxrope.convert import exporting, gguf_header, importing, pretrained, rope_formats
from jaxrope.data import load_tokenizer
from jaxrope.errors import InputError
from jaxrope.store import checkpoint, sealed, strict_json
from jaxrope.store.journal import Journal
from tests.hf_models import CASES, write

LLAMA = CASES["llama"]
Q = "model.layers.0.self_attn.q_proj.weight"


def refuse(call, message, *, seconds=1.0):
    """Calls, which must end in one line, at once, and in little memory."""
    start, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match=message) as caught:
        call()
    assert time.process_time() - start < seconds
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kilobytes
    assert "\n" not in str(caught.value) and len(str(caught.value)) <= 2000


def change(folder, **keys):
    values = json.loads((folder / "config.json").read_text()) | keys
    (folder / "config.json").write_text(json.dumps(values))


SIZES = {
    "layers": (dict(num_hidden_layers=10**9), "num_hidden_layers .* must be 2, the layers"),
    "layers of a shard": (dict(num_hidden_layers=3), "must be 2, the layers .* got 3"),
    "vocabulary": (dict(vocab_size=2**31 - 1), r"must have shape \[2147483647, 32\]"),
    "mlp": (dict(intermediate_size=2**31 - 1), r"must have shape \[2147483647, 32\]"),
    "heads": (dict(num_attention_heads=2**30, num_key_value_heads=2**30), "must have shape"),
    "400 digits": (
        dict(vocab_size=10**400),
        "config.json: holds 10+[.]{3}, a number of 401 digits",
    ),
    "40 digits": (dict(vocab_size=10**39), "vocab_size must be a whole number from 1 to"),
    "head_dim": (dict(head_dim=2**30), "rotary_dim must be even and from 2 to head_dim, and that"),
    "negative": (dict(num_attention_heads=-4), "num_attention_heads must be a whole number"),
    "theta of 400 digits": (dict(rope_theta=10**400), "a number of 401 digits"),
    "one token": (
        dict(rope_scaling=dict(rope_type="yarn", factor=2.0, original_max_position_embeddings=1)),
        "original_max_position_embeddings must be a whole number from 2",
    ),
    "a tiny part": (dict(partial_rotary_factor=1e-320), "an even number of dims|must be 1 for"),
    "a huge part": (dict(partial_rotary_factor=1e300), "at least 0 and at most 1"),
}


@pytest.mark.parametrize("name", SIZES)
def test_sizes_that_the_tensors_contradict(tmp_path, name):
    keys, message = SIZES[name]
    write(tmp_path, LLAMA)
    change(tmp_path, **keys)
    refuse(lambda: pretrained.load(tmp_path), message)
    refuse(lambda: pretrained.read_config(tmp_path), message)


def test_sizes_that_a_checkpoint_contradicts(tmp_path):
    write(tmp_path / "in", LLAMA)
    importing.import_folder(tmp_path / "in", tmp_path / "work")
    shape = sealed.read_json(tmp_path / "work" / "model.json")
    for keys, message in (
        (dict(num_layers=10**9), "shape differs"),
        (dict(vocab_size=97), "shape differs: embed_VD"),
        (dict(head_dim=2**30, rotary_dim=2**30), "model.json: rotary_dim must be even and from 2"),
        (dict(mlp_dim=10**39), "model.mlp_dim must be a whole number"),
    ):
        sealed.write_json(tmp_path / "work" / "model.json", shape | keys)
        refuse(lambda: pretrained.load(tmp_path / "work", weights=False), message)


def big(*, twice: bool) -> str:
    """Some 1.7 MB of an object of 120,000 names, the last of them given twice."""
    names = [f"{i:08d}" for i in range(120_000)] + (["00000007"] if twice else [])
    return "{" + ", ".join(f'"{name}": 1' for name in names) + "}"


def test_a_name_twice_in_a_large_object_is_seen_at_once(tmp_path):
    write(tmp_path, LLAMA)
    text = big(twice=True)
    assert len(text) > 1_600_000
    vocab = f'{{"model": {{"type": "WordLevel", "vocab": {text}}}}}'
    (tmp_path / "tokenizer.json").write_text(vocab)
    refuse(lambda: load_tokenizer(tmp_path), 'tokenizer.json\': gives "00000007" twice')
    target = tmp_path / "out"
    refuse(lambda: importing.import_folder(tmp_path, target), 'gives "00000007" twice')
    for name in ("config.json", "rope.json"):
        (tmp_path / name).write_text(text)
    refuse(lambda: pretrained.load(tmp_path), 'config.json: gives "00000007" twice')
    refuse(lambda: sealed.read_json(tmp_path / "rope.json", sealed=False), "twice")
    assert len(strict_json.parse(big(twice=False).encode(), where="x")) == 120_000


@pytest.mark.parametrize("depth", [64, 900, 100_000])
def test_depth(depth):
    nested = b'{"a":' + b"[" * depth + b"]" * depth + b"}"
    refuse(lambda: strict_json.parse(nested, where="x"), "x: is nested too deeply")
    shallow = b'{"a":' + b"[" * 60 + b"]" * 60 + b"}"
    assert strict_json.parse(shallow, where="x")


SECRET = "what the user keeps elsewhere"


@pytest.mark.parametrize("name", importing.TOKENIZER_FILES)
@pytest.mark.parametrize("kind", ["absolute", "relative", "through a folder"])
def test_a_tokenizer_file_that_is_a_link_out_is_handed_to_nobody(tmp_path, name, kind):
    write(tmp_path / "in", LLAMA)
    model = pretrained.load(tmp_path / "in", dtype=None)
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / name).write_text(SECRET)
    if kind == "through a folder":
        (tmp_path / "in" / "inside").symlink_to(tmp_path / "secret")
        (tmp_path / "in" / name).symlink_to(f"inside/{name}")
    else:
        relative = kind == "relative"
        (tmp_path / "in" / name).symlink_to(
            f"../secret/{name}" if relative else tmp_path / "secret" / name
        )
    message = f"in: {name} is a link that leaves the folder. Put the file itself there"
    model = exporting.dataclasses.replace(model, tokenizer_dir=tmp_path / "in")
    refuse(lambda: exporting.export_folder(model, tmp_path / "out"), message)
    refuse(lambda: importing.import_folder(tmp_path / "in", tmp_path / "work"), message)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "secret"]


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "rope.json"])
def test_files_of_a_model_that_are_no_files_of_its_folder(tmp_path, name):
    write(tmp_path / "in", LLAMA)
    rope.save(
        tmp_path / "in" / "rope.json", pretrained.load(tmp_path / "in").rope_fn, {}, max_len=9
    )
    path = tmp_path / "in" / name
    path.rename(tmp_path / name)
    for place in (tmp_path / name, "/proc/self/environ", "/dev/zero"):
        path.symlink_to(place)
        message = "holds no model|leaves the folder"
        refuse(lambda: pretrained.load(tmp_path / "in"), message)
        path.unlink()
    os.mkfifo(path)
    refuse(lambda: pretrained.load(tmp_path / "in"), "holds no model|is not a regular file")
    path.unlink()
    path.mkdir()
    refuse(lambda: pretrained.load(tmp_path / "in"), "holds no model|is not a regular file")


def test_a_link_within_the_folder_is_followed(tmp_path):
    write(tmp_path, LLAMA)
    (tmp_path / "config.json").rename(tmp_path / "original.json")
    (tmp_path / "config.json").symlink_to("original.json")
    assert pretrained.load(tmp_path).config.num_layers == 2


READERS = {
    "a document": lambda path: sealed.read_json(path, sealed=False),
    "a journal": lambda path: Journal(path, "x/1", ordered=True),
    "a rope": rope_formats.read,
    "a tokenizer": load_tokenizer,
}


@pytest.mark.parametrize("name", READERS)
def test_pipes_and_devices_are_not_read(tmp_path, name):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), Path("/proc/kcore"), tmp_path):
        if path.exists():
            refuse(lambda path=path: READERS[name](path), str(path))


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_weights_that_are_not_finite_are_named(tmp_path, dtype, bad):
    tensors = write(tmp_path / "in", LLAMA, dtype=dtype)
    tensors[Q][3, 5] = bad
    save_file(tensors, tmp_path / "in" / "model.safetensors")
    message = f"model.safetensors: {Q} holds NaN or infinity"
    refuse(lambda: pretrained.load(tmp_path / "in"), message)
    target = tmp_path / "work"
    refuse(lambda: importing.import_folder(tmp_path / "in", target), message)
    assert pretrained.load(tmp_path / "in", weights=False).config.num_layers == 2


def test_a_checkpoint_that_is_not_finite_is_named(tmp_path):
    write(tmp_path / "in", LLAMA)
    importing.import_folder(tmp_path / "in", tmp_path / "work")
    params = pretrained.load(tmp_path / "work", dtype=None).params
    params["layers"]["q_LDNH"][1, 0, 0, 0] = np.nan
    checkpoint.save_params(tmp_path / "work", 1, params, {})
    message = "layers/q_LDNH holds NaN or infinity"
    refuse(lambda: pretrained.load(tmp_path / "work"), message)
    assert pretrained.load(tmp_path / "work", step=0).params


def test_the_largest_numbers_are_finite(tmp_path):
    tensors = write(tmp_path, LLAMA)
    tensors[Q][0, 0] = np.finfo(np.float32).max
    save_file(tensors, tmp_path / "model.safetensors")
    assert pretrained.load(tmp_path, dtype=None).params
    for dtype in ("float16", "bfloat16"):
        message = f"{Q} has values beyond the range of {dtype}"
        refuse(lambda dtype=dtype: pretrained.load(tmp_path, dtype=dtype), message)


def gguf(*, keys: bytes = b"", count: int | None = None, tensors: bytes = b"", num_tensors=0):
    """Returns the bytes of a GGUF file with a context length of 64 and dims of 8."""
    pairs = [_text("general.architecture") + struct.pack("<I", 8) + _text("phi3")]
    for name, value in (("context_length", 64), ("attention.key_length", 8)):
        pairs.append(_text(f"phi3.{name}") + struct.pack("<II", 4, value))
    count = len(pairs) + bool(keys) if count is None else count
    head = b"GGUF" + struct.pack("<IQQ", 3, num_tensors, count)
    return head + b"".join(pairs) + keys + tensors + bytes(64)


def _text(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def value(kind: int, raw: bytes, name="phi3.x") -> bytes:
    return _text(name) + struct.pack("<I", kind) + raw


def tensor(shape, kind=0, offset=0, name="rope_factors_long.weight") -> bytes:
    dims = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return _text(name) + dims + struct.pack("<IQ", kind, offset)


HOSTILE_GGUF = {
    "nothing": b"GGUF",
    "version": b"GGUF" + struct.pack("<IQQ", 9, 0, 0) + bytes(64),
    "2^60 keys": gguf(count=2**60),
    "2^64 - 1 tensors": gguf(num_tensors=2**64 - 1),
    "more keys than there are": gguf(count=50),
    "a text of 2^63 bytes": gguf(keys=value(8, struct.pack("<Q", 2**63) + b"x")),
    "an array of 2^60 numbers": gguf(keys=value(9, struct.pack("<IQ", 4, 2**60))),
    "an array of 2^60 texts": gguf(keys=value(9, struct.pack("<IQ", 8, 2**60))),
    "an array of 2^60 arrays": gguf(keys=value(9, struct.pack("<IQ", 9, 2**60))),
    "arrays in arrays": gguf(keys=value(9, struct.pack("<IQ", 9, 1) * 5000)),
    "an unknown type": gguf(keys=value(77, bytes(8))),
    "a key twice": gguf(keys=value(4, bytes(4), "phi3.context_length")),
    "alignment of 0": gguf(keys=value(4, bytes(4), "general.alignment")),
    "text for a number": gguf(keys=value(8, _text("x"), "phi3.rope.dimension_count")),
    "a negative length": gguf(keys=value(5, struct.pack("<i", -1), "phi3.rope.dimension_count")),
    "NaN": gguf(keys=value(6, struct.pack("<f", np.nan), "phi3.rope.freq_base")),
    "infinity": gguf(keys=value(12, struct.pack("<d", np.inf), "phi3.rope.scaling.factor")),
    "beyond float32": gguf(keys=value(12, struct.pack("<d", 1e200), "phi3.rope.freq_base")),
    "a tensor of 2^40 numbers": gguf(tensors=tensor((2**40,)), num_tensors=1),
    "a tensor of 2^32 dims": gguf(
        tensors=_text("rope_factors_long") + struct.pack("<I", 2**32 - 1), num_tensors=1
    ),
    "a tensor beyond the end": gguf(tensors=tensor((4,), offset=2**63), num_tensors=1),
    "quantised factors": gguf(tensors=tensor((4,), kind=12), num_tensors=1),
    "half of the factors": gguf(tensors=tensor((4,)), num_tensors=1),
}


@pytest.mark.parametrize("name", HOSTILE_GGUF)
def test_a_hostile_gguf_is_one_line(tmp_path, name):
    (tmp_path / "x.gguf").write_bytes(HOSTILE_GGUF[name])
    refuse(lambda: rope_formats.read(tmp_path / "x.gguf"), "x.gguf: ")


def test_a_plain_gguf_needs_no_package(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    (tmp_path / "x.gguf").write_bytes(gguf(keys=value(9, struct.pack("<IQ2f", 6, 2, 7.0, 8.0))))
    assert rope_formats.read(tmp_path / "x.gguf").rope_fn.rotary_dim == 8
    assert gguf_header.read(tmp_path / "x.gguf", ()).values["phi3.x"] == 7.0


def test_every_refusal_is_one_line_of_bounded_length():
    text = str(InputError("a\nb \x1b[31m red \ud800 " + "x" * 10_000))
    assert text.startswith("a b \\x1b[31m red \\ud800 xxx") and len(text) == 2000
