"""What lm-evaluation-harness asks of a model, without the package lm-eval."""

import dataclasses
import json
import sys

import jax
import numpy as np
import pytest
from tiny_harness import eval_model, ids, make_bench, make_reader

from jaxrope import generate, rope
from jaxrope.data import sliding
from jaxrope.errors import InputError
from jaxrope.evaluate import harness, harness_run, perplexity, rows, scoring, suites
from jaxrope.evaluate.__main__ import main, with_tasks
from jaxrope.evaluate.harness import Pair, Question, Reader, factor_lengths, rolling_pairs
from jaxrope.evaluate.journal import Journal
from jaxrope.report import tables


@pytest.fixture
def model(tiny_model):
    return eval_model(tiny_model)


def random_pairs(*sizes, seed=0):
    rng = np.random.default_rng(seed)
    return [Pair(*(rng.integers(0, 256, n).astype(np.int32) for n in pair)) for pair in sizes]


# tests/test_utils.py of lm-evaluation-harness: (tokens, max_seq_len, context_len) -> the windows
FIRST = (list(range(-1, 9)), list(range(10)))
LM_EVAL_WINDOWS = {
    (34, 10, 1): [
        FIRST,
        (list(range(9, 19)), list(range(10, 20))),
        (list(range(19, 29)), list(range(20, 30))),
        (list(range(23, 33)), [30, 31, 32, 33]),
    ],
    (34, 10, 8): [
        FIRST,
        *((list(range(i, i + 10)), [i + 8, i + 9, i + 10]) for i in (2, 5, 8, 11, 14, 17, 20, 23)),
    ],
    (34, 10, 10): [FIRST, *((list(range(i, i + 10)), [i + 10]) for i in range(24))],
    (30, 10, 10): [FIRST, *((list(range(i, i + 10)), [i + 10]) for i in range(20))],
    (30, 10, 1): [
        FIRST,
        (list(range(9, 19)), list(range(10, 20))),
        (list(range(19, 29)), list(range(20, 30))),
    ],
    (9, 2, 1): [
        ([-1, 0], [0, 1]),
        ([1, 2], [2, 3]),
        ([3, 4], [4, 5]),
        ([5, 6], [6, 7]),
        ([6, 7], [8]),
    ],
}


@pytest.mark.parametrize("num_tokens, size, context", LM_EVAL_WINDOWS)
def test_rolling_windows_are_those_of_lm_eval(num_tokens, size, context):
    tokens = np.arange(-1, num_tokens)  # -1 is the prefix
    plan = sliding.spans(num_tokens, window=size, stride=size - context + 1)
    read = sliding.rows(tokens, plan, bos_per_window=False)
    found = [
        (row[:-1].tolist(), row[span.scored - span.end :].tolist())
        for row, span in zip(read, plan, strict=True)
    ]
    assert found == LM_EVAL_WINDOWS[num_tokens, size, context]
    if context == 1:  # and what the model is asked: their make_disjoint_window
        pairs = rolling_pairs(tokens[1:], prefix=-1, max_length=size)
        wanted = [(a[: len(a) - len(b) + 1], b) for a, b in found]
        assert [(p.context.tolist(), p.continuation.tolist()) for p in pairs] == wanted


def test_a_text_without_tokens_has_no_windows(model):
    assert rolling_pairs(ids(), prefix=7, max_length=2) == []
    assert make_reader(model).rolling([ids()], prefix=256) == [0.0]


def test_a_short_text_is_one_window():
    (pair,) = rolling_pairs(ids(1, 2, 3), prefix=9, max_length=10)
    assert pair.context.tolist() == [9] and pair.continuation.tolist() == [1, 2, 3]


def test_log_likelihoods_are_those_of_each_request_alone(model):
    pairs = random_pairs((5, 3), (1, 7), (40, 20), (63, 2), (1, 1), (2, 63))
    found = make_reader(model).loglikelihoods(pairs)
    for pair, (value, is_greedy) in zip(pairs, found, strict=True):
        row = np.concatenate(pair)
        nll_WT, hit_WT = scoring.score(model, row[None], batch_tokens=64)
        count = len(pair.continuation)
        assert value == pytest.approx(-nll_WT[0, -count:].sum(), abs=1e-4)
        assert is_greedy == hit_WT[0, -count:].all()


def test_a_greedy_continuation_is_told(model):
    prompt = ids(256, 65, 66, 67)
    reader = make_reader(model)
    text = generate.generate(
        generate.Model(model.config, model.params, model.rope_fn, model.settings),
        [prompt],
        generate.Options(max_new_tokens=3, chunk=16),
    )[0]
    other = [*text[:2], (text[2] + 1) % 256]
    found = reader.loglikelihoods([Pair(prompt, ids(*text)), Pair(prompt, ids(*other))])
    assert [is_greedy for _, is_greedy in found] == [True, False]
    assert found[0][0] > found[1][0]


