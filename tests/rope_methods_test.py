"""Rope methods against the papers' formulas, published numbers, and Hugging Face's functions."""

import math

import numpy as np
import pytest

from jaxrope import rope
from jaxrope.errors import InputError

GEOMETRY = dict(head_dim=128, theta=10_000.0, original_len=2048)
YARN = dict(beta_fast=32, beta_slow=1)
LLAMA3 = dict(low_freq_factor=1.0, high_freq_factor=4.0)


def frequencies(method, seq_len=2048, geometry=GEOMETRY, **constants):
    rope_fn = rope.make(method, **geometry, **constants)
    bucket = rope_fn.bucket(seq_len)
    dim = rope_fn.rotary_dim
    return geometry["theta"] ** (-np.arange(0, dim, 2) / dim) / np.asarray(bucket.factors)


# Numbers printed in transformers' tests/utils/test_modeling_rope_utils.py: head_dim 128, base 1e4,
# 2048 tokens, factor 10.
@pytest.mark.parametrize(
    "method, seq_len, constants, known",
    [
        ("none", 2048, {}, {0: 1.0, 1: 0.86596, 2: 0.74989, 3: 0.64938, 63: 1.1548e-4}),
        (
            "dynamic_ntk",
            16384,
            dict(factor=10.0),
            {0: 1.0, 1: 0.80931, 2: 0.65498, 3: 0.53008, 63: 1.6265e-6},
        ),
        (
            "yarn",
            2048,
            dict(factor=10.0, **YARN),
            {16: 1e-1, 17: 8.3479e-2, 18: 6.9590e-2, 40: 4.3007e-4, 41: 2.7384e-4, 63: 1.1548e-5},
        ),
        (
            "llama3",
            2048,
            dict(factor=10.0, **LLAMA3),
            {30: 1.3335e-2, 31: 1.0730e-2, 32: 7.7785e-3, 40: 3.4539e-4, 41: 2.7384e-4},
        ),
    ],
)
def test_frequencies_published(method, seq_len, constants, known):
    ours = frequencies(method, seq_len, **constants)
    for index, value in known.items():
        assert ours[index] == pytest.approx(value, rel=5e-5), index


