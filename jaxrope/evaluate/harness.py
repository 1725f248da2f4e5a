"""What lm-evaluation-harness asks of a model, answered with tokens: log-likelihoods of
continuations, of whole texts, and greedy generation (Gao et al. 2021; lm_eval/api/model.py).

Nothing here needs lm-eval: `harness_lm` is its adapter, `harness_run` runs its tasks.

Rows are filled up to few lengths, each compiled once (filling). A request has the factors of its
own length, as in transformers; of a formula those of the next power of 2.
The harness's own models silently drop the beginning of a long prompt, and with it an early needle.
Here such a prompt is refused, or, if truncation is allowed, cut with a warning, once.

Legend: W requests, T tokens of one.
"""

import dataclasses
import itertools
import warnings
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from jaxrope.data import sliding
from jaxrope.errors import InputError
from jaxrope.evaluate import answering, filling, scoring
from jaxrope.evaluate.journal import Place, row_digest
from jaxrope.evaluate.scoring import Bench, EvalModel

SUITE = "harness"
_LEAST = 64  # tokens that the factors of a formula are for, at least
_SLAB = 16  # batches whose losses are held at one time, and lost by a kill


class Pair(NamedTuple):
    """A context, one token at least, and what follows it: int32 tokens."""

    context: np.ndarray
    continuation: np.ndarray


class Question(NamedTuple):
    """A prompt to be continued: int32 tokens, texts that end the answer, tokens it may have."""

    tokens: np.ndarray
    stops: tuple[str, ...]
    max_new_tokens: int


def rolling_pairs(tokens: np.ndarray, *, prefix: int, max_length: int) -> list[Pair]:
    """Returns the windows that score each token of a text once, behind `prefix`.

    Windows have max_length tokens, the last one too, and do not overlap but for that one: those of
    lm_eval.utils.get_rolling_token_windows with context_len=1, made disjoint.

    Args:
      tokens: of a text; of none there are no windows.
      prefix: the token that stands before the first one.
      max_length: tokens that are read at one time.
    """
    if not len(tokens):
        return []
    size = min(max_length, len(tokens))
    whole = np.concatenate([[prefix], tokens]).astype(np.int32)
    return [
        Pair(whole[span.begin : span.scored + 1], whole[span.scored + 1 : span.end + 1])
        for span in sliding.spans(len(tokens), window=size, stride=size)
    ]


def factor_lengths(rope_fn, max_length: int) -> list[int]:
    """Returns the lengths whose factors requests have, ascending, each the last one with these: the
    powers of 2, and the ends of buckets.
    """
    lengths = {max_length} | {bucket.max_len for bucket in getattr(rope_fn, "buckets", ())}
    size = _LEAST
    while size < max_length:
        lengths.add(size)
        size *= 2
    legal = sorted(length for length in lengths if length and length <= max_length)
    same = itertools.groupby(legal, key=lambda length: row_digest("factors", rope_fn(length)))
    return [list(group)[-1] for _, group in same]


