"""Races: the test that spares, its risk, and that a search is told what an undisturbed one is."""

import json

import numpy as np
import pytest
from scipy import stats
from search_config import rows_of, tiny

from jaxrope import search
from jaxrope.errors import InputError
from jaxrope.search import race


def racing(tmp_path, **keys):
    config = tiny(tmp_path)
    config.search.objective.num_samples = 3
    config.search.racing.update(first=2, risk=0.95)
    for name, value in keys.items():
        config.update_from_flattened_dict({name.replace("__", "."): value})
    return config


@pytest.mark.parametrize(("num_samples", "risk"), [(2, 0.05), (4, 0.01)])
def test_losers_are_those_of_a_paired_t_test(num_samples, risk):
    rng = np.random.default_rng(0)
    rival_W = rng.normal(3, 1, num_samples)
    losses_PW = rival_W + rng.normal(0.02, 0.02, (40, num_samples))
    difference_PW = losses_PW - rival_W
    own_P = difference_PW.var(axis=1, ddof=1)
    typical = np.median(own_P) / (stats.chi2.median(num_samples - 1) / (num_samples - 1))
    error_P = np.sqrt(np.maximum(own_P, typical) / num_samples)
    chance_P = stats.t.sf(difference_PW.mean(axis=1) / error_P, 40 * (num_samples - 1))
    found_P = race.losers(losses_PW, rival_W, risk=risk)
    assert np.array_equal(found_P, chance_P < risk)
    assert 0 < found_P.sum() < 40


def test_the_risk_is_kept():
    """Candidates as good as the rival are called worse no more often than stated."""
    rng, lost, risk = np.random.default_rng(1), 0, 0.02
    for _ in range(1000):
        rival_W = rng.normal(3, 1, 3)
        lost += race.losers(rival_W + rng.normal(0, 0.01, (32, 3)), rival_W, risk=risk).sum()
    assert lost / 32_000 < risk


def test_what_is_not_finite_loses():
    rival_W = np.array([1.0, 2.0])
    losses_PW = np.array([[1.0, 2.0], [np.nan, 2.0], [np.inf, 1.0], [0.5, 1.5]])
    assert race.losers(losses_PW, rival_W, risk=0.01).tolist() == [False, True, True, False]


def test_a_raced_search_is_resumed_to_the_bit(tmp_path):
    config = racing(tmp_path)
    whole = tmp_path / "whole"
    result = search.search(config, whole)
    lines = (whole / "journal.jsonl").read_text().splitlines(keepends=True)
    rows = [json.loads(line) for line in lines]
    raced = [i for i, row in enumerate(rows) if "raced" in row]
    assert raced and all(rows[i]["losses"][2] is None for i in raced)
    spared = len(raced) * config.target_len
    asked = result.content["evaluations"] * 3 * config.target_len
    beside = sum(row.get("tokens", 0) for row in rows)
    assert result.content["forward_tokens"] == asked - spared + beside
    for kept in {raced[0], raced[0] + 1, len(lines) - 1}:
        again = tmp_path / f"again{kept}"
        again.mkdir()
        (again / "journal.jsonl").write_text("".join(lines[:kept]))
        search.search(config, again)
        assert (again / "rope.json").read_bytes() == (whole / "rope.json").read_bytes()


def test_the_spared_become_no_parents(tmp_path):
    """With all samples seen they are worse than the worst parent of their generation."""
    config = racing(tmp_path, search__racing__risk=0.05)
    search.search(config, tmp_path / "run")
    rows = [r for r in rows_of(tmp_path / "run") if "genome" in r]
    for row in rows:
        if "raced" in row:
            earlier = sorted(r["fitness"] for r in rows if r["generation"] < row["generation"])
            assert row["fitness"] > earlier[config.search.algorithm.parents - 1]


def test_losses_are_those_without_a_race(tmp_path):
    """The first generation is the same; children that saw everything are judged alike."""
    search.search(racing(tmp_path), tmp_path / "raced")
    search.search(racing(tmp_path, search__racing__first=0), tmp_path / "plain")
    told = []
    for name in ("raced", "plain"):
        rows = rows_of(tmp_path / name)
        told.append({tuple(r["genome"]): r for r in rows if "genome" in r})
    shared = [g for g in told[0] if g in told[1] and "raced" not in told[0][g]]
    assert len(shared) > 6
    for genome in shared:
        assert told[0][genome]["losses"] == pytest.approx(told[1][genome]["losses"], rel=1e-6)


def test_a_race_leaves_samples_to_be_spared(tmp_path):
    with pytest.raises(InputError, match=r"racing\.first must be below the 3 samples"):
        search.search(racing(tmp_path, search__racing__first=3), tmp_path / "run")
