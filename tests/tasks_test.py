"""Every task of the registry against models that need no weights: one that knows the answer scores
1; one that writes tokens at random scores chance, or less where one that copies a stretch of its
prompt has points for nothing. A task that is registered is tested here, other suites in
oracles_test.
"""

import dataclasses

import numpy as np
import pytest

from jaxrope import data, decoder, evaluate
from jaxrope.evaluate import answering
from jaxrope.evaluate.scoring import EvalModel
from jaxrope.evaluate.suites import SUITES, TASKS
from tests import benches, ruler_files
from tests.conftest import ROOT
from tests.written import replace_generation

LENGTH, COUNT = 4096, 6


@pytest.fixture(scope="module")
def tokenizer():
    return data.load_tokenizer(ROOT / "jaxrope" / "models" / "stdlib-3m")


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """A few items of each task, the files that some need, and no documents."""
    folder = tmp_path_factory.mktemp("files")
    essay = str(ruler_files.write_essay(folder / "essay.json"))
    novel = folder / "novel.txt"
    novel.write_text("It was a dark night. The rain fell on the roofs of the town. " * 600)
    files = dict(
        essays=(essay,),
        squad=str(ruler_files.write_squad(folder / "squad.json")),
        hotpotqa=str(ruler_files.write_hotpotqa(folder / "hotpotqa.json")),
    )
    counted = ("passkey_compat", "number_string", "kv", "lines")
    return benches.make_bench(
        seed=1,
        lengths=(LENGTH,),
        bootstrap_samples=200,
        ruler=dict(samples=COUNT, **files),
        niah=dict(haystack=(str(novel),), depths=COUNT),
        **{name: dict(trials=COUNT) for name in counted},
    )


@pytest.fixture
def model(tokenizer, tiny_config):
    """No weights: nothing may run."""
    return EvalModel(
        config=tiny_config,
        params=None,
        rope_fn=lambda length: None,
        tokenizer=tokenizer,
        settings=decoder.ForwardSettings(),
        label="oracle",
    )


def result_of(name, model, bench):
    (result,) = SUITES[name].evaluate(model, bench)
    assert result.suite == name and len(result.items["score"]) >= COUNT - 1
    return result


@pytest.mark.parametrize("name", TASKS)
def test_a_model_that_knows_the_answer_scores_1(name, model, bench, monkeypatch):
    asked = answering.questions(TASKS[name], model, bench, LENGTH)
    known = {tuple(q.prompt.tokens.tolist()): f" {' '.join(q.item.answers)}" for q in asked}
    # what fills up a batch is no question
    replace_generation(monkeypatch, model.tokenizer, lambda prompt: known.get(tuple(prompt), ""))
    result = result_of(name, model, bench)
    assert result.items["score"] == [1.0] * len(asked), result.items["text"]
    assert TASKS[name].exceeds or all(np.array(result.items["prompt_tokens"]) <= LENGTH)


@pytest.mark.parametrize("name", TASKS)
def test_a_model_that_answers_at_random_scores_chance(name, model, bench, monkeypatch):
    rng = np.random.default_rng(5)

    def tokens_fn(prompt):
        return model.tokenizer.decode(rng.integers(model.tokenizer.vocab_size, size=40))

    replace_generation(monkeypatch, model.tokenizer, tokens_fn)
    result = result_of(name, model, bench)
    scores = result.items["score"]
    assert np.mean(scores) <= result.chance + 0.05
    assert result.metrics["low"] <= result.chance + 0.05
    assert len({*result.items["item"]}) == len(scores)  # no question comes twice
    if name not in ("niah", "ruler/cwe", "ruler/fwe"):
        assert result.chance == 0.0
        return
    drawn = []  # stretches of the prompts, as long as an answer
    for item, prompt in answering.questions(TASKS[name], model, bench, LENGTH):
        last = max(len(prompt.tokens) - prompt.max_new_tokens, 1)
        for start in rng.integers(last, size=60):
            piece = prompt.tokens[start : start + prompt.max_new_tokens]
            drawn.append(TASKS[name].score(model.tokenizer.decode(piece), item))
    assert result.chance == pytest.approx(np.mean(drawn), abs=0.05)


def test_chance_is_high_where_words_of_the_text_count(model, bench, monkeypatch):
    """By copying, much of cwe and fwe is had, and Fu's words by overlap; a needle is not."""
    replace_generation(monkeypatch, model.tokenizer, lambda prompt: "")
    found = {
        name: result_of(name, model, bench).chance
        for name in ("ruler/cwe", "ruler/fwe", "ruler/niah_single_1", "niah", "passkey_longrope")
    }
    assert found["ruler/cwe"] > 0.2 and found["ruler/fwe"] > 0.2
    assert found["ruler/niah_single_1"] == found["passkey_longrope"] == 0.0
    assert 0 < found["niah"] < 0.3


@pytest.mark.parametrize("name", TASKS)
def test_items_are_the_same_at_any_time_and_other_with_another_length(name, model, bench):
    task = TASKS[name]
    first, again = (answering.questions(task, model, b, LENGTH) for b in (bench, anew(bench)))
    other = answering.questions(task, model, bench, LENGTH - 512)
    prints = [[q.item.fingerprint() for q in asked] for asked in (first, again, other)]
    assert prints[0] == prints[1] and not {*prints[0]} & {*prints[2]}
    assert {len(text) for text in prints[0]} == {64}


def test_a_haystack_of_its_own_needs_no_held_out_text(bench):
    def needs_text(options, *names):
        return evaluate.needs_text(dataclasses.replace(options, suites=names))

    assert not needs_text(bench.options, "niah", "kv", "ruler")
    options = benches.make_bench().options
    assert needs_text(options, "niah") and not needs_text(options, "kv")


def anew(bench):
    """Returns a bench that has made nothing yet."""
    return evaluate.Bench(bench.options, bench.seed)
