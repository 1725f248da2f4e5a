"""YaRN's ramp moved: where a climb goes and stops, its factors, its lines in the journal."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
from search_config import rows_of
from search_gradient_test import descending

from jaxrope import rope, search
from jaxrope.search import baselines, descent, problem


def recorded(fitness_fn):
    asked = []

    def measure(ramps):
        asked.append(list(ramps))
        return [fitness_fn(*one) for one in ramps]

    return asked, measure


def bowl(low, high):
    return (low - 5) ** 2 + (high - 14) ** 2


@pytest.mark.parametrize(
    ("moves", "found", "candidates"),
    [(0, (3, 16), 1), (1, (4, 15), 9), (2, (5, 14), 14), (3, (5, 14), 19), (9, (5, 14), 19)],
)
def test_a_climb_takes_the_best_neighbour_while_it_is_better(moves, found, candidates):
    asked, measure = recorded(bowl)
    assert descent.climb((3, 16), moves, measure) == found
    asked = [one for ramps in asked for one in ramps]
    assert len(asked) == len(set(asked)) == candidates


def test_a_climb_stays_where_nothing_is_better():
    asked, measure = recorded(lambda low, high: 1.0)
    assert descent.climb((3, 16), 5, measure) == (3, 16)
    assert len(asked) == 2


def test_a_climb_passes_over_what_failed():
    fitness = {(3, 16): 2.0, (3, 17): 1.0}
    _, measure = recorded(lambda *one: fitness.get(one, math.inf))
    assert descent.climb((3, 16), 5, measure) == (3, 17)


def test_borders_stay_in_order():
    asked, measure = recorded(lambda low, high: high - low)
    assert descent.climb((3, 5), 9, measure) == (3, 4)
    assert all(low < high for ramps in asked for low, high in ramps)


@pytest.mark.parametrize("factor", [4.0, 8.0])
@pytest.mark.parametrize(("theta", "trained"), [(1e4, 512), (5e5, 2048)])
def test_the_first_ramp_is_yarn(factor, theta, trained):
    """YaRN as rope.make has it, which tests compare with transformers."""
    turns = dict(beta_fast=32.0, beta_slow=1.0)
    low, high = rope.yarn_borders(np.ones(32), theta=theta, trained=trained, **turns)
    geometry = dict(head_dim=64, rotary_dim=64, theta=theta, original_len=trained)
    yarn = rope.make("yarn", **geometry, factor=factor, **turns)
    wanted = yarn.bucket(int(factor * trained)).factors
    np.testing.assert_allclose(rope.ramp_factors(low, high, 32, factor), wanted, rtol=1e-12)


def test_a_ramp_by_hand():
    found = rope.ramp_factors(1, 3, 5, 4.0)
    np.testing.assert_allclose(found, [1, 1, 1 / (0.5 / 4 + 0.5), 4, 4])


def moving(tmp_path, **keys):
    return descending(tmp_path, search__gradient__ramp_moves=2, **keys)


def test_moved_ramps_are_in_the_journal_and_in_the_cost(tmp_path):
    config = moving(tmp_path)
    result = search.search(config, tmp_path / "run")
    rows = rows_of(tmp_path / "run")
    ramps = [row for row in rows if "ramp" in row]
    assert 8 <= len(ramps) <= descent.most_ramps(problem.prepare(config)) == 13
    yarn = [row for row in rows if row.get("baseline") == "yarn"][-1]
    for row in ramps:
        assert row["attention_factor"] == yarn["attention_factor"]
        assert row["factors"] == sorted(row["factors"])
    judged = [row for row in rows if "genome" in row]
    least = min([yarn, *ramps], key=lambda row: row["fitness"])
    begun = next(row for row in rows if "descent" in row)
    assert (begun["descent"] == "ramp") == (least is not yarn)
    baseline_rows = [row for row in rows if "baseline" in row]
    evaluations = len(ramps) + len(judged) + len(baseline_rows)
    assert result.content["evaluations"] == evaluations
    steps = 3 * 4 * config.target_len
    assert result.content["forward_tokens"] == evaluations * 2 * config.target_len + steps


RECORDED = SimpleNamespace(record=SimpleNamespace(rows=[]))


@pytest.mark.parametrize(("fitness", "ends"), [(0.5, ["ramp"]), (2.0, ["yarn", "ramp"])])
def test_a_moved_ramp_is_an_end_only_where_no_descent_began(tmp_path, monkeypatch, fitness, ends):
    found = problem.prepare(moving(tmp_path))
    yarn = next(known for known in found.baselines if known.name == "yarn")
    compared = [
        {"baseline": known.name, "fitness": 1.0 if known.name == "yarn" else 3.0}
        for known in found.baselines
    ]
    moved = descent.Moved(baselines.Baseline("ramp", yarn.bucket, True), fitness)
    monkeypatch.setattr(descent, "move_ramp", lambda *_: moved)
    monkeypatch.setattr(descent, "_descend", lambda *args: descent.End(args[2].name, None))
    assert [end.name for end in descent.run(found, RECORDED, compared)] == ends


def test_a_killed_climb_goes_on_with_the_same_bytes(tmp_path):
    config = moving(tmp_path)
    search.search(config, tmp_path / "whole")
    lines = (tmp_path / "whole" / "journal.jsonl").read_text().splitlines(keepends=True)
    ramps = [i for i, line in enumerate(lines) if "ramp" in json.loads(line)]
    for kept in (ramps[0], ramps[3], ramps[-1] + 1):
        again = tmp_path / f"again{kept}"
        again.mkdir()
        (again / "journal.jsonl").write_text("".join(lines[:kept]))
        search.search(config, again)
        assert (again / "rope.json").read_bytes() == (tmp_path / "whole/rope.json").read_bytes()


def test_there_is_no_ramp_without_descents(tmp_path):
    evolving = moving(tmp_path, search__method="evolution")
    assert descent.most_ramps(problem.prepare(evolving)) == 0
    search.search(evolving, tmp_path / "run")
    rows = rows_of(tmp_path / "run")
    assert not [row for row in rows if "ramp" in row]
