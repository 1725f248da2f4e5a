"""Tasks of lm-evaluation-harness: in YAML of a local file, and its own that need no download.

Skips where lm-eval is not installed (extra `harness`).
"""

import collections
import dataclasses
import json
import re

import numpy as np
import pytest
from tiny_harness import books_model, eval_model, make_bench, needs_lm_eval

from jaxrope import evaluate
from jaxrope.errors import InputError
from jaxrope.evaluate import harness_run, rows, scoring
from jaxrope.evaluate.harness import Reader


@pytest.fixture
def model(tiny_model):
    return eval_model(tiny_model)


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
    return books_model(books_6m), books_6m


def run_tasks(model, folder, include, names, **options):
    options = dict(tasks=tuple(names), include_path=str(include), max_length=128) | options
    bench = make_bench(harness=options, lengths=(512,), suites=("harness",), chunk_tokens=64)
    bench = dataclasses.replace(bench, tokenizer_dir=str(folder))
    cost = harness_run.forward_tokens(model, bench, 512)
    found = {r.suite.removeprefix("harness/"): r for r in evaluate.run(model, bench)}
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

    from jaxrope.convert import exporting, pretrained
    from jaxrope.evaluate import harness_lm

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
        next(evaluate.run(row, bench))
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
    from jaxrope.evaluate import harness_lm

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
    text = prompt.split("coded words. ", 1)[1].rsplit("Question:", 1)[0]
    words = re.findall(r"\b[a-z]{6}\b", text)
    return " ".join(word for word, _ in collections.Counter(words).most_common(3))


@pytest.mark.slow
@needs_lm_eval
@pytest.mark.parametrize(
    "task, answer_fn",
    [("niah_single_1", needle), ("niah_multikey_2", needle), ("ruler_fwe", most_frequent)],
)
def test_tasks_of_ruler_run_without_a_network(books, offline, task, answer_fn):
    """An oracle scores 1, the model between 0 and 1, and no prompt is cut."""
    from jaxrope.evaluate import harness_lm

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
        ("hellaswag", "'hellaswag' cannot be loaded here"),
        ("hellaswog", "Unknown task 'hellaswog' in eval.harness.tasks"),
        ("niah_single_1", "'niah_single_1' cannot be loaded here"),  # no tokenizer's folder
    ):
        with pytest.raises(InputError, match=message) as refused:
            evaluate.check(model, make_bench(harness=dict(tasks=(name,))))
        assert "\n" not in str(refused.value)