@dataclasses.dataclass
class Reader:
    """Answers requests with a model.

    Attributes:
      model: the model.
      bench: its journal, tick and skip are used, and batch_tokens and chunk_tokens of its options.
      max_length: tokens it reads at one time, and writes, at most.
      allow_truncation: a longer request loses its beginning, with a warning, once; False: it is
        refused.
    """

    model: EvalModel
    bench: Bench
    max_length: int
    allow_truncation: bool = False
    _has_warned: bool = False

    def loglikelihoods(self, pairs: Sequence[Pair]) -> list[tuple[float, bool]]:
        """Returns for each pair (sum of the log-probabilities of its continuation, nats; whether
        each of its tokens is the model's first choice).

        Raises:
          InputError: a continuation has no token, or more than the model reads; or a pair is too
            long and may not be cut.
        """
        rows = [_fit_pair(self, pair) for pair in pairs]
        keys = [(row.tobytes(), count) for row, count in rows]
        first: dict[tuple, int] = {}
        for i, key in enumerate(keys):  # the same question twice is asked once
            first.setdefault(key, i)
        asked = list(first.values())
        scores = {}
        for (size, limit), members in _groups(self, [len(rows[i][0]) - 1 for i in asked]).items():
            group = [asked[member] for member in members]
            scored = self._score([rows[i] for i in group], limit, size)
            scores |= dict(zip((keys[i] for i in group), scored, strict=True))
        return [scores[key] for key in keys]

    def rolling(self, texts: Iterable[np.ndarray], *, prefix: int) -> list[float]:
        """Returns the log-likelihood of each text, nats: every token once, texts apart."""
        pairs, owners = [], []
        texts = list(texts)
        for owner, tokens in enumerate(texts):
            windows = rolling_pairs(tokens, prefix=prefix, max_length=self.max_length)
            pairs += windows
            owners += [owner] * len(windows)
        sums = [0.0] * len(texts)
        for owner, (value, _) in zip(owners, self.loglikelihoods(pairs), strict=True):
            sums[owner] += value
        return sums

    def generate(self, questions: Sequence[Question]) -> list[str]:
        """Returns what the model writes, greedily, before a stop or the end of text.

        Raises:
          InputError: a prompt and its answer are too long, and it may not be cut.
        """
        prompts = [_fit_prompt(self, question) for question in questions]
        limits = [bucket.max_len for bucket in getattr(self.model.rope_fn, "buckets", ())]
        limits = sorted(n for n in limits if n and n < self.max_length) + [self.max_length]
        groups: dict[tuple, list[int]] = {}
        for i, prompt in enumerate(prompts):
            limit = next(n for n in limits if n >= prompt.planned)
            groups.setdefault((limit, questions[i].stops), []).append(i)
        texts = {}
        for (limit, stops), members in sorted(groups.items()):
            answers = self._write([prompts[i] for i in members], limit, stops)
            texts |= dict(zip(members, answers, strict=True))
        return [texts[i] for i in range(len(questions))]

    def cut(self, what: str, limit: int) -> None:
        """Refuses a request longer than `limit`, or warns once that its beginning is cut off."""
        if not self.allow_truncation:
            raise InputError(
                f"harness: {what}, the model reads {limit}; its beginning would be lost. Raise "
                "eval.lengths, ask for fewer shots, or set eval.harness.allow_truncation."
            )
        if not self._has_warned:
            self._has_warned = True
            warnings.warn(
                f"harness: {what}, the model reads {limit}: the beginning of such requests is cut "
                "off. This warning is shown once.",
                stacklevel=2,
            )

    def _score(
        self, rows: list[tuple[np.ndarray, int]], limit: int, size: int
    ) -> list[tuple[float, bool]]:
        """Returns what `loglikelihoods` does of rows that have the factors of `limit` tokens and
        are filled up to `size`.
        """
        bench, rope = self.bench, self.model.rope_fn(limit)
        model = dataclasses.replace(self.model, rope_fn=lambda seq_len: rope)
        place = Place(row_digest(self.model.identity, rope), self.model.label, SUITE, limit)
        items = [scoring.fingerprint(row, count) for row, count in rows]
        records = bench.journal.find(place, items)
        scores = {i: (line["loglikelihood"], line["greedy"]) for i, line in records.items()}
        bench.skip(len(scores) * size)
        missing, watch = [i for i in range(len(rows)) if i not in scores], scoring.Stopwatch()
        batch = max(1, bench.options.batch_tokens // size)
        for start in range(0, len(missing), _SLAB * batch):
            part = missing[start : start + _SLAB * batch]
            # but for a few rows in all, every batch has the same shape
            whole = len(part) if len(missing) <= batch else -(-len(part) // batch) * batch
            full = np.zeros((whole, size + 1), np.int32)
            for row, i in zip(full, part, strict=False):
                row[: len(rows[i][0])] = rows[i][0]
            scored = scoring.score(
                model, full, batch_tokens=bench.options.batch_tokens, tick=bench.tick
            )
            for i, nll_T, hit_T in zip(part, *scored, strict=False):
                end = len(rows[i][0]) - 1
                span = slice(end - rows[i][1], end)
                scores[i] = -float(np.sum(nll_T[span], dtype=np.float64)), bool(hit_T[span].all())
            seconds = round(watch.lap() / len(part), 6)
            lines = [
                dict(
                    item=items[i], seconds=seconds, loglikelihood=scores[i][0], greedy=scores[i][1]
                )
                for i in part
            ]
            bench.journal.add(place, lines)
        return [scores[i] for i in range(len(rows))]

    def _write(
        self, prompts: list[answering.Prompt], limit: int, stops: tuple[str, ...]
    ) -> list[str]:
        """Returns the answers to prompts that have the factors of `limit` tokens."""
        bench, watch = self.bench, scoring.Stopwatch()
        rope = self.model.rope_fn(limit)
        place = Place(row_digest(self.model.identity, rope), self.model.label, SUITE, limit)
        items = [scoring.fingerprint(prompt.tokens) for prompt in prompts]
        hows = [f"{prompt.max_new_tokens} tokens, stops {list(stops)}" for prompt in prompts]
        records = bench.journal.find(place, items, hows)
        texts = {i: line["text"] for i, line in records.items()}
        bench.skip(sum(prompts[i].planned for i in texts))
        missing = [i for i in range(len(prompts)) if i not in texts]
        rows = answering.batch_size(self.model, prompts, bench.options.batch_tokens)
        how = answering.Writing(limit, stops, rows, bench.options.chunk_tokens)
        missing_prompts = [prompts[i] for i in missing]
        for batch in answering.write(self.model, missing_prompts, how, tick=bench.tick):
            seconds = round(watch.lap() / len(batch), 6)
            lines = []
            for j, answer in batch.items():
                texts[missing[j]] = answer.text
                about = dict(item=items[missing[j]], how=hows[missing[j]], tokens=answer.num_tokens)
                lines.append(dict(**about, text=answer.text, seconds=seconds))
            bench.journal.add(place, lines)
        return [texts[i] for i in range(len(prompts))]


@dataclasses.dataclass
class Counter(Reader):
    """A Reader that runs no model: it refuses the same requests, and counts their tokens.

    Attributes:
      tokens: that were read and written, at most.
      padding: those of them that are padding.
    """

    tokens: int = 0
    padding: int = 0

    def __post_init__(self):
        self._has_warned = True  # the Reader that does the reading warns

    def _score(
        self, rows: list[tuple[np.ndarray, int]], limit: int, size: int
    ) -> list[tuple[float, bool]]:
        tokens = filling.num_rows(len(rows), size, self.bench.options.batch_tokens) * size
        self.tokens += tokens
        self.padding += tokens - sum(len(row) - 1 for row, _ in rows)
        return [(0.0, False)] * len(rows)

    def _write(
        self, prompts: list[answering.Prompt], limit: int, stops: tuple[str, ...]
    ) -> list[str]:
        self.tokens += sum(prompt.planned for prompt in prompts)
        return [""] * len(prompts)


def _groups(reader: Reader, lengths: Sequence[int]) -> dict[tuple[int, int], list[int]]:
    """Returns which rows of `lengths` tokens are read together: {(tokens that they are
    filled up to, tokens whose factors they have): rows, by index}, ascending.
    """
    model, longest = reader.model, reader.max_length
    limits, groups = factor_lengths(model.rope_fn, longest), {}
    sizes = filling.by_size(model.settings, lengths, longest, reader.bench.options.batch_tokens)
    for size, members in sizes.items():
        for member in members:
            limit = next(length for length in limits if length >= lengths[member])
            groups.setdefault((size, limit), []).append(member)
    return dict(sorted(groups.items()))


def _fit_pair(reader: Reader, pair: Pair) -> tuple[np.ndarray, int]:
    """Returns (the tokens of a row, how many at its end are scored)."""
    count, total = len(pair.continuation), len(pair.context) + len(pair.continuation)
    if not count:
        raise InputError(
            "harness: a continuation has no token of its own: the tokenizer merges it with the "
            "context. Leave the task out."
        )
    if count > reader.max_length:
        raise InputError(
            f"harness: a continuation has {count} tokens, the model reads {reader.max_length} at "
            "one time. Raise eval.lengths, or leave the task out."
        )
    if total - 1 > reader.max_length:
        reader.cut(f"a request has {total - 1} tokens", reader.max_length)
    row = np.concatenate([pair.context, pair.continuation]).astype(np.int32)
    return row[-(reader.max_length + 1) :], count


def _fit_prompt(reader: Reader, question: Question) -> answering.Prompt:
    tokens, room = question.tokens, reader.max_length - question.max_new_tokens
    if room < 1:
        raise InputError(
            f"harness: an answer of {question.max_new_tokens} tokens leaves no room for a "
            f"prompt in {reader.max_length}. Raise eval.lengths, or leave the task out."
        )
    if len(tokens) > room:
        what = f"a prompt has {len(tokens)} tokens and its answer {question.max_new_tokens}"
        reader.cut(what, reader.max_length)
    return answering.Prompt(np.asarray(tokens[-room:], np.int32), question.max_new_tokens)
