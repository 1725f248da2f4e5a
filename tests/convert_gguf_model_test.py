"""Whole models in GGUF: what llama.cpp's converter wrote comes back as it was before."""

import dataclasses
import json
import shutil

import gguf_models
import hf_models
import jax
import ml_dtypes
import numpy as np
import pytest
from hf_models import CASES, random_tensors

from jaxrope import decoder
from jaxrope.convert import folders, pretrained, rope_formats, tensor_files
from jaxrope.errors import InputError
from tests.rope_samples import run

gguf = pytest.importorskip("gguf", reason="needs the package gguf (the test extra has it)")
_LLAMA, _PHI3, _QWEN2 = CASES["llama"], CASES["phi3"], CASES["qwen2"]
_LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0)
_LLAMA3 |= dict(original_max_position_embeddings=8192, rope_theta=500_000.0)
_V5 = {key: value for key, value in _LLAMA.items() if key != "rope_theta"}
MODELS = {
    "llama": _LLAMA,
    "llama tied": _LLAMA | dict(tie_word_embeddings=True),
    "llama tied with biases": CASES["llama tied with biases"],
    "llama linear": CASES["llama linear"],
    "llama yarn": CASES["llama yarn"],
    "llama llama3": _V5 | dict(rope_parameters=_LLAMA3, max_position_embeddings=131_072),
    "llama longrope": CASES["llama longrope of v5"],
    "mistral": CASES["mistral"],
    "qwen2": _QWEN2,
    "qwen2 yarn": _QWEN2 | dict(rope_scaling=CASES["llama yarn"]["rope_scaling"]),
    "phi3": _PHI3,
    "phi3 partial": CASES["phi3 partial"],
}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def both(folder, config, **more):
    """The same model as a Hugging Face folder and as a GGUF."""
    tensors = hf_models.write(folder / "hf", config)
    return folder / "hf", gguf_models.write(folder / "m.gguf", config, tensors, **more)


def of_the_rope(model):
    lengths = (24, 100, model.config.max_len)
    return [np.asarray(x) for n in lengths for x in jax.tree.leaves(model.rope_fn(n))]


def same(one, two):
    jax.tree.map(np.testing.assert_array_equal, one.params, two.params)
    free = {"rope", "theta"}  # compared by what it does, below
    for field in dataclasses.fields(one.config):
        if field.name not in free:
            assert getattr(one.config, field.name) == getattr(two.config, field.name), field.name
    for ours, theirs in zip(of_the_rope(one), of_the_rope(two), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=3e-7)


@pytest.mark.parametrize("name", MODELS)
def test_a_gguf_is_the_model_that_it_was_made_of(tmp_path, name):
    folder, file = both(tmp_path, MODELS[name])
    model = pretrained.load(file)
    same(model, pretrained.load(folder))
    assert model.source == str(file)
    assert pretrained.read_config(file) == model.config


@pytest.mark.parametrize("name", MODELS)
def test_a_rope_that_is_read_alone_is_that_of_the_model(tmp_path, name):
    """Of the file, and of a folder that holds nothing else."""
    file = gguf_models.write(
        tmp_path / "m.gguf", MODELS[name], hf_models.random_tensors(MODELS[name])
    )
    model = pretrained.load(file, weights=False)
    for source in (file, tmp_path):
        found = rope_formats.read(source)
        assert found.rope_fn.geometry == model.rope_fn.geometry
        assert found.longest == model.config.max_len
        for length in (24, 100, model.config.max_len):
            assert found.rope_fn.bucket(length) == model.rope_fn.bucket(length)


def test_the_constants_of_llama_3_are_those_of_its_config(tmp_path):
    _, file = both(tmp_path, MODELS["llama llama3"])
    rope = {key: value for key, value in _LLAMA3.items() if key != "rope_theta"}
    found = pretrained.read_config(file)
    assert found.rope == {"method": rope.pop("rope_type"), "max_len": found.max_len} | {
        key: value for key, value in rope.items() if key != "original_max_position_embeddings"
    }
    assert found.original_len == 8192


