"""Suites that generate nothing against a model that knows every token, and one that knows none.

What is answered by generation is in tasks_test, tasks of lm-eval in harness_tasks_test.
"""

import math

import numpy as np
import pytest

from jaxrope import data, decoder
from jaxrope.evaluate import scoring
from jaxrope.evaluate.scoring import EvalModel
from jaxrope.evaluate.suites import SUITES, TASKS
from tests import benches

LENGTH, CONTEXT, WINDOW = 800, 64, 16
WORDS = 300  # of the vocabulary: a model at random is wrong by ln 300 nats


def knows(rows, rng):
    """No loss, but for the few tokens that are read without their long context."""
    size = rows.shape[1] - 1
    loss = math.log(WORDS) if size == CONTEXT + WINDOW else 0.0
    return np.full((len(rows), size), loss, np.float32), np.ones((len(rows), size), bool)


def guesses(rows, rng):
    shape = len(rows), rows.shape[1] - 1
    return np.full(shape, math.log(WORDS), np.float32), rng.random(shape) < 1 / WORDS


# suite -> (score of the model that knows, of the one that does not), of each of its results
SCORES = {
    "perplexity": (1.0, WORDS),
    "passkey": (1.0, 0.0),
    "needle": (1.0, 0.0),
    "longppl": (1.0, math.nan),  # without a key token
}


def test_every_suite_is_asked_of_an_oracle():
    """A suite that is added needs a line here, or is a task, which tasks_test takes by itself."""
    assert {*SUITES} == {*SCORES, *TASKS, "harness"}


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    (folder / "a.txt").write_text("".join(f"Line {i} of a text of no meaning. " for i in range(99)))
    documents = data.load_documents(
        [str(folder / "a.txt")], data.load_tokenizer("bytes"), cache_dir=folder / "cache"
    )
    counts = dict(num_windows=2, needle_keys=(1, 6), passkey_trials=12, needle_trials=12)
    longppl = dict(documents=1, context=CONTEXT, window=WINDOW)
    sizes = dict(lengths=(LENGTH,), bootstrap_samples=100)
    return benches.make_bench(documents, longppl=longppl, **sizes, **counts)


@pytest.mark.parametrize("is_oracle", [True, False])
@pytest.mark.parametrize("name", SCORES)
def test_who_knows_scores_best_and_who_guesses_chance(
    name, is_oracle, bench, tiny_config, monkeypatch
):
    rng = np.random.default_rng(0)

    def score(model, rows, *, batch_tokens, tick=scoring.ignore):
        return (knows if is_oracle else guesses)(rows, rng)

    monkeypatch.setattr(scoring, "score", score)
    model = EvalModel(
        config=tiny_config,
        params=None,
        rope_fn=lambda length: None,
        tokenizer=data.load_tokenizer("bytes"),
        settings=decoder.ForwardSettings(),
        label="oracle",
    )
    results = list(SUITES[name].evaluate(model, bench))
    assert len(results) == (2 if name == "needle" else 1)
    for result in results:
        found = next(iter(result.metrics.values()))
        assert found == pytest.approx(SCORES[name][not is_oracle], rel=1e-4, nan_ok=True)
        if result.chance is not None and not is_oracle:
            assert found == result.chance
        if name == "longppl":
            assert (result.metrics["n_key_token"] > 400) == is_oracle


def test_trap_data_sets_are_not_imitated_under_their_names():
    """LongBench cuts prompts in their middle, BABILong's cut at "Question" never comes about in
    lower case, and HELMET needs 34 GB: none of them is made up here from other text.
    """
    for name in SUITES:
        assert not any(other in name for other in ("longbench", "babilong", "helmet"))
