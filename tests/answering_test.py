"""Tasks that are answered by generation: what is asked, what is written, what comes of it."""

import dataclasses
import re

import numpy as np
import pytest

from configs import base
from jaxrope import evaluation, generation, llama
from jaxrope.data import BytesTokenizer
from jaxrope.errors import InputError
from jaxrope.evaluation import answering, scoring, statistics
from jaxrope.evaluation.answering import Answer, Prompt, Writing
from jaxrope.evaluation.items import Item, Request, Task
from jaxrope.evaluation.scoring import EvalModel
from jaxrope.evaluation.tasks import TASKS

TOKENIZER = BytesTokenizer()


def make_sums(request: Request) -> list[Item]:
    """Returns prompts of other lengths that end in a number, which is the answer."""
    rng = np.random.default_rng([request.seed, request.length])
    sizes = rng.integers(20, request.length - 10, request.count)
    return [
        Item(f"{'.' * int(size - 3)}{i:02d}", (f"{i:02d}",), 4, {"depth": i / request.count})
        for i, size in enumerate(sizes)
    ]


SUMS = Task(make_sums, lambda text, item: float(item.answers[0] in text), columns=("depth",))


@pytest.fixture
def model(tiny_model):
    config, params = tiny_model
    return EvalModel(
        config=config,
        params=params,
        rope_fn=llama.own_rope(config),
        tokenizer=TOKENIZER,
        settings=llama.ForwardSettings(attention_block=16),
        label="none",
    )


@pytest.fixture
def sums(monkeypatch):
    """A task of the registry, with a section of its own."""
    monkeypatch.setitem(TASKS, "sums", SUMS)


def make_bench(trials=7, lengths=(64,), **values):
    section = base.get_config().eval
    with section.unlocked():
        section.update(lengths=lengths, chunk_tokens=16, batch_tokens=200, bootstrap_samples=200)
        section.sums = dict(trials=trials)
        section.update(values)
    return evaluation.bench(section, documents=None, seed=3)


def writing(monkeypatch, texts_fn):
    """Makes generation write texts_fn(prompt tokens) and its eos; returns the calls."""
    calls = []

    def stream(model, prompts, options, *, stop_fn=None, timing=None):
        calls.append((model, prompts, options))
        left = {
            row: [*TOKENIZER.encode(texts_fn(prompt)).tolist(), TOKENIZER.eos_id]
            for row, prompt in enumerate(prompts)
        }
        for _ in range(options.max_new_tokens):
            new = [(row, tokens.pop(0)) for row, tokens in left.items()]
            left = {
                row: left[row]
                for row, token in new
                if token not in options.stop and not stop_fn(row, token)
            }
            yield new
            if not left:
                return

    monkeypatch.setattr(generation, "stream", stream)
    return calls


def prompts_of(*sizes, limit=5, seed=0):
    rng = np.random.default_rng(seed)
    return [Prompt(rng.integers(0, 256, size).astype(np.int32), limit) for size in sizes]


def written(model, prompts, **values):
    how = dict(length=64, stops=(), rows=2, chunk=16) | values
    found = {}
    for batch in answering.write(model, prompts, Writing(**how)):
        found |= batch
    return [found[i] for i in range(len(prompts))]


def test_it_writes_what_a_forward_pass_of_the_whole_text_would(model):
    """Greedy, token by token, without a cache: the independent way."""
    prompts = prompts_of(40, 9, 33, 17)
    for prompt, answer in zip(prompts, written(model, prompts), strict=True):
        tokens, wanted = prompt.tokens.tolist(), []
        while len(wanted) < 5 and (not wanted or wanted[-1] != 257):
            logits = llama.logits(
                model.config, model.params, np.array([tokens], np.int32), model.rope_fn(64)
            )
            wanted.append(int(np.argmax(logits[0, -1])))
            tokens.append(wanted[-1])
        assert answer.num_tokens == len(wanted)
        shown = generation.TextStream(TOKENIZER, prompt.tokens)
        text = "".join([shown.push(token) for token in wanted if token != 257]) + shown.finish()
        assert answer.text == text


def test_the_factors_are_those_of_the_column(model):
    asked = []

    def rope_fn(length):
        asked.append(length)
        return model.rope_fn(length)

    written(dataclasses.replace(model, rope_fn=rope_fn), prompts_of(9, 30), length=50)
    assert asked == [50]


def test_an_answer_does_not_depend_on_its_batch(model):
    prompts = prompts_of(40, 9, 33, 17, 18)
    together = written(model, prompts, rows=3)
    assert together == [written(model, [prompt], rows=3)[0] for prompt in prompts]