def test_a_question_that_is_asked_twice_is_read_once(model):
    pairs = random_pairs((5, 3), (9, 2))
    told = []
    bench = dataclasses.replace(make_bench(), tick=told.append)
    reader = Reader(model, bench, 64)
    found = reader.loglikelihoods([pairs[0], pairs[1], pairs[0]])
    assert found[0] == found[2] != found[1] and sum(told) == 2 * 64
    # the same tokens, another border: another question
    row = np.concatenate(pairs[0])
    moved = reader.loglikelihoods([pairs[0], Pair(row[:4], row[4:])])
    assert moved[0][0] > moved[1][0]


def test_the_rolling_log_likelihood_is_that_of_the_perplexity_suite(model):
    """Same windows: each of max_length tokens, no bos but the first, a stride of a window."""
    rng = np.random.default_rng(3)
    texts = [rng.integers(0, 256, n).astype(np.int32) for n in (50, 16, 33)]
    found = make_reader(model, 16).rolling(texts, prefix=256)
    bench = make_bench(stride=16, bos_per_window=False)
    slow = dataclasses.replace(model, window=16)
    for tokens, value in zip(texts, found, strict=True):
        row = np.concatenate([[256], tokens]).astype(np.int32)[None]
        nll_WT, _, _ = perplexity.score_windows(slow, row, bench)
        assert nll_WT.shape == (1, len(tokens))
        assert value == pytest.approx(-nll_WT.sum(dtype=float), abs=1e-4)


def test_few_lengths_are_compiled(model):
    pairs = random_pairs(*((n, 1) for n in range(1, 60)))
    sizes = scoring.score_batch._cache_size()
    make_reader(model).loglikelihoods(pairs)
    assert scoring.score_batch._cache_size() - sizes <= 1


