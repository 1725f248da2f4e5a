"""Known methods on top of fine-tuned factors, seeds from files, and which searches are refused."""

import math

import numpy as np
import pytest

from jaxrope import rope, search
from jaxrope.errors import InputError
from jaxrope.search import genome, problem
from tests.search_config import tiny

GEOMETRY = dict(head_dim=8, rotary_dim=8, theta=10_000.0)


def yarn(theta, pairs, trained, factor, fast, slow):
    """YaRN's own code (find_correction_range, linear_ramp_mask), as factors."""
    dim = 2 * pairs

    def dim_of(turns):
        return dim * math.log(trained / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = max(math.floor(dim_of(fast)), 0), min(math.ceil(dim_of(slow)), dim - 1)
    high = high + 0.001 if low == high else high
    mask = 1 - np.clip((np.arange(pairs) - low) / (high - low), 0, 1)
    inv = theta ** -(np.arange(pairs) / pairs)
    return inv / (inv / factor * (1 - mask) + inv * mask)


@pytest.mark.parametrize("theta", [1e4, 5e5])
@pytest.mark.parametrize("trained", [2048, 262_144])
@pytest.mark.parametrize("factor", [2.0, 8.0])
@pytest.mark.parametrize("betas", [(32.0, 1.0), (16.0, 2.0)])
@pytest.mark.parametrize("tuned", [1.0, 4.0])
def test_yarn_on_equal_factors_is_yarn_of_the_shorter_length(theta, trained, factor, betas, tuned):
    """Frequencies divided by 4 turn in 4 L tokens as often as before in L: the same ramp."""
    constants = dict(factor=factor, beta_fast=betas[0], beta_slow=betas[1])
    found = rope.yarn_on_top(np.full(64, tuned), theta=theta, trained=trained, **constants)
    wanted = yarn(theta, 64, trained / tuned, factor, *betas)
    np.testing.assert_allclose(found, wanted, rtol=1e-12)


def test_yarn_on_searched_factors_asks_how_often_they_turn():
    """Only pairs below one turn of the fine-tuned frequencies get all of the factor."""
    tuned = np.array(rope.preset("ft_la2_256k").buckets[0].factors)
    found = rope.yarn_on_top(
        tuned, theta=1e4, trained=262_144, factor=8.0, beta_fast=32.0, beta_slow=1.0
    )
    turns = 262_144 * 1e4 ** -(np.arange(64) / 64) / tuned / (2 * np.pi)
    assert np.all(found[turns > 36] == 1.0) and np.all(found[turns < 0.9] == 8.0)
    inside = (turns < 26) & (turns > 1.1)
    assert np.any(inside) and np.all((found[inside] > 1) & (found[inside] < 8))
    assert np.all(np.diff(found) >= 0)


def test_yarn_of_layers_is_each_layers():
    layers = np.stack([np.full(16, 1.0), np.full(16, 2.0)])
    constants = dict(theta=1e4, trained=512, factor=4.0, beta_fast=32.0, beta_slow=1.0)
    found = rope.yarn_on_top(layers, **constants)
    for layer, row in zip(layers, found, strict=True):
        assert np.array_equal(row, rope.yarn_on_top(layer, **constants))
    assert not np.array_equal(found[0], found[1])


def write_rope(path, factors, max_len, attention_factor=1.1, original_len=16):
    bucket = dict(max_len=max_len, factors=factors, start_tokens=2)
    buckets = [bucket | dict(attention_factor=attention_factor)]
    made = rope.make("longrope", **GEOMETRY, original_len=original_len, buckets=buckets)
    rope.save(path, made, {"made_by": "test"})


def second(folder, **search):
    """A second search to 64 on factors for 32, of a model of 16."""
    config = tiny(folder)
    write_rope(folder / "tuned" / "rope.json", [1.0, 1.13, 1.57, 2.3], 32)
    config.rope = dict(method="file", path=str(folder / "tuned" / "rope.json"))
    config.search.multiply = True
    for key, value in search.items():
        setattr(config.search, key, value)
    return config


def test_baselines_of_a_second_search(tmp_path):
    made = search.prepare(second(tmp_path))
    tuned = np.array([1.0, 1.13, 1.57, 2.3])
    buckets = {known.name: known.bucket for known in made.baselines}
    assert list(buckets) == ["none", "pi", "ntk", "dynamic_ntk", "yarn"]
    assert buckets["none"].factors == tuple(tuned)
    assert buckets["pi"].factors == tuple(2.0 * tuned)
    np.testing.assert_allclose(buckets["ntk"].factors, tuned * 2 ** (np.arange(4) / 3), rtol=1e-12)
    constants = dict(factor=2.0, beta_fast=32.0, beta_slow=1.0)
    ramp = rope.yarn_on_top(tuned, theta=1e4, trained=32, **constants)
    assert buckets["yarn"].factors == tuple(tuned * ramp)
    own = {name: bucket.attention_factor for name, bucket in buckets.items()}
    yarn_factor = 1.1 * (0.1 * math.log(2) + 1)
    assert own == dict(
        none=1.1, pi=1.1, ntk=1.1, dynamic_ntk=1.1, yarn=pytest.approx(yarn_factor, rel=1e-12)
    )
    assert all(bucket.start_tokens == 2 for bucket in buckets.values())
    assert made.attention_factor == math.sqrt(1 + math.log(64 / 16) / math.log(16))  # of the total
    assert made.space.highest == 250 and made.trained_len == 32  # 1.25 * 64 / 32


def test_a_genome_of_a_second_search_is_lambda_2(tmp_path):
    made = search.prepare(second(tmp_path))
    genomes = problem.seed_genomes(made)
    assert genomes[:2, :4].tolist() == [[100] * 4, [200] * 4]
    choice = genome.decode(made.space, np.array([100, 107, 150, 250, 1], np.int32))
    tuned = np.array([1.0, 1.13, 1.57, 2.3])
    assert np.array_equal(choice.factors, np.array([1.0, 1.07, 1.5, 2.5]) * tuned)
    total = rope.Bucket(64, rope.as_factors(choice.factors), 0, 1.1)
    told = problem.multiplied(made, total)["multiplied"]
    assert told["lambda_2"] == pytest.approx([1.0, 1.07, 1.5, 2.5], rel=1e-12)
    assert told["fine_tuned"] == tuple(tuned)
    assert problem.header(made)["multiplied"] == tuple(tuned)


def test_highest_bounds_lambda_2_and_training_len_may_be_given(tmp_path):
    made = search.prepare(second(tmp_path, highest=1.7, training_len=40))
    assert made.space.highest == 170 and made.trained_len == 40
    pi = next(known for known in made.baselines if known.name == "pi")
    np.testing.assert_allclose(pi.bucket.factors, np.array([1.0, 1.13, 1.57, 2.3]) * 64 / 40)


def test_seeds_from_files(tmp_path):
    config = tiny(tmp_path)
    for name in ("a", "b"):
        write_rope(tmp_path / name / "rope.json", [1.0, 1.5, 2.0, 4.0 + (name == "b")], 64)
    config.search.seeds = (str(tmp_path / "a"), str(tmp_path / "b" / "rope.json"))
    made = search.prepare(config)
    assert [known.name for known in problem.seeds(made)] == ["pi", "ntk", "yarn", "a", "b"]
    assert problem.seed_genomes(made)[3:, :5].tolist() == [
        [100, 150, 200, 400, 1],
        [100, 150, 200, 500, 1],
    ]
    config.search.seeds = (str(tmp_path / "c"),)
    with pytest.raises(InputError, match=r"search\.seeds: .*c: there is no such file"):
        search.prepare(config)


def recovery(folder, **changes):
    config = second(folder)
    config.search.multiply = False
    config.target_len = 16
    config.search.highest = 1.5
    for key, value in changes.items():
        section = config.search if key in config.search else config
        with section.ignore_type():
            section[key] = value
    return config


def test_recovery_at_the_original_length(tmp_path):
    made = search.prepare(recovery(tmp_path, attention_factor="rope"))
    assert [known.name for known in problem.seeds(made)] == ["none", "configured"]
    assert problem.seed_genomes(made)[:, :4].tolist() == [[100] * 4, [100, 113, 150, 150]]
    assert made.space.highest == 150 and made.attention_factor == 1.1
    assert search.prepare(recovery(tmp_path)).attention_factor == 1.0  # su of 16 / 16
    longer = search.prepare(recovery(tmp_path, target_len=32))
    names = [known.name for known in problem.seeds(longer)]
    assert names == ["none", "pi", "ntk", "yarn", "configured"]


@pytest.mark.parametrize(
    ("make", "changes", "message"),
    [
        (
            second,
            dict(multiply=True, training_len=64),
            r"search\.multiply: target_len must exceed ",
        ),
        (recovery, dict(target_len=15), r"target_len must be at least original_len 16, got 15"),
        (recovery, dict(training_len=17), r"search\.training_len must be 0 .* got 17"),
        (recovery, dict(highest=1.0), r"search\.highest must be 0 .* or above 1, got 1"),
        (
            recovery,
            dict(rope=dict(method="model"), target_len=64, attention_factor="rope"),
            r"search\.attention_factor 'rope' is that of config\.rope, which does not extend",
        ),
        (
            recovery,
            dict(rope=dict(method="model")),
            r"target_len must exceed original_len 16, got 16",
        ),
        (
            recovery,
            dict(rope=dict(method="model"), target_len=64, multiply=True),
            r"search\.multiply needs factors to multiply, but config\.rope does not extend",
        ),
    ],
)
def test_messages(tmp_path, make, changes, message):
    with pytest.raises(InputError, match=message):
        search.prepare(make(tmp_path, **changes))


def test_the_critical_encoding_multiplies_nothing(tmp_path):
    config = second(tmp_path)
    config.search.form = "critical"
    with pytest.raises(InputError, match=r"search\.multiply: the form 'critical' states all"):
        search.prepare(config)
