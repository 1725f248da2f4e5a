"""Models that are written as GGUF: judged by the package gguf, and read back as they were.

tests/serve runs them in llama.cpp.
"""

import dataclasses
import functools
import json

import convert_gguf_tokenizer_test as of_tokenizers
import gguf_models
import gguf_routes
import gguf_vocabularies
import jax
import numpy as np
import pytest
import tiny_tokenizers
import tokenizers
from gguf_routes import LONG, LONGEST, ORIGINAL, ROUTES, SHORT
from tokenizers import pre_tokenizers

from jaxrope import data, rope
from jaxrope.convert import (
    config_keys,
    exporting,
    folders,
    gguf_export,
    gguf_splits,
    gguf_vocabulary,
    layout,
    pretrained,
    rope_export,
)
from jaxrope.errors import InputError
from tests.rope_samples import run, saved

gguf = pytest.importorskip("gguf", reason="needs the package gguf (the test extra has it)")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def written(model, folder, **settings):
    """Writes a model; returns the file and what was said."""
    settings = exporting.Settings(overwrite=True, **settings)
    return folder / "m.gguf", gguf_export.export(model, folder / "m.gguf", settings)


def opened(path):
    """The metadata, without the architecture, and the tensors, as the package reads them."""
    reader = gguf.GGUFReader(path)
    name = reader.fields["general.architecture"].contents()
    values = {k.removeprefix(f"{name}."): field.contents() for k, field in reader.fields.items()}
    return values, {tensor.name: tensor for tensor in reader.tensors}


@pytest.mark.parametrize("name", ROUTES)
def test_a_model_is_read_back_as_it_was(tmp_path, name):
    model = gguf_routes.model(tmp_path, name)
    path, _ = written(model, tmp_path, dtype="f32")
    again = pretrained.load(path)
    values, _ = opened(path)
    reach = rope_export.longest(model.config, model.rope_fn)
    assert (values["general.architecture"], values["context_length"]) == (ROUTES[name][2], reach)
    off = 1e-7 if "gemma3" in name else 0  # norms are stored with 1 added
    same = functools.partial(np.testing.assert_allclose, rtol=0, atol=off)
    jax.tree.map(same, again.params, model.params)
    assert rope_export.difference(again.rope_fn, model.rope_fn) < 3e-7
    lengths = (again.config.max_len, again.rope_fn.original_len)
    assert lengths == (reach, model.rope_fn.original_len)
    ids = [data.load_tokenizer(m.tokenizer_dir).prompt("It was <s> dark.") for m in (model, again)]
    np.testing.assert_array_equal(*ids)


@pytest.mark.parametrize(
    "name", ["llama with biases", "qwen2, yarn", "phi3, two sets", "qwen3, own yarn"]
)
def test_tensors_are_those_of_a_converter(tmp_path, name):
    """Names by the package, rows of q and k in ggml's order by another hand."""
    model = gguf_routes.model(tmp_path, name)
    path, _ = written(model, tmp_path, dtype="f32")
    hf = config_keys.to_hf(model.config, dtype="float32") | dict(
        rope_theta=1e4, max_position_embeddings=64
    )
    hf["tie_word_embeddings"] = model.config.tie_embeddings
    rows = {t.name: layout.write_tensor(t, model.params) for t in layout.tensors(model.config)}
    expected = gguf_models.write(tmp_path / "other.gguf", hf, rows)
    ours, others = opened(path)[1], opened(expected)[1]
    assert {*ours} - {*others} <= {"rope_factors_long.weight", "rope_factors_short.weight"}
    for key, tensor in others.items():
        np.testing.assert_array_equal(ours[key].data, tensor.data)