def bucketed(model):
    """Factors 1 up to 24 tokens, 4 beyond."""
    config = model.config
    geometry = dict(head_dim=config.head_dim, rotary_dim=config.rotary_dim, theta=config.theta)
    geometry |= dict(original_len=24)
    short = [1.0] * (config.rotary_dim // 2)
    long = [4.0] * (config.rotary_dim // 2)
    buckets = [dict(max_len=24, factors=short), dict(max_len=4096, factors=long)]
    for bucket in buckets:
        bucket |= dict(start_tokens=0, attention_factor=1.0)
    return rope.make("longrope", **geometry, buckets=buckets)


def test_a_request_has_the_factors_of_its_own_length(model):
    rope_fn = bucketed(model)
    assert factor_lengths(rope_fn, 64) == [24, 64]
    assert factor_lengths(model.rope_fn, 300) == [300]  # the same at every length
    # larger weights: a random model of this size hardly looks at positions
    model = dataclasses.replace(model, params=jax.tree.map(lambda x: 4 * x, model.params))
    long = dataclasses.replace(model, rope_fn=rope_fn)
    pairs = random_pairs((20, 4), (30, 4))
    found = make_reader(long).loglikelihoods(pairs)
    for pair, (value, _) in zip(pairs, found, strict=True):
        size = len(pair.context) + len(pair.continuation) - 1
        own = dataclasses.replace(model, rope_fn=lambda n, size=size: rope_fn(size))
        wanted = make_reader(own).loglikelihoods([pair])[0][0]
        assert value == pytest.approx(wanted, rel=1e-4)
    fixed = dataclasses.replace(model, rope_fn=lambda n: rope_fn(64))
    assert make_reader(fixed).loglikelihoods(pairs)[0][0] != pytest.approx(found[0][0], rel=1e-2)


def test_rows_that_are_methods_have_the_factors_of_the_longest_length(model):
    pi = rows.method_row("pi", model.config, rope_len=0).rope_fn
    fixed = harness_run._fixed(dataclasses.replace(model, rope_fn=pi), 256)
    assert fixed.rope_fn(16).factors_R.tolist() == [4.0] * 4  # 256 / 64, not 1
    own = rows.method_row("none", model.config, rope_len=0).rope_fn
    assert harness_run._fixed(dataclasses.replace(model, rope_fn=own), 256).rope_fn is own


def test_generated_text_is_that_of_generation(model):
    questions = [
        Question(ids(256, *b"abc"), (), 6),
        Question(ids(256, *b"something longer to begin with"), (), 4),
        Question(ids(256, *b"x"), (), 6),
    ]
    found = make_reader(model).generate(questions)
    writer = generate.Model(model.config, model.params, model.rope_fn, model.settings)
    for question, text in zip(questions, found, strict=True):
        options = generate.Options(max_new_tokens=question.max_new_tokens, chunk=16, stop=(257,))
        (new,) = generate.generate(writer, [question.tokens], options)
        assert text == model.tokenizer.decode(new)


def test_an_answer_ends_before_the_first_stop(model):
    prompt = ids(256, *b"abc")
    (whole,) = make_reader(model).generate([Question(prompt, (), 8)])
    stop = whole[3:5]
    (cut,) = make_reader(model).generate([Question(prompt, (stop, "never"), 8)])
    assert cut == whole[: whole.find(stop)] and len(cut) < len(whole)


def test_no_prompt_is_cut_without_a_word(model):
    """Left truncation deletes a needle at small depth."""
    pair, question = random_pairs((65, 1))[0], Question(ids(*range(60)), (), 8)
    reader = make_reader(model)
    with pytest.raises(InputError, match="a request has 65 tokens, the model reads 64; its beginn"):
        reader.loglikelihoods([pair])
    with pytest.raises(InputError, match="a prompt has 60 tokens and its answer 8, the model rea"):
        reader.generate([question])
    allowed = make_reader(model, allow_truncation=True)
    with pytest.warns(
        UserWarning, match="beginning of such requests is cut off. This warning is shown once"
    ):
        (cut,) = allowed.loglikelihoods([pair])
    last = np.concatenate(pair)[-65:]  # the model reads 64 of them
    nll_WT, _ = scoring.score(model, last[None], batch_tokens=64)
    assert cut[0] == pytest.approx(-nll_WT[0, -1], abs=1e-4)
    # and not a second time: a warning here is an error
    assert allowed.generate([question]) == reader.generate([Question(ids(*range(4, 60)), (), 8)])


def test_what_cannot_be_answered_is_refused(model):
    reader = make_reader(model)
    with pytest.raises(InputError, match="a continuation has no token of its own"):
        reader.loglikelihoods([Pair(ids(1, 2), ids())])
    with pytest.raises(InputError, match="a continuation has 65 tokens, the model reads 64 at"):
        make_reader(model, allow_truncation=True).loglikelihoods(random_pairs((1, 65)))
    with pytest.raises(InputError, match="an answer of 64 tokens leaves no room for a prompt in"):
        reader.generate([Question(ids(1), (), 64)])


def test_answers_are_kept_and_not_asked_again(model, tmp_path):
    known = dataclasses.replace(model, identity="tiny")
    pairs, question = random_pairs((5, 3), (9, 2)), Question(ids(256, 65), ("zz",), 4)

    def ask(**changes):
        told, skipped = [], []
        bench = dataclasses.replace(
            make_bench(), tick=told.append, skip=skipped.append, journal=Journal(tmp_path)
        )
        reader = Reader(dataclasses.replace(known, **changes), bench, 64)
        return reader.loglikelihoods(pairs), reader.generate([question]), sum(told), sum(skipped)

    first, second = ask(), ask()
    assert first[:2] == second[:2]
    assert first[2] > 0 and first[3] == 0
    assert second[2] == 0 and second[3] == 2 * 64 + 6
    other = ask(rope_fn=lambda n: rows.method_row("pi", model.config, rope_len=256).rope_fn(n))
    assert other[2] > 0 and other[0] != first[0]


@pytest.mark.parametrize("batch_tokens", [128, 100_000])
def test_the_cost_is_what_is_read(model, batch_tokens):
    told = []
    bench = dataclasses.replace(make_bench(batch_tokens=batch_tokens), tick=told.append)
    counter = harness.Counter(model, bench, 64)
    for reader in (counter, Reader(model, bench, 64)):
        pairs = random_pairs((5, 3), (9, 2), (7, 7), (5, 3), (30, 20))
        assert len(reader.loglikelihoods(pairs)) == 5
        assert len(reader.generate([Question(ids(256, 65), ("zz",), 4)])) == 1
        assert len(reader.rolling([ids(*range(70))], prefix=256)) == 1
    assert counter.tokens == sum(told) > 6 * 64
    with pytest.raises(InputError, match="its beginning would be lost"):
        counter.loglikelihoods(random_pairs((65, 1)))


def test_a_table_has_a_column_for_each_task():
    rows = [
        dict(suite=f"harness/{task}", label=label, length=64, items={"shots": [shots]})
        | dict(metrics={metric: score, "low": low, "high": score + 0.1})
        for task, shots, metric, scores, low in (
            ("hellaswag", 10, "acc_norm", (0.5, 0.25), 0.1),
            ("mmlu", 5, "acc", (0.3, 0.2), None),
        )
        for label, score in zip(("none", "yarn"), scores, strict=True)
    ]
    ((title, cells),) = tables.evaluation_tables(rows)
    assert title == "Tasks of lm-evaluation-harness [95% interval]"
    assert cells == [
        ["", "hellaswag (10 shots): acc_norm", "mmlu (5 shots): acc"],
        ["none", "0.5000 [0.1000, 0.6000]", "0.3000"],
        ["yarn", "0.2500 [0.1000, 0.3500]", "0.2000"],
    ]


def test_a_table_says_that_there_is_no_key_token():
    metrics = dict(longppl=None, low=None, high=None, ppl=3.0, n_key_token=0, n_token=9)
    row = dict(suite="longppl", label="none", length=64, items={}, metrics=metrics)
    ((_, cells),) = tables.evaluation_tables([row])
    assert cells[1] == ["none", "no key token"]


def test_the_scores_of_the_leaderboard():
    assert harness_run.LEADERBOARD == {
        "arc_challenge": (25, "acc_norm"),
        "hellaswag": (10, "acc_norm"),
        "mmlu": (5, "acc"),
        "truthfulqa_mc2": (0, "acc"),
    }
    told = {"alias": "x", "acc,none": 0.25, "acc_stderr,none": 0.01, "acc_norm,none": 0.5}
    told |= {"acc_norm_stderr,none": 0.02, "sample_len": 3}
    found = harness_run.scores("hellaswag", told)
    assert list(found) == ["acc_norm", "low", "high", "acc"]
    assert found["low"] == pytest.approx(0.5 - 1.96 * 0.02, abs=1e-4)
    assert list(harness_run.scores("mmlu", told))[0] == "acc"
    with pytest.raises(InputError, match="'mine' has no metric that is a number"):
        harness_run.scores("mine", {"alias": "x", "acc_stderr,none": "N/A"})


def test_results_of_ruler_are_told_by_length():
    told = {"alias": "x", "512,none": 0.75, "512_stderr,none": "N/A", "4096,none": -1}
    samples = [{"512": 1.0, "4096": -1.0}, {"512": 0.5, "4096": -1.0}, {"256": 0.25}]
    found = {"results": {"niah": told | {"256,none": 0.25}}, "samples": {"niah": samples}}
    made = harness_run._by_length("niah", found, make_bench())
    assert list(made) == [256, 512]  # -1: there is no question of 4096 tokens
    assert made[512] == {"score": 0.75, "low": 0.5, "high": 1.0}
    assert made[256] == {"score": 0.25, "low": 0.25, "high": 0.25}
    found["results"]["niah"] = {"acc,none": 0.5}
    assert harness_run._by_length("niah", found, make_bench()) == {}


def test_tasks_of_the_command_line_are_keys_of_the_config():
    found = with_tasks(["--workdir=x", "--tasks=hellaswag, mmlu", "--config=a.py"])
    assert found == [
        "--workdir=x",
        "--config.eval.suites=('harness',)",
        "--config.eval.harness.tasks=('hellaswag', 'mmlu')",
        "--config=a.py",
    ]
    for wrong in ("--tasks", "--tasks=", "--tasks=,"):
        with pytest.raises(InputError, match="--tasks names tasks of lm-eval, got '--tasks"):
            with_tasks([wrong])


def test_the_command_line_takes_tasks(capsys):
    argv = ["--config=configs/base.py", "--tasks=hellaswag,mmlu", "--print_config"]
    main(argv)
    section = json.loads(capsys.readouterr().out)["eval"]
    assert section["suites"] == ["harness"]
    assert section["harness"]["tasks"] == ["hellaswag", "mmlu"]


def test_a_chat_template_that_is_not_there_is_refused(model):
    bench = make_bench(harness=dict(tasks=("x",), chat_template=True))
    with pytest.raises(InputError, match="chat_template is set, but '' has none"):
        suites.check(model, bench)


@pytest.mark.parametrize("name", ["ruler_vt", "ruler"])
def test_trap_a_task_that_lm_eval_would_make_for_ever_is_refused(model, name):
    """With a tokenizer of few entries no worked example of variable tracking has 500 tokens."""
    message = (
        rf"'{name}': lm-eval never ends where the worked example of ruler_vt has more than 500"
    )
    with pytest.raises(InputError, match=message):
        suites.check(model, make_bench(harness=dict(tasks=(name,))))


def test_lm_eval_is_asked_for_only_where_it_is_needed(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)  # as if it were not installed
    monkeypatch.delitem(sys.modules, "jaxrope.evaluate.harness_lm", raising=False)
    with pytest.raises(InputError, match=r"needs the package lm-eval .*pip install jaxrope\[harne"):
        suites.check(model, make_bench(harness=dict(tasks=("x",))))


def test_a_row_whose_window_slides_has_none(model):
    slow = dataclasses.replace(model, window=16)
    assert not list(harness_run.evaluate(slow, make_bench(harness=dict(tasks=("x",)))))
