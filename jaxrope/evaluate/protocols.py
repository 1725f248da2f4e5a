"""Perplexity as the papers' scripts count it, by name.

The script of YaRN (`eval/perplexity.py`) and LongRoPE's copy of it cut every document into windows
of `length` tokens, bos included, that begin `stride` tokens after one another. A window scores the
tokens behind the end of the one before it, and the perplexity is exp of the mean of the windows'
means: a first window of 8,191 tokens with little context weighs as much as a later one of 256
tokens, and a long document more than a short one. The metric `token_perplexity` weighs every token
the same.

What else differs from `perplexity`, and is kept:
- bos begins every window, and takes one of its `length` tokens. Without bos in the tokenizer the
  first token of a window is scored in none.
- The last window of a document keeps the stride and is shorter.
- With truncate (YaRN's curves on Proof-pile, whatever its text says of a sliding window) a document
  is its first `length` - 1 tokens: one window, the other tokens are never read.
- With a stride of `length` or more (LongRoPE's Books3: 262,144) the tokens between two windows are
  never scored.
- Options: `max_strides=10` is the limit of microsoft/LongRoPE, main branch, where a stride of 256
  ends every document at 2,560 tokens; `whole_windows` is its branch cube_longrope, which leaves out
  windows that reach beyond the text.

Legend: W windows of all documents, T tokens of one.
"""

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from jaxrope.errors import InputError
from jaxrope.evaluate import filling, scoring, statistics
from jaxrope.evaluate.scoring import Bench, EvalModel, Result

_SLAB = 32  # batches whose losses are held at one time


@dataclasses.dataclass(frozen=True)
class Protocol:
    """The arguments of a script.

    Attributes:
      documents: how many are read, the first ones that are long enough.
      min_tokens: tokens such a document has at least.
      stride: tokens from the beginning of a window to that of the next one; 0 = truncate.
      max_strides: a document ends after so many strides; 0 = with its text.
      whole_windows: a window that reaches beyond the text is left out.
    """

    documents: int
    min_tokens: int
    stride: int
    max_strides: int = 0
    whole_windows: bool = False


PROTOCOLS: dict[str, Protocol] = {
    # eval.sh of YaRN: PROOFPILE_LONG_SMALL
    "proof_pile_yarn": Protocol(documents=10, min_tokens=131_072, stride=0),
    # script/ppl_eval of LongRoPE's branch `longrope`: PG19; no document is too short
    "pg19_sliding_256": Protocol(documents=100, min_tokens=1, stride=256),
    # the same: BOOK3
    "books3_256k": Protocol(documents=20, min_tokens=2_097_152, stride=262_144),
}


class Window(NamedTuple):
    """A forward window: it reads tokens begin .. end - 1 and scores the last `scored` of them."""

    begin: int
    end: int
    scored: int


@dataclasses.dataclass(frozen=True)
class Text:
    """A document with its windows.

    Attributes:
      name: of the document.
      tokens: int32, as many as are read.
      windows: in their order.
    """

    name: str
    tokens: np.ndarray
    windows: list[Window]


def windows(
    num_tokens: int,
    *,
    length: int,
    stride: int,
    has_bos: bool,
    max_strides: int = 0,
    whole_windows: bool = False,
) -> list[Window]:
    """Returns the windows of one document.

    Args:
      num_tokens: of the document, without bos.
      length: tokens of a window, with bos.
      stride, max_strides, whole_windows: see Protocol.
      has_bos: whether bos begins a window.
    """
    if max_strides:
        num_tokens = min(num_tokens, max_strides * stride)
    room, plan, done = length - has_bos, [], 0
    for begin in range(0, num_tokens, stride):
        end = min(begin + room, num_tokens)
        if whole_windows and begin + room > num_tokens:
            break
        # nothing stands before the first token of a window without bos; a window of that token
        # alone is NaN in the scripts
        scored = min(end - done, end - begin - (not has_bos))
        if scored:
            plan.append(Window(begin, end, scored))
        done = end
        if end == num_tokens:
            break
    return plan


def of(bench: Bench) -> Protocol:
    """Returns the protocol that config.eval names, with its options applied."""
    changes = bench.options.protocol_options.to_dict()
    changes = {key: value for key, value in changes.items() if value}
    return dataclasses.replace(PROTOCOLS[bench.options.protocol], **changes)