def test_what_llama_cpp_reads_of_a_rope(tmp_path):
    def found(name):
        values, tensors = opened(written(gguf_routes.model(tmp_path, name), tmp_path)[0])
        scaling = {k: v for k, v in values.items() if k.startswith("rope.scaling.")}
        rows = {
            k.removesuffix(".weight"): t.data for k, t in tensors.items() if k.startswith("rope")
        }
        return scaling, rows

    original = {"rope.scaling.original_context_length": ORIGINAL}
    scaling, rows = found("llama, one set")
    # no type: with longrope llama.cpp passes over rope_freqs; no factor: it divides positions
    assert scaling == original | {"rope.scaling.attn_factor": pytest.approx(1.17)}
    np.testing.assert_array_equal(rows.pop("rope_freqs"), np.float32(LONG))
    assert not rows
    scaling, rows = found("llama, two sets")
    kind = {"rope.scaling.type": "longrope", "rope.scaling.attn_factor": pytest.approx(1.1)}
    assert scaling == original | kind
    np.testing.assert_array_equal(rows["rope_factors_long"], np.float32(LONG))
    np.testing.assert_array_equal(rows["rope_factors_short"], np.float32(SHORT))
    scaling, rows = found("llama, own yarn")
    multiple = 1.25 / (1 + 0.1 * np.log(4))  # llama.cpp multiplies YaRN's own by it
    yarn = {"type": "yarn", "factor": 4.0}
    yarn = {f"rope.scaling.{key}": value for key, value in yarn.items()}
    assert scaling == original | yarn | {"rope.scaling.attn_factor": pytest.approx(multiple)}
    assert not rows and found("llama, plain")[0] == {}


def test_borders_of_yarn_are_factors_or_for_the_command_line(tmp_path):
    lines, tensors = {}, {}
    for family in ("llama", "qwen3"):
        model = gguf_routes.model(tmp_path, f"{family}, yarn's borders")
        path, lines[family] = written(model, tmp_path)
        tensors[family] = "rope_freqs.weight" in opened(path)[1]
    assert tensors == {"llama": True, "qwen3": False}
    assert "--yarn-beta-fast=9 --yarn-beta-slow=0.5." in lines["qwen3"][1]
    assert "--yarn-beta" not in " ".join(lines["llama"])


def test_dtypes(tmp_path):
    model = gguf_routes.model(tmp_path, "llama, plain")
    config = dataclasses.replace(model.config, mlp_dim=80)  # 80 is no multiple of 32
    layers = model.params["layers"]
    layers = {k: v[..., :80] if k in ("gate_LDF", "up_LDF") else v for k, v in layers.items()}
    layers["down_LFD"] = layers["down_LFD"][:, :80]
    model = dataclasses.replace(model, config=config, params=model.params | {"layers": layers})
    rows = {t.name: layout.write_tensor(t, model.params) for t in layout.tensors(config)}
    name, hf_name = "blk.0.attn_output.weight", "model.layers.0.self_attn.o_proj.weight"
    for dtype, kind in dict(f32="F32", f16="F16", bf16="BF16", q8_0="Q8_0", float16="F16").items():
        path, said = written(model, tmp_path, dtype=dtype)
        values, tensors = opened(path)
        assert any("2 matrices, blk.0.ffn_down.weight" in x for x in said) == (kind == "Q8_0")
        assert {t.tensor_type.name for t in tensors.values() if len(t.shape) == 1} == {"F32"}
        matrices = {k: t.tensor_type.name for k, t in tensors.items() if len(t.shape) == 2}
        odd = {k for k in matrices if "ffn_down" in k}
        assert {matrices[k] for k in {*matrices} - odd} == {kind}
        assert {matrices[k] for k in odd} == {"F16" if kind == "Q8_0" else kind}
        expected = gguf.quantize(rows[hf_name], gguf.GGMLQuantizationType[kind])
        assert bytes(tensors[name].data) == bytes(expected)
    assert values["general.file_type"] == gguf.LlamaFileType.MOSTLY_F16
    with pytest.raises(InputError, match="Unknown --dtype 'q4_0'"):
        written(model, tmp_path, dtype="q4_0")
    stored = dataclasses.replace(config, stored_dtype="bfloat16")
    path, said = written(dataclasses.replace(model, config=stored), tmp_path)
    assert any("are float32, and written as bfloat16, as they came in" in line for line in said)
    tensors = opened(path)[1]
    assert tensors[name].tensor_type.name == "BF16"  # as they came in


def of_vocabulary(folder, values, **extra):
    """A model that came with a vocabulary of gguf_vocabularies."""
    return pretrained.load(gguf_vocabularies.write(folder / "v.gguf", values, **extra), dtype=None)


