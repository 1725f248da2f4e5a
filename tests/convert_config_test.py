"""config.json: what is understood, and the one line for everything else."""

import json

import pytest
from hf_models import CASES

from jaxrope.convert import config as hf_config
from jaxrope.convert import config_keys, families
from jaxrope.errors import InputError

LLAMA, LONGROPE = CASES["llama"], CASES["llama longrope of v5"]
YARN = CASES["llama yarn"]["rope_scaling"]
FAMILIES = ("llama", "mistral", "qwen2", "phi3")


def read(folder, config):
    text = config if isinstance(config, str | bytes) else json.dumps(config)
    (folder / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    return hf_config.read(folder)


def without(config, *keys):
    return {key: value for key, value in config.items() if key not in keys}


def test_every_spelling_means_the_same(tmp_path):
    inside = YARN | {"rope_theta": 500.0}
    outside = without(YARN, "original_max_position_embeddings")
    spellings = (
        {"rope_scaling": YARN, "rope_theta": 500.0},
        {"rope_scaling": without(YARN, "rope_type") | {"type": "yarn"}, "rope_theta": 500.0},
        {"rope_parameters": inside},
        {"rope_parameters": inside, "rope_scaling": YARN, "rope_theta": 500.0},
        {"rope_scaling": outside, "original_max_position_embeddings": 32, "rope_theta": 500.0},
    )
    read_ones = [read(tmp_path, without(LLAMA, "rope_theta") | keys)[0] for keys in spellings]
    assert all(config == read_ones[0] for config in read_ones)
    assert (read_ones[0].theta, read_ones[0].original_len, read_ones[0].max_len) == (500.0, 32, 128)
    constants = {"factor": 4.0, "beta_fast": 4.0, "beta_slow": 0.5, "truncate": True}
    assert read_ones[0].rope.items() >= ({"method": "yarn"} | constants).items()


def test_su_is_longrope_with_two_buckets_and_the_law(tmp_path):
    section = without(LONGROPE["rope_parameters"], "factor", "attention_factor", "rope_type")
    config, _ = read(
        tmp_path, LLAMA | {"rope_scaling": section | {"type": "su", "rope_theta": 1e4}}
    )
    short, long = config.rope["buckets"]
    assert (short["max_len"], long["max_len"]) == (32, 128)
    assert list(short["factors"]) == section["short_factor"]
    assert list(long["factors"]) == section["long_factor"]
    # sqrt(1 + ln 4 / ln 32) = sqrt(1.4)
    assert (
        short["attention_factor"] == long["attention_factor"] == pytest.approx(1.4**0.5, rel=1e-12)
    )


def test_factor_and_attention_factor_are_read(tmp_path):
    def attention(**keys):
        section = without(LONGROPE["rope_parameters"], "factor", "attention_factor") | keys
        config, _ = read(tmp_path, LLAMA | {"rope_theta": 500.0, "rope_parameters": section})
        return config.rope["buckets"][0]["attention_factor"]

    assert attention(factor=2.0) == pytest.approx(1.2**0.5, rel=1e-12)  # ln 2 / ln 32 = 0.2
    assert attention(factor=8.0) == pytest.approx(1.6**0.5, rel=1e-12)
    assert attention(attention_factor=1.25) == 1.25


def test_original_length(tmp_path):
    mistral = CASES["mistral"]
    assert read(tmp_path, mistral)[0].original_len == 128  # not the window
    assert read(tmp_path, mistral)[0].sliding_window == 20
    assert read(tmp_path, CASES["phi3"])[0].original_len == 32
    assert read(tmp_path, CASES["llama llama3"])[0].original_len == 32
    assert read(tmp_path, CASES["llama dynamic"])[0].original_len == 32
    assert read(tmp_path, without(YARN_CONFIG, "x"))[0].original_len == 32


YARN_CONFIG = CASES["llama yarn"]


def test_families(tmp_path):
    qwen, _ = read(tmp_path, CASES["qwen2"])
    assert (qwen.qkv_bias, qwen.out_bias, qwen.sliding_window) == (True, False, None)
    assert read(tmp_path, CASES["qwen2, a window everywhere"])[0].sliding_window == 20
    tied, _ = read(tmp_path, CASES["llama tied with biases"])
    assert (tied.qkv_bias, tied.out_bias, tied.mlp_bias, tied.tie_embeddings) == (True,) * 4
    assert read(tmp_path, CASES["phi3 partial"])[0].rotary_dim == 12
    assert read(tmp_path, LLAMA | {"sliding_window": 5})[0].sliding_window is None
    assert read(tmp_path, LLAMA | {"eos_token_id": [2, 7], "bos_token_id": None})[0].eos_id == (
        2,
        7,
    )


@pytest.mark.parametrize(
    "name, key",
    [("mistral", "sliding_window"), *((n, "max_position_embeddings") for n in FAMILIES)],
)
def test_what_is_absent_is_transformers_own_with_a_note(tmp_path, name, key):
    transformers = pytest.importorskip("transformers", reason="needs transformers (Python 3.11)")
    config, notes = read(tmp_path, without(CASES[name], key))
    theirs = transformers.AutoConfig.from_pretrained(tmp_path)
    assert getattr(config, {"sliding_window": key}.get(key, "max_len")) == getattr(theirs, key)
    assert any(f"has no {key}; {getattr(theirs, key)} is taken" in note for note in notes)
    _, none = read(tmp_path, CASES[name])
    assert not any("is taken" in note for note in none)


def test_the_first_llamas_longest_length(tmp_path):
    older = without(LLAMA, "max_position_embeddings") | {"max_sequence_length": 64}
    config, notes = read(tmp_path, older)
    assert config.max_len == config.original_len == 64
    assert notes == ["config.json has no max_position_embeddings; max_sequence_length is taken"]


def test_padding_may_lie_outside_the_vocabulary(tmp_path):
    for number in (-1, 0, 96, None):
        config, _ = read(tmp_path, LLAMA | {"pad_token_id": number})
        assert config.pad_id == config_keys.to_hf(config, dtype="float32")["pad_token_id"] == number


STABLELM = CASES["qwen2"] | dict(model_type="stablelm", hidden_size=64, layer_norm_eps=1e-3)


def test_keys_of_stablelm(tmp_path):
    config, notes = read(tmp_path, STABLELM | dict(use_qkv_bias=True, partial_rotary_factor=0.5))
    assert (config.norm_type, config.norm_eps, config.rotary_dim) == ("layer", 1e-3, 8)
    assert (config.qkv_bias, config.out_bias, notes) == (True, False, [])
    config, notes = read(tmp_path, without(STABLELM, "layer_norm_eps"))
    assert (config.qkv_bias, config.norm_eps, config.rotary_dim) == (False, 1e-5, 4)
    ends = (
        "no layer_norm_eps; 1e-05 is taken, transformers' own",
        "0.25 is taken, as transformers does",
    )
    assert [note.endswith(end) for note, end in zip(notes, ends, strict=True)] == [True, True]


def test_auto_map_is_not_followed(tmp_path):
    (tmp_path / "modeling_evil.py").write_text("raise SystemExit('executed')")
    config, _ = read(tmp_path, LLAMA | {"auto_map": {"AutoConfig": "modeling_evil.Config"}})
    assert config.family == "llama"


def test_an_assumed_theta_is_noted(tmp_path):
    _, notes = read(tmp_path, without(LLAMA, "rope_theta"))
    assert any("10000 is taken" in note for note in notes)


HOSTILE = {
    "not json": ("{", "is not JSON"),
    "a list": ("[1]", "must hold a JSON object, holds a list of 1"),
    "not utf-8": (b"\xff\xfe{}", "is not UTF-8"),
    "NaN": ('{"rms_norm_eps": NaN}', "holds NaN, which is not JSON"),
    "infinity": ('{"rms_norm_eps": -Infinity}', "holds -Infinity"),
    "beyond float64": ('{"rms_norm_eps": 1e999}', "beyond float64"),
    "deep": ('{"a":' + "[" * 200_000, "nested too deeply"),
    "a key twice": ('{"vocab_size": 1, "vocab_size": 2}', 'gives "vocab_size" twice'),
    "many digits": (
        '{"vocab_size": ' + "9" * 5000 + "}",
        "config.json: holds 9+[.]{3}, a number of 5000 digits",
    ),
    "git-lfs": ("version https://git-lfs.github.com/spec/v1\noid", "git-LFS pointer"),
    "huge": (b" " * 10_000_001, "at most 10,000,000 bytes"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text(tmp_path, name):
    text, message = HOSTILE[name]
    with pytest.raises(InputError, match=message) as caught:
        read(tmp_path, text)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def rope(**keys):
    return {"rope_parameters": {"rope_theta": 1e4} | keys}


SCALED = LONGROPE["rope_parameters"]
REFUSED = {
    "no model_type": ({"model_type": None}, "model_type is missing"),
    "unknown model_type": (
        {"model_type": "qwen9"},
        "model_type must be one of llama, .*, got 'qwen9'. Other decoders are not supported",
    ),
    "activation": ({"hidden_act": "gelu"}, 'hidden_act must be .silu. .*got "gelu"'),
    "clip_qkv": ({"clip_qkv": 8}, "clip_qkv must be None or 0.* not supported, got 8"),
    "quantised": (
        {"quantization_config": {"quant_method": "gptq", "bits": 4}},
        r"quantization_config says .* quantised \(gptq\), .*Save the model without",
    ),
    "no layers": ({"num_hidden_layers": 0}, "num_hidden_layers must be a whole number from 1"),
    "missing": ({"hidden_size": None}, "hidden_size is missing"),
    "text": ({"hidden_size": "32"}, 'hidden_size must be a whole number .*got "32"'),
    "true": ({"vocab_size": True}, "vocab_size must be a whole number .*got true"),
    "fraction": ({"vocab_size": 96.5}, "vocab_size must be a whole number .*got 96.5"),
    "2^40": ({"vocab_size": 2**40}, "vocab_size must be a whole number from 1 to 2147483647"),
    "eps": ({"rms_norm_eps": "a"}, "rms_norm_eps must be a finite number"),
    "eps of 1": ({"rms_norm_eps": 1.0}, "norm_eps must be a number above 0 and below 1"),
    "tie": ({"tie_word_embeddings": "yes"}, "tie_word_embeddings must be true or false"),
    "heads": ({"num_key_value_heads": 3}, "must be a multiple of num_key_value_heads, got 4 and 3"),
    "head_dim": (
        {"head_dim": None, "hidden_size": 30},
        "hidden_size must be a multiple of num_attention_heads .* got 30 and 4",
    ),
    "odd head_dim": ({"head_dim": 15}, "must make an even number of dims turn.*got 15"),
    "bos": ({"bos_token_id": 96}, "bos_id must be below model.vocab_size 96, got 96"),
    "partial": ({"partial_rotary_factor": 0.5}, "must be 1 for model_type 'llama', got 0.5"),
    "rope type": (rope(rope_type="yarm", factor=2), "rope_type 'yarm'. Did you mean 'yarn'"),
    "no rope type": (rope(factor=2.0), "rope_type is missing, beside factor"),
    "two rope types": (rope(rope_type="yarn", type="linear"), "rope_type and type disagree"),
    "rope of layer types": (
        rope(full_attention={"rope_type": "default"}),
        "a rope for each layer type is not supported",
    ),
    "rope is a list": ({"rope_scaling": [1]}, "rope_scaling must be an object"),
    "unknown constant": (
        rope(rope_type="yarn", beta_quick=3, factor=2.0),
        "Unknown key .*rope_parameters.beta_quick for rope_type 'yarn'",
    ),
    "a factor that is not read": (
        rope(rope_type="default", factor=8.0),
        "Unknown key .*rope_parameters.factor for rope_type 'default'",
    ),
    "factor below 1": (rope(rope_type="linear", factor=0.5), "factor must be .* at least 1"),
    "no factor": (rope(rope_type="dynamic"), "rope_parameters.factor is missing"),
    "theta twice": ({"rope_theta": 5.0} | rope(rope_type="default"), "disagree, 10000 and 5"),
    "theta": ({"rope_theta": 0.5}, "theta must be a number above 1"),
    "original twice": (
        {"original_max_position_embeddings": 64} | rope(**YARN),
        "original_max_position_embeddings and the top level's disagree, 32 and 64",
    ),
    "no original": (
        rope(**without(SCALED, "original_max_position_embeddings", "rope_theta")),
        "original_max_position_embeddings is missing",
    ),
    "original too long": (
        rope(**without(SCALED, "rope_theta") | {"original_max_position_embeddings": 129}),
        "must be at most max_position_embeddings, 128, for longrope, got 129",
    ),
    "wrong length": (
        rope(**without(SCALED, "rope_theta") | {"long_factor": [1.0] * 7}),
        "long_factor must hold 8 numbers, half the dims that turn, got a list of 7",
    ),
    "negative factors": (
        rope(**without(SCALED, "rope_theta") | {"short_factor": [-1.0] * 8}),
        "short_factor must be a list of finite positive numbers",
    ),
    "factors of nearly 0": (
        rope(**without(SCALED, "rope_theta") | {"short_factor": [1e-40] * 8}),
        r"rope_parameters: rope.buckets\[0\].factors must all be finite and above 0",
    ),
    "mscale": (
        rope(**without(SCALED, "rope_theta") | {"short_mscale": 1.1}),
        "short_mscale must equal the attention factor, 1.3, got 1.1",
    ),
    "both, disagreeing": (
        rope(**YARN) | {"rope_scaling": YARN | {"factor": 2.0}},
        "rope_parameters and rope_scaling disagree on factor, 4.0 and 2.0",
    ),
    "both, of two types": (
        rope(rope_type="default") | {"rope_scaling": {"type": "linear", "factor": 2.0}},
        "rope_parameters and rope_scaling disagree on",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(tmp_path, name):
    keys, message = REFUSED[name]
    base = without(LLAMA, "rope_theta") if "rope_parameters" in keys else LLAMA
    config = {key: value for key, value in (base | keys).items() if value is not None}
    with pytest.raises(InputError, match=message) as caught:
        read(tmp_path, config)
    assert str(caught.value).count("config.json") == 1 and "\n" not in str(caught.value)


OTHER_FAMILIES = {
    "qwen2, layer types": ("qwen2", {"layer_types": ["x", "y"]}, "layer_types must name"),
    "phi3 with llama3": (
        "phi3",
        {"rope_scaling": CASES["llama llama3"]["rope_scaling"]},
        "rope_type must be default or longrope for model_type 'phi3', got 'llama3'",
    ),
    "stablelm, norms of heads": (
        "stablelm",
        {"qk_layernorm": True},
        "qk_layernorm must be None or False: anything else is not supported, got true",
    ),
    "stablelm, parallel": (
        "stablelm",
        {"use_parallel_residual": True},
        "use_parallel_residual must be None or False: anything else is not supported, got true",
    ),
    "phi3, odd": ("phi3", {"partial_rotary_factor": 0.7}, "an even number of dims .* got 11"),
}


@pytest.mark.parametrize("name", OTHER_FAMILIES)
def test_refused_of_other_families(tmp_path, name):
    case, keys, message = OTHER_FAMILIES[name]
    bases = CASES | {"stablelm": STABLELM}
    config = {key: value for key, value in (bases[case] | keys).items() if value is not ...}
    with pytest.raises(InputError, match=message):
        read(tmp_path, config)


@pytest.mark.parametrize("family", families.FAMILIES)
@pytest.mark.parametrize("heads", [32, 64])
def test_heads_of_keys_are_those_of_transformers(tmp_path, family, heads):
    """Where config.json does not say how many: a number of the class's own, or as many as heads."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    keys = dict(model_type=family, num_attention_heads=heads, hidden_size=64 * heads)
    theirs = transformers.AutoConfig.for_model(**keys)
    base = LLAMA | keys | dict(sliding_window=None, full_attention_interval=2)
    found, notes = read(tmp_path, without(base, "num_key_value_heads", "head_dim"))
    assert found.num_kv_heads == theirs.num_key_value_heads
    is_told = any("no num_key_value_heads" in note for note in notes)
    assert is_told or found.num_kv_heads == heads
