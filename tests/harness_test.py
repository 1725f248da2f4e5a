"""What lm-evaluation-harness asks of a model, with and without the package lm-eval.

The second half skips where lm-eval is not installed (extra `harness`).
"""

import collections
import dataclasses
import importlib.util
import json
import re
import sys

import jax
import numpy as np
import pytest

from configs import base
from jaxrope import cli, evaluate, evaluation, generation, llama, rope
from jaxrope.data import BytesTokenizer
from jaxrope.errors import InputError
from jaxrope.evaluation import harness, harness_run, perplexity, rows, scoring
from jaxrope.evaluation.harness import Pair, Question, Reader, rolling_pairs, row_lengths
from jaxrope.evaluation.journal import Journal
from jaxrope.evaluation.scoring import EvalModel
from jaxrope.report import tables

has_lm_eval = importlib.util.find_spec("lm_eval") is not None
needs_lm_eval = pytest.mark.skipif(not has_lm_eval, reason="needs lm-eval (extra `harness`)")


@pytest.fixture
def model(tiny_model):
    config, params = tiny_model
    return EvalModel(
        config=config,
        params=params,
        rope_fn=llama.own_rope(config),
        tokenizer=BytesTokenizer(),
        settings=llama.ForwardSettings(attention_block=16),
        label="none",
    )


def make_bench(**changes):
    section = base.get_config().eval
    with section.unlocked():
        options = changes.pop("harness", {})
        section.update(dict(bootstrap_samples=100, batch_tokens=512, chunk_tokens=16) | changes)
        section.harness.update(options)
    return evaluation.bench(section, documents=None, seed=0)


def make_reader(model, max_length=64, **changes):
    return Reader(model, make_bench(), max_length, **changes)


def ids(*tokens):
    return np.array(tokens, np.int32)


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
    plan = perplexity.spans(num_tokens, window=size, stride=size - context + 1)
    read = perplexity.sliding_rows(tokens, plan, bos_per_window=False)
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
    text = generation.generate(
        generation.Model(model.config, model.params, model.rope_fn, model.settings),
        [prompt],
        generation.Options(max_new_tokens=3, chunk=16),
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
    assert row_lengths(model.rope_fn, 300) == [64, 128, 256, 300]
    assert row_lengths(model.rope_fn, 64) == [64]
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
    assert row_lengths(rope_fn, 64) == [24, 64]
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
    writer = generation.Model(model.config, model.params, model.rope_fn, model.settings)
    for question, text in zip(questions, found, strict=True):
        options = generation.Options(max_new_tokens=question.max_new_tokens, chunk=16, stop=(257,))
        (new,) = generation.generate(writer, [question.tokens], options)
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
    with pytest.warns(UserWarning, match="beginning of such requests is cut off. This is said onc"):
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


@pytest.mark.parametrize("written", ["config", "jinja", "named", "nothing"])
def test_a_chat_template_is_found_where_tokenizers_keep_it(tmp_path, written):
    named = [{"name": "tool", "template": "no"}, {"name": "default", "template": "T"}]
    config = {"config": {"chat_template": "T"}, "named": {"chat_template": named}}.get(written, {})
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    if written == "jinja":
        (tmp_path / "chat_template.jinja").write_text("T", encoding="utf-8")
    wanted = None if written == "nothing" else "T"
    assert harness_run.chat_template(str(tmp_path)) == wanted
    assert harness_run.chat_template("bytes") is None and harness_run.chat_template("") is None


def test_tasks_of_the_command_line_are_keys_of_the_config():
    found = evaluate.with_tasks(["--workdir=x", "--tasks=hellaswag, mmlu", "--config=a.py"])
    assert found == [
        "--workdir=x",
        "--config.eval.suites=('harness',)",
        "--config.eval.harness.tasks=('hellaswag', 'mmlu')",
        "--config=a.py",
    ]
    for wrong in ("--tasks", "--tasks=", "--tasks=,"):
        with pytest.raises(InputError, match="--tasks names tasks of lm-eval, got '--tasks"):
            evaluate.with_tasks([wrong])


def test_the_command_line_takes_tasks(capsys):
    argv = ["--config=configs/base.py", "--tasks=hellaswag,mmlu", "--print_config"]
    cli.main(lambda *_: 1, doc="", rewrite_fn=evaluate.with_tasks, argv=argv)
    section = json.loads(capsys.readouterr().out)["eval"]
    assert section["suites"] == ["harness"]
    assert section["harness"]["tasks"] == ["hellaswag", "mmlu"]


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(), r"eval.harness.tasks is empty. Name tasks: --tasks=arc_challenge,hellaswag,mmlu"),
        (dict(tasks=("x",), limit=-1), "eval.harness.limit is 0 or more, got -1"),
        (dict(tasks=("x",), max_length=-1), "eval.harness.max_length is 0 or more, got -1"),
        (dict(tasks=("x",), shots=-2), "eval.harness.shots is -1 or more, got -2"),
        (dict(tasks=("x",), chat_template=True), "chat_template is set, but '' has none"),
    ],
)
def test_refused_before_anything_runs(model, options, message):
    bench = make_bench(harness=options)
    with pytest.raises(InputError, match=message):
        evaluation.check(model, bench, ("harness",))