def test_every_way_of_splitting_a_text_is_told_apart():
    texts = (gguf_vocabulary.PLAIN, gguf_vocabulary.MARKS)
    pieces = {
        group: str([gguf_vocabulary.split(group, text) for text in texts])
        for group in gguf_splits.SPLITS
    }
    assert pieces.pop("smaug") == pieces["llama3"]  # they differ in whole words
    assert len({*pieces.values()}) == len(pieces)


@pytest.mark.parametrize("group", of_tokenizers.LLAMA_CPP)
def test_byte_level_tokenizers_keep_the_ids_of_llama_cpp(tmp_path, group):
    model = of_vocabulary(tmp_path, gguf_vocabularies.byte_level(gguf_splits.NAMES[group]))
    path, _ = written(model, tmp_path)
    assert gguf_splits.GROUPS[opened(path)[0]["tokenizer.ggml.pre"]] == group
    assert of_tokenizers.digest(folders.open_folder(path)) == of_tokenizers.LLAMA_CPP[group]


@pytest.mark.parametrize("name", of_tokenizers.OTHERS)
def test_other_tokenizers_keep_the_ids_of_llama_cpp(tmp_path, name):
    values, extra, expected = of_tokenizers.OTHERS[name]
    path, _ = written(of_vocabulary(tmp_path, values, **extra), tmp_path)
    assert of_tokenizers.digest(folders.open_folder(path)) == expected
    again, _ = opened(path)
    for key in ("token_type", "tokens", "bos_token_id", "unknown_token_id"):
        assert again.get(f"tokenizer.ggml.{key}") == values.get(key)


def with_tokenizer(folder, tokenizer, split="", **settings):
    """A model with a tokenizer of the library's."""
    if split:
        by = pre_tokenizers.Split(tokenizers.Regex(split), "isolated")
        bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([by, bytes_])
    model = gguf_routes.model(folder, "llama, plain")
    place = tiny_tokenizers.write(folder / "other", tokenizer, tokenizer_config=settings)
    return dataclasses.replace(model, tokenizer_dir=place)


def test_published_splits_have_their_names(tmp_path):
    """As tokenizer.json of GPT-2, SmolLM, Llama 3 and Qwen 2 have them."""
    words = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
    digits = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), gpt2])
    splits = {"gpt-2": gpt2, "smollm": digits, "llama3": words % "{1,3}", "qwen2": words % ""}
    for name, before in splits.items():
        tokenizer, regex = tiny_tokenizers.bpe(), before if isinstance(before, str) else ""
        if not regex:
            tokenizer.pre_tokenizer = before
        tokenizer.model.ignore_merges = name == "llama3"
        tokenizer.normalizer = tokenizers.normalizers.NFC() if name == "qwen2" else None
        path, said = written(with_tokenizer(tmp_path, tokenizer, regex), tmp_path)
        assert opened(path)[0]["tokenizer.ggml.pre"] == name
        assert any("letters in two characters" in line for line in said) == (name == "qwen2")


def metaspace(scheme):
    return None, pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)


GEMMA = (
    tokenizers.normalizers.Replace(" ", "▁"),
    pre_tokenizers.Split(" ", "merged_with_previous"),
)
AROUND = "other tokens than this tokenizer to a text around '<unk>'"
# How published files write SentencePiece's: (normalizer, pre-tokenizer), whether llama.cpp puts a
# space in front, whether it differs around special tokens.
PIECES = {
    "mistral": (metaspace("first"), True, True),
    "no space": (metaspace("never"), False, False),
    "gemma": (GEMMA, False, False),
}


@pytest.mark.parametrize("name", PIECES)
def test_pieces_as_others_write_them(tmp_path, name):
    (normalizer, before), prefix, expected = PIECES[name]
    model = of_vocabulary(tmp_path, gguf_vocabularies.sentencepiece())
    tokenizer = tiny_tokenizers.backend(model.tokenizer_dir)
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, before
    place = tiny_tokenizers.write(tmp_path / "other", tokenizer, tokenizer_config={})
    path, said = written(dataclasses.replace(model, tokenizer_dir=place), tmp_path)
    assert opened(path)[0]["tokenizer.ggml.add_space_prefix"] == prefix
    assert any(AROUND in line for line in said) == expected


