"""What a search may be asked: messages, what it starts from, its attention factors."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from configs import base
from jaxrope import decoder, rope, search
from jaxrope.errors import InputError
from jaxrope.search import baselines, compare, evaluator, journal, problem
from tests.search_config import changed, rows_of, tiny, tiny_default, write_model
from tests.search_run_test import EVALUATIONS


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(target_len=0), r"target_len must be the tokens to search for, got 0"),
        (dict(target_len=16), r"target_len must exceed original_len 16, got 16"),
        (dict(target_len=4096), r"data\.train_files: 2 windows .* of 4,096 tokens need documents"),
        (dict(search__training_len=64), r"search\.training_len must be 0 .* got 64"),
        (
            dict(search__objective=dict(name="perplexity", num_samples=9, offset_tokens=0)),
            r"data\.train_files: 9 windows \(each of another document\)",
        ),
        (dict(search__memory_gb=1e-9), r"search\.memory_gb must be at least"),
    ],
)
def test_messages_before_anything_is_compiled(tmp_path, changes, message):
    config = changed(tiny(tmp_path), **changes)
    with pytest.raises(InputError, match=message):
        search.search(config, tmp_path / "run")
    assert not (tmp_path / "run" / "journal.jsonl").exists()


def test_search_whose_candidates_all_fail_says_so(tmp_path, monkeypatch):
    def failing(made, ropes):
        return np.full((len(ropes), len(made.samples)), np.nan)

    monkeypatch.setattr(evaluator, "evaluate", failing)
    for config, reason in ((tiny(tmp_path), "all 6"), (tiny_default(tmp_path), "all")):
        workdir = tmp_path / config.search.method
        with pytest.raises(InputError, match=rf"{reason} candidates failed; .*jsonl says why"):
            search.search(config, workdir)
        assert not (workdir / "rope.json").exists()


def test_without_comparison_only_the_evolution_runs(tmp_path):
    config = changed(tiny(tmp_path), search__compare=False)
    result = search.search(config, tmp_path / "run")
    assert result.content["evaluations"] == EVALUATIONS + 3 and not result.baselines
    assert result.table.splitlines()[1].startswith("evolution")
    assert "There is no baseline to compare with." in result.table


def test_own_scaling_and_configured_rope_are_seeds(tmp_path):
    config = tiny(tmp_path)
    own = dict(rope_type="llama3", factor=2.0, low_freq_factor=1.0, high_freq_factor=4.0)
    own |= dict(original_max_position_embeddings=16)
    write_model(tmp_path / "llama3", rope_scaling=own, max_position_embeddings=32)
    config.model.path = str(tmp_path / "llama3")
    config.rope = dict(method="yarn", factor=3.0, beta_fast=8.0, beta_slow=1.0)
    made = search.prepare(config)
    assert [b.name for b in problem.seeds(made)] == ["none", "pi", "ntk", "yarn", "configured"]
    largest = {b.name: max(b.bucket.factors) for b in made.baselines}
    assert largest["none"] == 2.0 and largest["configured"] == 3.0
    plain = search.prepare(tiny(tmp_path))
    assert [b.name for b in problem.seeds(plain)] == ["pi", "ntk", "yarn"]


def test_training_len_bounds_the_factors_but_not_the_attention_factor(tmp_path):
    config = changed(tiny(tmp_path), search__training_len=8)
    made = search.prepare(config)
    assert made.space.highest == 1000 and made.space.scale == 800  # 1.25 * 64 / 8
    assert made.attention_factor == math.sqrt(1.5)
    pi = next(b for b in made.baselines if b.name == "pi")
    assert set(pi.bucket.factors) == {8.0}


def test_methods_stretch_the_training_length():
    """Phi-3: 4,096 tokens by its config, 2,048 in training, factors for 131,072."""
    config = base.get_config()
    config.target_len = 131_072
    shape = dict(vocab_size=8, num_layers=1, embed_dim=8, num_heads=1, num_kv_heads=1, mlp_dim=8)
    shape |= dict(head_dim=96, rotary_dim=96, theta=1e4, original_len=4096, max_len=4096)
    model = decoder.DecoderConfig(norm_eps=1e-5, tie_embeddings=True, **shape)
    made = {b.name: b.bucket for b in baselines.make(config, model, decoder.own_rope(model), 2048)}
    constants = dict(factor=64.0, beta_fast=32.0, beta_slow=1.0)
    for original_len, equal in ((2048, True), (4096, False)):
        yarn = rope.make("yarn", head_dim=96, theta=1e4, original_len=original_len, **constants)
        assert (made["yarn"].factors == yarn.bucket(131_072).factors) is equal
    assert set(made["pi"].factors) == {64.0} and set(made["none"].factors) == {1.0}


@pytest.mark.parametrize(
    ("law", "number"),
    [("su", math.sqrt(1.5)), ("yarn", 0.1 * math.log(4) + 1), (1.1, 1.1), ("none", 1)],
)
def test_attention_factor_is_one_number(tmp_path, law, number):
    made = search.prepare(changed(tiny(tmp_path), search__attention_factor=law))
    assert made.attention_factor == pytest.approx(number, rel=1e-12)
    assert not made.attention_is_searched
    factors = [bucket.attention_factor for _, bucket in compare.own(made)]
    assert factors.count(made.attention_factor) >= 4


def test_the_attention_factor_of_a_candidate_is_its_own(tmp_path):
    """Searched it is a gene, on a grid from 0.9 to 1.05 times what the laws say."""
    config = changed(tiny(tmp_path), search__attention_factor="free")
    made = search.prepare(config)
    su = math.sqrt(1.5)
    assert made.attention_range == pytest.approx((0.9, 1.05 * su)) and made.attention_is_searched
    result = search.search(config, tmp_path / "run")
    rows = rows_of(tmp_path / "run")
    bred, numbers = journal.candidates(rows), made.space.attention_factors
    assert np.ptp(np.diff(np.log(numbers))) < 1e-9 and np.diff(np.log(numbers))[0] <= 0.015
    assert {row["attention_factor"] for row in bred} <= set(numbers)
    assert len({row["attention_factor"] for row in bred}) > 2
    near = [1.0, 1.0, 0.1 * math.log(4) + 1]  # PI, NTK and YaRN have their own
    assert [row["attention_factor"] for row in bred[:3]] == pytest.approx(near, rel=0.008)
    best = min((row for row in rows if "factors" in row), key=lambda row: row["fitness"])
    (bucket,) = rope.load(tmp_path / "run" / "rope.json").buckets
    assert bucket.attention_factor == best["attention_factor"]
    assert any(f"{best['attention_factor']:.4f}" in line for line in result.table.splitlines())


@pytest.mark.parametrize(("slope", "end"), [(1.0, 1.0), (-1.0, 1.5)])
def test_the_bottom_of_an_all_but_flat_parabola_is_an_end_of_the_range(slope, end):
    problem, rows = SimpleNamespace(attention_range=(1.0, 1.5)), []
    for number in (1.05, 1.1, 1.15):
        loss = 3 + slope * math.log(number) + 1e-4 * math.log(number) ** 2
        rows.append({"attention_factor": number, "losses": [loss], "fitness": loss})
    assert compare._bottom(problem, rows) == [end]


def test_attention_factors_of_the_best_baselines_are_searched(tmp_path):
    """Two numbers more, and the bottom of the parabola through the best three."""
    config = changed(tiny(tmp_path), search__attention_factor="free")
    search.search(config, tmp_path / "run")
    rows = [row for row in rows_of(tmp_path / "run") if "baseline" in row]
    names = ["none", "pi", "ntk", "dynamic_ntk", "yarn"]
    assert [row["baseline"] for row in rows[:5]] == names
    ranked = sorted(rows[:5], key=lambda row: row["fitness"])
    scanned = [row["baseline"] for row in rows[5:]]
    assert set(scanned) == {row["baseline"] for row in ranked[:2]}
    for name in dict.fromkeys(scanned):
        of_name = [row for row in rows if row["baseline"] == name]
        assert math.sqrt(1.5) in [row["attention_factor"] for row in of_name]
        assert len({tuple(row["factors"]) for row in of_name}) == 1
        if len(of_name) == 4:
            numbers = np.log([r["attention_factor"] for r in of_name[:3]])
            losses = [np.mean(r["losses"]) for r in of_name[:3]]
            curve = np.poly1d(np.polyfit(numbers, losses, 2))
            (bottom,) = np.exp(np.roots(np.polyder(curve)))
            wanted = np.clip(bottom, *search.prepare(config).attention_range)
            assert of_name[3]["attention_factor"] == pytest.approx(wanted, rel=1e-6)