def texts(model: EvalModel, bench: Bench, length: int) -> list[Text]:
    """Returns what is read at `length`, the same documents at every length.

    A row whose own window slides reads the same text in windows of that size, eval.stride apart
    where the protocol has one window of a document.

    Raises:
      InputError: too few documents are long enough, or length is out of range.
    """
    documents = bench.text("eval.suites has 'perplexity'")
    protocol, has_bos = of(bench), model.tokenizer.bos_id is not None
    _check_length(bench, protocol, length, has_bos)
    limit = length - has_bos if protocol.stride == 0 else None
    size = min(model.window, length) or length
    room = size - has_bos
    stride = protocol.stride or (room if size == length else bench.options.stride)
    text_list = []
    for doc in _chosen(bench, protocol, has_bos):
        tokens = documents.doc(doc)[:limit]
        plan = windows(
            len(tokens),
            length=size,
            stride=stride if size == length else min(stride, room),
            has_bos=has_bos,
            max_strides=protocol.max_strides if protocol.stride else 0,
            whole_windows=protocol.whole_windows,
        )
        text_list.append(Text(documents.names[doc], tokens[: plan[-1].end], plan))
    return text_list


def evaluate(model: EvalModel, bench: Bench) -> Iterator[Result]:
    """Yields the perplexity at each length.

    Metrics: `perplexity` as the script has it, its `low` and `high` (95%, bootstrap over
    documents), `nll` (its logarithm), `token_perplexity` (every token weighs the same), `accuracy`.
    """
    truncates = of(bench).stride == 0
    for length in bench.options.lengths:
        watch = scoring.Stopwatch(bench.journal)
        read = texts(model, bench, length)
        nlls, hits = score(model, read, length, bench)
        means = [[float(np.mean(nll, dtype=np.float64)) for nll in doc] for doc in nlls]
        counts_D = [len(doc) for doc in means]
        low, high = statistics.clustered_interval(
            [sum(doc) for doc in means],
            counts_D,
            **bench.resamples,
        )
        pooled_W = np.concatenate(means)
        all_T = np.concatenate([nll for doc in nlls for nll in doc])
        # one window of a document: every token; else the windows, which the score averages
        whole = [np.concatenate(doc) for doc in nlls] if truncates else pooled_W[:, None]
        nll_WT = np.asarray(whole, np.float32)
        edges, curve = statistics.position_curve(nll_WT) if truncates else ((), ())
        yield Result(
            suite="perplexity",
            label=model.label,
            length=length,
            metrics={
                "perplexity": _exp(pooled_W.mean()),
                "low": _exp(low),
                "high": _exp(high),
                "nll": float(pooled_W.mean()),
                "token_perplexity": _exp(np.mean(all_T, dtype=np.float64)),
                "accuracy": float(np.mean(np.concatenate([hit for doc in hits for hit in doc]))),
            },
            items={
                "window_nll": pooled_W.tolist(),
                "window_doc": [text.name for text in read for _ in text.windows],
                "window_start": [window.begin for text in read for window in text.windows],
                "item": [scoring.fingerprint(text.tokens) for text in read],
                "window_scored": [window.scored for text in read for window in text.windows],
                "position_edges": np.asarray(edges).tolist(),
                "position_nll": np.asarray(curve).tolist(),
            },
            nll_WT=nll_WT,
            fingerprint=_fingerprint(read, nll_WT.shape),
            tokens=forward_tokens(model, bench, length),
            seconds=watch.seconds(),
        )


