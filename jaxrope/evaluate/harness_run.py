"""The suite "harness": tasks of lm-evaluation-harness, such as those of the Open LLM Leaderboard.

Every row answers the same questions with the same examples, so that a table shows what an extension
costs within the old window. Rows that are methods have the factors of the longest length here too;
a rope of several lengths has those of each request's own, as in transformers.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping

import numpy as np

from jaxrope import data
from jaxrope.errors import InputError
from jaxrope.evaluate import scoring, statistics
from jaxrope.evaluate.harness import SUITE, Counter, Reader, factor_lengths
from jaxrope.evaluate.ruler import variables
from jaxrope.evaluate.ruler.prompts import Draws, Order
from jaxrope.evaluate.scoring import Bench, EvalModel, Result

# Open LLM Leaderboard, as LongRoPE reports it (section 4.2): examples, and the score
LEADERBOARD: dict[str, tuple[int, str]] = {
    "arc_challenge": (25, "acc_norm"),
    "hellaswag": (10, "acc_norm"),
    "mmlu": (5, "acc"),
    "truthfulqa_mc2": (0, "acc"),
}
_WITH_VT = ("ruler", "ruler_vt")  # tasks of lm-eval that have RULER's variable tracking


def check(model: EvalModel, bench: Bench, length: int) -> None:
    """Loads the tasks and makes their questions; of the lengths only the longest one counts.

    Raises:
      InputError: lm-eval is missing, a task is unknown, its data is not at hand, or a question is
        too long and may not be cut.
    """
    options = bench.options.harness
    if options.chat_template and data.chat.load_template(bench.tokenizer_dir) is None:
        raise InputError(
            f"eval.harness.chat_template is set, but '{bench.tokenizer_dir}' has none "
            "(chat_template in tokenizer_config.json, or chat_template.jinja). Leave it out."
        )
    for name in options.tasks:
        if name in _WITH_VT:
            _check_vt(name, model.tokenizer)
        _loaded(bench, name)


def _check_vt(name: str, tokenizer) -> None:
    """Refuses a task that lm-eval would make for ever: as NVIDIA's, its variable tracking draws a
    worked example until one has at most 500 tokens.
    """
    order = Order("vt", lambda text: len(tokenizer.encode(text)), length=4096, count=1, seed=42)
    try:
        variables.example(order, Draws(order.seed))
    except InputError:
        raise InputError(
            f"eval.harness.tasks: '{name}': lm-eval never ends where the worked example of ruler_vt"
            f" has more than {variables.EXAMPLE_TOKENS} tokens, as with this tokenizer. Leave it "
            "out, or use a tokenizer with more entries."
        ) from None


def forward_tokens(model: EvalModel, bench: Bench, length: int) -> int:
    """Returns the tokens that all tasks read and write, at most, as those of the longest length."""
    return filled(model, bench, length)[0]


def filled(model: EvalModel, bench: Bench, length: int) -> tuple[int, int]:
    """Returns (`forward_tokens`, those of them that are padding)."""
    if model.window or length != max(bench.options.lengths):
        return 0, 0
    options = bench.options.harness
    lm, reader = _lm(Counter, model, bench)
    lengths = factor_lengths(reader.model.rope_fn, reader.max_length)
    details = options, bench.options.batch_tokens, model.tokenizer.fingerprint, *lengths
    key = "harness tokens", *details
    if key not in bench.cache:
        for name in options.tasks:
            how = dict(limit=options.limit, with_chat_template=options.chat_template)
            _adapter().ask(lm, _loaded(bench, name), **how)
        bench.cache[key] = reader.tokens, reader.padding
    return bench.cache[key]


def evaluate(model: EvalModel, bench: Bench) -> Iterator[Result]:
    """Yields the score of each task, at the most tokens that a request may have.

    Metrics: the task's score with `low` and `high` (95%, from lm-eval's standard error), then its
    other metrics. A task of RULER has a result for each length. A row whose window slides has none.
    """
    if model.window:
        return
    options, counts = bench.options.harness, []
    counted = dataclasses.replace(
        bench,
        tick=lambda tokens: (counts.append(tokens), bench.tick(tokens)),
        skip=lambda tokens: (counts.append(tokens), bench.skip(tokens)),
    )
    lm, reader = _lm(Reader, model, counted)
    for name in options.tasks:
        counts.clear()
        watch, loaded = scoring.Stopwatch(bench.journal), _loaded(bench, name)
        how = dict(limit=options.limit, with_chat_template=options.chat_template)
        output = _adapter().run(lm, loaded, **how)
        prompts = {
            f"{task}/{sample['doc_id']}": sample["prompt_hash"]
            for task, samples in sorted(output["samples"].items())
            for sample in samples
        }
        by_length = _by_length(name, output, bench) or {
            reader.max_length: scores(name, output["results"][name])
        }
        # lengths of one task are answered together: each has an equal part of the cost
        cost, seconds = sum(counts) // len(by_length), watch.seconds() / len(by_length)
        for length, metrics in by_length.items():
            yield Result(
                suite=f"{SUITE}/{name}",
                label=model.label,
                length=length,
                metrics=metrics,
                items={
                    "item": list(prompts.values()),
                    "question": list(prompts),
                    "shots": list(_adapter().shots_of(loaded)),
                },
                nll_WT=None,
                fingerprint=scoring.fingerprint((), *prompts.values()),
                tokens=cost,
                seconds=seconds,
            )


def scores(name: str, results: Mapping[str, object]) -> dict[str, float]:
    """Returns a task's metrics {name: value}, the one that tables show first, then its `low` and
    `high`.

    Args:
      name: of the task.
      results: of lm-eval, {"acc,none": 0.5, "acc_stderr,none": 0.1, "alias": ...}.
    """
    numbers = {
        key.partition(",")[0]: float(value)
        for key, value in results.items()
        if isinstance(value, int | float) and "," in key
    }
    metrics = {key: value for key, value in numbers.items() if not key.endswith("_stderr")}
    if not metrics:
        raise InputError(f"eval.harness.tasks: '{name}' has no metric that is a number.")
    leaderboard_metric = LEADERBOARD[name][1] if name in LEADERBOARD else ""
    first = leaderboard_metric if leaderboard_metric in metrics else next(iter(metrics))
    error = numbers.get(f"{first}_stderr", math.nan)
    low, high = (metrics[first] + sign * statistics.Z_95 * error for sign in (-1, 1))
    return {first: metrics[first], "low": low, "high": high} | metrics


def _by_length(name: str, output: Mapping, bench: Bench) -> dict[int, dict[str, float]]:
    """Returns metrics by length of a task of RULER, whose metrics are called by the lengths they
    are of; {} for any other task.
    """
    by_length = {}
    for metric in (key.partition(",")[0] for key in output["results"][name]):
        if not metric.isdecimal():
            continue
        samples = [sample[metric] for sample in output["samples"][name] if metric in sample]
        values = np.array([value for value in samples if value != -1], np.float64)
        if len(values):  # else there is no question of that length
            low, high = statistics.bootstrap_interval(values, **bench.resamples)
            by_length[int(metric)] = {"score": float(values.mean()), "low": low, "high": high}
    return dict(sorted(by_length.items()))


def _lm(kind: type[Reader], model: EvalModel, bench: Bench):
    """Returns (the adapter, its reader) of a row."""
    options = bench.options.harness
    max_length = options.max_length or max(bench.options.lengths)
    reader = kind(_fixed(model, max_length), bench, max_length, options.allow_truncation)
    template = data.chat.load_template(bench.tokenizer_dir)
    name = model.tokenizer.fingerprint
    return _adapter().HarnessLM(reader, name=name, chat_template=template), reader


def _adapter():
    try:
        from jaxrope.evaluate import harness_lm
    except ImportError as error:
        raise InputError(
            f"eval.suites has 'harness', which needs the package lm-eval ({error}). Install it with"
            " `pip install jaxrope[harness]`, or leave the suite out."
        ) from None
    return harness_lm


def _loaded(bench: Bench, name: str) -> dict:
    """Returns a task with its data, read once for all rows."""
    options = bench.options.harness
    key = "harness task", name, options, bench.options.lengths
    if key not in bench.cache:
        shots = options.shots if options.shots >= 0 else None
        if shots is None and name in LEADERBOARD:
            shots = LEADERBOARD[name][0]
        metadata = {
            "tokenizer": bench.tokenizer_dir,
            "max_seq_lengths": list(bench.options.lengths),
        }
        bench.cache[key] = _adapter().load(
            name, shots=shots, include_path=options.include_path, metadata=metadata
        )
    return bench.cache[key]


def _fixed(model: EvalModel, max_length: int) -> EvalModel:
    if hasattr(model.rope_fn, "buckets"):
        return model
    rope = model.rope_fn(max_length)
    return dataclasses.replace(model, rope_fn=lambda seq_len: rope)
