"""rope.json: a round trip, and one line for every way it can be wrong."""

import json

import jax
import numpy as np
import pytest

from jaxrope import rope
from jaxrope.errors import InputError

GEOMETRY = dict(head_dim=16, rotary_dim=8, theta=10_000.0, original_len=64)


def a_result():
    rows = [
        dict(max_len=128, factors=[1, 1.5, 2, 2], start_tokens=0, attention_factor=1.0),
        dict(max_len=512, factors=[1.01, 2.5, 8, 8.25], start_tokens=4, attention_factor="su"),
    ]
    return rope.make("longrope", **GEOMETRY, buckets=rows)


def test_round_trip(tmp_path):
    path = tmp_path / "rope.json"
    rope.save(path, a_result(), {"seed": 3})
    read = rope.load(path, head_dim=16, rotary_dim=8, theta=10_000.0)
    assert read.buckets == a_result().buckets and read.geometry == a_result().geometry
    assert rope.provenance(path) == {"seed": 3}
    content = json.loads(path.read_text())
    assert content["format"] == "jaxrope.rope/1" and content["buckets"][1]["start_tokens"] == 4
    assert content.popitem()[0] == "sha256"
    path.write_text(json.dumps(content))  # as by hand
    assert rope.load(path).buckets == read.buckets
    assert [p.name for p in tmp_path.iterdir()] == ["rope.json"]  # nothing temporary is left


def test_factors_of_each_layer(tmp_path):
    rows = [[1, 1.5, 2, 2], [1.25, 2.5, 8, 8.25], [1, 1, 1, 1]]
    shared = dict(max_len=128, factors=[1, 1.5, 2, 2], start_tokens=0, attention_factor=1.0)
    layered = dict(max_len=512, factors=rows, start_tokens=4, attention_factor=1.25)
    rope.save(tmp_path / "r", rope.make("longrope", **GEOMETRY, buckets=[shared, layered]), {})
    read = rope.load(tmp_path / "r", num_layers=3)
    assert read.bucket(128).factors == (1.0, 1.5, 2.0, 2.0) and not read(128).per_layer
    assert read.bucket(512).factors == tuple(map(tuple, rows))
    made = read(512)
    expected = rope.stack(
        [rope.build(row, theta=1e4, start_tokens=4, attention_factor=1.25) for row in rows],
        per_layer=True,
    )
    assert made.per_layer and made.theta == expected.theta
    assert jax.tree.all(jax.tree.map(np.array_equal, made, expected))
    assert all(leaf.shape[0] == 3 for leaf in jax.tree.leaves(made))
    assert made.start_tokens.tolist() == [4] * 3 and made.attention_factor.tolist() == [1.25] * 3
    with pytest.raises(
        InputError, match=r"buckets\[1\].factors must hold a row for each of the model'"
    ):
        rope.load(tmp_path / "r", num_layers=2)


def test_remarks_look_at_every_layer():
    rows = [[1, 1.5, 2, 2], [1, 3, 2, 8.5]]
    bucket = dict(max_len=128, factors=rows, start_tokens=0, attention_factor=1.0)
    told = rope.remarks(rope.make("longrope", **GEOMETRY, buckets=[bucket]))
    assert told == [
        "bucket up to 128: factors fall at 1 of 6 steps",
        "bucket up to 128: the largest factor, 8.5, exceeds 1.25 * length / original_len = 2.5",
    ]


def test_round_trip_of_a_formula(tmp_path):
    path = tmp_path / "rope.json"
    made = rope.make("yarn", **GEOMETRY, factor=8.0, beta_fast=32, beta_slow=1)
    rope.save(path, made, {})
    read = rope.load(path)
    assert read.method == "yarn" and read.max_len == 512
    assert read.bucket(512).factors == made.bucket(512).factors
    with pytest.raises(InputError, match="513 tokens is longer than the last length bucket, 512"):
        read.bucket(513)


def test_what_has_no_table_is_refused(tmp_path):
    with pytest.raises(InputError, match="'dynamic_ntk' has no length buckets to write"):
        rope.save(tmp_path / "r", rope.make("dynamic_ntk", **GEOMETRY, factor=2.0), {})
    with pytest.raises(InputError, match="'abf' has no longest length"):
        rope.save(tmp_path / "r", rope.make("abf", **GEOMETRY, new_theta=1e6), {})
    rope.save(tmp_path / "r", rope.make("abf", **GEOMETRY, new_theta=1e6), {}, max_len=640)
    assert rope.load(tmp_path / "r").max_len == 640


def set_in(*path_and_value):
    *path, value = path_and_value

    def change(content):
        at = content
        for key in path[:-1]:
            at = at[key]
        at[path[-1]] = value

    return change


