"""Methods on top of a model that is scaled already, judged by transformers and by hand."""

import math

import numpy as np
import pytest

from jaxrope import decoder, rope
from jaxrope.decoder import DecoderConfig
from jaxrope.errors import InputError

HEAD, THETA, ORIGINAL = 64, 10_000.0, 512
GEOMETRY = dict(head_dim=HEAD, theta=THETA, original_len=ORIGINAL)
PLAIN = THETA ** -(np.arange(HEAD // 2) / (HEAD // 2))
LLAMA3 = dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0)


def base_of(method, max_len=4 * ORIGINAL, **constants):
    return rope.base_of(rope.make(method, **GEOMETRY, **constants), max_len)


def on_top(base, method, **constants):
    """(frequencies, attention factor) of a method on top of a base."""
    bucket = rope.extend(base, method, **GEOMETRY, **constants).bucket(1)
    return PLAIN / np.array(bucket.factors), bucket.attention_factor


def theirs(theta=THETA, length=ORIGINAL, **parameters):
    """(frequencies, attention factor) of transformers' Llama."""
    pytest.importorskip("torch", reason="torch is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    parameters |= dict(rope_theta=theta)
    if parameters["rope_type"] != "linear":
        parameters |= dict(original_max_position_embeddings=length)
    config = transformers.LlamaConfig(
        hidden_size=2 * HEAD,
        num_attention_heads=2,
        max_position_embeddings=length,
        rope_parameters=parameters,
    )
    found, scale = ROPE_INIT_FUNCTIONS[parameters["rope_type"]](config, "cpu", seq_len=length)
    return found.double().numpy(), scale


@pytest.mark.parametrize("own", [2.0, 4.0])
@pytest.mark.parametrize("further", [2.0, 8.0])
def test_on_a_linear_model(own, further):
    """A linear scaling divides every frequency, so what stands on it is transformers' own method
    at the original length, divided: it makes as many turns in the longer window.
    """
    base = base_of("pi", factor=own)
    assert base.length == own * ORIGINAL and base.attention_factor == 1.0
    grown = THETA * further ** (HEAD / (HEAD - 2))
    ramp = dict(beta_fast=16.0, beta_slow=2.0)
    cases = {
        "pi": (dict(factor=further), theirs(rope_type="linear", factor=own * further)),
        "ntk": (dict(factor=further), theirs(theta=grown, rope_type="linear", factor=own)),
        "abf": (dict(new_theta=5e5), theirs(theta=5e5, rope_type="linear", factor=own)),
        "yarn": (dict(factor=further) | ramp, theirs(rope_type="yarn", factor=further, **ramp)),
        "llama3": (LLAMA3, theirs(rope_type="llama3", **LLAMA3)),
    }
    for method, (constants, (expected, scale)) in cases.items():
        expected = expected / (own if method in ("yarn", "llama3") else 1.0)
        found, number = on_top(base, method, **constants)
        np.testing.assert_allclose(found, expected, rtol=3e-6, err_msg=method)
        assert number == pytest.approx(scale, rel=1e-9), method


def test_on_yarn_and_on_llama3():
    """What transformers makes of the model's own scaling, times the method."""
    yarn = theirs(rope_type="yarn", factor=4.0)
    found = on_top(base_of("yarn", factor=4.0), "pi", factor=2.0)
    np.testing.assert_allclose(found[0], yarn[0] / 2, rtol=3e-6)
    assert found[1] == pytest.approx(0.1 * math.log(4) + 1, rel=1e-12)
    own, _ = theirs(rope_type="llama3", **LLAMA3)
    found, _ = on_top(base_of("llama3", **LLAMA3), "ntk", factor=3.0)
    np.testing.assert_allclose(found, own * 3.0 ** -(np.arange(32) / 31), rtol=3e-6)


def test_yarn_on_yarn_judges_the_scaled_turns():
    base = base_of("yarn", factor=4.0)
    found, number = on_top(base, "yarn", factor=2.0)
    own = PLAIN / np.array(base.factors)
    turns = 4 * ORIGINAL * own / (2 * np.pi)
    ratio = own / found
    np.testing.assert_allclose(ratio[turns > 34], 1.0, rtol=1e-12)
    np.testing.assert_allclose(ratio[turns < 0.9], 2.0, rtol=1e-12)
    assert np.all(np.diff(ratio) >= -1e-12) and np.sum((ratio > 1.01) & (ratio < 1.99)) > 3
    assert number == pytest.approx((0.1 * math.log(4) + 1) * (0.1 * math.log(2) + 1), rel=1e-12)


def test_llama3_on_a_base_judges_the_scaled_turns():
    factors = np.linspace(1, 6, 32)
    base = rope.Base(tuple(factors), 3000)
    found, _ = on_top(base, "llama3", **LLAMA3)
    own = PLAIN / factors
    wavelength = 2 * np.pi / own
    kept, whole = wavelength < 3000 / 4.0, wavelength > 3000 / 1.0
    np.testing.assert_allclose(found[kept], own[kept], rtol=1e-12)
    np.testing.assert_allclose(found[whole], own[whole] / 8, rtol=1e-12)
    smooth = (3000 / wavelength - 1) / 3
    between = ~kept & ~whole
    expected = (1 - smooth) * own / 8 + smooth * own
    np.testing.assert_allclose(found[between], expected[between], rtol=1e-12)
    assert kept.any() and whole.any() and between.any()


def test_dynamic_on_a_base_follows_the_length():
    made = rope.extend(base_of("pi", factor=4.0), "dynamic_ntk", **GEOMETRY, factor=2.0)
    plain = rope.make("dynamic_ntk", head_dim=HEAD, theta=THETA, original_len=2048, factor=2.0)
    for length in (100, 2048, 5000):
        expected = 4 * np.array(plain.bucket(length).factors)
        np.testing.assert_allclose(made.bucket(length).factors, expected, rtol=1e-12)


@pytest.mark.parametrize("method", ["pi", "ntk", "yarn", "llama3", "ntk_rcd", "abf", "dynamic_ntk"])
def test_on_a_plain_model_it_is_the_method_itself(method):
    constants = {"llama3": LLAMA3, "abf": dict(new_theta=2e5)}.get(method, dict(factor=4.0))
    constants |= dict(critical_pair=7) if method == "ntk_rcd" else {}
    found = rope.extend(base_of("none"), method, **GEOMETRY, **constants)
    expected = rope.make(method, **GEOMETRY, **constants)
    assert found.bucket(3000) == expected.bucket(3000)
    assert (found.method, found.constants) == (method, constants)


@pytest.mark.parametrize("method", ["none", "longrope", "yarm"])
def test_what_stands_on_nothing(method):
    with pytest.raises(InputError, match=f"Unknown rope.method '{method}'"):
        rope.extend(base_of("pi", factor=2.0), method, **GEOMETRY, factor=2.0)


def test_which_base_a_scaling_is():
    """Plain within the original length: none and dynamic NTK. Scaled: all others."""
    for method, constants in (("none", {}), ("dynamic_ntk", dict(factor=4.0))):
        base = base_of(method, **constants)
        assert base.is_plain and base.length == ORIGINAL
    assert base_of("yarn", factor=4.0, max_len=ORIGINAL).length == 2048  # a model card's
    assert base_of("llama3", **LLAMA3, max_len=3 * ORIGINAL).length == 1536
    short, long = [1.0] * 32, list(np.linspace(0.99, 7, 32))
    rows = [
        dict(max_len=n, factors=f, start_tokens=0, attention_factor="su")
        for n, f in ((512, short), (4096, long))
    ]
    base = base_of("longrope", buckets=rows, max_len=9999)
    assert (base.length, list(base.factors)) == (4096, long)
    assert base.attention_factor == pytest.approx(math.sqrt(1 + math.log(8) / math.log(512)))


def test_llama31_keeps_its_reach_when_it_is_trained_further():
    """max_position_embeddings, 131,072, is not 8 * 8,192; a training to 1 M writes another one."""
    shape = decoder.SHAPES["llama3_8b"].to_json_dict()
    own = dict(method="llama3", **LLAMA3, max_len=131_072)
    further = DecoderConfig(**shape | dict(rope=own, max_len=1_048_576))
    assert decoder.own_base(further).length == 131_072


def test_result_on_top_says_how_far_it_reaches(tmp_path):
    """A table in rope.json, whose last length is base.length * factor."""
    made = rope.extend(base_of("pi", factor=4.0), "yarn", **GEOMETRY, factor=2.0)
    rope.save(tmp_path / "rope.json", made, {})
    again = rope.load(tmp_path / "rope.json")
    assert again.max_len == 8 * ORIGINAL and again.original_len == ORIGINAL
    assert again.bucket(1).factors == made.bucket(1).factors


def test_minicpm4_by_transformers(shared):
    """Factors below 1, and an original length that is the longest: the attention factor is 1."""
    import json

    published = json.loads((shared / "data" / "minicpm4_factors.json").read_text())
    preset = rope.preset("minicpm4_8b")
    assert list(preset.bucket(1).factors) == published["factors"] and min(published["factors"]) < 1
    assert preset.max_len == preset.original_len == published["original_len"]
    torch = pytest.importorskip("torch", reason="torch is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    sets = dict(short_factor=published["factors"], long_factor=published["factors"])
    parameters = dict(rope_type="longrope", rope_theta=1e4, **sets)
    parameters |= dict(original_max_position_embeddings=32_768)
    shape = dict(hidden_size=256, num_attention_heads=2, max_position_embeddings=32_768)
    config = transformers.LlamaConfig(**shape, rope_parameters=parameters)
    positions = np.array([[0, 1, 7, 511, 2047]])
    cos, sin = LlamaRotaryEmbedding(config)(torch.zeros(1), torch.from_numpy(positions))
    for found, expected in zip(rope.cos_sin(preset(2048), positions), (cos, sin), strict=True):
        np.testing.assert_allclose(found, expected.numpy()[..., :64], atol=2e-4)