@pytest.mark.parametrize("name", ["ruler_vt", "ruler"])
def test_trap_a_task_that_lm_eval_would_make_for_ever_is_refused(model, name):
    """With a tokenizer of few entries no worked example of variable tracking has 500 tokens."""
    message = (
        rf"'{name}': lm-eval never ends where the worked example of ruler_vt has more than 500"
    )
    with pytest.raises(InputError, match=message):
        evaluation.check(model, make_bench(harness=dict(tasks=(name,))), ("harness",))


def test_lm_eval_is_asked_for_only_where_it_is_needed(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)  # as if it were not installed
    monkeypatch.delitem(sys.modules, "jaxrope.evaluation.harness_lm", raising=False)
    with pytest.raises(InputError, match=r"needs the package lm-eval .*pip install jaxrope\[harne"):
        evaluation.check(model, make_bench(harness=dict(tasks=("x",))), ("harness",))


def test_a_row_whose_window_slides_has_none(model):
    slow = dataclasses.replace(model, window=16)
    assert not list(harness_run.evaluate(slow, make_bench(harness=dict(tasks=("x",)))))


# ------- with lm-eval: tasks in YAML of a local file, and its own that need no download

QUESTIONS = [
    ("The capital of", " the city", [" the", " zqx", " of the city of London"], 0),
    ("It was a dark and stormy", "", [" night", " fish", " the"], 0),
    ("", "", ["Once upon a time", "zzz qqq", "He said that he was"], 2),
    ("She looked at him and ", "", ["smiled", "xylophone", "said nothing"], 2),
    ("Mr.", "", [" and Mrs.", "Q", " Holmes"], 1),
]
CHOICE = """\
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {path}
test_split: test
fewshot_split: test
{shots}
"""
CHOICE_BODY = """\
output_type: multiple_choice
doc_to_text: "{{context}}"
doc_to_choice: "{{choices}}"
doc_to_target: label
target_delimiter: ""
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
  - metric: acc_norm
    aggregation: mean
    higher_is_better: true
"""
WRITE_BODY = """\
output_type: generate_until
doc_to_text: "{{context}} then"
doc_to_target: "{{choices[0]}}"
generation_kwargs:
  until: ["."]
  max_gen_toks: 12
  do_sample: false
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
"""
ROLLING_BODY = """\
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list:
  - metric: word_perplexity
  - metric: byte_perplexity
  - metric: bits_per_byte
"""


