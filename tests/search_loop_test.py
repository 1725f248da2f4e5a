"""The loop and its journal: failures, memory, and resuming bit for bit from any cut."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrope import rope, schema
from jaxrope.errors import InputError
from jaxrope.search import evaluator, evolution, genome, journal, loop, meter, objective
from jaxrope.store.journal import read_rows

SETTINGS = schema.search.Algorithm(
    population=7,
    mutations=3,
    crossovers=2,
    parents=4,
    iterations=4,
    mutation_probability=0.3,
    crossover_tries=20,
    step=0.01,
    bound=1.25,
    halve_above=0,
)
SPACE = genome.make_space(
    num_pairs=4,
    factor=4.0,
    step=0.01,
    highest=5.0,
    start_tokens=(0, 4, 8),
    attention_factors=(1.0,),
)
SEEDS = np.array([[400, 400, 400, 400, 0], [100, 150, 250, 400, 0]], np.int32)
IDENTITY = {
    "program": "search",
    "settings": {"search.algorithm.population": 7, "seed": 0},
    "content": {"weights": "a" * 64},
}
HEADER = {"identity": IDENTITY, "target_len": 64, "versions": {"jax": "1"}}
TOTAL = 7 + 3 * 5


SAMPLES = [jnp.array([1.0, 2.0, 3.0, 4.0]), jnp.array([1.1, 1.9, 3.2, 4.5])]


def losses(params, ropes, sample):
    """The distance of the factors from a hidden vector, the sample."""
    del params
    return ((ropes.factors_R - sample[None]) ** 2).mean(axis=-1) + ropes.start_tokens * 0.01


def toy_evaluator(per_device=2, losses_fn=losses):
    return evaluator.Evaluator((losses_fn,), None, SAMPLES, 1, per_device)


JUDGE = objective.Objective(
    loss_fn=None,
    samples=np.zeros((2, 1), np.float32),
    lay_out=None,
    fitness_fn=np.exp,
    unit="perplexity",
    sample_tokens=64,
    scored_tokens=64,
)


def first_state():
    return evolution.init(SETTINGS, "monotone", SPACE, SEEDS, 0)


def run(path, per_device=2, losses_fn=losses, header=HEADER):
    """Returns (state, rows) of a search in `path`, begun or resumed."""
    record = journal.Record(path, header)
    state, known = journal.replay(record, first_state())
    told = meter.Meter({"evolution": TOTAL * JUDGE.candidate_tokens})
    told.begin("evolution")
    bench = loop.Bench(toy_evaluator(per_device, losses_fn), JUDGE, record, told)

    def rope_fn(factors_R, start_tokens, attention_factor):
        return rope.build(
            factors_R,
            theta=1e4,
            start_tokens=start_tokens,
            attention_factor=attention_factor,
        )

    state = loop.evolve(state, known, bench, rope_fn=rope_fn, report_fn=lambda *_: None)
    assert record.rows == read_rows(path, journal.FORMAT)
    return state, record.rows


def same(first, second):
    return jax.tree.all(jax.tree.map(np.array_equal, first, second))


def timeless(rows):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def test_journal_has_every_candidate_once_in_order(tmp_path):
    state, rows = run(tmp_path / "journal.jsonl")
    found = journal.candidates(rows)
    assert [(r["generation"], r["index"]) for r in found] == [(0, i) for i in range(7)] + [
        (g, i) for g in (1, 2, 3) for i in range(5)
    ]
    assert np.array_equal([r["genome"] for r in found], state.seen_EG)
    assert [r["fitness"] for r in found] == state.seen_fitness_E.tolist()
    for row in found:
        assert row["factors"] == [gene / 100 for gene in row["genome"][:4]]
        assert row["start_tokens"] == (0, 4, 8)[row["genome"][-1]]
        assert row["fitness"] == float(np.exp(np.mean(row["losses"])))
        assert row["failure"] == "" and row["seconds"] >= 0
    assert evolution.best(state)[1] < min(r["fitness"] for r in found[:2])


def test_resumes_bit_for_bit_from_every_cut(tmp_path):
    """Cut after each line, and in the middle of each line: what a SIGKILL can leave."""
    path = tmp_path / "journal.jsonl"
    whole_state, whole_rows = run(path)
    raw = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(raw) if byte == ord("\n")]
    assert len(ends) == 1 + TOTAL
    cuts = [0, *ends, *[(a + b) // 2 for a, b in zip(ends, ends[1:], strict=False)]]
    for cut in cuts:
        path.write_bytes(raw[:cut])
        state, rows = run(path)
        assert same(state, whole_state), cut
        assert timeless(rows) == timeless(whole_rows), cut


def test_resumed_search_evaluates_only_what_is_missing(tmp_path):
    path, calls = tmp_path / "journal.jsonl", []

    def counted(*args):
        calls.append(1)
        return losses(*args)

    run(path, losses_fn=counted)
    assert len(calls) == 2 * (4 + 3 * 3)  # 7 and 5 candidates in batches of 2, two samples
    calls.clear()
    run(path, losses_fn=counted)
    assert not calls
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[: 1 + 7 + 2]))
    run(path, losses_fn=counted)
    assert len(calls) == 2 * (3 * 3 - 1)


def test_batch_size_changes_nothing(tmp_path):
    first, _ = run(tmp_path / "a.jsonl", per_device=1)
    second, _ = run(tmp_path / "b.jsonl", per_device=5)
    assert same(first, second)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e6])
def test_candidate_that_is_not_a_number_fails_alone(tmp_path, bad):
    """1e6 nats overflow the exponential."""

    def sometimes(params, ropes, sample):
        return jnp.where(ropes.start_tokens == 4, bad, losses(params, ropes, sample))

    state, rows = run(tmp_path / "journal.jsonl", losses_fn=sometimes)
    found = journal.candidates(rows)
    failed = [row for row in found if row["start_tokens"] == 4]
    assert failed and len(found) == TOTAL
    assert all(r["fitness"] is None and r["failure"] == "not a number" for r in failed)
    assert all(r["fitness"] is not None for r in found if r["start_tokens"] != 4)
    assert np.isinf(state.seen_fitness_E).sum() == len(failed)
    again, _ = run(tmp_path / "journal.jsonl", losses_fn=sometimes)
    assert same(again, state)


def out_of_memory_above(limit):
    def losses_fn(params, ropes, sample):
        if len(ropes.factors_R) > limit:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
        return losses(params, ropes, sample)

    return losses_fn


def test_out_of_memory_halves_the_batch_and_says_so(tmp_path):
    whole, _ = run(tmp_path / "whole.jsonl")
    state, rows = run(tmp_path / "a.jsonl", per_device=8, losses_fn=out_of_memory_above(2))
    events = [row for row in rows if "event" in row]
    assert [(e["event"], e["batch_size"]) for e in events] == [
        ("out_of_memory", 8),
        ("out_of_memory", 4),
    ]
    assert rows[:2] == events  # once, at the beginning: the batch stays small
    assert same(state, whole)
    assert same(run(tmp_path / "a.jsonl", per_device=2)[0], whole)


def test_out_of_memory_at_one_candidate_is_a_failure(tmp_path):
    state, rows = run(tmp_path / "a.jsonl", per_device=2, losses_fn=out_of_memory_above(0))
    assert evolution.stop_reason(state) == "all 7 candidates failed"
    found = journal.candidates(rows)
    assert len(found) == 7 and all(row["failure"] == "out of memory" for row in found)
    assert found[0]["losses"] == [None, None] and found[0]["fitness"] is None


def test_rows_are_on_disk_before_the_next_batch(tmp_path):
    path, seen = tmp_path / "journal.jsonl", []

    def watching(*args):
        seen.append(len(journal.candidates(read_rows(path, journal.FORMAT))))
        return losses(*args)

    run(path, losses_fn=watching)
    assert seen[::2] == seen[1::2] == [0, 2, 4, 6, 7, 9, 11, 12, 14, 16, 17, 19, 21]


def other(**changes):
    return {**HEADER, "identity": IDENTITY | changes}


def test_another_search_is_refused_by_name(tmp_path):
    path = tmp_path / "journal.jsonl"
    run(path)
    before = path.read_bytes()
    settings = IDENTITY["settings"] | {"search.algorithm.population": 9}
    with pytest.raises(
        InputError, match=r"another search: search\.algorithm\.population \(7, now 9\)\. Undo"
    ):
        journal.Record(path, other(settings=settings))
    with pytest.raises(InputError, match=r"another search: the weights \(digest a{12}, now b{12}"):
        journal.Record(path, other(content={"weights": "b" * 64}))
    # one that is damaged as well is left as it is
    path.write_bytes(before[:-40] + b"x" + before[-39:])
    damaged = path.read_bytes()
    with pytest.raises(InputError, match="another search"):
        journal.Record(path, other(settings=settings))
    assert path.read_bytes() == damaged


def test_versions_are_recorded_but_not_compared(tmp_path):
    path = tmp_path / "journal.jsonl"
    run(path)
    assert json.loads(path.read_text().splitlines()[0])["versions"] == {"jax": "1"}
    assert len(journal.Record(path, {**HEADER, "versions": {"jax": "2"}}).rows) == TOTAL


@pytest.mark.parametrize(
    "change",
    [
        dict(genome=[100, 100, 100, 100, 0]),
        dict(generation=1),
        dict(index=3),
        dict(index=99),
    ],
)
def test_rows_of_other_candidates_are_refused(tmp_path, change):
    path = tmp_path / "journal.jsonl"
    run(path)
    record = journal.Record(path, HEADER)
    record.rows[4] = record.rows[4] | change
    with pytest.raises(InputError, match="is not the candidate that this search would ask for"):
        journal.replay(record, first_state())


@pytest.mark.parametrize("line", [2, 9, 1 + TOTAL])
def test_a_damaged_line_is_told_and_what_follows_is_measured_again(tmp_path, line):
    path = tmp_path / "journal.jsonl"
    whole_state, whole_rows = run(path)
    lines = path.read_bytes().split(b"\n")
    flipped = bytearray(lines[line - 1])
    flipped[flipped.index(b"genome") + 12] ^= 1
    path.write_bytes(b"\n".join([*lines[: line - 1], bytes(flipped), *lines[line:]]))
    record = journal.Record(path, HEADER)
    assert record.notes == [
        f"{path}, line {line}: damaged. It and what follows are measured again."
    ]
    assert len(record.rows) == line - 2
    state, rows = run(path)
    assert same(state, whole_state) and timeless(rows) == timeless(whole_rows)
    assert not journal.Record(path, HEADER).notes


def test_a_journal_without_a_whole_header_is_refused(tmp_path):
    path = tmp_path / "journal.jsonl"
    run(path)
    path.write_bytes(b"{" + path.read_bytes())
    with pytest.raises(InputError, match="line 1: damaged, or not a journal of this version"):
        journal.Record(path, HEADER)


def test_fitness_reads_back_exactly(tmp_path):
    """Every float64 survives the journal."""
    state = first_state()
    values = np.random.default_rng(0).uniform(1, 1e3, 7)
    rows = [
        journal.candidate_row(state, i, values[i : i + 1], fitness=v, failure="", seconds=0.0)
        for i, v in enumerate(values)
    ]
    path = tmp_path / "journal.jsonl"
    journal.Record(path, HEADER).append(rows)
    assert [row["fitness"] for row in journal.Record(path, HEADER).rows] == values.tolist()


def test_evaluator_is_not_changed_by_halving():
    made = toy_evaluator(8)
    assert evaluator.halve(made).per_device == 4 and made.per_device == 8
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.per_device = 3
