"""The last word: intervals, who is judged, and that a search is never worse than what it measured.

The property of a search is tested on models that are known (search_bowls.py), since only there can
a hundred searches be run and their truth be told in some seconds. Everything but the model is the
real thing: baselines, moved ramps, descents, evolution, finalists, the verdict.
"""

import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from jaxrope import rope, search
from jaxrope.search import candidates, verdict
from jaxrope.search.candidates import Candidate
from tests import search_bowls
from tests.processes import environment
from tests.search_config import rows_of, tiny, tiny_default

BUCKET = rope.Bucket(64, (1.0, 2.0), 0, 1.0)
ROOT = Path(__file__).resolve().parent.parent


def candidate(name, fitness=np.nan, is_baseline=False, losses=None):
    losses = (fitness, fitness) if losses is None else tuple(losses)
    return Candidate(name, BUCKET, fitness, is_baseline, losses)


def judge(cycle=1):
    return types.SimpleNamespace(draws=lambda x: x.reshape(len(x), -1, cycle).mean(axis=2))


@pytest.mark.parametrize("count", [5, 8, 40])
def test_the_interval_is_that_of_a_paired_t_test(count):
    rng = np.random.default_rng(count)
    first, known = rng.normal(3, 1, (2, count))
    wanted = stats.ttest_rel(first, known).confidence_interval(0.9)
    found = verdict.paired_interval(first - known, 0.9)
    assert found == pytest.approx((wanted.low, wanted.high), rel=1e-9)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_few_draws_have_no_interval(count):
    assert verdict.paired_interval(np.linspace(-2, -1, count), 0.95) is None
    found = verdict.decide(
        [candidate("a"), candidate("b", 1.0, True)],
        np.array([[1.0], [2.0]]) * np.ones(count),
        fresh=True,
    )
    assert found.interval is None and not found.is_better and found.difference == -1.0
    assert found.sentence().startswith("Fewer than 5 samples do not tell chance from gain")
    assert verdict.paired_interval(np.array([1.0, 2, 3, 4, np.inf]), 0.95) is None


def test_who_is_judged():
    """Whoever is not measured, the best of the search, the best baseline and those that the text of
    the search does not tell from it."""
    pool = [candidate(f"evolution {i}", 5.0 + i) for i in range(4)]
    spread = dict(known=(8.7, 8.7), same=(8.5, 8.9), near=(8.8, 9.2), far=(9.8, 10.2))
    pool += [candidate(name, np.mean(x), True, x) for name, x in spread.items()]
    pool += [candidate("end"), candidate("failed", np.inf), candidate("lost", np.inf, True)]

    def names(count, cycle=1):
        return [c.name for c in verdict.finalists(pool, count, judge(cycle))]

    assert names(3) == ["end", "evolution 0", "evolution 1", "known", "same", "near"]
    assert names(1) == ["end", "known", "same", "near"]
    # draws of one sample of each of two kinds: there is one, which tells no spread
    assert names(1, cycle=2) == ["end", "known", "same"]
    pool.append(candidate("second end"))
    assert names(1)[:2] == ["end", "second end"]
    pool += [candidate(f"like it {i}", 8.7, True) for i in range(9)]
    assert len(names(1)) == 2 + 6  # at most six baselines


def losses_of(*means, spread=0.01, count=8, seed=0):
    rng = np.random.default_rng(seed)
    ease_B = rng.normal(0, 1, count)
    return np.array(means)[:, None] + ease_B + spread * rng.normal(size=(len(means), count))


@pytest.mark.parametrize("spread, kept", [(0.01, False), (0.5, True)])
def test_a_recovery_keeps_what_is_there_unless_others_are_better_beyond_chance(spread, kept):
    chosen = [candidate("end"), candidate("none", 2.0, True), candidate("configured", 2.1, True)]
    losses_PB = losses_of(3.0, 3.1, 3.2, spread=spread, seed=1)
    losses_PB += np.array([3.0, 3.1, 3.2])[:, None] - losses_PB.mean(axis=1, keepdims=True)
    found = verdict.decide(chosen, losses_PB, fresh=True, kept="configured")
    assert found.result.name == ("configured" if kept else "end")
    assert sorted(c.name for c, _ in found.losses) == ["configured", "end", "none"]
    if kept:
        assert found.difference == 0.0 and found.baseline.name == "configured"
        assert found.sentence().endswith("nothing that was searched is better beyond chance.")
    assert verdict.decide(chosen, losses_PB, fresh=True).result.name == "end"