@pytest.fixture
def local_tasks(tmp_path):
    """A folder with tasks of a file: local_choice, local_write, local_rolling."""
    lines = [
        dict(
            context=before + after, choices=choices, label=label, text="A text. " * 90 + choices[0]
        )
        for before, after, choices, label in QUESTIONS
    ]
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    bodies = {"choice": CHOICE_BODY, "write": WRITE_BODY, "rolling": ROLLING_BODY}
    for name, body in bodies.items():
        shots = "num_fewshot: 2" if name == "choice" else ""
        head = CHOICE.format(name=f"local_{name}", path=path, shots=shots)
        (tmp_path / f"{name}.yaml").write_text(head + body, encoding="utf-8")
    return tmp_path


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """Nothing is asked of the network, and nothing is left in the user's folders."""
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    import datasets.config

    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")


@pytest.fixture
def books(books_6m):
    """books-6m as a row, with its folder."""
    from jaxrope import data, pretrained

    loaded = pretrained.load(books_6m)
    model = EvalModel(
        config=loaded.config,
        params=jax.device_put(loaded.params),
        rope_fn=loaded.rope_fn,
        tokenizer=data.load_tokenizer(books_6m),
        settings=llama.ForwardSettings(attention_block=64),
        label="none",
    )
    return model, books_6m


def run_tasks(model, folder, include, names, **options):
    options = dict(tasks=tuple(names), include_path=str(include), max_length=128) | options
    bench = make_bench(harness=options, lengths=(512,), suites=("harness",), chunk_tokens=64)
    bench = dataclasses.replace(bench, tokenizer_dir=str(folder))
    cost = evaluation.cost(model, bench, ("harness",))
    found = {
        r.suite.removeprefix("harness/"): r for r in evaluation.run(model, bench, ("harness",))
    }
    return found | {"cost": cost}


@needs_lm_eval
def test_a_task_of_a_file_has_the_scores_of_the_exported_model(
    books, local_tasks, offline, tmp_path
):
    """lm_eval's own model of Hugging Face on what `export` writes: answer for answer."""
    torch = pytest.importorskip("torch", reason="needs torch")
    pytest.importorskip("accelerate", reason="needs accelerate, as lm_eval[hf] does")
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    from lm_eval.models.huggingface import HFLM

    from jaxrope import pretrained
    from jaxrope.convert import exporting
    from jaxrope.evaluation import harness_lm

    model, folder = books
    exporting.export_folder(pretrained.load(folder, dtype=None), tmp_path / "hf")
    names = ["local_choice", "local_write", "local_rolling"]
    theirs = HFLM(
        pretrained=transformers.AutoModelForCausalLM.from_pretrained(
            tmp_path / "hf", dtype=torch.float32
        ),
        tokenizer=transformers.AutoTokenizer.from_pretrained(tmp_path / "hf"),
        max_length=128,
        batch_size=2,
    )
    ours = harness_lm.HarnessLM(Reader(model, make_bench(chunk_tokens=64), 128))
    for name in names:
        loaded = harness_lm.load(name, shots=None, include_path=str(local_tasks), metadata={})
        # its rolling windows put bos before a text that has one, and score that one: a trap
        theirs.add_bos_token = False if name == "local_rolling" else None
        found = [
            harness_lm.run(lm, loaded, limit=0, with_chat_template=False) for lm in (ours, theirs)
        ]
        mine, wanted = (
            {k: v for k, v in one["results"][name].items() if isinstance(v, float)} for one in found
        )
        assert mine == pytest.approx(wanted, rel=1e-4) and len(mine) >= 2
        answers = [[s["resps"] for s in one["samples"][name]] for one in found]
        if name == "local_write":
            assert answers[0] == answers[1] and any(str(a) != "[['']]" for a in answers[0])
            continue
        flat = [np.array([float(str(_first(r))) for r in some]) for some in map(_values, answers)]
        np.testing.assert_allclose(flat[0], flat[1], atol=2e-3, rtol=1e-4)


def _values(answers):
    return [value for answer in answers for value in answer]


def _first(answer):
    """The number in [[(value, greedy)]] or [value]."""
    while isinstance(answer, list | tuple):
        answer = answer[0]
    return answer


