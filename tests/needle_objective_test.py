"""Objectives of answers alone and of text and answers together: samples, weights, gradients."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrope import data, decoder, rope, schema, search
from jaxrope.data import BytesTokenizer, needles
from jaxrope.errors import InputError
from jaxrope.search import evaluator, objective
from tests import search_config
from tests.search_config import rows_of
from tests.search_evaluator_test import make, mesh_of, ropes_of

LENGTH = 620
NEEDLE = dict(name="needle", num_samples=3, num_keys=2, place="spread")
MIX = dict(
    name="mix",
    num_samples=4,
    text_weight=1.0,
    needle_weight=3.0,
    offset_tokens=5,
    num_keys=1,
    place="start",
)


def objective_of(section, task):
    section = schema.search.OBJECTIVE.read(section, "search.objective")
    return objective.make(section, task)


@pytest.fixture(scope="module")
def documents(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    rng = np.random.default_rng(0)
    for i in range(6):
        words = ("".join(rng.choice(list("abcdef"), 4)) for _ in range(200))
        (folder / f"{i}.txt").write_text(" ".join(words))
    return data.load_documents([f"{folder}/*.txt"], BytesTokenizer(), cache_dir=folder / "cache")


@pytest.fixture(scope="module")
def task(tiny_config, documents):
    return objective.Task(
        config=tiny_config,
        settings=decoder.ForwardSettings(attention_block=64),
        documents=documents,
        tokenizer=BytesTokenizer(),
        target_len=LENGTH,
        seed=3,
    )


def nll_of(model, tokens_T, r):
    """float64 NLL of tokens 1, 2, ... of a row, by the plain forward pass."""
    config, params = model
    logits = np.asarray(decoder.logits(config, params, tokens_T[None, :-1], r)[0], np.float64)
    logits -= logits.max(axis=-1, keepdims=True)
    logits -= np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    return -logits[np.arange(len(tokens_T) - 1), tokens_T[1:]]


def test_only_the_digits_of_the_answer_count(task, tiny_model):
    judge = objective_of(NEEDLE, task)
    assert judge.unit == "needle perplexity" and judge.sample_tokens == LENGTH
    assert judge.num_samples == 3 and judge.candidate_tokens == 3 * LENGTH
    r = ropes_of(task.config, 1)[0]
    found = evaluator.evaluate(make(judge, tiny_model, 1), [r])[0]
    for i, tokens_T in enumerate(judge.samples["tokens_WT"]):
        text = BytesTokenizer().decode(tokens_T)
        digits = text.rsplit(" ", 1)[1]
        assert len(tokens_T) == LENGTH + 1 and len(digits) == 7 and digits.isdigit()
        assert text.count(f"is: {digits}.") == 1 and text.count("One of the special magic") == 2
        wanted = nll_of(tiny_model, tokens_T, r)[-7:].mean()
        assert found[i] == pytest.approx(wanted, rel=3e-6)
    assert judge.mean(found[None]) == pytest.approx(found.mean())
    np.testing.assert_allclose(judge.fitness_fn(np.array([2.0])), np.exp(2.0))


def test_the_place_of_needles(task):
    opening = len(needles.OPENING)
    start = objective_of(NEEDLE | dict(place="start", num_keys=1), task)
    spread = objective_of(NEEDLE | dict(num_samples=8, num_keys=1), task)

    def places(judge):
        texts = [BytesTokenizer().decode(row) for row in judge.samples["tokens_WT"]]
        return [text.index("\nOne of the special") - opening for text in texts]

    assert places(start) == [0, 0, 0]
    room = LENGTH + 1 - 1 - opening - 150 - 70
    depths = np.array(places(spread)) / room
    wanted = [needles.spread_depth(i) for i in range(8)]
    np.testing.assert_allclose(depths, wanted, atol=0.12)
    assert np.ptp(depths) > 0.6


@pytest.mark.parametrize("section", [NEEDLE, MIX, MIX | dict(place="spread")], ids=str)
def test_more_samples_begin_with_the_fewer(task, section):
    few = objective_of(section | dict(num_samples=2), task)
    many = objective_of(section | dict(num_samples=6), task)
    for row, same in zip(few.laid(), many.laid()[:2], strict=True):
        assert all(np.array_equal(row[name], same[name]) for name in row)
    assert len({row["tokens_BT"].tobytes() for row in many.laid()}) == 6
    assert few.fingerprint != many.fingerprint
    if section is NEEDLE:
        assert many.first(2).fingerprint == few.fingerprint


def test_a_mix_takes_turns_and_weighs(task, tiny_model):
    judge = objective_of(MIX, task)
    text = objective_of(dict(name="perplexity", num_samples=2, offset_tokens=5), task)
    found = objective_of(dict(name="needle", num_samples=2, num_keys=1, place="start"), task)
    turns = judge.laid()[::2] + judge.laid()[1::2]
    for row, alone in zip(turns, text.laid() + found.laid(), strict=True):
        assert all(np.array_equal(row[name], alone[name]) for name in alone)
    assert judge.weights == (1.0, 3.0) and judge.unit == "mixed perplexity"
    assert (judge.cycle, judge.num_samples, judge.candidate_tokens) == (2, 4, 4 * LENGTH)
    assert judge.scored_tokens == pytest.approx(np.sqrt(LENGTH * 7))
    ropes = ropes_of(task.config, 2)
    losses = {
        name: evaluator.evaluate(make(one, tiny_model, 2), ropes)
        for name, one in (("mix", judge), ("text", text), ("needle", found))
    }
    np.testing.assert_allclose(losses["mix"][:, ::2], losses["text"], rtol=1e-6)
    np.testing.assert_allclose(losses["mix"][:, 1::2], losses["needle"], rtol=1e-6)
    wanted = (losses["text"].mean(axis=1) + 3 * losses["needle"].mean(axis=1)) / 4
    np.testing.assert_allclose(judge.mean(losses["mix"]), wanted, rtol=1e-6)
    other = objective_of(MIX | dict(needle_weight=2.0), task)
    assert other.fingerprint != judge.fingerprint  # not the same search


def test_samples_of_the_search_are_not_those_of_the_evaluation(task):
    tokens_WT = objective_of(NEEDLE, task).samples["tokens_WT"]
    other = dataclasses.replace(task, seed=4)
    assert not np.array_equal(tokens_WT, objective_of(NEEDLE, other).samples["tokens_WT"])
    source = needles.Source(
        BytesTokenizer(),
        needles.text(task.documents),
        "evaluation",
        "eval.lengths",
    )
    document = needles.make_document(
        source, length=LENGTH + 1, num_keys=2, seed=3, index=0, depth=0.5
    )
    assert not np.array_equal(tokens_WT[0], document.tokens)


@pytest.mark.parametrize("name", ["factors_R", "attention_factor"])
def test_the_loss_of_an_answer_has_the_slope_of_its_differences(task, tiny_model, name):
    """In float64, where the phase words that belong to other factors are made anew."""
    judge = objective_of(NEEDLE | dict(num_samples=1, num_keys=1), task)
    with jax.enable_x64(True):
        settings = decoder.ForwardSettings(attention="reference", compute_dtype="float64")
        params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), tiny_model[1])
        loss_fn = objective.mean_nll(task.config, settings)
        compiled = jax.jit(loss_fn)
        sample = jax.tree.map(lambda rows: rows[0], judge.lay_out(judge.samples))
        base = np.array([1.0, 2.5, 6.0, 9.0])

        def loss_at(factors, attention_factor):
            r = rope.build(factors, theta=10_000.0, attention_factor=1.1)
            r = dataclasses.replace(r, attention_factor=jnp.float32(attention_factor))
            return float(compiled(params, r, sample))

        r = rope.build(base, theta=10_000.0, attention_factor=1.1)
        changed = jnp.asarray(getattr(r, name))  # float32, as the rotation is
        slope = jax.grad(
            lambda leaf: loss_fn(params, dataclasses.replace(r, **{name: leaf}), sample)
        )(changed)
        if name == "attention_factor":
            wanted = (loss_at(base, 1.1 + 1e-3) - loss_at(base, 1.1 - 1e-3)) / 2e-3
            assert float(slope) == pytest.approx(wanted, rel=2e-3)
            return
        for pair in (1, 3):
            step = np.eye(4)[pair] * 0.01
            wanted = (loss_at(base + step, 1.1) - loss_at(base - step, 1.1)) / 0.02
            assert float(slope[pair]) == pytest.approx(wanted, rel=0.02)


@pytest.mark.parametrize(
    "sizes, backend", [(dict(context=4), "ring"), (dict(context=2, tensor=2), "ulysses")], ids=str
)
def test_answers_cost_the_same_on_every_mesh(task, tiny_model, sizes, backend):
    """The digits lie on one device of those that share a sequence."""
    config, params = tiny_model
    ropes = ropes_of(config, 2)
    section = NEEDLE | dict(num_samples=2)
    one = evaluator.evaluate(make(objective_of(section, task), tiny_model, 2), ropes)
    mesh = mesh_of(8, **sizes)
    settings = dataclasses.replace(task.settings, mesh=mesh, attention=backend)
    judge = objective_of(section, dataclasses.replace(task, settings=settings))
    made = evaluator.make(judge, config, params, per_device=2, mesh=mesh)
    np.testing.assert_allclose(evaluator.evaluate(made, ropes), one, rtol=5e-6)


@pytest.mark.parametrize("section", [NEEDLE | dict(num_samples=2), MIX | dict(num_samples=2)])
def test_a_whole_search(tmp_path, section):
    config = search_config.tiny(tmp_path)
    for i in range(3):
        (tmp_path / "texts" / f"{i}.txt").write_text(f"some words {i} " * 80)
    config.target_len = 448
    config.search.objective = section | dict(num_keys=1)
    config.search.algorithm.update(iterations=1)
    search.search(config, tmp_path / "run")
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    units = {"needle": "needle perplexity", "mix": "mixed perplexity"}
    assert result["unit"] == units[section["name"]]
    rows = rows_of(tmp_path / "run")
    rows = [row for row in rows if "losses" in row and "factors" in row]
    weights = [1.0, 1.0] if section["name"] == "needle" else [1.0, 3.0]
    for row in rows:
        wanted = np.exp(np.average(row["losses"], weights=weights))
        assert row["fitness"] == pytest.approx(wanted, rel=1e-9)
    assert len(rows) >= 6


def test_needles_need_room(task):
    message = r"target_len: 6 needles and 1 questions .* got length 621"
    with pytest.raises(InputError, match=message):
        objective_of(NEEDLE | dict(num_keys=6), task)


def test_four_kinds_in_turns(task, tiny_config):
    """Text, answers, needle mass and entropy shift; a kind without weight is left out."""
    reference = objective.Reference(rope.build(np.ones(4), theta=1e4), LENGTH - 20)
    task = dataclasses.replace(task, reference=reference)
    four = objective_of(MIX | dict(mass_weight=2.0, shift_weight=0.5), task)
    assert (four.cycle, four.num_samples, four.weights) == (4, 4, (1.0, 3.0, 2.0, 0.5))
    assert four.sample_tokens == (2 * LENGTH + 2 * (2 * LENGTH - 20)) // 4
    two = objective_of(MIX | dict(needle_weight=0.0, mass_weight=2.0), task)
    assert two.weights == (1.0, 2.0) and two.cycle == 2
    assert len({four.fingerprint, two.fingerprint, objective_of(MIX, task).fingerprint}) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(num_samples=3), "num_samples must be a multiple of 2 for 'mix': .* got 3"),
        (dict(mass_weight=1.0), "num_samples must be a multiple of 3 for 'mix': .* got 4"),
        (dict(needle_weight=0.0), "text_weight must have another weight beside it above 0"),
    ],
)
def test_a_mix_has_as_many_of_each(task, changes, message):
    with pytest.raises(InputError, match=message):
        objective_of(MIX | changes, task)


def test_what_judges_in_the_end_has_chosen_nothing(tmp_path):
    """For needles, too: no document of the last word is one of the search or of its descents."""
    config = search_config.tiny_default(tmp_path)
    rng = np.random.default_rng(0)
    for i in range(12):
        words = ("".join(rng.choice(list("abcdef"), 4)) for _ in range(200))
        (tmp_path / "texts" / f"{i}.txt").write_text(" ".join(words))
    config.target_len = 448
    for section in (NEEDLE, MIX):
        config.search.objective = section | dict(num_samples=2, num_keys=1)
        made = search.prepare(config)

        def tokens(judge):
            return {row["tokens_BT"].tobytes() for row in judge.laid()}

        chose = [made.objective, *(made.fresh(first, 1) for first in range(20))]
        cycle, count = made.objective.cycle, config.search.judge.num_samples
        judges, again = tokens(made.unseen(0, count)), tokens(made.unseen(count, 2 * count))
        assert len(judges) == count * cycle and len(again) == 2 * count * cycle
        assert len(set.union(*map(tokens, chose))) == 2 + 20 * cycle
        assert not (judges | again) & set.union(*map(tokens, chose))
        assert len(judges & again) <= 1  # by chance: of three short texts


def test_texts_must_fill_a_document(task):
    with pytest.raises(InputError, match="needles are to be hidden in .* tokens"):
        objective_of(NEEDLE, dataclasses.replace(task, target_len=5000))