def test_a_verdict_and_its_words():
    chosen = [candidate("end"), candidate("yarn", 2.0, True), candidate("ntk", 1.9, True)]
    losses_PB = losses_of(3.0, 3.2, 3.4)
    found = verdict.decide(chosen, losses_PB, fresh=True)
    assert [c.name for c, _ in found.losses] == ["end", "yarn", "ntk"]
    assert found.result.name == "end" and found.baseline.name == "yarn" and found.is_better
    wanted = stats.ttest_rel(losses_PB[0], losses_PB[1]).confidence_interval(0.9706)
    assert found.interval == pytest.approx((wanted.low, wanted.high))
    assert found.sentence().startswith("Better than every baseline on 8 fresh samples: -0.2")
    assert "[" in found.sentence() and found.sentence().endswith("against the best baseline, yarn.")
    same = verdict.decide(chosen, losses_PB, fresh=False)
    assert "on 8 samples" in same.sentence() and not same.to_json()["fresh"]

    close = verdict.decide(chosen, losses_of(3.0, 3.001, 3.4, spread=0.1, seed=3), fresh=True)
    assert not close.is_better
    words = close.sentence()
    assert words.startswith(("No better than a baseline beyond chance", "The result is a baseline"))

    lost = verdict.decide(chosen, losses_of(3.3, 3.2, 3.1), fresh=True)
    assert lost.result.name == "ntk" and lost.difference == 0.0 and not lost.is_better
    assert lost.sentence().startswith("The result is a baseline, ntk: on 8 fresh samples nothing")
    told = lost.to_json()
    assert told["is_baseline"] and told["best_baseline"] == "ntk" and told["interval"] is None

    failed = verdict.decide(chosen, np.vstack([np.full(8, np.nan), losses_of(2, 3)]), fresh=True)
    assert failed.result.name == "yarn"
    alone = verdict.decide(chosen[:1], losses_of(1.0), fresh=True)
    assert alone.baseline is None and not alone.is_better


def test_whom_a_second_look_decides_between():
    end, yarn, ntk = chosen = [
        candidate("end"),
        candidate("yarn", 2, True),
        candidate("ntk", 2, True),
    ]
    far, near = losses_of(3.0, 3.2, 3.4), losses_of(3.0, 3.02, 3.4, spread=0.05, seed=4)
    assert verdict.undecided(chosen, far) == []
    assert verdict.undecided(chosen, near) == [0, 1]
    assert verdict.undecided([end, ntk, yarn], near[[0, 2, 1]]) == [0, 2]
    assert verdict.undecided([yarn, end, end], near) == [0, 1]  # a baseline is the best
    assert verdict.undecided([end, end, yarn], near) == []  # either was searched
    assert verdict.undecided(chosen, near[:, :4]) == []  # of so few nothing can be told
    assert verdict.undecided(chosen, near[[0, 0, 2]]) == []  # one that is the very same
    failed = np.where(np.arange(3)[:, None] == 1, np.inf, near)
    assert verdict.undecided(chosen, failed) == [] == verdict.undecided(chosen, failed * np.inf)


def test_a_second_look_decides():
    """Between those who were near; of all others the difference of the first look stands."""
    chosen = [candidate("end"), candidate("yarn", 2, True), candidate("ntk", 2, True)]
    first, second = losses_of(3.0, 3.02, 3.4, spread=0.05, seed=4), losses_of(4.1, 4.0, count=16)
    found = verdict.decide(chosen, first, again={0: second[0], 1: second[1]}, fresh=True)
    read = np.hstack([first[:2], second])
    assert [c.name for c, _ in found.losses] == ["yarn", "end", "ntk"] and found.draws == 24
    assert found.losses[0][1] == pytest.approx(read[1].mean())
    assert found.losses[1][1] == pytest.approx(read[0].mean())
    assert found.losses[2][1] == pytest.approx(read[1].mean() + (first[2] - first[1]).mean())
    assert "yarn: on 24 fresh samples nothing that was searched is better" in found.sentence()
    found = verdict.decide(chosen, first, again={0: second[1], 1: second[0]}, fresh=True)
    read = np.hstack([first[:2], second[::-1]])
    wanted = stats.ttest_rel(read[0], read[1]).confidence_interval(0.9706)
    assert found.interval == pytest.approx((wanted.low, wanted.high)) and found.is_better


@pytest.fixture
def stand(tmp_path, monkeypatch):
    def make(**changes):
        return search_bowls.Stand(tmp_path, monkeypatch, **changes)

    return make


def outcomes(stand, count):
    """Yields of each model (verdict, p of the result being worse than the baseline that is best on
    text drawn after the judging, mean difference on much of such text)."""
    for seed in range(1000, 1000 + count):  # chosen before any of them was run
        bowl = search_bowls.random_bowl(seed, away=(0.0, 0.05, 0.1, 0.2)[seed % 4])
        found, rows = stand.phases(bowl)
        known = [candidates.of_row(row, "").bucket for row in rows if "baseline" in row]
        losses = search_bowls.after(bowl, [found.result.bucket, *known])
        best = 1 + int(np.argmin(losses[1:].mean(axis=1)))
        is_same = np.allclose(losses[0], losses[best])
        test = stats.ttest_rel(losses[0], losses[best], alternative="greater")
        pair = [found.result.bucket, known[best - 1]]
        result, baseline = search_bowls.after(bowl, pair, 1000).mean(axis=1)
        yield found, 1.0 if is_same else test.pvalue, result - baseline


