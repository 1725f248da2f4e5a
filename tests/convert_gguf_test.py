"""A rope in GGUF: what llama.cpp reads in it, and files that do not mean what they look like."""

import struct

import numpy as np
import pytest

from jaxrope import rope
from jaxrope.convert.rope_formats import read
from jaxrope.errors import InputError
from tests.rope_samples import LONG, SHORT, into_gguf, needs, rope_of, saved


@pytest.mark.parametrize(
    "name", ("phi3_mini_128k_apr2024", "phi3_mini_128k_jun2024", "phi3.5_mini", "phi4_mini")
)
def test_published_factors_survive_a_gguf(tmp_path, name):
    needs("gguf")
    rope_fn = rope.preset(name)
    rope.save(tmp_path / "rope.json", rope_fn, {})
    into_gguf(tmp_path / "rope.json", tmp_path / "out", "phi3")
    again = read(tmp_path / "out").rope_fn
    for length in (4096, 4097):
        wanted, found = rope_fn.bucket(length), again.bucket(length)
        np.testing.assert_array_equal(np.float32(found.factors), np.float32(wanted.factors))
        assert found.attention_factor == pytest.approx(1.1902380714238083, rel=1e-15)


def parse_gguf(raw):
    """Reads a GGUF file by the letter of its specification: (metadata, tensors)."""
    view, at = memoryview(raw), 0

    def take(form):
        nonlocal at
        values = struct.unpack_from("<" + form, view, at)
        at += struct.calcsize("<" + form)
        return values[0] if len(values) == 1 else values

    def text():
        nonlocal at
        size = take("Q")
        at += size
        return bytes(view[at - size : at]).decode()

    assert bytes(view[:4]) == b"GGUF"
    at = 4
    _, num_tensors, num_values = take("I"), take("Q"), take("Q")
    metadata, infos, tensors = {}, [], {}
    for _ in range(num_values):
        name, kind = text(), take("I")
        metadata[name] = text() if kind == 8 else take({4: "I", 6: "f"}[kind])
    for _ in range(num_tensors):
        name, dims = text(), take("I")
        infos.append((name, [take("Q") for _ in range(dims)], take("I"), take("Q")))
    start = -(-at // 32) * 32
    for name, shape, kind, offset in infos:
        assert kind == 0  # float32
        tensors[name] = np.frombuffer(raw, "<f4", shape[0], start + offset)
    return metadata, tensors


@pytest.mark.parametrize("arch", ("llama", "phi3", "phimoe", "minicpm3"))
def test_what_llama_cpp_reads(tmp_path, arch):
    needs("gguf")
    path = saved(tmp_path, rope_of("two"))
    into_gguf(path, tmp_path / "out", arch)
    metadata, tensors = parse_gguf((tmp_path / "out").read_bytes())
    assert metadata.pop("general.architecture") == arch
    assert metadata.pop(f"{arch}.rope.scaling.attn_factor") == pytest.approx(1.3, rel=1e-7)
    # rope.scaling.factor is not among them: llama.cpp would divide positions by it, besides
    assert metadata == {
        f"{arch}.context_length": 512,
        f"{arch}.attention.key_length": 16,
        f"{arch}.rope.dimension_count": 16,
        f"{arch}.rope.freq_base": 5e5,
        f"{arch}.rope.scaling.type": "longrope",
        f"{arch}.rope.scaling.original_context_length": 64,
    }
    np.testing.assert_array_equal(tensors["rope_factors_long.weight"], np.float32(LONG))
    np.testing.assert_array_equal(tensors["rope_factors_short.weight"], np.float32(SHORT))
    assert len(tensors) == 2


def gguf_file(path, arch="phi3", **changes):
    """A GGUF file of another converter's making; a change of None leaves the key out."""
    import gguf

    values = {"context_length": 256, "attention.key_length": 16, "rope.dimension_count": 16}
    values |= {"rope.freq_base": 1e4, "rope.scaling.original_context_length": 32}
    tensors = {"rope_factors_long.weight": LONG, "rope_factors_short.weight": SHORT}
    for key, value in changes.items():
        place = tensors if key.startswith("rope_f") else values
        name = f"{key}.weight" if place is tensors else key.replace("__", ".")
        place[name] = value
    writer = gguf.GGUFWriter(path, arch)
    for key, value in values.items():
        add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        if value is not None:
            add[type(value)](f"{arch}.{key}", value)
    for name, value in tensors.items():
        if value is not None:
            writer.add_tensor(name, np.float32(value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


BROKEN = {
    "no factors": (
        dict(rope__scaling__type="longrope", rope_factors_long=None, rope_factors_short=None),
        "needs both rope_factors_long and rope_factors_short: llama.cpp runs it with plain",
    ),
    "one set": (dict(rope_factors_long=None), "needs both rope_factors_long and rope_factors_shor"),
    "yarn": (dict(rope__scaling__type="yarn"), "type is yarn beside rope_factors_long, rope_fact"),
    "another type": (dict(rope__scaling__type="su"), "Unknown .*x.gguf: rope.scaling.type 'su'"),
    "length": (dict(rope_factors_long=LONG[:6]), "long_factor must hold 8 numbers, half the dims"),
    "no length": (dict(context_length=None), "context_length is missing"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_gguf_that_does_not_mean_what_it_looks_like(tmp_path, name):
    needs("gguf")
    changes, message = BROKEN[name]
    with pytest.raises(InputError, match=message):
        read(gguf_file(tmp_path / "x.gguf", **changes))


def test_a_gguf_of_a_whole_model(tmp_path):
    needs("gguf")
    path = gguf_file(
        tmp_path / "x", attention__key_length=None, embedding_length=64, attention__head_count=4
    )
    found = read(path).rope_fn
    assert (found.head_dim, found.rotary_dim, found.max_len) == (16, 16, 256)
    assert found.bucket(256).attention_factor == 1.0  # llama.cpp's own default, not the law
    assert found.bucket(32).factors == tuple(SHORT)
    plain = dict(rope_factors_long=None, rope_factors_short=None)
    linear = read(gguf_file(tmp_path / "y", rope__scaling__factor=4.0, **plain)).rope_fn
    assert (linear.method, linear.constants) == ("pi", {"factor": 4.0})
    assert read(gguf_file(tmp_path / "z", arch="llama", **plain)).rope_fn.method == "none"
    none = dict(rope__scaling__factor=4.0, rope__scaling__type="none")
    assert read(gguf_file(tmp_path / "n", **none, **plain)).rope_fn.method == "none"
    raw = path.read_bytes()
    for cut in (5, 40, 300, len(raw) - 30):
        path.write_bytes(raw[:cut])
        with pytest.raises(InputError, match="is not a whole GGUF file"):
            read(path)


@pytest.mark.parametrize("arch", ["llama", "phi3", "qwen2"])
def test_factors_are_divided_by_as_llama_cpp_does(tmp_path, arch):
    """rope.scaling.factor as well, and rope_freqs at every length, of any architecture."""
    needs("gguf")
    found = read(gguf_file(tmp_path / "a", arch, rope__scaling__factor=8.0)).rope_fn
    assert found.bucket(33).factors == tuple(8 * x for x in LONG)
    found = read(gguf_file(tmp_path / "b", arch, rope_freqs=SHORT)).rope_fn
    assert [found.bucket(length).factors for length in (32, 256)] == [tuple(SHORT)] * 2
    part = dict(rope_factors_long=LONG[:4], rope_factors_short=SHORT[:4])
    found = read(gguf_file(tmp_path / "c", arch, rope__dimension_count=8, **part)).rope_fn
    assert (found.head_dim, found.rotary_dim) == (16, 8)