@pytest.mark.parametrize("dim, theta, original_len", [(64, 10_000.0, 512), (128, 500_000.0, 8192)])
@pytest.mark.parametrize("factor", [4.0, 16.0])
def test_formulas_of_the_papers(dim, theta, original_len, factor):
    geometry = dict(head_dim=dim, theta=theta, original_len=original_len)
    i = np.arange(dim // 2)
    plain = theta ** (-2 * i / dim)
    assert np.allclose(frequencies("pi", geometry=geometry, factor=factor), plain / factor, 1e-13)
    # NTK-aware: the last pair is interpolated by exactly `factor`, the first not at all
    ntk = frequencies("ntk", geometry=geometry, factor=factor)
    assert np.allclose(ntk, (theta * factor ** (dim / (dim - 2))) ** (-2 * i / dim), 1e-12)
    assert ntk[0] == 1 and plain[-1] / ntk[-1] == pytest.approx(factor, rel=1e-12)
    abf = frequencies("abf", geometry=geometry, new_theta=theta * factor)
    assert np.allclose(abf, (theta * factor) ** (-2 * i / dim), 1e-12)


def test_ntk_up_to_the_critical_pair_of_phi4_mini():
    """Its published long factors are LongRoPE2's: NTK below pair 31, critical, with 32.03."""
    published = np.array(rope.preset("phi4_mini").bucket(131_072).factors)
    geometry = dict(head_dim=128, rotary_dim=96, theta=10_000.0, original_len=4096)
    made = rope.make("ntk_rcd", **geometry, factor=published[31], critical_pair=31)
    factors = np.array(made.bucket(131_072).factors)
    assert np.allclose(factors[:32], published[:32], rtol=1e-8)
    assert np.all(factors[31:] == pytest.approx(32.03, rel=1e-12))


@pytest.mark.parametrize("dim, theta, pair", [(16, 10_000.0, 3), (96, 500_000.0, 25)])
@pytest.mark.parametrize("factor", [4.0, 32.0])
def test_ntk_rcd_is_ntk_with_another_base(dim, theta, pair, factor):
    """Below the pair the frequencies of theta', where theta'^(-2 pair / d) is the interpolated."""
    geometry = dict(head_dim=dim, theta=theta, original_len=4096)
    ours = frequencies("ntk_rcd", geometry=geometry, factor=factor, critical_pair=pair)
    i = np.arange(dim // 2)
    base = theta * factor ** (dim / 2 / pair)
    assert np.allclose(ours[: pair + 1], base ** (-2 * i[: pair + 1] / dim), rtol=1e-12)
    assert np.allclose(ours[pair:], theta ** (-2 * i[pair:] / dim) / factor, rtol=1e-12)


@pytest.mark.parametrize("fast, slow", [(32, 1), (128, 2)])
@pytest.mark.parametrize("factor, original_len", [(4.0, 512), (32.0, 4096)])
def test_yarn_by_turns(fast, slow, factor, original_len):
    """YaRN by its definition, turns of a pair in original_len, where no rounding reaches."""
    geometry = dict(head_dim=128, theta=10_000.0, original_len=original_len)
    plain = 10_000.0 ** (-np.arange(64) / 64)
    turns = original_len * plain / (2 * np.pi)
    ratio = frequencies("yarn", geometry=geometry, factor=factor, beta_fast=fast, beta_slow=slow)
    ratio = ratio / plain
    high, low = np.sum(turns > fast), np.sum(turns >= slow)
    assert np.allclose(ratio[: max(high - 1, 0)], 1, rtol=1e-12)
    assert np.allclose(ratio[low + 1 :], 1 / factor, rtol=1e-12)
    assert np.all(np.diff(ratio) <= 1e-15)
    middle = (high + low) // 2
    assert 1 / factor < ratio[middle] < 1


def test_llama3_by_wavelength():
    plain = 500_000.0 ** (-np.arange(64) / 64)
    for factor, low, high, length in [(8.0, 1.0, 4.0, 8192), (32.0, 2.0, 8.0, 4096)]:
        geometry = dict(head_dim=128, theta=500_000.0, original_len=length)
        constants = dict(factor=factor, low_freq_factor=low, high_freq_factor=high)
        ours = frequencies("llama3", geometry=geometry, **constants)
        for inv, got in zip(plain, ours, strict=True):
            wavelength = 2 * math.pi / inv
            if wavelength > length / low:
                expected = inv / factor
            elif wavelength < length / high:
                expected = inv
            else:
                smooth = (length / wavelength - low) / (high - low)
                expected = (1 - smooth) * inv / factor + smooth * inv
            assert got == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    "method, ours, theirs",
    [
        ("linear", ("pi", dict(factor=4.0)), dict(factor=4.0)),
        ("dynamic", ("dynamic_ntk", dict(factor=4.0)), dict(factor=4.0)),
        ("dynamic", ("dynamic_ntk", dict(factor=1.5)), dict(factor=1.5)),
        ("yarn", ("yarn", dict(factor=4.0, **YARN)), dict(factor=4.0)),
        (
            "yarn",
            ("yarn", dict(factor=16.0, beta_fast=64, beta_slow=2, truncate=False)),
            dict(factor=16.0, beta_fast=64, beta_slow=2, truncate=False),
        ),
        (
            "yarn",
            ("yarn", dict(factor=40.0, **YARN, mscale=0.707, mscale_all_dim=1.0)),
            dict(factor=40.0, mscale=0.707, mscale_all_dim=1.0),
        ),
        (
            "yarn",
            ("yarn", dict(factor=8.0, **YARN, attention_factor=1.3)),
            dict(factor=8.0, attention_factor=1.3),
        ),
        ("llama3", ("llama3", dict(factor=8.0, **LLAMA3)), dict(factor=8.0, **LLAMA3)),
    ],
)
@pytest.mark.parametrize("head_dim, theta, length", [(64, 10_000.0, 512), (128, 500_000.0, 8192)])
def test_equals_hugging_face(method, ours, theirs, head_dim, theta, length):
    pytest.importorskip("torch", reason="torch is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    seq_len = 3 * length
    parameters = dict(rope_type=method, rope_theta=theta, **theirs)
    if method in ("yarn", "llama3"):
        parameters["original_max_position_embeddings"] = length
    config = transformers.LlamaConfig(
        hidden_size=4 * head_dim,
        num_attention_heads=4,
        head_dim=head_dim,
        max_position_embeddings=length,
        rope_parameters=parameters,
    )
    inv_freq, scaling = ROPE_INIT_FUNCTIONS[method](config, "cpu", seq_len=seq_len)
    geometry = dict(head_dim=head_dim, theta=theta, original_len=length)
    assert np.allclose(
        frequencies(ours[0], seq_len, geometry, **ours[1]), inv_freq.numpy(), rtol=3e-6
    )
    bucket = rope.make(ours[0], **geometry, **ours[1]).bucket(seq_len)
    assert bucket.attention_factor == pytest.approx(scaling, rel=1e-9)


def test_attention_factor_published():
    """longrope.md 1.5, LongRoPE's code: original length 4096."""
    su = {8: 1.118034, 16: 1.154701, 32: 1.1902380714238083, 64: 1.224745, 512: 1.322876}
    yarn = {8: 1.2079, 16: 1.2773, 32: 1.3466, 64: 1.4159, 512: 1.6238}
    for factor in su:
        given = dict(factor=factor, original_len=4096)
        assert rope.attention_factor("su", **given) == pytest.approx(su[factor], abs=1e-6)
        assert rope.attention_factor("yarn", **given) == pytest.approx(yarn[factor], abs=1e-4)
    assert rope.attention_factor("su", factor=32, original_len=4096) == 1.1902380714238083
    phi_moe = rope.attention_factor("su", factor=64, original_len=2048)
    assert phi_moe == pytest.approx(1.243163121016122, rel=1e-12)
    assert rope.attention_factor("su", factor=0.5, original_len=4096) == 1.0
    assert rope.attention_factor("none", factor=8, original_len=4096) == 1.0
    assert rope.attention_factor(1.07, factor=8, original_len=4096) == 1.07


def test_presets_spot_values():
    """Frequencies of the Phi models, longrope.md 4.1: indices 0, 1, 24, 47."""
    known = {
        "phi3_mini_128k_apr2024": (
            [9.523810e-1, 7.860992e-1, 5e-3, 4.106873e-5],
            [9.708738e-1, 7.860993e-1, 3.332223e-4, 1.869353e-6],
        ),
        "phi3_mini_128k_jun2024": (
            [9.090909e-1, 7.503674e-1, 5e-3, 3.972222e-5],
            [9.345794e-1, 7.369680e-1, 1.863585e-4, 1.870796e-6],
        ),
        "phi3.5_mini": (
            [1, 8.092198e-1, 5.025127e-3, 4.265943e-5],
            [9.259259e-1, 7.436074e-1, 1.986492e-4, 1.868488e-6],
        ),
        "phi4_mini": (
            [1, 8.254042e-1, 1e-2, 1.211528e-4],
            [1, 7.380747e-1, 6.829793e-4, 2.536168e-6],
        ),
    }
    for name, rows in known.items():
        rope_fn = rope.preset(name)
        for seq_len, row in zip((4096, 4097), rows, strict=True):
            bucket = rope_fn.bucket(seq_len)
            inv = 10_000.0 ** (-np.arange(48) / 48) / np.asarray(bucket.factors)
            assert inv[[0, 1, 24, 47]] == pytest.approx(row, rel=2e-6)
            assert bucket.attention_factor == 1.1902380714238083


def test_presets_tables():
    table = rope.preset("llama2-7b-2048k-ft256k")
    assert [b.max_len // 1024 for b in table.buckets] == [4, 8, 16, 32, 256, 512, 1024, 2048]
    assert table.bucket(40_000).factors == rope.preset("ft_la2_256k").bucket(262_144).factors
    last = table.bucket(2_097_152)
    assert last.factors[0] == 1.1118 and round(last.factors[-1], 4) == 575.8053
    assert last.attention_factor == pytest.approx(1.322876, abs=1e-6)
    assert table.bucket(4096).attention_factor == 1.0
    with pytest.raises(InputError, match="2097153 tokens is longer than the last length bucket"):
        table.bucket(2_097_153)
    names = rope.catalogue()
    assert len(names) == 30 + 4 + 4 + 1
    for name, entry in names.items():
        assert entry["model"] and entry["source"], name
        assert min(rope.preset(name).bucket(1).factors) >= (0.99 if "minicpm" in name else 1)
    fall = rope.remarks(rope.preset("ft_mis_128k"))
    assert "factors fall at 4 of 63 steps" in fall[0]
    exceed = rope.remarks(rope.preset("1024k_la2_256k"))
    assert "321.907, exceeds 1.25 * length / original_len = 320" in exceed[0]
    assert rope.remarks(rope.preset("ft_la2_256k")) == []


def test_presets_equal_the_published_files(shared):
    import json

    published = json.loads((shared / "data" / "longrope_factors.json").read_text())
    for name, factors in published.items():
        assert list(rope.preset(name).buckets[0].factors) == factors
    phi = json.loads((shared / "data" / "phi_factors.json").read_text())
    for name, entry in phi.items():
        assert list(rope.preset(name).bucket(entry["original"]).factors) == entry["short"]
        assert list(rope.preset(name).bucket(entry["max"]).factors) == entry["long"]


def test_dynamic_ntk_follows_the_length():
    rope_fn = rope.make("dynamic_ntk", **GEOMETRY, factor=2.0)
    assert rope_fn.bucket(100).factors == rope_fn.bucket(2048).factors
    assert max(rope_fn.bucket(2048).factors) == 1.0
    assert rope_fn.bucket(2049).factors[-1] > 1.0
    assert rope_fn.bucket(4096).factors[-1] == pytest.approx(3.0)  # 2 * 2 - 1
    assert rope_fn.max_len is None


def test_longrope_buckets_by_length():
    buckets = [
        dict(max_len=64, factors=[1.0] * 4, start_tokens=0, attention_factor=1.0),
        dict(max_len=256, factors=[1, 2, 3, 4], start_tokens=8, attention_factor="su"),
        dict(max_len=1024, factors=[1, 4, 9, 16], start_tokens=0, attention_factor="yarn"),
    ]
    geometry = dict(head_dim=16, rotary_dim=8, theta=10_000.0, original_len=64)
    rope_fn = rope.make("longrope", **geometry, buckets=buckets)
    assert [rope_fn.bucket(n).max_len for n in (1, 64, 65, 256, 257, 1024)] == [64] * 2 + [
        256
    ] * 2 + [1024] * 2
    assert rope_fn.bucket(65).start_tokens == 8
    assert rope_fn.bucket(65).attention_factor == pytest.approx(
        math.sqrt(1 + math.log(4) / math.log(64))
    )
    assert rope_fn.bucket(300).attention_factor == pytest.approx(0.1 * math.log(16) + 1)
    assert rope_fn.max_len == 1024


BUCKET = dict(max_len=64, factors=[1.0] * 32, start_tokens=0, attention_factor=1.0)


@pytest.mark.parametrize(
    "method, constants, message",
    [
        ("yarm", {}, "Unknown rope.method 'yarm'. Did you mean 'yarn'"),
        ("pi", {}, "rope.factor is missing. 'pi' has: method, factor"),
        ("pi", dict(factor=2.0, betafast=1), "Unknown key rope.betafast of 'pi'"),
        ("pi", dict(factor=0.5), "original length at least 1 and at most 1e.06, got 0.5"),
        ("pi", dict(factor=float("nan")), "rope.factor must be a number .* got nan"),
        ("pi", dict(factor=10**400), "rope.factor must be a number"),
        ("pi", dict(factor="8"), "rope.factor must be a number .* got '8'"),
        ("yarn", dict(factor=2, beta_slow=0), "rope.beta_slow must be a number of turns"),
        ("yarn", dict(factor=2, attention_factor=0), "rope.attention_factor must be a number"),
        ("yarn", dict(factor=2, beta_fast=1, beta_slow=32), "rope.beta_fast must be above"),
        (
            "llama3",
            dict(factor=2, low_freq_factor=4, high_freq_factor=1),
            "rope.high_freq_factor must be above",
        ),
        ("abf", dict(new_theta=100.0), "rope.new_theta must be at least the model's theta, 10000"),
        ("longrope", {}, "needs either buckets or factors, got neither"),
        ("longrope", dict(buckets=5), "rope.buckets must be a list of buckets, got 5"),
        ("longrope", dict(buckets=[BUCKET | dict(factors=[1.0] * 31)]), "hold 32 numbers"),
        (
            "longrope",
            dict(buckets=[BUCKET | dict(factors=[0.0] + [1.0] * 31)]),
            "all be finite and above 0, got 0.0 at index 0",
        ),
        ("longrope", dict(buckets=[BUCKET | dict(factors=[float("inf")] * 32)]), "finite"),
        ("longrope", dict(buckets=[BUCKET | dict(factors=["2"] * 32)]), "a list of numbers"),
        ("longrope", dict(buckets=[BUCKET | dict(start_tokens=-1)]), "start_tokens must be"),
        ("ntk_rcd", dict(factor=4.0), "rope.critical_pair is missing. 'ntk_rcd' has"),
        (
            "ntk_rcd",
            dict(factor=4.0, critical_pair=32),
            "rope.critical_pair must be a whole number from 1 to 31 (rotary_dim / 2 - 1\\), got 32",
        ),
        (
            "ntk_rcd",
            dict(factor=4.0, critical_pair=0),
            "critical_pair must be a whole number, 1 or more",
        ),
        ("longrope", dict(buckets=[BUCKET | dict(attention_factor=0)]), "a positive number"),
        ("longrope", dict(buckets=[BUCKET | dict(attention_factor="sue")]), "Did you mean 'su'"),
        ("longrope", dict(buckets=[BUCKET, BUCKET]), "must ascend in max_len, got 64 before 64"),
        ("longrope", dict(buckets=[dict(max_len=64)]), "must have exactly"),
        ("longrope", dict(buckets=[BUCKET | dict(max_len=None)]), "positive whole number of tok"),
    ],
)
def test_messages(method, constants, message):
    geometry = dict(head_dim=64, theta=10_000.0, original_len=512)
    with pytest.raises(InputError, match=message.replace("(", r"\(")):
        rope.make(method, **geometry, **constants)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(rotary_dim=7), "rotary_dim must be even and from 2 to head_dim"),
        (dict(rotary_dim=66), "rotary_dim must be even and from 2 to head_dim"),
        (dict(theta=float("nan")), "theta must be a number above 1"),
        (dict(original_len=0), "original_len must be a whole number of tokens from 2"),
        (dict(original_len=1), "original_len must be a whole number of tokens from 2"),
        (dict(original_len=512.5), "original_len must be a whole number of tokens from 2"),
        (dict(head_dim=10**400), "rotary_dim must be even and from 2 to head_dim"),
        (dict(theta=10**400), "theta must be a number above 1"),
    ],
)
def test_geometry_messages(change, message):
    with pytest.raises(InputError, match=message):
        rope.make("none", **(dict(head_dim=64, theta=10_000.0, original_len=512) | change))


