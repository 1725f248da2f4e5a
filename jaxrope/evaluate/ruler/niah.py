"""RULER's needles (niah_*): magic numbers or uuids hidden in noise, in an essay, or among needles.

Where a needle stands is random, not chosen (NVIDIA/RULER, `scripts/data/synthetic/niah.py`).
"""

import dataclasses
import itertools
import uuid

import numpy as np

from jaxrope.evaluate.ruler import fit, prompts, words
from jaxrope.evaluate.ruler.prompts import Draws, Order, Sample
from jaxrope.evaluate.ruler.sources import Essay

NEEDLE = "One of the special magic {kind} for {key} is: {value}."
SHORT = 4096  # tokens; below, haystacks that are no essay grow by fewer lines

# Places of needles in an essay, in hundredths of its sentences.
DEPTHS = [int(depth) for depth in np.round(np.linspace(0, 100, num=40))]

# One question and one answer: the template is put into the singular, in this order.
_SINGULAR = (("Some", "A"), ("are all", "is"), ("are", "is"), ("answers", "answer"))


@dataclasses.dataclass(frozen=True)
class Needles:
    """A task of this family (scripts/synthetic.yaml).

    Attributes:
      haystack: "noise" (one sentence again and again), "needle" (others like the one asked for)
        or "essay".
      key_kind: what a needle is called by: "words" or "uuids".
      value_kind: what it hides: "numbers" or "uuids".
      keys: needles that could be asked for.
      values: of each key; all are asked for.
      queries: keys that are asked for.
    """

    haystack: str
    key_kind: str = "words"
    value_kind: str = "numbers"
    keys: int = 1
    values: int = 1
    queries: int = 1


def samples(task: Needles, order: Order, essay: Essay | None = None) -> list[Sample]:
    """Returns the questions of a task.

    Args:
      task: which one.
      order: how many, how long, which seed.
      essay: the text of an "essay" haystack.

    Raises:
      InputError: not even the smallest haystack fits.
    """
    draws = Draws(order.seed)
    keys = words.pairs()

    def draw(kind: str) -> str:
        if kind == "numbers":
            return str(draws.random.randint(10**6, 10**7 - 1))  # seven digits
        if kind == "uuids":
            return str(uuid.UUID(int=draws.random.getrandbits(128), version=4))
        return draws.random.choice(keys)

    def make(units: int) -> tuple[str, list[str]]:
        return _prompt(task, units, draw=draw, draws=draws, essay=essay)

    step = 500 if task.haystack == "essay" else 5 if order.length < SHORT else 25
    units = fit.largest(make, order, step=step, reserved=prompts.NIAH.new_tokens)
    return fit.samples(
        lambda index, units: make(units), order, prompts.NIAH, units=units, step=step
    )


def _prompt(task: Needles, units: int, *, draw, draws: Draws, essay) -> tuple[str, list[str]]:
    pairs: dict[int, tuple[str, list[str]]] = {}
    for number in range(max(task.keys, task.queries)):
        key = draw(task.key_kind)
        pairs[number] = key, [draw(task.value_kind) for _ in range(task.values)]
    needles = draws.shuffled(
        NEEDLE.format(kind=task.value_kind, key=key, value=value)
        for key, values in pairs.values()
        for value in values
    )
    if task.haystack == "essay":
        context = _in_essay(needles, essay.sentences(units), draws)
    else:
        context = _in_lines(needles, _lines(task, units, draw), draws)
    queried = [pairs[i] for i in draws.random.sample(range(len(pairs)), task.queries)]
    return _fill(task, context, [key for key, _ in queried]), [
        value for _, values in queried for value in values
    ]


def _lines(task: Needles, units: int, draw) -> list[str]:
    if task.haystack == "noise":
        return [prompts.NOISE] * units
    return [
        NEEDLE.format(kind=task.value_kind, key=draw(task.key_kind), value=draw(task.value_kind))
        for _ in range(units)
    ]


def _in_lines(needles: list[str], lines: list[str], draws: Draws) -> str:
    if len(needles) > len(lines):
        raise prompts.Unmade
    places = sorted(draws.random.sample(range(len(lines)), len(needles)), reverse=True)
    for place, needle in zip(places, needles, strict=True):
        lines.insert(place, needle)
    return "\n".join(lines)


def _in_essay(needles: list[str], sentences: list[str], draws: Draws) -> str:
    depths = draws.random.sample(DEPTHS, len(needles))
    places = sorted(int(len(sentences) * (depth / 100)) for depth in depths)
    parts = []
    for (start, end), needle in zip(itertools.pairwise([0, *places]), needles, strict=True):
        parts += [" ".join(sentences[start:end]), needle]
    return " ".join([*parts, " ".join(sentences[places[-1] :])])


def _fill(task: Needles, context: str, keys: list[str]) -> str:
    template, kind = prompts.NIAH.whole, task.value_kind
    if task.queries * task.values == 1:
        for plural, singular in _SINGULAR:
            template = template.replace(plural, singular)
        kind = kind.removesuffix("s")
    query = keys[0] if len(keys) == 1 else ", ".join(keys[:-1]) + ", and " + keys[-1]
    return template.format(type_needle_v=kind, context=context, query=query)
