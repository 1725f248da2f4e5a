"""Perplexity: how well a model predicts held-out text, in whole windows or a sliding one.

A window of text is bos and the `length` tokens that follow it; each of these is scored exactly
once. Whole: one context from position 0. Sliding: the model reads at most `window` tokens; the
first window scores all of its tokens, each later one only its last `stride`, so that a token has
at least `window - stride` tokens of context.

YaRN's and LongRoPE's scripts count differently by one: their window of `max_length` tokens holds
bos and max_length - 1 tokens of text and scores those; here it holds bos and `window` - 1 tokens
of text and scores `window`, the last one being predicted without being read. `protocols` counts as
they do.

Legend: W windows of text, T scored tokens of one, M forward windows over all of them.
"""

from collections.abc import Iterator

import numpy as np

from jaxrope import data
from jaxrope.data import sliding
from jaxrope.evaluate import filling, protocols, scoring, statistics
from jaxrope.evaluate.scoring import Bench, EvalModel, Result


def score_windows(
    model: EvalModel, tokens_WT: np.ndarray, bench: Bench
) -> tuple[np.ndarray, np.ndarray, list[sliding.Span]]:
    """Returns (nll_WT, hit_WT, the forward windows); `tokens_WT` has a column more, bos first."""
    num_tokens = tokens_WT.shape[1] - 1
    window = min(model.window, num_tokens) or num_tokens
    plan = sliding.spans(num_tokens, window=window, stride=bench.options.stride)
    bos_first = bench.options.bos_per_window
    rows = np.concatenate([sliding.rows(row, plan, bos_per_window=bos_first) for row in tokens_WT])
    arrays = scoring.score_with_journal(model, bench, rows, suite="perplexity", length=num_tokens)
    nll_WT, hit_WT = (
        np.concatenate(
            [part[i :: len(plan), span.scored - span.end :] for i, span in enumerate(plan)], axis=1
        )
        for part in arrays
    )
    return nll_WT, hit_WT, plan


def evaluate(model: EvalModel, bench: Bench) -> Iterator[Result]:
    """Yields the perplexity at each length.

    Of conversations the answers alone are scored, a window's mean being over these.

    Metrics: `perplexity` under the bench's aggregation, its `low` and `high` (95%, bootstrap over
    the units that the aggregation averages), `nll` (its logarithm, nats per token), `accuracy`
    (share of tokens that were the most probable one). With eval.protocol, those of `protocols`.
    """
    if bench.options.protocol:
        yield from protocols.evaluate(model, bench)
        return
    aggregate = statistics.AGGREGATIONS[bench.options.aggregation]
    for length in bench.options.lengths:
        watch = scoring.Stopwatch(bench.journal)
        windows = text_windows(model, bench, length)
        nll_WT, hit_WT, plan = score_windows(model, windows.tokens_WT, bench)
        if windows.weights_WT is not None:  # their mean is that over the tokens that count
            nll_WT, hit_WT = nll_WT * windows.weights_WT, hit_WT * windows.weights_WT
        docs_W = np.asarray(windows.doc_ids_W)
        values = aggregate(nll_WT, docs_W, [(span.scored, span.end) for span in plan])
        nll = float(values.mean())
        low, high = statistics.bootstrap_interval(values, **bench.resamples)
        edges, curve = np.array([]), np.array([])
        if windows.weights_WT is None:
            edges, curve = statistics.position_curve(nll_WT)
        yield Result(
            suite="perplexity",
            label=model.label,
            length=length,
            metrics={
                "perplexity": _exp(nll),
                "low": _exp(low),
                "high": _exp(high),
                "nll": nll,
                "accuracy": float(hit_WT.mean()),
            },
            items={
                "window_nll": nll_WT.mean(axis=1, dtype=np.float64).tolist(),
                "window_doc": [bench.documents.names[doc] for doc in docs_W],
                "window_start": [int(start) for start in windows.starts_W],
                "position_edges": edges.tolist(),
                "position_nll": curve.tolist(),
                "item": [scoring.fingerprint(row) for row in windows.tokens_WT],
            },
            nll_WT=nll_WT,
            fingerprint=scoring.fingerprint(windows.tokens_WT),
            tokens=forward_tokens(model, bench, length),
            seconds=watch.seconds(),
        )


def text_windows(model: EvalModel, bench: Bench, length: int):
    """Returns the data.Windows that a model is scored on at `length`; see protocols.texts."""
    if bench.options.protocol:
        return protocols.texts(model, bench, length)
    options = bench.options
    return data.eval_windows(
        bench.text("eval.suites has 'perplexity'"),
        length=length,
        num_windows=options.num_windows,
        offset_tokens=options.offset_tokens,
        windows_per_doc=options.windows_per_doc,
        bos_id=model.tokenizer.bos_id,
    )


def forward_tokens(model: EvalModel, bench: Bench, length: int) -> int:
    """Returns the tokens the model reads for one length."""
    if bench.options.protocol:
        return protocols.forward_tokens(model, bench, length)
    window = min(model.window, length) or length
    plan = sliding.spans(length, window=window, stride=bench.options.stride)
    return bench.options.num_windows * window * len(plan)


def filled(model: EvalModel, bench: Bench, length: int) -> tuple[int, int]:
    """Returns (tokens that are computed for one length, those of them that are padding)."""
    if bench.options.protocol:
        return protocols.filled(model, bench, length)
    window = min(model.window, length) or length
    return filling.over_mesh(model.settings, window, forward_tokens(model, bench, length))


def _exp(nll: float) -> float:
    with np.errstate(over="ignore"):
        return float(np.exp(nll))