@pytest.mark.parametrize("method", ["gradient", pytest.param("hybrid", marks=pytest.mark.slow)])
def test_a_search_is_never_worse_than_its_baselines(stand, method):
    """Beyond chance, on text drawn after the judging, in no more than 5% of 100 models; for some of
    them NTK is nearly the best there is. What is called better is better, and where there is much
    to find, it is found and told."""
    found = list(outcomes(stand(search__method=method), 100))
    assert np.mean([p < 0.025 for _, p, _ in found]) <= 0.05
    claims = [difference for told, _, difference in found if told.is_better]
    assert len(claims) > 20 and np.mean(np.array(claims) > 0) <= 0.05
    far = [told for told, _, difference in found if difference < -0.05]
    assert len(far) > 15 and np.mean([told.is_better for told in far]) > 0.9
    assert any(told.result.is_baseline for told, _, _ in found)


def test_one_flipped_sign_in_the_judging_would_be_seen(stand, monkeypatch):
    """The property can fail: with the losses of the last word negated it does."""
    losses_fn = verdict._losses
    monkeypatch.setattr(verdict, "_losses", lambda *args: -losses_fn(*args))
    found = list(outcomes(stand(), 16))
    assert np.mean([p < 0.025 for _, p, _ in found]) > 0.3


def test_the_best_so_far_gets_better(stand):
    """From phase to phase, by the samples of the search, a baseline first; never worse."""
    search_stand = stand(search__method="hybrid", search__gradient__steps=1)
    for seed in range(6):
        saved = []
        bowl = search_bowls.random_bowl(seed, 0.2)
        search_stand.phases(bowl, lambda pool, saved=saved: saved.append(list(pool)))
        best = [min(c.fitness for c in pool if np.isfinite(c.fitness)) for pool in saved]
        assert len(best) >= 2 and best == sorted(best, reverse=True)
        assert all(c.is_baseline for c in saved[0])


def test_a_baseline_that_is_best_is_the_result(tmp_path, monkeypatch):
    """Whatever the search found is worse on fresh text: rope.json is the baseline, exact."""
    config = tiny_default(tmp_path)
    decide = verdict.decide

    def spoiled(chosen, losses_PB, **more):
        worse_P1 = np.array([[0.0 if c.is_baseline else 5.0] for c in chosen])
        return decide(chosen, losses_PB + worse_P1, fresh=True)

    monkeypatch.setattr(verdict, "decide", spoiled)
    result = search.search(config, tmp_path / "run")
    told = rope.provenance(tmp_path / "run" / "rope.json")["verdict"]
    assert told["is_baseline"] and not told["is_better"] and told["result"] in result.baselines
    assert told == result.content["verdict"] and told["fresh"] and told["samples"] in (8, 24)
    rows = [row for row in rows_of(tmp_path / "run") if row.get("judged") == told["result"]]
    (bucket,) = rope.load(tmp_path / "run" / "rope.json").buckets
    assert list(bucket.factors) == rows[0]["factors"]
    assert bucket.attention_factor == rows[0]["attention_factor"]
    assert "The result is a baseline" in result.table
    assert "unfinished" not in rope.provenance(tmp_path / "run" / "rope.json")


def test_with_no_fresh_samples_those_of_the_search_judge(tmp_path):
    result = search.search(tiny(tmp_path), tmp_path / "run")
    judged = [row for row in rows_of(tmp_path / "run") if "judged" in row]
    measured = {
        tuple(r["factors"]): r
        for r in rows_of(tmp_path / "run")
        if "judged" not in r and "factors" in r and r["start_tokens"] == judged[0]["start_tokens"]
    }
    same = measured[tuple(judged[0]["factors"])]
    assert judged[0]["losses"] == pytest.approx(same["losses"], rel=1e-6)
    assert not result.content["verdict"]["fresh"] and result.content["verdict"]["samples"] == 2


def test_a_killed_search_leaves_the_best_so_far(tmp_path):
    """SIGKILL within the descents: rope.json is whole, marked, and replaced in the end."""
    config = tiny_default(tmp_path)
    workdir = tmp_path / "run"
    command = [sys.executable, str(ROOT / "search.py"), f"--workdir={workdir}"]
    command += [f"--config={ROOT / 'tests' / 'search_config.py'}:default:{tmp_path}"]
    command += ["--config.search.gradient.steps=60"]
    config.search.gradient.steps = 60
    process = subprocess.Popen(command, stderr=subprocess.PIPE, env=environment())
    path, steps = workdir / "journal.jsonl", 0
    while steps < 2:
        assert process.poll() is None, process.stderr.read().decode()
        time.sleep(0.005)
        steps = path.read_bytes().count(b'"descent"') if path.exists() else 0
    process.send_signal(signal.SIGKILL)
    process.communicate()
    rows = rows_of(workdir)
    best = min((row for row in rows if "fitness" in row), key=lambda row: row["fitness"])
    told, saved = rope.provenance(workdir / "rope.json"), rope.load(workdir / "rope.json")
    assert told["unfinished"].startswith("the best so far") and "verdict" not in told
    assert list(saved.buckets[0].factors) == best["factors"]
    assert told["perplexity"] == best["fitness"] and not (workdir / "result.json").exists()
    search.search(config, workdir)
    told = rope.provenance(workdir / "rope.json")
    assert "unfinished" not in told and told["verdict"]["samples"] in (8, 24)
