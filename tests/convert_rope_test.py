"""A rope alone between programs: what comes back, what each will do, and what is refused."""

import dataclasses
import itertools
import json
import math
import shlex
import struct

import numpy as np
import pytest
from hf_models import CASES, write
from parity_test import (
    TOLERANCE,
    give_our_phases,
    load_torch,
    our_logits,
    tokens_of,
    torch_logits,
)

from jaxrope import pretrained, rope
from jaxrope.convert import __main__ as program
from jaxrope.convert import exporting, rope_export
from jaxrope.convert.rope_formats import FORMATS, Settings, convert, read
from jaxrope.errors import InputError

SHORT = [1.0, 1.05, 1.1, 1.3, 1.31, 1.5, 1.7, 2.05]
LONG = [1.03, 1.2, 2.06, 3.1, 4.77, 5.0, 6.3, 7.99]
GEOMETRIES = {
    "one": dict(head_dim=16, theta=1e4, original_len=32),
    "two": dict(head_dim=16, theta=5e5, original_len=64),
}


def rows(*borders, attention=(1.3, 1.3), start_tokens=0):
    """Two buckets by default: SHORT up to the first border, LONG up to the second."""
    factors = [SHORT, *([LONG] * (len(borders) - 1))] if len(borders) > 1 else [LONG]
    attention = [*attention[:1], *([attention[1]] * (len(borders) - 1))]
    return [
        dict(max_len=n, factors=f, start_tokens=start_tokens, attention_factor=a)
        for n, f, a in zip(borders, factors, attention, strict=True)
    ]


def rope_of(name="one", buckets=None, **changes):
    geometry = GEOMETRIES[name] | changes
    start = geometry["original_len"]
    return rope.make("longrope", **geometry, buckets=buckets or rows(start, 8 * start))


def saved(folder, rope_fn):
    rope.save(folder / "rope.json", rope_fn, {"generations": 40})
    return folder / "rope.json"


def needs(*forms):
    if "gguf" in forms:
        pytest.importorskip("gguf", reason="needs the package gguf (the test extra has it)")


def same(one, two):
    assert one.geometry == two.geometry
    assert [dataclasses.astuple(b) for b in one.buckets] == [
        dataclasses.astuple(b) for b in two.buckets
    ]


@pytest.mark.parametrize("name", GEOMETRIES)
@pytest.mark.parametrize("first,second", [*itertools.product(FORMATS, FORMATS)])
def test_every_pair_of_formats_gives_the_rope_back(tmp_path, first, second, name):
    needs(first, second)
    rope_fn = rope_of(name)
    convert(saved(tmp_path, rope_fn), tmp_path / "a", Settings(first))
    convert(tmp_path / "a", tmp_path / "b", Settings(second))
    same(read(tmp_path / "b").rope_fn, rope_fn)  # to the last bit: the factors have two decimals


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("law", ("su", 1.0))
def test_attention_factors(tmp_path, form, law):
    needs(form)
    rope_fn = rope_of(buckets=rows(32, 256, attention=(math.sqrt(1.6), "su")))
    if law == 1.0:
        rope_fn = rope_of(buckets=rows(32, 256, attention=(1.0, 1.0)))
    convert(saved(tmp_path, rope_fn), tmp_path / "out", Settings(form))
    expected = math.sqrt(1 + math.log(8) / math.log(32)) if law == "su" else 1.0
    for length in (32, 33):
        assert read(tmp_path / "out").rope_fn.bucket(length).attention_factor == pytest.approx(
            expected, rel=1e-12
        )


@pytest.mark.parametrize("form", FORMATS)
def test_partial_rotation(tmp_path, form):
    needs(form)
    rope_fn = rope_of(head_dim=20, rotary_dim=16)
    path = saved(tmp_path, rope_fn)
    if form == "hf-llama":
        message = "a Llama turns all 20 dims of a head, this rope 16 of them. Use --format=hf-phi3"
        with pytest.raises(InputError, match=message):
            convert(path, tmp_path / "out", Settings(form))
        return
    convert(path, tmp_path / "out", Settings(form))
    same(read(tmp_path / "out").rope_fn, rope_fn)


