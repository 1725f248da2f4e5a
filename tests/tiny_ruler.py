"""RULER as tests ask it: small files for every task, and what is made of them."""

import hashlib
import json

from ruler_files import write_english_words, write_essay, write_hotpotqa, write_squad

from jaxrope.evaluate import ruler, suites
from jaxrope.evaluate.items import Request
from jaxrope.evaluate.ruler.prompts import Order
from tests.benches import make_bench


def make_options(folder):
    """config.eval.ruler that names small files for every task."""
    files = dict(
        essays=(str(write_essay(folder / "essay.json")),),
        squad=str(write_squad(folder / "squad.json")),
        hotpotqa=str(write_hotpotqa(folder / "hotpotqa.json")),
        english_words=str(write_english_words(folder / "words.json")),
    )
    return make_bench(ruler=dict(samples=3, **files)).options.ruler


def generate(tokenizer, options, task, length, *, seed=42, count=3):
    return ruler.generate(order(tokenizer, task, length, seed=seed, count=count), options)


def order(tokenizer, task, length, *, seed=42, count=3):
    counter = lambda text: len(tokenizer.encode(text))  # noqa: E731
    return Order(name=task, count_tokens=counter, length=length, count=count, seed=seed)


def digest(samples):
    lines = [[s.input, list(s.outputs), s.length, s.answer_prefix] for s in samples]
    return hashlib.sha256(json.dumps(lines).encode("ascii")).hexdigest()


def items(tokenizer, options, task, length, *, count=3):
    asked = Request(tokenizer, length, count, seed=9, documents=None, options=options)
    return suites.TASKS[f"ruler/{task}"].make(asked)
