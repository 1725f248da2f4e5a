"""LongPPL: perplexity of the tokens that a long context helps to predict (Fang et al. 2024,
arXiv 2410.23771).

An evaluator reads a text twice: whole, and each token with a context of K to K + d - 1 tokens. A
token is key if its loss falls by more than alpha with the whole text, and is below -beta there.
LongPPL is exp of the mean loss of the key tokens under the model that is evaluated; where the two
have different tokenizers, key tokens are carried over as intervals of characters.

As the package `longppl` does it, its quirks included:
- The evaluator reads the text with the special tokens that its tokenizer.json adds (mostly bos),
  the evaluated model without any.
- The first K tokens of the evaluator, bos among them, are never key.
- A token counts if an interval of key tokens that touch one another holds all of its characters.
- The loss of token i is that of place i - 1; for the first token, if it is ever key, that is the
  place of the last.
- A text is the first `length` - 1 tokens of a document, as text; documents are pooled by their
  numbers of tokens, and those without a key token are left out.
Where the last short window scores a single token the package stops with a TypeError; here that
token counts. Both passes of a model that is its own evaluator have the factors of `length`: what
its losses differ by is the context alone.

Legend: T tokens of a text, W rows of tokens, I intervals.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrope import data, decoder
from jaxrope.convert import pretrained
from jaxrope.errors import InputError
from jaxrope.evaluate import filling, scoring, statistics
from jaxrope.evaluate.scoring import Bench, EvalModel, Result
from jaxrope.mesh import sharding


class Encoded(NamedTuple):
    """Tokens of a text, int32, and the characters of each: begin and end (exclusive)."""

    tokens: np.ndarray
    spans_T2: np.ndarray


@dataclasses.dataclass(frozen=True)
class Passage:
    """A text as the two models read it.

    Attributes:
      name: of its document.
      model: its tokens for the evaluated model, none added.
      evaluator: those for the evaluator, with the special ones.
    """

    name: str
    model: Encoded
    evaluator: Encoded


def short_windows(num_tokens: int, *, context: int, window: int) -> list[tuple[int, int]]:
    """Returns (begin, end) of what the evaluator reads with a short context.

    Of each it scores the tokens from begin + `context` on: all but the first `context` tokens of a
    text once.
    """
    starts = range(0, num_tokens - context, window)
    return [(start, min(start + context + window, num_tokens)) for start in starts]


def merge(spans_T2: np.ndarray) -> np.ndarray:
    """Returns intervals [I, 2]: each the union of those that begin where the one before ends."""
    if not len(spans_T2):
        return np.zeros((0, 2), np.int64)
    breaks = np.flatnonzero(spans_T2[1:, 0] != spans_T2[:-1, 1])
    first, last = np.concatenate([[0], breaks + 1]), np.concatenate([breaks, [len(spans_T2) - 1]])
    return np.stack([spans_T2[first, 0], spans_T2[last, 1]], axis=1)


def contained(spans_T2: np.ndarray, intervals_I2: np.ndarray) -> list[int]:
    """Returns the tokens that an interval holds, found in one walk over both."""
    tokens, i = [], 0
    for token, (begin, end) in enumerate(spans_T2.tolist()):
        # an interval that begins before this token and does not hold it holds no later one
        while i < len(intervals_I2) and intervals_I2[i, 0] <= begin and end > intervals_I2[i, 1]:
            i += 1
        if i == len(intervals_I2):
            break
        if intervals_I2[i, 0] <= begin:
            tokens.append(token)
    return tokens


def passages(model: EvalModel, bench: Bench, length: int) -> tuple[Passage, ...]:
    """Returns the texts that are read at `length`; the same for every row.

    Raises:
      InputError: the evaluator has no tokenizer, or too few documents are long enough.
    """
    if length < 3:
        raise InputError(f"eval.lengths is 3 or more for the suite 'longppl', got {length}.")
    options, documents = bench.options.longppl, bench.text("eval.suites has 'longppl'")
    key = "longppl texts", length, options, id(documents), model.tokenizer.fingerprint
    if key in bench.cache:
        return bench.cache[key]
    lengths = documents.lengths
    enough = np.flatnonzero(lengths >= length - 1)
    if len(enough) < options.documents:
        raise InputError(
            f"eval.longppl.documents is {options.documents}, but of the {len(lengths)} of "
            f"{documents.setting} {len(enough)} have {length - 1:,} tokens or more; the "
            f"longest has {lengths.max(initial=0):,}. Name more text, or ask for fewer."
        )
    tokenizer = _tokenizer(model, options.evaluator)
    texts = tuple(
        _passage(model.tokenizer, tokenizer, documents, doc, length - 1)
        for doc in enough[: options.documents]
    )
    least = min(len(passage.evaluator.tokens) for passage in texts)
    if least <= options.context:
        raise InputError(
            f"eval.longppl.context is {options.context} tokens, which are never key, and a text of "
            f"length {length} has {least} for the evaluator. Set a smaller one, or leave the length"
            " out."
        )
    bench.cache[key] = texts
    return texts


def evaluate(model: EvalModel, bench: Bench) -> Iterator[Result]:
    """Yields LongPPL at each length.

    Metrics: `longppl` with `low` and `high` (95%, bootstrap over documents), `ppl` (every token but
    the first), `n_key_token`, `n_token`. Without a key token longppl is NaN, and null in the record
    (the package: "No key tokens!" and None). A row whose window slides has none.
    """
    if model.window:
        return
    for length in bench.options.lengths:
        watch = scoring.Stopwatch(bench.journal)
        read = passages(model, bench, length)
        intervals = _key_intervals(model, bench, read, length)
        losses = _losses(model, bench, [p.model.tokens for p in read], size=length, length=length)
        doc_metrics = [
            document(nll_T, passage.model.spans_T2, intervals_I2)
            for nll_T, passage, intervals_I2 in zip(losses, read, intervals, strict=True)
        ]
        yield Result(
            suite="longppl",
            label=model.label,
            length=length,
            metrics=pooled(doc_metrics, **bench.resamples),
            items={
                "doc": [passage.name for passage in read],
                "item": [scoring.fingerprint(passage.model.tokens) for passage in read],
                **{name: [metrics[name] for metrics in doc_metrics] for name in doc_metrics[0]},
                "key_intervals": [intervals_I2.tolist() for intervals_I2 in intervals],
            },
            nll_WT=None,
            fingerprint=scoring.fingerprint(
                np.concatenate([passage.model.tokens for passage in read]),
                bench.options.longppl.to_dict(),
            ),
            tokens=forward_tokens(model, bench, length),
            seconds=watch.seconds(),
        )


def document(
    nll_T: np.ndarray, spans_T2: np.ndarray, intervals_I2: np.ndarray
) -> dict[str, float | int | None]:
    """Returns the metrics of the package for one text: {longppl, n_key_token, ppl, n_token}.

    Args:
      nll_T: losses of all tokens but the first, nats.
      spans_T2: characters of all tokens.
      intervals_I2: characters of key tokens.
    """
    # the loss of token i is nll_T[i - 1]: of the first one nll_T[-1], as in the package
    places = np.array(contained(spans_T2, intervals_I2), np.int64) - 1
    nll_T = np.asarray(nll_T, np.float64)
    totals = {"ppl": _exp(nll_T.mean()), "n_token": len(spans_T2)}
    if not len(places):
        return {"longppl": None, "n_key_token": None, **totals}
    return {"longppl": _exp(nll_T[places].mean()), "n_key_token": len(places), **totals}


def pooled(doc_metrics: Sequence[dict], *, num_samples: int, seed: int) -> dict[str, float]:
    """Returns the metrics of several texts: logarithms weighed by numbers of tokens, as the
    package's script does.
    """
    keyed = [metrics for metrics in doc_metrics if metrics["longppl"] is not None]
    counts = [metrics["n_key_token"] for metrics in keyed]
    sums = [math.log(metrics["longppl"]) * metrics["n_key_token"] for metrics in keyed]
    score = low = high = math.nan
    if keyed:
        score = _exp(sum(sums) / sum(counts))
        ends = statistics.clustered_interval(sums, counts, num_samples=num_samples, seed=seed)
        low, high = map(_exp, ends)
    num_tokens = sum(metrics["n_token"] for metrics in doc_metrics)
    mean = (
        sum(math.log(metrics["ppl"]) * metrics["n_token"] for metrics in doc_metrics) / num_tokens
    )
    totals = {"ppl": _exp(mean), "n_key_token": sum(counts), "n_token": num_tokens}
    return {"longppl": score, "low": low, "high": high, **totals}


def forward_tokens(model: EvalModel, bench: Bench, length: int) -> int:
    """Returns the tokens the models read for one length, at most."""
    return filled(model, bench, length)[0]


def filled(model: EvalModel, bench: Bench, length: int) -> tuple[int, int]:
    """Returns (`forward_tokens`, those of them that are padding)."""
    if model.window:
        return 0, 0
    read = passages(model, bench, length)
    own = _tokens(model, bench, [passage.model.tokens for passage in read], length)
    judged = _evaluator_tokens(model, bench, read, length)
    return own[0] + judged[0], own[1] + judged[1]


def _tokenizer(model: EvalModel, evaluator: str):
    if not evaluator:
        return model.tokenizer
    loaded = pretrained.load(evaluator, weights=False)
    if loaded.tokenizer_dir is None:
        raise InputError(
            f"eval.longppl.evaluator: '{evaluator}' has no tokenizer.json. Put its own there."
        )
    return data.load_tokenizer(loaded.tokenizer_dir, vocab_size=loaded.config.vocab_size)


def _passage(tokenizer, evaluator, documents, doc: int, room: int) -> Passage:
    # the last token may be a part of a character
    text = tokenizer.decode(documents.doc(doc)[:room]).rstrip("\ufffd")
    encoded = Encoded(*tokenizer.encode_with_spans(text, special=False))
    while len(encoded.tokens) > room:  # the end of a word by itself may become more tokens
        text = text[: min(int(encoded.spans_T2[room, 0]), len(text) - 1)]
        encoded = Encoded(*tokenizer.encode_with_spans(text, special=False))
    judged = Encoded(*evaluator.encode_with_spans(text, special=True))
    return Passage(documents.names[doc], encoded, judged)


def _key_intervals(
    model: EvalModel, bench: Bench, read: tuple[Passage, ...], length: int
) -> tuple[np.ndarray, ...]:
    """Returns the characters of key tokens of each text; an evaluator that is another checkpoint
    runs once, for all rows.
    """
    options = bench.options.longppl
    key = "longppl keys", length, options, tuple(id(passage) for passage in read)
    if options.evaluator and key in bench.cache:
        bench.skip(_evaluator_tokens(model, bench, read, length)[0])
        return bench.cache[key]
    if options.evaluator:
        evaluator = _load(model, options.evaluator)
    else:
        rope = model.rope_fn(length)
        evaluator = dataclasses.replace(model, rope_fn=lambda seq_len: rope)
    texts = [passage.evaluator.tokens for passage in read]
    size = _evaluator_size(read, length, options.evaluator)
    full = _losses(evaluator, bench, texts, size=size, length=length)
    pieces, size = _short(texts, options), options.context + options.window
    short = iter(_losses(evaluator, bench, [*itertools.chain(*pieces)], size=size, length=length))
    intervals = []
    for passage, windows, full_T in zip(read, pieces, full, strict=True):
        short_T = np.concatenate([next(short)[options.context - 1 :] for _ in windows])
        full_T = full_T[options.context - 1 :]
        is_key_T = (short_T - full_T > options.alpha) & (full_T < -options.beta)
        keys = options.context + np.flatnonzero(is_key_T)
        intervals.append(merge(passage.evaluator.spans_T2[keys]))
    if options.evaluator:
        bench.cache[key] = tuple(intervals)
    return tuple(intervals)


def _losses(
    model: EvalModel, bench: Bench, pieces: Sequence[np.ndarray], *, size: int, length: int
) -> list[np.ndarray]:
    """Returns the losses of all tokens but the first of each piece, with the factors of `size`
    tokens, the most there can be.
    """
    rope = model.rope_fn(size)
    model = dataclasses.replace(model, rope_fn=lambda seq_len: rope)
    losses: dict[int, np.ndarray] = {}
    for width, members in _by_size(model, bench, pieces, size).items():
        rows = np.zeros((len(members), width + 1), np.int32)
        for row, i in zip(rows, members, strict=True):
            row[: len(pieces[i])] = pieces[i]
        nll_WT, _ = scoring.score_with_journal(model, bench, rows, suite="longppl", length=length)
        losses |= {i: nll_T[: len(pieces[i]) - 1] for i, nll_T in zip(members, nll_WT, strict=True)}
    return [losses[i] for i in range(len(pieces))]


def _by_size(model: EvalModel, bench: Bench, pieces, size: int) -> dict[int, list[int]]:
    """Returns filling.by_size; the last token of a piece is predicted, and need not be read."""
    lengths = [len(piece) - 1 for piece in pieces]
    return filling.by_size(model.settings, lengths, size, bench.options.batch_tokens)


def _tokens(model: EvalModel, bench: Bench, pieces, size: int) -> tuple[int, int]:
    """Returns (tokens that are read of these pieces, those of them that are padding)."""
    groups = _by_size(model, bench, pieces, size)
    tokens = sum(width * len(members) for width, members in groups.items())
    return tokens, tokens - sum(len(piece) - 1 for piece in pieces)


def _evaluator_size(read: Sequence[Passage], length: int, evaluator: str) -> int:
    """Returns the tokens that are read of a row that holds the longest text for the evaluator."""
    longest = max(len(passage.evaluator.tokens) for passage in read)
    return longest if evaluator else max(length, longest - 1)


def _evaluator_tokens(
    model: EvalModel, bench: Bench, read: Sequence[Passage], length: int
) -> tuple[int, int]:
    """Returns (tokens that the evaluator reads, those of them that are padding)."""
    options = bench.options.longppl
    texts = [passage.evaluator.tokens for passage in read]
    size = _evaluator_size(read, length, options.evaluator)
    full = _tokens(model, bench, texts, size)
    pieces = [*itertools.chain(*_short(texts, options))]
    short = _tokens(model, bench, pieces, options.context + options.window)
    return full[0] + short[0], full[1] + short[1]


def _short(texts: Sequence[np.ndarray], options) -> list[list[np.ndarray]]:
    """Returns the pieces of each text that the evaluator reads with a short context."""
    constants = dict(context=options.context, window=options.window)
    return [[text[a:b] for a, b in short_windows(len(text), **constants)] for text in texts]


def _load(model: EvalModel, path: str) -> EvalModel:
    """Returns the evaluator on the devices of the model."""
    loaded, mesh = pretrained.load(path), model.settings.mesh
    if mesh is None:
        params = jax.tree.map(jnp.asarray, loaded.params)
    else:
        params = sharding.put(loaded.params, decoder.param_shardings(loaded.config, mesh))
    return dataclasses.replace(
        model,
        config=loaded.config,
        params=params,
        rope_fn=loaded.rope_fn,
        label=f"evaluator {path}",
        identity="",  # not stored in the journal, whose rows are those of the table
    )


def _exp(nll: float) -> float:
    with np.errstate(over="ignore"):
        return float(np.exp(nll))