def test_special_tokens_that_strip_are_told_by_the_name(tmp_path):
    model = of_vocabulary(tmp_path, gguf_vocabularies.sentencepiece())
    place = tiny_tokenizers.write(
        tmp_path / "other", tiny_tokenizers.backend(model.tokenizer_dir), tokenizer_config={}
    )
    spec = json.loads((place / "tokenizer.json").read_text())
    for token in spec["added_tokens"]:
        token["rstrip"] = token["special"] and token["content"] != "<|endoftext|>"
    (place / "tokenizer.json").write_text(json.dumps(spec))
    model = dataclasses.replace(model, tokenizer_dir=place)
    assert opened(written(model, tmp_path)[0])[0]["general.name"] == "phi-3"
    for token in spec["added_tokens"]:  # llama.cpp refuses a Phi-3 without it
        token["content"] = token["content"].replace("<|endoftext|>", "<|end|>")
    spec["model"]["vocab"]["<|end|>"] = spec["model"]["vocab"].pop("<|endoftext|>")
    (place / "tokenizer.json").write_text(json.dumps(spec))
    path, said = written(model, tmp_path)
    assert opened(path)[0]["general.name"] == "m" and any("around" in line for line in said)


def test_begin_end_and_template(tmp_path):
    template = "{{ messages[0].content }}"
    tokenizer = tiny_tokenizers.bpe(tiny_tokenizers.template("<s> $A </s>"))
    settings = dict(eos_token="</s>", chat_template=template)
    model = with_tokenizer(tmp_path, tokenizer, **settings)
    ends = dict(bos_token_id=0, eos_token_id=[1, 5, 6])
    (tmp_path / "other" / "generation_config.json").write_text(json.dumps(ends))
    config = dataclasses.replace(model.config, pad_id=3)
    values, _ = opened(written(dataclasses.replace(model, config=config), tmp_path)[0])
    names = "bos eos eot eom padding".split()
    assert [values[f"tokenizer.ggml.{name}_token_id"] for name in names] == [0, 1, 5, 6, 3]
    assert values["tokenizer.ggml.add_bos_token"] and values["tokenizer.ggml.add_eos_token"]
    assert values["tokenizer.chat_template"] == template
    tokens, kinds = (values[f"tokenizer.ggml.{name}"] for name in ("tokens", "token_type"))
    assert len(tokens) == len(kinds) == config.vocab_size and kinds[0] == gguf.TokenType.CONTROL
    assert (tokens[-1], kinds[-1]) == ("[PAD351]", gguf.TokenType.UNUSED)


def test_a_name_from_which_llama_cpp_draws_no_conclusions(tmp_path):
    model = gguf_routes.model(tmp_path, "phi3, two sets")
    path = tmp_path / "my_Phi3_mini-phi-3.gguf"
    gguf_export.export(model, path)
    name = opened(path)[0]["general.name"].lower()
    assert "phi3" not in name and "phi-3" not in name and name.startswith("my_phi")


def changed(name, **changes):
    def make(folder):
        model = gguf_routes.model(folder, name)
        return dataclasses.replace(model, config=dataclasses.replace(model.config, **changes))

    return make


def with_rope(name, **section):
    def make(folder):
        model = gguf_routes.model(folder, name)
        geometry = dataclasses.asdict(model.rope_fn.geometry)
        return dataclasses.replace(model, rope_fn=rope.make(**section, **geometry))

    return make


def buckets(*rows, **changes):
    row = dict(factors=LONG, start_tokens=0, attention_factor=1.0) | changes
    return dict(method="longrope", buckets=[row | dict(max_len=n) for n in rows])


