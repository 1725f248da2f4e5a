"""YaRN's ramp moved: where a climb goes and stops, its factors, its lines in the journal."""

import json
import math

import numpy as np
import pytest
from search_config import rows_of
from search_gradient_test import descending

from jaxrope import rope, search
from jaxrope.search import ramp


def recorded(fitness_fn):
    asked = []

    def measure(one):
        asked.append(one)
        return fitness_fn(*one)

    return asked, measure


def bowl(low, high):
    return (low - 5) ** 2 + (high - 14) ** 2


@pytest.mark.parametrize("count", [9, 12, 40])
def test_a_climb_ends_soon_after_its_last_move(count):
    asked, measure = recorded(lambda low, high: -(low == 4))  # one move, then a plateau
    assert ramp.climb((3, 16), count, measure) == (4, 17)
    assert len(asked) - 1 - asked.index((4, 17)) == min(count // 2, 7)  # the start is a neighbour


def test_a_climb_takes_the_first_better_neighbour_in_the_last_direction_first():
    asked, measure = recorded(bowl)
    found = ramp.climb((3, 16), 99, measure)
    assert found == min(asked, key=lambda one: bowl(*one)) and bowl(*found) <= 1
    assert len(asked) == len(set(asked))
    assert asked[:4] == [(3, 16), (4, 17), (2, 15), (3, 17)]  # both up, both down, one border
    first = next(one for one in asked if bowl(*one) < bowl(3, 16))
    step = np.subtract(first, (3, 16))
    assert asked[asked.index(first) + 1] == tuple(first + step)
    assert all(low < high and low >= 0 for low, high in asked)


@pytest.mark.parametrize("count", range(12))
def test_a_climb_measures_no_more_than_it_may(count):
    """And ends at the best of what it measured."""
    asked, measure = recorded(bowl)
    found = ramp.climb((3, 16), count, measure)
    assert len(asked) <= 1 + count and found == min(asked, key=lambda one: bowl(*one))
    whole, measure = recorded(bowl)
    ramp.climb((3, 16), 99, measure)
    assert asked == whole[: 1 + count]


def test_a_climb_stays_where_nothing_is_better():
    asked, measure = recorded(lambda low, high: 1.0)
    assert ramp.climb((3, 16), 99, measure) == (3, 16)
    assert len(asked) == 9  # itself and all neighbours


def test_a_climb_passes_over_what_failed():
    fitness = {(3, 16): 2.0, (3, 17): 1.0}
    _, measure = recorded(lambda *one: fitness.get(one, math.inf))
    assert ramp.climb((3, 16), 20, measure) == (3, 17)


def test_borders_stay_in_order():
    asked, measure = recorded(lambda low, high: high - low)
    low, high = ramp.climb((3, 5), 99, measure)
    assert high - low == 1 and all(0 <= low < high for low, high in asked)


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
    keys = dict(search__gradient__ramps=5, search__gradient__steps=1) | keys
    return descending(tmp_path, **keys)


@pytest.fixture(scope="module")
def moved(tmp_path_factory):
    """(config, workdir, result) of a search that moves its ramp."""
    folder = tmp_path_factory.mktemp("ramp")
    config = moving(folder)
    return config, folder / "run", search.search(config, folder / "run")


def test_moved_ramps_are_in_the_journal_and_in_the_cost(moved):
    config, workdir, result = moved
    rows, made = rows_of(workdir), search.prepare(config)
    ramps = [row for row in rows if "ramp" in row]
    assert 1 <= len(ramps) <= ramp.most(made) == 5
    assert len({row["ramp"] for row in ramps}) == len(ramps)
    yarn = min((row for row in rows if row.get("baseline") == "yarn"), key=lambda r: r["fitness"])
    for row in ramps:
        assert row["attention_factor"] == yarn["attention_factor"]
        low, high = map(int, row["ramp"].split())
        np.testing.assert_allclose(row["factors"], rope.ramp_factors(low, high, 4, 4.0))
    least = min([yarn, *ramps], key=lambda row: row["fitness"])
    begun = next(row for row in rows if "descent" in row)
    seeds = [row for row in rows if row.get("baseline") in ("pi", "ntk", "yarn")]
    best = min([*seeds, least], key=lambda row: row["fitness"])
    assert begun["descent"] == best.get("baseline", "ramp")
    judged = {row["judged"] for row in rows if "judged" in row}
    assert ("ramp" in judged) == (least is not yarn)
    measured = [row for row in rows if "losses" in row and "factors" in row and "step" not in row]
    assert result.content["evaluations"] == len(measured)


def test_a_killed_climb_goes_on_with_the_same_bytes(moved, tmp_path):
    config, workdir, _ = moved
    lines = (workdir / "journal.jsonl").read_text().splitlines(keepends=True)
    ramps = [i for i, line in enumerate(lines) if "ramp" in json.loads(line)]
    for kept in {ramps[0], ramps[len(ramps) // 2], ramps[-1] + 1}:
        again = tmp_path / f"again{kept}"
        again.mkdir()
        (again / "journal.jsonl").write_text("".join(lines[:kept]))
        search.search(config, again)
        assert (again / "rope.json").read_bytes() == (workdir / "rope.json").read_bytes()


@pytest.mark.parametrize(
    "keys", [dict(search__method="evolution"), dict(search__gradient__ramps=0)], ids=str
)
def test_there_is_no_ramp_where_none_is_asked_for(tmp_path, keys):
    config = moving(tmp_path, **keys)
    assert ramp.most(search.prepare(config)) == 0