@needs_lm_eval
def test_the_suite_has_a_result_for_each_task(books, local_tasks, offline):
    model, folder = books
    found = run_tasks(model, folder, local_tasks, ["local_choice", "local_rolling"])
    choice = found["local_choice"]
    assert list(choice.metrics) == ["acc", "low", "high", "acc_norm"]
    assert choice.length == 128 and choice.items["shots"] == [2] and choice.tokens > 0
    assert len(choice.items["item"]) == len(QUESTIONS) == len(set(choice.items["item"]))
    assert choice.metrics["low"] < choice.metrics["acc"] < choice.metrics["high"]
    assert choice.tokens + found["local_rolling"].tokens == found["cost"]
    # by hand, without examples: the sum of log-probabilities decides
    bare = run_tasks(model, folder, local_tasks, ["local_choice"], shots=0)["local_choice"]
    right = 0
    for before, after, choices, label in QUESTIONS:
        context = (before + after).rstrip()
        gap = (before + after)[len(context) :]
        values = []
        for choice_text in choices:
            whole = model.tokenizer.encode(context + gap + choice_text)
            head = model.tokenizer.encode(context)
            tokens = np.concatenate([[1], whole])[None].astype(np.int32)
            nll_WT, _ = scoring.score(model, tokens, batch_tokens=64)
            values.append(-nll_WT[0, len(head) :].sum())
        right += int(np.argmax(values)) == label
    assert bare.metrics["acc"] == right / len(QUESTIONS) and bare.items["shots"] == [0]


@needs_lm_eval
def test_every_row_answers_the_same_questions(books, local_tasks, offline):
    """Examples are drawn by a seed that is set again for each row."""
    model, folder = books
    options = dict(tasks=("local_choice",), include_path=str(local_tasks), max_length=128)
    bench = make_bench(harness=options, lengths=(512,), suites=("harness",))
    bench = dataclasses.replace(bench, tokenizer_dir=str(folder))
    pi = rows.method_row("pi", model.config, rope_len=2048).rope_fn
    both = [
        next(evaluation.run(row, bench, ("harness",)))
        for row in (model, dataclasses.replace(model, rope_fn=pi, label="pi"))
    ]
    assert both[0].fingerprint == both[1].fingerprint
    assert both[0].items["item"] == both[1].items["item"]


class Oracle:
    """A reader that knows the answers: what is asked for stands in the prompt."""

    def __init__(self, model, max_length, answer_fn):
        self.model, self.max_length, self._answer_fn = model, max_length, answer_fn

    def generate(self, questions):
        return [self._answer_fn(self.model.tokenizer.decode(q.tokens)) for q in questions]

    def loglikelihoods(self, pairs):
        known = {
            (before + after).strip(): choices[label] for before, after, choices, label in QUESTIONS
        }
        found = []
        for pair in pairs:
            context, text = (self.model.tokenizer.decode(tokens) for tokens in pair)
            is_right = text.strip() == known[context.strip()].strip()
            found.append((0.0 if is_right else -9.0, is_right))
        return found

    def rolling(self, texts, *, prefix):
        return [0.0 for _ in texts]


class Guesser(Oracle):
    """A reader that answers at random."""

    def __init__(self, model, seed):
        super().__init__(model, 512, None)
        self._rng = np.random.default_rng(seed)

    def generate(self, questions):
        size = self.model.tokenizer.vocab_size
        return [self.model.tokenizer.decode(self._rng.integers(size, size=3)) for _ in questions]

    def loglikelihoods(self, pairs):
        # as if each text had one token: what is short is no likelier, by acc nor by acc_norm
        return [(float(value), False) for value in np.log(self._rng.random(len(pairs)))]

    def rolling(self, texts, *, prefix):
        return [-len(tokens) * float(np.log(self.model.tokenizer.vocab_size)) for tokens in texts]


def first_choice(prompt):
    """The text that local_write asks for."""
    known = {f"{before}{after} then".strip(): some[0] for before, after, some, _ in QUESTIONS}
    return known[prompt.strip()]


