"""Tasks that are answered by generation: the model continues a prompt greedily, and its answer is
scored.

Prompts are read in chunks into a cache, on any mesh, so that nothing is ever as large as the square
of a prompt. They are sorted by length and batched, all batches of a column with the same number of
rows: few programs are compiled. As everywhere in an evaluation the factors are those of the
column's length, whatever the length of a prompt.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from jaxrope import attention, data, generate
from jaxrope.errors import InputError
from jaxrope.evaluate import scoring, statistics
from jaxrope.evaluate.items import Item, Task
from jaxrope.evaluate.journal import Place, row_digest
from jaxrope.evaluate.scoring import Bench, EvalModel, Result, Suite
from jaxrope.mesh import sharding
from jaxrope.rope import Rope

_STRETCHES = 32  # of each prompt, whose mean score is chance
_CACHED_TOKENS = 1 << 26  # of questions that the next row asks too: 0.5 GiB with their text


class Prompt(NamedTuple):
    """What is to be continued: int32 tokens, bos included, and how many may be written."""

    tokens: np.ndarray
    max_new_tokens: int

    @property
    def planned(self) -> int:
        """Tokens at its end, at most."""
        return len(self.tokens) + self.max_new_tokens


class Answer(NamedTuple):
    """What was written: the text before a stop, and the tokens made for it."""

    text: str
    num_tokens: int


class Question(NamedTuple):
    """An item as the model reads it."""

    item: Item
    prompt: Prompt


@dataclasses.dataclass(frozen=True)
class Writing:
    """How prompts are answered.

    Attributes:
      length: tokens whose factors are used.
      stops: texts at which an answer ends; they are no part of it.
      rows: prompts in a batch, see `batch_size`.
      chunk: tokens of a prompt that are read at one time.
      limit: tokens that no prompt with its answer exceeds; 0 = length.
    """

    length: int
    stops: tuple[str, ...]
    rows: int
    chunk: int
    limit: int = 0


def suite(task: Task) -> Suite:
    """Returns a task as a suite."""
    return Suite(
        evaluate=functools.partial(evaluate, task),
        items=functools.partial(check, task),
        forward_tokens=functools.partial(forward_tokens, task),
        filled=functools.partial(filled, task),
        needs_text=lambda options: task.needs_text(getattr(options, task.section)),
        steps=functools.partial(steps, task),
    )


def evaluate(task: Task, model: EvalModel, bench: Bench) -> Iterator[Result]:
    """Yields the mean score of a task at each length.

    Metrics: `score`, and `low` and `high` of its 95% interval: Wilson's where every item is right
    or wrong, else the bootstrap's over items. A model whose window slides has none: beyond its
    window it cannot see the answer.
    """
    if model.window:
        return
    for length in bench.options.lengths:
        yield _result(task, model, bench, length)


def forward_tokens(task: Task, model: EvalModel, bench: Bench, length: int) -> int:
    """Returns the tokens that are read and written for one length, at most."""
    if model.window:
        return 0
    key = ("tokens", *_key(task, model, bench, length))
    if key not in bench.cache:
        bench.cache[key] = sum(q.prompt.planned for q in questions(task, model, bench, length))
    return bench.cache[key]


def filled(task: Task, model: EvalModel, bench: Bench, length: int) -> tuple[int, int]:
    """Returns (tokens that are computed, at most; those that fill up last chunks of prompts)."""
    if model.window:
        return 0, 0
    sizes = bench.options.chunk_tokens, attention.unit(model.settings.mesh)
    lengths = [len(q.prompt.tokens) for q in questions(task, model, bench, length)]
    padding = sum(sum(generate.pieces(n, *sizes)[-1]) - n for n in lengths)
    return forward_tokens(task, model, bench, length) + padding, padding


def steps(task: Task, model: EvalModel, bench: Bench, length: int) -> int:
    """Returns how often one token is written for every row of a batch, at most."""
    if model.window:
        return 0
    prompts = [question.prompt for question in questions(task, model, bench, length)]
    rows = batch_size(model, prompts, bench.options.batch_tokens)
    return math.ceil(len(prompts) / rows) * max(prompt.max_new_tokens for prompt in prompts)


def questions(task: Task, model: EvalModel, bench: Bench, length: int) -> list[Question]:
    """Returns the questions of a task at a length, equal for all models with one tokenizer.

    Raises:
      InputError: the task cannot make them, or a prompt and its answer do not fit into `length`:
        nothing is ever cut off.
    """
    key = _key(task, model, bench, length)
    if key in bench.cache:
        return bench.cache[key]
    encoded = _encoded(task, model, bench, length)
    num_cached = sum(len(q.prompt.tokens) for cached in _lists(bench.cache) for q in cached)
    if num_cached + sum(len(q.prompt.tokens) for q in encoded) <= _CACHED_TOKENS:
        bench.cache[key] = encoded
    return encoded


def check(task: Task, model: EvalModel, bench: Bench, length: int) -> None:
    """Refuses a task that could not run, before anything runs.

    Raises:
      InputError: see `questions`; or eval.chunk_tokens does not suit the mesh.
    """
    unit, chunk = attention.unit(model.settings.mesh), bench.options.chunk_tokens
    if chunk % unit:
        raise InputError(
            f"eval.chunk_tokens must be a multiple of {unit} (16 * mesh.context), got {chunk}. "
            f"Nearest: {max(chunk // unit, 1) * unit}."
        )
    questions(task, model, bench, length)


def write(
    model: EvalModel,
    prompts: Sequence[Prompt],
    how: Writing,
    *,
    tick: Callable[[int], None] = scoring.ignore,
    timing: generate.Timing | None = None,
) -> Iterator[dict[int, Answer]]:
    """Yields the answers to one batch of prompts after another, by the index of the prompt.

    Args:
      model: what writes; of several rows with the same shapes only the first one compiles.
      prompts: each with what may be written, in all at most how.limit tokens.
      how: see Writing.
      tick: called with the number of tokens read and written; the sum over a batch is the most it
        could have had.
      timing: is added to.

    Raises:
      InputError: see generation.check.
    """
    rope = _Column(model.rope_fn(how.length), how.limit or how.length)
    writer = generate.Model(model.config, model.params, rope, model.settings)
    for batch in _batches(prompts, rows=how.rows, limit=rope.max_len):
        of_batch = [prompts[i] for i in batch]
        answers = _write_batch(writer, model.tokenizer, of_batch, how, tick, timing)
        yield dict(zip(batch, answers, strict=True))


def batch_size(model: EvalModel, prompts: Sequence[Prompt], batch_tokens: int) -> int:
    """Returns the rows of a batch: as many as `batch_tokens` in the cache allow, spread evenly, and
    as the mesh divides.
    """
    ways = sharding.ways(model.settings.mesh, *sharding.BATCH_AXES)
    longest = max(prompt.planned for prompt in prompts)
    return math.ceil(scoring.batch_rows(len(prompts), longest, batch_tokens) / ways) * ways


@dataclasses.dataclass(frozen=True, eq=False)
class _Column:
    """The factors of a column for every row of a batch, with the interface of a RopeFn: its
    one bucket is itself.
    """

    rope: Rope
    max_len: int

    def __call__(self, seq_len: int) -> Rope:
        return self.rope

    def bucket(self, seq_len: int) -> "_Column":
        return self

    @property
    def buckets(self) -> tuple["_Column"]:
        return (self,)


def _batches(prompts: Sequence[Prompt], *, rows: int, limit: int) -> Iterator[list[int]]:
    """Yields the prompts of each batch, by index: equal limits together, for a batch runs until its
    longest answer ends, and none whose longest prompt has no room for that answer.
    """
    order = sorted(
        range(len(prompts)), key=lambda i: (prompts[i].max_new_tokens, len(prompts[i].tokens), i)
    )
    batch: list[int] = []
    for i in order:  # the answers of each are at least as long as those before
        longest = max(len(prompts[j].tokens) for j in (*batch, i))
        if batch and (len(batch) == rows or longest + prompts[i].max_new_tokens > limit):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def _key(task: Task, model: EvalModel, bench: Bench, length: int) -> tuple:
    options = getattr(bench.options, task.section)
    return task, options, length, bench.seed, model.tokenizer.fingerprint, id(bench.documents)


def _lists(cache: dict) -> list[list[Question]]:
    return [value for value in cache.values() if isinstance(value, list)]


def _encoded(task: Task, model: EvalModel, bench: Bench, length: int) -> list[Question]:
    tokenizer, name = model.tokenizer, task.name
    items = task.make(task.request(tokenizer, bench, length))
    if not items:
        raise InputError(f"eval.suites: '{name}' has no item at {length} tokens. Ask for one.")
    texts = tokenizer.encode_batch([item.prompt for item in items if item.tokens is None])
    encodings = iter(texts)
    question_list = []
    for i, item in enumerate(items):
        tokens = item.tokens
        if tokens is None:
            tokens = data.with_bos(tokenizer, next(encodings))
        prompt = Prompt(np.asarray(tokens, np.int32), item.max_new_tokens)
        if prompt.planned > length and not task.exceeds:
            raise InputError(
                f"eval.lengths: item {i + 1} of '{name}' has {len(tokens)} tokens and its answer "
                f"{item.max_new_tokens}, {prompt.planned} in all, got length {length}. Leave the "
                f"length out, or '{name}' out of eval.suites."
            )
        question_list.append(Question(item, prompt))
    return question_list


def _write_batch(
    writer, tokenizer, prompts: list[Prompt], how: Writing, tick, timing
) -> list[Answer]:
    # filled up with what costs one chunk: another number of rows would compile again
    fill = [prompts[-1].tokens[: how.chunk]] * (how.rows - len(prompts))
    texts = [generate.TextStream(tokenizer, p.tokens.tolist(), how.stops) for p in prompts]
    pieces, counts = [[] for _ in prompts], [0] * len(prompts)

    def take(row: int, token: int) -> bool:
        if row >= len(prompts):
            return True
        pieces[row].append(texts[row].push(token))
        return texts[row].ended or counts[row] + 1 >= prompts[row].max_new_tokens

    ends = {*tokenizer.eos_ids, *writer.config.eos_ids}
    options = generate.Options(
        max_new_tokens=max(prompt.max_new_tokens for prompt in prompts),
        stop=tuple(sorted(ends)),
        policy="fixed",
        chunk=how.chunk,
    )
    rows = [prompt.tokens.tolist() for prompt in prompts] + [part.tolist() for part in fill]
    first = True
    for new in generate.stream(writer, rows, options, stop_fn=take, timing=timing):
        prompt_rows = [row for row, _ in new if row < len(prompts)]
        for row in prompt_rows:
            counts[row] += 1
        tick(len(prompt_rows) + (sum(len(prompt.tokens) for prompt in prompts) if first else 0))
        first = False
    tick(
        sum(prompt.max_new_tokens for prompt in prompts) - sum(counts)
    )  # tokens that were not needed
    return [
        Answer("".join(parts) + stream.finish(), count)
        for parts, stream, count in zip(pieces, texts, counts, strict=True)
    ]


def _result(task: Task, model: EvalModel, bench: Bench, length: int) -> Result:
    watch, question_list = scoring.Stopwatch(bench.journal), questions(task, model, bench, length)
    answers = _answers(task, model, bench, question_list, length)
    items = [question.item for question in question_list]
    scores = [_score(task, answer.text, item) for item, answer in zip(items, answers, strict=True)]
    low, high = _interval(scores, bench)
    sizes = [len(question.prompt.tokens) for question in question_list]
    prints = [item.fingerprint() for item in items]
    names = dict.fromkeys(key for item in items for key in item.about)
    about = {key: [item.about.get(key) for item in items] for key in names}
    return Result(
        suite=task.name,
        label=model.label,
        length=length,
        metrics={"score": float(np.mean(scores)), "low": low, "high": high},
        items=about
        | {
            "item": prints,
            "text": [answer.text for answer in answers],
            "answers": [list(item.answers) for item in items],
            "score": scores,
            "prompt_tokens": sizes,
            "new_tokens": [answer.num_tokens for answer in answers],
        },
        nll_WT=None,
        fingerprint=scoring.fingerprint((), *prints),
        tokens=sum(sizes) + sum(answer.num_tokens for answer in answers),
        seconds=watch.seconds(),
        chance=_chance(task, question_list, model.tokenizer),
        columns=task.columns,
    )


def _answers(
    task: Task, model: EvalModel, bench: Bench, question_list: list[Question], length: int
) -> list[Answer]:
    """Returns the answer to each question; those in the bench's journal are not asked again."""
    stops, prompts = task.stops, [question.prompt for question in question_list]
    row = row_digest(model.identity, model.rope_fn(length))
    place = Place(row, model.label, task.name, length)
    items = [question.item.fingerprint() for question in question_list]
    hows = [f"{prompt.max_new_tokens} tokens, stops {list(stops)}" for prompt in prompts]
    records = bench.journal.find(place, items, hows)
    answers = {i: Answer(line["text"], line["tokens"]) for i, line in records.items()}
    if answers:
        bench.skip(sum(prompts[i].planned for i in answers))
    missing = [i for i in range(len(question_list)) if i not in answers]
    # of all prompts: a batch has the prompts that it would have had, and the same bits come out
    size = batch_size(model, prompts, bench.options.batch_tokens)
    limit = max(length, *(prompt.planned for prompt in prompts))  # see Task.exceeds
    how = Writing(length, stops, size, bench.options.chunk_tokens, limit)
    watch = scoring.Stopwatch()
    for batch in write(model, [prompts[i] for i in missing], how, tick=bench.tick):
        batch = {missing[i]: answer for i, answer in batch.items()}
        seconds, answers = round(watch.lap() / len(batch), 6), answers | batch
        lines = [
            dict(item=items[i], how=hows[i], text=text, tokens=tokens, seconds=seconds)
            for i, (text, tokens) in batch.items()
        ]
        bench.journal.add(place, lines)
    return [answers[i] for i in range(len(question_list))]


def _chance(task: Task, question_list: Sequence[Question], tokenizer) -> float:
    """Returns the score of a model that does not understand the question: 0, or the mean score of
    stretches of the prompts, each as long as an answer and spread evenly.
    """
    if not task.copying_scores:
        return 0.0
    scores = []
    for item, prompt in question_list:
        last = max(len(prompt.tokens) - prompt.max_new_tokens, 0)
        for start in np.linspace(0, last, _STRETCHES).astype(int):
            text = tokenizer.decode(prompt.tokens[start : start + prompt.max_new_tokens])
            for stop in task.stops:
                text = text.partition(stop)[0]
            scores.append(task.score(text, item))
    return float(np.mean(scores))


def _score(task: Task, text: str, item: Item) -> float:
    score = float(task.score(text, item))
    assert 0 <= score <= 1, f"{task.name}: a score is 0 to 1, got {score}"
    return score


def _interval(scores: Sequence[float], bench: Bench) -> tuple[float, float]:
    if all(score in (0.0, 1.0) for score in scores):
        return statistics.wilson_interval(int(sum(scores)), len(scores))
    return statistics.bootstrap_interval(np.array(scores), **bench.resamples)