@pytest.mark.parametrize(
    "name", ("phi3_mini_128k_apr2024", "phi3_mini_128k_jun2024", "phi3.5_mini", "phi4_mini")
)
def test_published_factors_survive_a_gguf(tmp_path, name):
    needs("gguf")
    rope_fn = rope.preset(name)
    rope.save(tmp_path / "rope.json", rope_fn, {})
    convert(tmp_path / "rope.json", tmp_path / "out", Settings("gguf"))
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


@pytest.mark.parametrize("arch", ("phi3", "phimoe", "minicpm", "minicpm3"))
def test_what_llama_cpp_reads(tmp_path, arch):
    needs("gguf")
    path = saved(tmp_path, rope_of("two"))
    convert(path, tmp_path / "out", Settings("gguf", arch))
    metadata, tensors = parse_gguf((tmp_path / "out").read_bytes())
    assert metadata.pop("general.architecture") == arch
    assert metadata.pop(f"{arch}.rope.scaling.attn_factor") == pytest.approx(1.3, rel=1e-7)
    # rope.scaling.factor is not among them: llama.cpp would divide positions by it, besides
    assert metadata == {
        f"{arch}.context_length": 512,
        f"{arch}.attention.key_length": 16,
        f"{arch}.attention.value_length": 16,
        f"{arch}.rope.dimension_count": 16,
        f"{arch}.rope.freq_base": 5e5,
        f"{arch}.rope.scaling.type": "longrope",
        f"{arch}.rope.scaling.original_context_length": 64,
    }
    np.testing.assert_array_equal(tensors["rope_factors_long.weight"], np.float32(LONG))
    np.testing.assert_array_equal(tensors["rope_factors_short.weight"], np.float32(SHORT))
    assert len(tensors) == 2


def test_what_vllm_reads(tmp_path):
    """Its own rule: the two mscales, whatever attention_factor says."""
    buckets = rows(32, 256, attention=(1.1, 1.4))
    convert(saved(tmp_path, rope_of(buckets=buckets)), tmp_path / "out", Settings("vllm"))
    flag, value = shlex.split((tmp_path / "out").read_text())
    content = json.loads(value)
    assert flag == "--hf-overrides" and content["rope_parameters"] == content["rope_scaling"]
    section = content["rope_parameters"]
    assert (section["short_factor"], section["long_factor"]) == (SHORT, LONG)
    assert (section["short_mscale"], section["long_mscale"]) == (1.1, 1.4)
    assert section["rope_type"] == "longrope" and section["rope_theta"] == 1e4
    assert content["max_position_embeddings"] == 256
    assert section["original_max_position_embeddings"] == 32
    assert "attention_factor" not in section
    same(read(tmp_path / "out").rope_fn, rope_of(buckets=buckets))