@needs_lm_eval
@pytest.mark.parametrize(
    "name, metric, best, chance",
    [
        ("local_choice", "acc", 1.0, 1 / 3),
        ("local_write", "exact_match", 1.0, 0.0),
        ("local_rolling", "bits_per_byte", 0.0, None),
    ],
)
def test_an_oracle_is_always_right_and_a_guesser_by_chance(
    books, local_tasks, offline, name, metric, best, chance
):
    from jaxrope.evaluation import harness_lm

    loaded = harness_lm.load(name, shots=0, include_path=str(local_tasks), metadata={})

    def score(reader):
        lm = harness_lm.HarnessLM(reader)
        found = harness_lm.run(lm, loaded, limit=0, with_chat_template=False)
        return found["results"][name][f"{metric},none"]

    assert score(Oracle(books[0], 512, first_choice)) == best
    if chance is None:  # every token of a text takes 12 bits, of which its bytes share
        texts = ["A text. " * 90 + choices[0] for _, _, choices, _ in QUESTIONS]
        tokens = sum(len(books[0].tokenizer.encode(text)) for text in texts)
        wanted = 12 * tokens / sum(len(text.encode()) for text in texts)
        assert score(Guesser(books[0], 0)) == pytest.approx(wanted, rel=1e-4)
        return
    scores = [score(Guesser(books[0], seed)) for seed in range(10)]
    assert np.mean(scores) == pytest.approx(chance, abs=0.2)


def needle(prompt):
    """The number of the key that is asked for at the end of a prompt of RULER."""
    asked = re.findall(r"special magic number for (.+?) mentioned in the provided text", prompt)[-1]
    return re.search(rf"special magic numbers? for {re.escape(asked)} is: (\d+)", prompt).group(1)


def most_frequent(prompt):
    words = re.findall(r"\b[a-z]{6}\b", prompt.split("coded text", 2)[-1])
    return " ".join(word for word, _ in collections.Counter(words).most_common(3))


@pytest.mark.slow
@needs_lm_eval
@pytest.mark.parametrize(
    "task, answer_fn",
    [("niah_single_1", needle), ("niah_multikey_2", needle), ("ruler_fwe", most_frequent)],
)
def test_tasks_of_ruler_run_without_a_network(books, offline, task, answer_fn):
    """An oracle scores 1, the model between 0 and 1, and no prompt is cut."""
    from jaxrope.evaluation import harness_lm

    model, folder = books
    metadata = {"tokenizer": str(folder), "max_seq_lengths": [768]}
    loaded = harness_lm.load(task, shots=None, include_path="", metadata=metadata)
    oracle = harness_lm.HarnessLM(Oracle(model, 1024, answer_fn))
    found = harness_lm.run(oracle, loaded, limit=6, with_chat_template=False)
    assert found["results"][task]["768,none"] == 1.0
    ours = harness_lm.HarnessLM(Reader(model, make_bench(chunk_tokens=64), 1024))
    found = harness_lm.run(ours, loaded, limit=2, with_chat_template=False)
    assert 0 <= found["results"][task]["768,none"] <= 1
    if task == "ruler_fwe":  # lm-eval's prompts leave no room for the answer
        with pytest.raises(InputError, match="its beginning would be lost. Raise eval.lengths"):
            tight = harness_lm.HarnessLM(Reader(model, make_bench(chunk_tokens=64), 768))
            harness_lm.run(tight, loaded, limit=2, with_chat_template=False)


@needs_lm_eval
def test_data_that_is_not_at_hand_is_one_line(model, offline):
    for name, message in (
        ("hellaswag", "'hellaswag' cannot be had here"),
        ("hellaswog", "Unknown task 'hellaswog' in eval.harness.tasks"),
        ("niah_single_1", "'niah_single_1' cannot be had here"),  # no tokenizer's folder
    ):
        with pytest.raises(InputError, match=message) as refused:
            evaluation.check(model, make_bench(harness=dict(tasks=(name,))), ("harness",))
        assert "\n" not in str(refused.value)