_LAYERS = buckets(LONGEST, factors=[LONG, LONG])
REFUSED = {
    "start tokens": (with_rope("llama, plain", **buckets(1024, start_tokens=4)), "start_tokens 4"),
    "three buckets": (with_rope("llama, plain", **buckets(256, 512, 1024)), "3 length buckets"),
    "a border": (with_rope("llama, plain", **buckets(512, 1024)), "the border between the buckets"),
    "layers": (with_rope("llama, plain", **_LAYERS), "factors of each layer's own"),
    "dynamic": (
        with_rope("llama, plain", method="dynamic_ntk", factor=4.0),
        "method 'dynamic_ntk'",
    ),
    "qwen3": (
        with_rope("qwen3, own yarn", **buckets(1024)),
        "has no factors for .* qwen3 .*form='ya",
    ),
    "gemma3": (with_rope("gemma3, pi", **buckets(1024)), "has no factors for .* gemma3"),
    "gemma3's scale": (
        with_rope("gemma3, pi", **gguf_routes.OWN_YARN),
        "scales the sliding layers of gemma3",
    ),
    "a window": (changed("mistral", sliding_window=512), "llama cannot express sliding_window"),
    "biases": (changed("qwen3, own yarn", qkv_bias=True, out_bias=True), "has no bias behind"),
    "a cap": (changed("gemma3, pi", attention_cap=30.0), "gemma3 cannot express attention_cap"),
    "heads": (changed("phi3, yarn", head_dim=24, rotary_dim=16), "needs heads . head_dim = 64"),
    "family": (changed("llama, plain", family="granite"), "granite is not written as GGUF"),
    "no tokenizer": (
        lambda folder: dataclasses.replace(
            gguf_routes.model(folder, "llama, plain"), tokenizer_dir=None
        ),
        "has no tokenizer, and llama.cpp runs none without",
    ),
    "unigram": (
        lambda folder: with_tokenizer(folder, tiny_tokenizers.unigram()),
        "only tokenizers that merge pairs are written for llama.cpp, this one is of type Unig",
    ),
    "another split": (
        lambda folder: with_tokenizer(folder, tiny_tokenizers.bpe(), split=r"\w+|\W+"),
        "llama.cpp has no tokenizer that splits and merges a text like this one",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_llama_cpp_would_not_run_is_one_line(tmp_path, name):
    make, message = REFUSED[name]
    model = make(tmp_path)
    with pytest.raises(InputError, match=message) as error:
        written(model, tmp_path)
    assert "\n" not in str(error.value) and not (tmp_path / "m.gguf").exists()


def test_a_loss_that_is_allowed_is_said(tmp_path):
    model = with_rope("llama, plain", **buckets(1024, start_tokens=4))(tmp_path)
    path, said = written(model, tmp_path, allow_lossy=True)
    assert any(line.startswith("note: lost: start_tokens 4") for line in said)
    assert pretrained.load(path).rope_fn.bucket(1024).factors == tuple(LONG)


def test_command_line(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = gguf_routes.model(tmp_path, "llama, two sets")
    exporting.export_folder(
        dataclasses.replace(
            model, rope_fn=rope.make("none", **dataclasses.asdict(model.rope_fn.geometry))
        ),
        "hf",
    )
    file = saved(tmp_path, model.rope_fn)
    arguments = ("export", "hf", "m.gguf", "--to=gguf", f"--rope={file}", "--dtype=q8_0")
    code, out, err = run(capsys, *arguments, "--dry_run")
    assert (code, err) == (0, "") and out.endswith("would write m.gguf\n")
    code, out, err = run(capsys, *arguments)
    assert (
        code == 0 and out.startswith("llama.cpp takes one set") and out.endswith("wrote m.gguf\n")
    )
    assert json.loads(opened("m.gguf")[0]["jaxrope.provenance"]) == {"generations": 40}
    for changes, message in {
        ("m.gguf", "--to=gguf"): "exists. Name another, or pass --overwrite",
        ("m.bin", "--to=gguf"): "must end in .gguf",
        ("x", "--to=ggml"): "Unknown --to 'ggml'",
        ("x", "--to=gguf", "--adapter"): "--adapter is a PEFT folder: leave --to out",
    }.items():
        code, out, err = run(capsys, "export", "hf", *changes)
        assert code == 2 and err.count("\n") == 1 and message in err


def test_without_the_package(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    with pytest.raises(InputError, match=r"needs the package gguf. Install it \(pip install"):
        written(gguf_routes.model(tmp_path, "llama, plain"), tmp_path)
