"""A search on fifty random models, each with all of its code: on text drawn after the judging the
result is not worse than the best baseline."""

import dataclasses

import jax
import numpy as np
import pytest
from scipy import stats

from jaxrope import search
from jaxrope.search import candidates, evaluator, loop, meter, run, verdict
from tests.search_bowls import MANY, Rows
from tests.search_config import tiny_default, write_texts

MODELS, AFTER = 50, 32


@pytest.fixture
def searched(tmp_path, monkeypatch):
    """Yields for each model the losses, [1 + baselines, AFTER], of the result and of the baselines
    on text drawn after the judging, and the verdict."""
    config = tiny_default(tmp_path)
    write_texts(tmp_path / "texts", documents=40)
    config.search.gradient.update(steps=8, ramps=4)
    problem = search.prepare(config)
    weights = search.problem.weights(problem)
    made = evaluator.make(
        problem.objective, problem.model, weights, per_device=8, mesh=problem.mesh
    )
    after = problem.unseen(100, AFTER)
    fns = evaluator.gradient_fns(problem.objective, problem.model, problem.mesh)
    monkeypatch.setattr(evaluator, "gradient_fns", lambda *_: fns)  # compiled once

    def outcomes(count):
        for seed in range(count):
            params = random_like(made.params, seed)
            of_model = dataclasses.replace(made, params=params)
            record, told = Rows(), meter.Meter(dict.fromkeys(MANY, 10**9))
            bench = loop.Bench(of_model, problem.objective, record, told)
            found, _ = run._phases(problem, bench, lambda pool: None)
            rows = [row for row in record.rows if "baseline" in row]
            buckets = [found.result.bucket, *(candidates.of_row(row, "").bucket for row in rows)]
            ropes = [candidates.rope_of(problem, bucket) for bucket in buckets]
            batches = bench.on(after, problem.mesh).measure(ropes, done=set())
            yield found, np.concatenate([batch.losses_PW for batch in batches])

    return outcomes


def random_like(params, seed: int):
    """Returns weights whose heads attend, and differ from model to model."""
    rng = np.random.default_rng([7, seed])
    return jax.tree.map(lambda x: (x * rng.normal(1, 1.5, x.shape)).astype(x.dtype), params)


def p_worse(losses_PB) -> float:
    """Returns p of the first being worse, on every second text, than the best of the others by the
    rest: the best of many on the same text would be the luckiest."""
    chosen, told = losses_PB[:, ::2], losses_PB[:, 1::2]
    best = 1 + np.argmin(chosen[1:].mean(axis=1))
    if np.allclose(told[0], told[best]):
        return 1.0
    return stats.ttest_rel(told[0], told[best], alternative="greater").pvalue


def test_a_search_of_a_random_model_is_never_worse_than_its_baselines(searched):
    """Beyond chance, in no more than 5% of them; many have something better, which is found."""
    found = list(searched(MODELS))
    assert np.mean([p_worse(losses_PB) < 0.025 for _, losses_PB in found]) <= 0.05
    assert np.mean([told.is_better for told, _ in found]) > 0.3


def test_one_flipped_sign_in_the_judging_of_random_models_would_be_seen(searched, monkeypatch):
    losses_fn = verdict._losses
    monkeypatch.setattr(verdict, "_losses", lambda *args: -losses_fn(*args))
    found = list(searched(12))
    assert np.mean([p_worse(losses_PB) < 0.025 for _, losses_PB in found]) > 0.05