def test_the_betas_of_yarn_are_those_of_its_paper():
    brief, whole = (rope.make("yarn", **GEOMETRY, factor=8, **more) for more in ({}, YARN))
    assert brief.bucket(1) == whole.bucket(1)
    assert dict(brief.constants) == {"factor": 8}


def test_numbers_may_be_those_of_numpy():
    listed = rope.make("longrope", **GEOMETRY, max_len=4096, factors=[2.0] * 64, **LAW)
    array = np.full(64, 2.0, np.float32)
    assert rope.make("longrope", **GEOMETRY, max_len=np.int64(4096), factors=array, **LAW).buckets
    assert listed.buckets[0].factors == (2.0,) * 64
    assert rope.make("pi", **GEOMETRY, factor=np.float64(2)).bucket(1).factors == (2.0,) * 64


LAW = dict(start_tokens=0, attention_factor="su")


@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda: rope.attention_factor("su", factor=4.0, original_len=1),
            "original_len must be a whole number of tokens from 2 to 2147483647, got 1",
        ),
        (
            lambda: rope.attention_factor("su", factor=float("nan"), original_len=64),
            "factor must be a number above 0, got nan",
        ),
        (
            lambda: rope.attention_factor(float("inf"), factor=4.0, original_len=64),
            "attention_factor must be a positive number, got inf",
        ),
        (
            lambda: rope.make("ntk", head_dim=4, theta=1e300, original_len=64, factor=1e6),
            "the factors of rope.method must all be finite",
        ),
        (lambda: rope.ntk_rcd(4.0, 0, 8), "critical_pair must be a whole number from 1 to 7"),
        (lambda: rope.make("none", **GEOMETRY).bucket(1.5), "seq_len must be a whole number"),
        (lambda: rope.make("none", **GEOMETRY).bucket(2**31), "seq_len must be a whole number"),
    ],
)
def test_what_no_formula_takes(call, message):
    with pytest.raises(InputError, match=message):
        call()