@pytest.mark.parametrize(
    "change, message",
    [
        (
            set_in("format", "jaxrope.rope/2"),
            "format must be 'jaxrope.rope/1', got 'jaxrope.rope/2'",
        ),
        (lambda c: c.pop("theta"), "missing or unknown: theta"),
        (set_in("extra", 1), "missing or unknown: extra"),
        (set_in("theta", "big"), "theta has the wrong type"),
        (set_in("buckets", []), "buckets must hold at least one bucket"),
        (set_in("buckets", 0, "factors", [1.0] * 3), r"hold 4 numbers \(rotary_dim / 2\), got 3"),
        (set_in("buckets", 0, "factors", 2, 0.0), "finite and above 0, got 0.0 at index 2"),
        (set_in("buckets", 0, "factors", 2, "x"), "must be a list of numbers"),
        (
            set_in("buckets", 0, "factors", [[1.0] * 4, [1.0] * 3]),
            r"factors\[1\] must hold 4 numbers \(rotary_dim / 2\), got 3",
        ),
        (
            set_in("buckets", 0, "factors", [[1.0] * 4, [1.0, 1.0, -0.5, 1.0]]),
            r"factors\[1\] must all be finite and above 0, got -0.5 at index 2",
        ),
        (
            set_in("buckets", 0, "factors", [[1.0] * 4, 2.0]),
            r"factors\[1\] must be a list of numbers, got 2.0",
        ),
        (set_in("buckets", 0, "max_len", 512), "must ascend in max_len, got 512 before 512"),
        (set_in("buckets", 0, "start_tokens", 1.5), "start_tokens must be a whole number"),
        (
            set_in("buckets", 0, "attention_factor", -1),
            "attention_factor must be a positive number",
        ),
        (set_in("method", "yarn"), "rope.factor is missing. 'yarn' has"),
        (set_in("constants", {"theta": 2.0}), "constants must be those of the method, got 'theta'"),
        (set_in("theta", 1e301), "theta must be a number above 1, got 1e.301"),
        (set_in("original_len", 10**39), "original_len must be a whole number of tokens"),
        (set_in("original_len", 1), "original_len must be a whole number of tokens from 2"),
        (set_in("head_dim", 10**39), "rotary_dim must be even and from 2 to head_dim"),
        (set_in("buckets", 1, "max_len", 10**39), "max_len must be a positive whole number"),
        (set_in("buckets", 1, "start_tokens", 10**39), "start_tokens must be a whole number"),
        (set_in("buckets", 1, "factors", 3, 10**39), "factors must be a list of numbers"),
        (set_in("buckets", 1, "factors", 3, 1e300), "all be finite and above 0, got 1e.300 at"),
        (set_in("buckets", 1, "factors", 3, True), "factors must be a list of numbers"),
        (set_in("buckets", 1, "attention_factor", 10**39), "attention_factor must be a positive"),
        (set_in("rotary_dim", 6), "hold 3 numbers"),
        (set_in("original_len", 0), "original_len must be a whole number of tokens from 2"),
    ],
)
def test_broken_files(tmp_path, change, message):
    path = tmp_path / "rope.json"
    rope.save(path, a_result(), {})
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match="is damaged or was edited: its sha256 differs"):
        rope.load(path)
    del content["sha256"]
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=message) as caught:
        rope.load(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "given, message",
    [
        (dict(head_dim=32), "head_dim must equal the model's, 32, got 16"),
        (dict(rotary_dim=16), "rotary_dim must equal the model's, 16, got 8"),
        (dict(theta=5e5), "theta must equal the model's, 500000.0, got 10000.0"),
    ],
)
def test_of_another_model(tmp_path, given, message):
    rope.save(tmp_path / "rope.json", a_result(), {})
    with pytest.raises(InputError, match=message):
        rope.load(tmp_path / "rope.json", **given)


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "is not JSON: Expecting property name"),
        ("[]", "must hold a JSON object, holds a list"),
        ('{"theta": NaN}', "holds NaN, which is not JSON"),
        ('{"format": 1e400}', "holds 1e400, which is beyond float64"),
        ('{"format": 1' + "0" * 5000 + "}", "a number of 5001 digits"),
    ],
)
def test_not_json(tmp_path, text, message):
    (tmp_path / "rope.json").write_text(text)
    with pytest.raises(InputError, match=message):
        rope.load(tmp_path / "rope.json")
    with pytest.raises(InputError, match="none.json: there is no such file"):
        rope.load(tmp_path / "none.json")


def test_formula_and_factors_must_agree(tmp_path):
    path = tmp_path / "rope.json"
    rope.save(path, rope.make("pi", **GEOMETRY, factor=8.0), {})
    content = json.loads(path.read_text())
    content["constants"]["factor"] = 4.0
    del content["sha256"]
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match="must be those of method 'pi' with its constants"):
        rope.load(path)