def score(
    model: EvalModel, read: list[Text], length: int, bench: Bench
) -> tuple[list[list[np.ndarray]], list[list[np.ndarray]]]:
    """Returns (nll, hit) of the scored tokens: for each document a list of its windows' arrays.

    Every window has the factors of the row's own length.
    """
    bos, size = model.tokenizer.bos_id, min(model.window, length) or length
    rope = model.rope_fn(size)
    model = dataclasses.replace(model, rope_fn=lambda seq_len: rope)
    order = [(doc, i) for doc, text in enumerate(read) for i in range(len(text.windows))]
    nlls, hits = ([[None] * len(text.windows) for text in read] for _ in range(2))
    for width, members in _by_size(model, read, size, bench).items():
        batch = max(1, bench.options.batch_tokens // width)
        for start in range(0, len(members), _SLAB * batch):
            part = [order[member] for member in members[start : start + _SLAB * batch]]
            rows = np.stack(
                [_row(read[doc].tokens, read[doc].windows[i], width, bos) for doc, i in part]
            )
            if len(members) > batch:  # else the last batch has a shape of its own
                fill = -len(rows) % batch
                rows = np.concatenate([rows, np.repeat(rows[-1:], fill, axis=0)])
            arrays = scoring.score_with_journal(
                model, bench, rows, suite="perplexity", length=length
            )
            for (doc, i), nll_T, hit_T in zip(part, *arrays, strict=False):
                window = read[doc].windows[i]
                last = window.end - window.begin - (bos is None)
                nlls[doc][i] = nll_T[last - window.scored : last]
                hits[doc][i] = hit_T[last - window.scored : last]
    return nlls, hits


def forward_tokens(model: EvalModel, bench: Bench, length: int) -> int:
    """Returns the tokens the model reads for one length, what fills rows and batches included."""
    return filled(model, bench, length)[0]


def filled(model: EvalModel, bench: Bench, length: int) -> tuple[int, int]:
    """Returns (`forward_tokens`, those of them that are padding)."""
    size, read = min(model.window, length) or length, texts(model, bench, length)
    tokens = sum(
        width * filling.num_rows(len(members), width, bench.options.batch_tokens)
        for width, members in _by_size(model, read, size, bench).items()
    )
    return tokens, tokens - sum(_lengths(model, read))


def _by_size(model: EvalModel, read: list[Text], size: int, bench: Bench) -> dict[int, list[int]]:
    """Returns filling.by_size of all windows, in the order of the documents."""
    lengths = _lengths(model, read)
    return filling.by_size(model.settings, lengths, size, bench.options.batch_tokens)


def _lengths(model: EvalModel, read: list[Text]) -> list[int]:
    """Returns the tokens of each window's row, bos included."""
    has_bos = model.tokenizer.bos_id is not None
    return [window.end - window.begin + has_bos for text in read for window in text.windows]


def _row(tokens: np.ndarray, window: Window, size: int, bos: int | None) -> np.ndarray:
    """Returns a row of size + 1 tokens; what stands behind the window is not scored."""
    row = np.zeros(size + 1, np.int32)
    text, first = tokens[window.begin : window.end], bos is not None
    row[first : first + len(text)] = text
    if first:
        row[0] = bos
    return row


def _chosen(bench: Bench, protocol: Protocol, has_bos: bool) -> np.ndarray:
    lengths = bench.documents.lengths
    # without bos nothing of a document of one token can be scored
    enough = np.flatnonzero(lengths >= max(protocol.min_tokens, 2 - has_bos))
    if len(enough) < protocol.documents:
        raise InputError(
            f"eval.protocol '{bench.options.protocol}' reads {protocol.documents} documents of "
            f"{protocol.min_tokens:,} tokens or more; of the {len(lengths)} of "
            f"{bench.documents.setting} {len(enough)} are so long, the longest has "
            f"{lengths.max(initial=0):,}. Name more text, or change eval.protocol_options.documents"
            " or min_tokens."
        )
    return enough[: protocol.documents]


def _check_length(bench: Bench, protocol: Protocol, length: int, has_bos: bool) -> None:
    name, room = bench.options.protocol, length - has_bos
    if length < 2:
        raise InputError(f"eval.lengths is 2 or more for eval.protocol '{name}', got {length}.")
    if protocol.stride == 0 and room > protocol.min_tokens:
        raise InputError(
            f"eval.lengths: eval.protocol '{name}' takes documents of {protocol.min_tokens:,} "
            f"tokens or more, too few for length {length:,}. Set "
            f"eval.protocol_options.min_tokens={room}."
        )
    if protocol.whole_windows and room > protocol.min_tokens:
        raise InputError(
            f"eval.protocol_options.whole_windows leaves out documents shorter than length "
            f"{length:,}. Set eval.protocol_options.min_tokens={room}."
        )
    if protocol.max_strides and protocol.whole_windows:
        reach = protocol.max_strides * protocol.stride
        if protocol.stride and room > reach:
            raise InputError(
                f"eval.protocol_options: with max_strides a document ends at {reach:,} tokens, and "
                f"whole_windows leaves nothing of it at length {length:,}. Use one of them."
            )


def _fingerprint(read: list[Text], shape: tuple[int, ...]) -> str:
    plan = shape if shape[1] > 1 else [text.windows for text in read]
    return scoring.fingerprint(
        np.concatenate([text.tokens for text in read]), [len(text.tokens) for text in read], plan
    )


def _exp(nll: float) -> float:
    with np.errstate(over="ignore"):
        return float(np.exp(nll))