@pytest.mark.parametrize("form,config", (("hf-llama", "LlamaConfig"), ("hf-phi3", "Phi3Config")))
def test_what_transformers_reads(tmp_path, form, config):
    pytest.importorskip("torch", reason="torch is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope_fn = rope_of("two")
    convert(saved(tmp_path, rope_fn), tmp_path / "out", Settings(form))
    keys = json.loads((tmp_path / "out").read_text())
    heads = dict(hidden_size=32, num_attention_heads=2, num_key_value_heads=2)
    theirs = getattr(transformers, config)(**(keys | heads))
    for length in (64, 65, 512):
        inv_freq, scale = ROPE_INIT_FUNCTIONS["longrope"](theirs, "cpu", length)
        expected = rope_fn.geometry.base_inv_freq / (SHORT if length <= 64 else LONG)
        np.testing.assert_allclose(inv_freq.numpy(), expected, rtol=1e-6)
        assert scale == 1.3


def test_phi35_moe_has_two_mscales(tmp_path):
    config = dict(model_type="phimoe", hidden_size=64, num_attention_heads=4, rope_theta=1e4)
    config |= dict(max_position_embeddings=131072, original_max_position_embeddings=4096)
    scale = math.sqrt(1 + math.log(64) / math.log(2048))
    assert scale == pytest.approx(1.243163121016122, rel=1e-14)
    section = dict(type="longrope", short_factor=SHORT, long_factor=LONG)
    section |= dict(short_mscale=scale, long_mscale=scale, original_max_position_embeddings=4096)
    (tmp_path / "config.json").write_text(json.dumps(config | {"rope_scaling": section}))
    found = read(tmp_path).rope_fn
    assert [b.attention_factor for b in found.buckets] == [scale, scale]
    section |= dict(long_mscale=1.3)
    (tmp_path / "config.json").write_text(json.dumps(config | {"rope_scaling": section}))
    message = r"llama.cpp cannot express this rope: differing attention factors \(1.24316, 1.3\)"
    needs("gguf")
    with pytest.raises(InputError, match=message):
        convert(tmp_path, tmp_path / "out", Settings("gguf"))
    assert not (tmp_path / "out").exists()


SAID = {
    "hf-llama": (
        "transformers takes `short_factor` while the longest sequence of a batch has at most 32",
        "keys cached on the short side are not rotated anew",
        "`long_factor` as soon as `--max-model-len` exceeds 32, for short prompts as well",
        "SGLang takes `long_factor` for a whole batch once one sequence of it has more than 33",
        "llama.cpp's converter drops the factors of this architecture",
    ),
    "hf-phi3": (
        "its Phi-3 then computes the whole cache anew",
        "llama.cpp takes one set for a context, by its allocated size (`-c`)",
        "transformers 4 refuses this config",
    ),
    "gguf": ("llama.cpp takes one set for a context", "holds the rope alone, no weights"),
    "vllm": ("vLLM takes one set for good",),
    "jaxrope": ("each sequence takes the factors of its own length, up to 32, 256 tokens",),
}
UNSAID = {
    "hf-llama": "computes the whole cache anew",
    "hf-phi3": "drops the factors",
    "gguf": "transformers",
    "vllm": "llama.cpp",
    "jaxrope": "vLLM",
}


@pytest.mark.parametrize("form", FORMATS)
def test_what_each_program_will_do(tmp_path, form):
    needs(form)
    told = " ".join(convert(saved(tmp_path, rope_of()), tmp_path / "out", Settings(form)))
    for words in SAID[form]:
        assert words in told
    assert UNSAID[form] not in told


def test_one_set_of_factors_cannot_be_chosen_wrongly(tmp_path):
    path = saved(tmp_path, rope_of(buckets=rows(256, attention=("su", "su"))))
    told = convert(path, tmp_path / "out", Settings("hf-phi3"))
    assert "The factors are the same at every length" in told[0] and len(told) == 2
    assert convert(path, tmp_path / "again", Settings("jaxrope")) == [
        "jaxrope: one set of factors for sequences of up to 256 tokens."
    ]


REFUSED = {
    "three buckets": (rows(32, 64, 256), r"3 length buckets \(up to 32, 64, 256\)"),
    "another border": (rows(64, 256), "the border between the buckets, 64, would become"),
    "start tokens": (rows(32, 256, start_tokens=4), "start_tokens 4: the first positions"),
    "attention": (rows(32, 256, attention=(1.0, 1.2)), r"differing attention factors \(1, 1.2\)"),
}
READERS = {"hf-llama": "Hugging Face", "hf-phi3": "Hugging Face", "gguf": "llama.cpp"}


@pytest.mark.parametrize("form", (*READERS, "vllm"))
@pytest.mark.parametrize("name", REFUSED)
def test_what_would_be_silently_wrong(tmp_path, name, form):
    needs(form)
    buckets, message = REFUSED[name]
    path = saved(tmp_path, rope_of(buckets=buckets))
    if (name, form) == ("attention", "vllm"):
        return  # it has one for each set: test_what_vllm_reads
    reader = READERS.get(form, "vLLM")
    with pytest.raises(InputError, match=f"^{reader} cannot express this rope: {message}"):
        convert(path, tmp_path / "out", Settings(form))
    assert not (tmp_path / "out").exists()
    told = convert(path, tmp_path / "out", Settings(form, allow_lossy=True))
    assert any(line.startswith("note: lost: ") for line in told)
    assert read(tmp_path / "out").rope_fn.bucket(256).factors == tuple(LONG)


def test_factors_of_each_layer(tmp_path):
    layered = [row | dict(factors=[row["factors"], LONG]) for row in rows(32, 256)]
    path = saved(tmp_path, rope_of(buckets=layered))
    for form in ("hf-llama", "hf-phi3", "gguf", "vllm"):
        needs(form)
        with pytest.raises(InputError, match="factors of each layer's own cannot be written"):
            convert(path, tmp_path / "out", Settings(form, allow_lossy=True))
    convert(path, tmp_path / "out", Settings("jaxrope"))
    same(read(tmp_path / "out").rope_fn, rope_of(buckets=layered))
    write(tmp_path / "in", CASES["llama"])
    model = pretrained.with_rope(pretrained.load(tmp_path / "in"), path)
    with pytest.raises(InputError, match="all of them give one set to every layer"):
        exporting.export_folder(model, tmp_path / "hf")


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
    "llama": (dict(arch="llama"), "llama.cpp ignores rope factors of the architecture 'llama'"),
    "no factors": (
        dict(rope__scaling__type="longrope", rope_factors_long=None, rope_factors_short=None),
        "rope.scaling.type is longrope, without both rope_factors_long and rope_factors_short",
    ),
    "a scaling factor": (
        dict(rope__scaling__factor=8.0),
        "rope.scaling.factor must be absent beside rope factors, got 8: llama.cpp divides every",
    ),
    "yarn": (dict(rope__scaling__type="yarn"), "must be none, linear or longrope, got 'yarn'"),
    "other frequencies": (dict(rope_freqs=SHORT), "holds rope_freqs, which llama.cpp takes at"),
    "length": (dict(rope_factors_long=LONG[:6]), r"factors must hold 8 numbers \(rotary_dim / 2\)"),
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
    raw = path.read_bytes()
    for cut in (5, 40, 300, len(raw) - 30):
        path.write_bytes(raw[:cut])
        with pytest.raises(InputError, match="is not a whole GGUF file"):
            read(path)


def test_lengths_of_factors(tmp_path):
    convert(saved(tmp_path, rope_of()), tmp_path / "out", Settings("hf-llama"))
    content = json.loads((tmp_path / "out").read_text())
    content["rope_scaling"]["long_factor"] = content["rope_parameters"]["long_factor"] = LONG[:7]
    (tmp_path / "out").write_text(json.dumps(content))
    with pytest.raises(InputError, match="long_factor must hold 8 numbers, half the dims"):
        read(tmp_path / "out")


def run(capsys, *arguments):
    try:
        program.main([str(argument) for argument in arguments])
        code = 0
    except SystemExit as error:
        code = error.code
    return code, *capsys.readouterr()


MISTAKES = {
    "no file": (("IN", "out", "--format=vllm"), "holds no rope. Name a rope.json, a config.json"),
    "format": (("rope.json", "out", "--format=ggu"), "Unknown --format 'ggu'. Did you mean 'gguf'"),
    "no format": (("rope.json", "out"), "arguments are required: --format"),
    "arch": (
        ("rope.json", "out", "--format=gguf", "--arch=llama"),
        "--arch=llama: llama.cpp has no longrope for it, a GGUF would load and ignore the factors",
    ),
    "other arch": (
        ("rope.json", "out", "--format=gguf", "--arch=phi4"),
        "Unknown --arch 'phi4'. Did you mean 'phi3'? Known: minicpm, minicpm3, phi3, phimoe",
    ),
    "taken": (("rope.json", "rope.json", "--format=vllm"), "exists. Name another, or pass"),
    "folder": (("rope.json", ".", "--format=vllm"), "is a folder. Name a file in it"),
    "no folder": (("rope.json", "a/b", "--format=vllm"), "there is no such folder. Make it"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes(tmp_path, capsys, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    saved(tmp_path, rope_of())
    arguments, message = MISTAKES[name]
    code, out, err = run(capsys, "rope", *arguments)
    assert code == 2 and out == ""
    assert err.startswith("error: ") and err.count("\n") == 1 and message in err


def test_command_line(tmp_path, capsys):
    path = saved(tmp_path, rope_of())
    code, out, err = run(capsys, "rope", path, tmp_path / "out", "--format=hf-llama")
    assert (code, err) == (0, "")
    assert out.startswith("transformers takes") and out.endswith(f"wrote {tmp_path / 'out'}\n")
    path = saved(tmp_path, rope_of(buckets=rows(64, 256)))
    lossy = ("rope", path, tmp_path / "out", "--format=vllm", "--overwrite", "--allow_lossy")
    code, _, err = run(capsys, *lossy)
    assert code == 0 and err.startswith("note: lost: the border between the buckets")


def test_without_the_package(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    with pytest.raises(InputError, match=r"GGUF needs the package gguf. Install it \(pip install"):
        convert(saved(tmp_path, rope_of()), tmp_path / "out", Settings("gguf"))


def test_what_was_written_is_read_again(tmp_path, monkeypatch):
    real = rope_export.HfRope.keys

    def wrong(self, config):
        return real(dataclasses.replace(self, theta=self.theta * 1.001), config)

    monkeypatch.setattr(rope_export.HfRope, "keys", wrong)
    with pytest.raises(RuntimeError, match="does not mean the rope it was written for"):
        convert(saved(tmp_path, rope_of()), tmp_path / "out", Settings("hf-llama"))
    assert not (tmp_path / "out").exists()


# The layout of a whole model

AS_PHI3 = exporting.Settings(arch="phi3")
PLAIN = CASES["llama"] | dict(hidden_size=64)  # head_dim 16 = 64 / 4, as Phi-3 needs it


def exported(tmp_path, config, settings=AS_PHI3, buckets=None):
    write(tmp_path / "in", config)
    model = pretrained.load(tmp_path / "in")
    rope_fn = rope_of(buckets=buckets or rows(32, 128))
    model = dataclasses.replace(model, rope_fn=rope_fn)
    exporting.export_folder(model, tmp_path / "out", settings)
    return model


@pytest.mark.parametrize("tied", (False, True))
def test_a_llama_as_phi3(tmp_path, tied):
    """transformers itself changes over: the same logits below, at and above the original length."""
    ours = exported(tmp_path, PLAIN | dict(tie_word_embeddings=tied))
    torch, theirs = load_torch(tmp_path / "out")
    assert type(theirs).__name__ == "Phi3ForCausalLM"
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["original_max_position_embeddings"] == 32
    assert config["rope_scaling"]["short_factor"] == SHORT
    for length in (24, 32, 33, 100):
        tokens = tokens_of(PLAIN, length)
        expected = torch_logits(torch, theirs, tokens)
        assert np.ptp(expected) > 2
        np.testing.assert_allclose(our_logits(ours, tokens), expected, rtol=0, atol=TOLERANCE)
        phases = theirs.model.rotary_emb.forward
        give_our_phases(torch, theirs, ours.rope_fn, length)  # theirs are 6e-6 off at 100 tokens
        expected = torch_logits(torch, theirs, tokens)
        np.testing.assert_allclose(our_logits(ours, tokens), expected, rtol=0, atol=2e-5)
        theirs.model.rotary_emb.forward = phases
    again = pretrained.load(tmp_path / "out")
    np.testing.assert_equal(again.params, ours.params)
    assert again.config.family == "phi3"


def test_transformers_generates_across_the_original_length(tmp_path):
    ours = exported(tmp_path, PLAIN)
    torch, theirs = load_torch(tmp_path / "out")
    tokens = tokens_of(PLAIN, 28)
    with torch.no_grad():
        found = theirs.generate(
            torch.as_tensor(tokens)[None], max_new_tokens=12, do_sample=False, eos_token_id=None
        )
    expected = list(tokens)
    for _ in range(12):
        expected.append(int(our_logits(ours, np.asarray(expected))[-1].argmax()))
    assert found[0].tolist() == [int(token) for token in expected]


OBSTACLES = {
    "biases": ("phi3", PLAIN | dict(attention_bias=True), "a Phi-3 .* no biases, this model has"),
    "head_dim": ("phi3", CASES["llama"], "needs head_dim = .* = 8, got 16"),
    "window": ("llama", CASES["phi3"], "a Llama has no sliding window, this model has one of 40"),
    "partial": ("llama", CASES["phi3 partial"], "a Llama turns all 16 dims of a head, this .* 12"),
    "some biases": ("llama", CASES["qwen2"], "a Llama has a bias on q, k, v and o, or on none"),
    "unknown": ("phi", PLAIN, "Unknown --arch 'phi'. Did you mean 'phi3'"),
}


@pytest.mark.parametrize("name", OBSTACLES)
def test_a_layout_that_cannot_say_the_model(tmp_path, capsys, name):
    arch, config, message = OBSTACLES[name]
    write(tmp_path / "in", config)
    with pytest.raises(InputError, match=message):
        exporting.check_arch(arch, pretrained.read_config(tmp_path / "in"))
    code, _, err = run(capsys, "export", tmp_path / "in", tmp_path / "out", f"--arch={arch}")
    assert code == 2 and err.count("\n") == 1 and not (tmp_path / "out").exists()


def test_the_layout_is_the_models_own_by_default(tmp_path):
    exported(tmp_path, PLAIN, exporting.Settings())
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