class Request:
    """What lm_eval calls an Instance."""

    def __init__(self, *args):
        self.args = args


@needs_lm_eval
def test_an_empty_context_is_bos(model):
    from jaxrope.evaluation import harness_lm

    lm = harness_lm.HarnessLM(make_reader(model))
    (found,) = lm.loglikelihood([Request("", "abc")], disable_tqdm=True)
    assert found == make_reader(model).loglikelihoods([Pair(ids(256), ids(*b"abc"))])[0]
    assert lm.prefix_token_id == 256 and lm.eot_token_id == 257
    (rolled,) = lm.loglikelihood_rolling([Request("abc")])
    assert rolled == pytest.approx(found[0], abs=1e-6)
    bare = dataclasses.replace(model.tokenizer, bos_id=None)
    assert (
        harness_lm.HarnessLM(
            make_reader(dataclasses.replace(model, tokenizer=bare))
        ).prefix_token_id
        == 257
    )
    none = dataclasses.replace(bare, eos_id=None)
    with pytest.raises(InputError, match="has neither a begin nor an end token"):
        _ = harness_lm.HarnessLM(
            make_reader(dataclasses.replace(model, tokenizer=none))
        ).prefix_token_id


@needs_lm_eval
def test_spaces_at_the_end_of_a_context_belong_to_the_continuation(model):
    from jaxrope.evaluation import harness_lm

    lm = harness_lm.HarnessLM(make_reader(model))
    moved = lm.loglikelihood([Request("ab ", "c"), Request("ab", " c")], disable_tqdm=True)
    assert moved[0] == moved[1]


@needs_lm_eval
def test_bos_is_put_in_front_once(books):
    from jaxrope.evaluation import harness_lm

    lm = harness_lm.HarnessLM(make_reader(books[0]))
    assert lm.tok_encode("A text")[0] == 1 and lm.tok_encode("A text").count(1) == 1
    assert lm.tok_encode("<s>A text") == lm.tok_encode("A text")
    assert lm.tok_encode("A text", add_special_tokens=False) == lm.tok_encode("A text")[1:]


@needs_lm_eval
def test_gen_kwargs_are_understood(model):
    from jaxrope.evaluation import harness_lm

    lm = harness_lm.HarnessLM(make_reader(model))
    (plain,) = lm.generate_until([Request("abc", {"until": [], "max_gen_toks": 8})])
    stop = plain[4]
    (cut,) = lm.generate_until([Request("abc", {"until": stop, "max_gen_toks": 8})])
    assert cut == plain[: plain.find(stop)]
    question = lm._question("abc", {"until": ["", "x"], "do_sample": False, "temperature": 0.7})
    assert question.stops == ("x",) and question.max_new_tokens == 256  # lm_eval's own default
    with pytest.raises(InputError, match="a task samples"):
        lm._question("abc", {"do_sample": True, "temperature": 0.7})


@needs_lm_eval
def test_a_chat_template_is_used_if_there_is_one(model):
    from jaxrope.evaluation import harness_lm

    template = (
        "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
    )
    template += "{% if add_generation_prompt %}[assistant]{% endif %}"
    lm = harness_lm.HarnessLM(make_reader(model), name="x", chat_template=template)
    history = [{"role": "user", "content": "hello"}]
    assert lm.apply_chat_template(history) == "<s>[user]hello[assistant]"
    assert lm.apply_chat_template(history, add_generation_prompt=False) == "<s>[user]hello"
    assert lm.chat_template(True) == template and lm.chat_template(False) is None
    assert lm.tokenizer_name == "x" and lm.max_length == 64
    bare = harness_lm.HarnessLM(make_reader(model))
    with pytest.raises(InputError, match="chat_template is set, but the tokenizer has none"):
        bare.apply_chat_template(history)
    strict = harness_lm.HarnessLM(
        make_reader(model), chat_template="{{ raise_exception('no system') }}"
    )
    with pytest.raises(InputError, match="the template refuses a prompt: no system"):
        strict.apply_chat_template(history)