def test_factors_of_no_known_law_are_kept_one_by_one(tmp_path):
    config = MODELS["llama llama3"] | dict(max_position_embeddings=16_384)
    odd = config | dict(rope_parameters=_LLAMA3 | dict(low_freq_factor=2.0, factor=5.0))
    extra = [("rope.scaling.original_context_length", 8192), ("rope.scaling.attn_factor", 1.25)]
    _, file = both(tmp_path, odd, extra=extra)
    factors = gguf_models.llama3_factors(odd["rope_parameters"], odd)
    for length in (100, 16_000):
        bucket = pretrained.load(file).rope_fn.bucket(length)
        np.testing.assert_allclose(bucket.factors, factors, rtol=1e-7)
        assert bucket.attention_factor == 1.25


K_QUANTS = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS", "IQ2_XXS", "IQ3_S", "IQ1_M", "TQ2_0")
OTHERS = ("F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL", "MXFP4")


def block_bytes(kind, rng):
    """Random blocks whose float16 scales are finite."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    raw = rng.integers(0, 256, (96, 256 // block, size), np.uint8)
    if kind.name in ("F16", "BF16"):
        dtype = np.float16 if kind.name == "F16" else ml_dtypes.bfloat16
        return rng.normal(size=(96, 256)).astype(dtype).view(np.uint8).reshape(96, -1)
    odd = [at for at in range(1, size) if at]
    raw[..., odd] &= 0x3B  # no byte that is the upper half of an infinite or absent number
    raw[..., 0] &= 0x3B
    return raw.reshape(96, -1)


@pytest.mark.parametrize("name", K_QUANTS + OTHERS)
def test_every_quantisation_is_that_of_the_package(tmp_path, name):
    kind = gguf.GGMLQuantizationType[name]
    raw = block_bytes(kind, np.random.default_rng(3))
    config = _LLAMA | dict(hidden_size=256, head_dim=64)
    tensors = random_tensors(config, 0, np.float32)

    def embedding(writer):
        writer.add_tensor("token_embd.weight", raw, raw_dtype=kind)

    rest = {key: value for key, value in tensors.items() if "embed_tokens" not in key}
    file = gguf_models.write(tmp_path / "m.gguf", config, rest, tokenizer=embedding)
    model = pretrained.load(file, dtype=None)
    expected = gguf.dequantize(raw, kind)
    np.testing.assert_array_equal(np.float32(model.params["embed_VD"]), expected)
    plain = {"F16": np.float16, "BF16": ml_dtypes.bfloat16}
    assert model.params["embed_VD"].dtype == plain.get(name, np.float32)
    assert any(f"{name} (1)" in note for note in model.notes) == (name not in plain)


def test_quantised_rows_of_q_and_k_are_put_in_order(tmp_path):
    """Also where a quantised row is read: the order of rows does not cut blocks."""
    config = _LLAMA | dict(hidden_size=64, intermediate_size=64)
    tensors = random_tensors(config, 0, np.float32)
    kind = gguf.GGMLQuantizationType.Q8_0
    file = gguf_models.write(tmp_path / "m.gguf", config, tensors, kind=kind)
    entries = tensor_files.catalogue(folders.open_folder(file))
    for name, values in tensor_files.read_tensors(entries):
        expected = tensors[name]
        if expected.ndim == 2:
            expected = gguf.dequantize(gguf.quantize(expected, kind), kind)
        np.testing.assert_array_equal(values, expected)


def split(path, parts):
    """Writes the tensors of a GGUF into several files, as llama-gguf-split does."""
    source = gguf.GGUFReader(path)
    tensors = source.tensors
    names = []
    for number in range(parts):
        name = path.with_name(f"m-{number + 1:05d}-of-{parts:05d}.gguf")
        writer = gguf.GGUFWriter(name, "llama")
        if number == 0:
            for key, field in source.fields.items():
                if not key.startswith(("GGUF.", "general.architecture")):
                    writer.add_key_value(key, field.contents(), field.types[0], *field.types[1:2])
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", parts)
        for tensor in tensors[number::parts]:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        names.append(name)
    return names


def test_a_model_in_three_files_is_one(tmp_path):
    folder, file = both(tmp_path, _LLAMA)
    parts = split(file, 3)
    file.unlink()
    expected = pretrained.load(folder)
    for place in (parts[0], parts[2], tmp_path):  # any of them, or their folder
        same(pretrained.load(place), expected)
    parts[1].unlink()
    with pytest.raises(InputError, match="does not hold m-00002-of-00003.gguf. Put all 3 parts"):
        pretrained.load(parts[0])


def test_import_and_export_from_a_gguf(tmp_path, capsys):
    folder, file = both(tmp_path, CASES["llama yarn"])
    code, out, _ = run(capsys, "import", file, tmp_path / "workdir")
    assert code == 0 and out.startswith("wrote")
    code, *_ = run(capsys, "export", file, tmp_path / "out")
    assert code == 0
    expected = pretrained.load(folder)
    for place in ("workdir", "out"):
        same(pretrained.load(tmp_path / place), expected)
    code, out, _ = run(capsys, "import", file, tmp_path / "other", "--dry_run")
    assert code == 0 and "m.gguf: llama" in out


def test_a_fingerprint_is_of_the_content(tmp_path):
    _, file = both(tmp_path, _LLAMA)
    before = pretrained.fingerprint(file)
    moved = tmp_path / "elsewhere" / "other.gguf"
    moved.parent.mkdir()
    shutil.copy(file, moved)
    assert pretrained.fingerprint(moved) == before
    raw = bytearray(moved.read_bytes())
    raw[-3] ^= 1
    moved.write_bytes(raw)
    assert pretrained.fingerprint(moved) != before


def test_a_file_that_changes_is_read_anew(tmp_path):
    _, file = both(tmp_path, _LLAMA)
    assert pretrained.read_config(file).num_layers == 2
    both(tmp_path, _LLAMA | dict(num_hidden_layers=1))
    assert pretrained.read_config(file).num_layers == 1


def test_a_folder_of_several_models_asks(tmp_path):
    _, file = both(tmp_path, _LLAMA)
    shutil.copy(file, tmp_path / "mmproj-x.gguf")  # a picture encoder is no language model
    assert pretrained.read_config(tmp_path).num_layers == 2
    shutil.copy(file, tmp_path / "n.gguf")
    with pytest.raises(InputError, match="holds 2 models in GGUF. Name one of them: m.gguf, n"):
        pretrained.load(tmp_path)


def test_a_pointer_that_others_wrote_is_not_followed(tmp_path):
    _, file = both(tmp_path, _LLAMA)
    view = folders.open_folder(file)
    shutil.copytree(view, tmp_path / "hostile")
    with pytest.raises(InputError, match="holds neither model.safetensors nor"):
        pretrained.load(tmp_path / "hostile")


BROKEN = {
    "layers differ": (
        dict(extra=[("feed_forward_length", [48, 32])]),
        "must be one number for all",
    ),
    "experts": (dict(extra=[("expert_count", 8)]), "m.gguf: num_local_experts must be"),
    "softer attention": (dict(extra=[("attention.scale", 0.5)]), "m.gguf: attention_multiplier"),
    "no eps": (dict(extra=[("attention.layer_norm_rms_epsilon", "x")]), "must be a finite number"),
    "another scaling": (dict(extra=[("rope.scaling.type", "ntk")]), "Unknown .*scaling.type 'ntk'"),
    "longrope without": (
        dict(extra=[("rope.scaling.type", "longrope")]),
        "needs both rope_factors",
    ),
    "values of other size": (dict(extra=[("attention.value_length", 8)]), "equal attention.key"),
    "no layers": (dict(extra=[("block_count", 3)]), "num_hidden_layers of config.json must be 2"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_gguf_that_cannot_be_meant_is_one_line(tmp_path, name):
    changes, message = BROKEN[name]
    _, file = both(tmp_path, _LLAMA, **changes)
    with pytest.raises(InputError, match=message):
        pretrained.load(file)


def test_an_unknown_architecture_is_named(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(InputError, match="Unknown .*general.architecture 'mamba'"):
        pretrained.load(tmp_path / "m.gguf")


def test_without_the_package_plain_weights_are_read(tmp_path, monkeypatch):
    folder, file = both(tmp_path, _LLAMA)
    kind = gguf.GGMLQuantizationType.Q4_0
    config = _LLAMA | dict(hidden_size=64, intermediate_size=64)
    tensors = random_tensors(config, 0, np.float32)
    quantised = gguf_models.write(tmp_path / "q.gguf", config, tensors, kind=kind)
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    same(pretrained.load(file), pretrained.load(folder))
    with pytest.raises(InputError, match=r"need the package gguf. Install it \(pip install"):
        pretrained.load(quantised)


@pytest.mark.parametrize("cut", (1, 100, 4000))
def test_a_file_that_ends_early_is_one_line(tmp_path, cut):
    _, file = both(tmp_path, _LLAMA)
    file.write_bytes(file.read_bytes()[:-cut])
    with pytest.raises(InputError, match="lies beyond the end of the file. Download it again"):
        pretrained.load(file)


TINY = dict(vocab_size=96, hidden_size=32, intermediate_size=48, num_attention_heads=4)
TINY |= dict(num_key_value_heads=2, head_dim=16, max_position_embeddings=256, bos_token_id=1)
TINY |= dict(eos_token_id=2, pad_token_id=0)
_SLIDING = ["sliding_attention"] * 5
OF_TRANSFORMERS = {
    "Qwen3": dict(num_hidden_layers=2, rope_theta=1e6, tie_word_embeddings=True),
    "Gemma3Text": dict(num_hidden_layers=7, sliding_window=20, query_pre_attn_scalar=16)
    | dict(layer_types=[*_SLIDING, "full_attention", "sliding_attention"])
    | dict(
        rope_parameters={
            "full_attention": dict(rope_type="linear", factor=4.0, rope_theta=1e6),
            "sliding_attention": dict(rope_type="default", rope_theta=1e4),
        }
    ),
    "Qwen2": dict(num_hidden_layers=2, rope_theta=1e6, tie_word_embeddings=False),
    "Phi3": dict(num_hidden_layers=2, rope_theta=1e4, head_dim=8, partial_rotary_factor=0.5),
    "Llama": dict(num_hidden_layers=2, rope_theta=1e4),
}


@pytest.mark.parametrize("name", OF_TRANSFORMERS)
def test_transformers_runs_what_is_read_as_what_was_written(tmp_path, name):
    """Its class, built from our config.json and our tensors, against the model itself."""
    torch = pytest.importorskip("torch", reason="needs torch (Python 3.11)")
    transformers = pytest.importorskip("transformers", reason="needs transformers (Python 3.11)")
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**TINY | OF_TRANSFORMERS[name])
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2)
    tensors = {key: value.numpy() for key, value in model.state_dict().items()}
    file = gguf_models.write(tmp_path / "m.gguf", config.to_dict(), tensors)
    view = folders.open_folder(file)
    again = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.from_pretrained(view)
    ).eval()
    assert type(again) is type(model)
    entries = tensor_files.catalogue(view)
    state = {key: torch.as_tensor(value) for key, value in tensor_files.read_tensors(entries)}
    missing, unexpected = again.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}
    tokens = torch.arange(3, 93)[None]
    with torch.no_grad():
        ours, theirs = (x(tokens).logits.numpy() for x in (again, model))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5 * np.abs(theirs).max())
    assert json.loads((view / "config.json").read_text())["model_type"] == config.model_type


def test_the_forward_pass_of_a_gguf(tmp_path):
    folder, file = both(tmp_path, _LLAMA)
    tokens = np.arange(90)[None]
    one, two = (
        decoder.logits(
            m.config, m.params, tokens, m.rope_fn(90), settings=decoder.ForwardSettings()
        )
        for m in (pretrained.load(folder), pretrained.load(file))
    )
    np.testing.assert_array_equal(one, two)
