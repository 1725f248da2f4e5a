"""What is reported beside the verdict, and decides nothing. Each is a line of the journal.

What the model has without any extension: its own window, sliding over the text that judges. A long
window has to beat it to be worth having; it is no candidate, for a program that reads no further
cannot use what lies before its window. Windows move by half their length, so that a token is
predicted from half a window at least:

    {"sliding": tokens of the window, "name": of the result, "losses", "result_losses", "fitness",
     "tokens", "seconds"}

And what the result costs at the length that the model serves already, where a program has one set
of factors for all lengths:

    {"short": tokens of that length, "name": of the result, "losses", "own_losses", "fitness",
     "own_fitness", "tokens", "seconds"}

Letters: W samples, N windows of a sample, T length.
"""

import dataclasses
import functools
import time
from collections.abc import Sequence

import numpy as np

from jaxrope import decoder, rope
from jaxrope.data import sliding
from jaxrope.search import candidates, evaluator, objective
from jaxrope.search.candidates import Candidate
from jaxrope.search.judging import Judge, Objective
from jaxrope.search.loop import Bench
from jaxrope.search.problem import Problem


def run(problem: Problem, bench: Bench, judge: Judge, result: Candidate) -> None:
    """Measures what is reported, as far as the journal lacks it.

    Args:
      problem: of the search.
      bench: of the search.
      judge: the samples that judged.
      result: of the search.
    """
    missing = set(kinds(problem)) - set().union(*bench.record.rows)
    if not missing:
        return
    on_text = _on_text(problem, bench)
    for kind, measure_fn in (("sliding", _sliding), ("short", _short)):
        if kind in missing:
            bench.record.append([measure_fn(problem, on_text, judge, result)])


def kinds(problem: Problem) -> list[str]:
    """Returns what is reported: where a window of the model's own is shorter than the text, and a
    document is long enough (documents with needles are made of several).
    """
    reach, length = decoder.own_base(problem.model).length, problem.config.target_len
    longest = max(problem.task.documents.lengths, default=0)
    needed = {"sliding": length, "short": reach} if 1 < reach < length else {}
    return [kind for kind, least in needed.items() if longest >= least]


def tokens(problem: Problem) -> int:
    """Returns the forward tokens that it costs."""
    reach, length, cost = decoder.own_base(problem.model).length, problem.config.target_len, 0
    for kind in kinds(problem):
        if kind == "short":
            cost += 2 * reach
        else:
            cost += len(_plan(length, reach)) * reach + (0 if _text_judges(problem) else length)
    return _num_samples(problem) * cost


def _num_samples(problem: Problem) -> int:
    return problem.config.search.judge.num_samples or problem.objective.num_samples


def _text_judges(problem: Problem) -> bool:
    return problem.config.search.objective.name == "perplexity"


def _on_text(problem: Problem, bench: Bench) -> Bench:
    """Returns a bench for the perplexity of text, whatever the objective, a candidate at a time."""
    if _text_judges(problem):
        return bench.on(problem.objective, problem.mesh, per_device=1)
    text = problem.unseen_at(decoder.own_base(problem.model).length, 1)
    on_text = bench.on(text, problem.mesh, per_device=1)
    fns = evaluator.losses_fns(text, problem.model, problem.mesh)
    on_text.evaluator = dataclasses.replace(on_text.evaluator, losses_fns=fns)
    return on_text


def _sliding(problem: Problem, bench: Bench, judge: Judge, result: Candidate) -> dict:
    """Measures the model's own window, and what the judging lacks of the result."""
    reach = decoder.own_base(problem.model).length
    row = {"sliding": reach, "name": result.name}
    if _text_judges(problem):
        judged = (row for row in bench.record.rows if row.get("judged") == result.name)
        losses_W, tokens, seconds = np.array(next(judged)["losses"]), 0, 0.0
    else:
        judge = problem.unseen_at(problem.config.target_len, _num_samples(problem))
        own = candidates.rope_of(problem, result.bucket)
        (losses_W,), seconds = _measure(problem, bench, judge, [own])
        tokens = judge.candidate_tokens
    windows, weights_WN = of_windows(judge, problem.task.settings, reach)
    losses_P, more = _measure(problem, bench, windows, [_own(problem)])
    sliding_W = np.average(losses_P[0].reshape(weights_WN.shape), axis=1, weights=weights_WN)
    row |= {"losses": sliding_W.tolist(), "result_losses": losses_W.tolist()}
    row |= {"fitness": float(np.exp(sliding_W.mean()))}
    tokens += windows.num_samples * reach
    return row | {"tokens": tokens, "seconds": round(seconds + more, 3)}


def _short(problem: Problem, bench: Bench, judge: Judge, result: Candidate) -> dict:
    del judge
    reach = decoder.own_base(problem.model).length
    text = problem.unseen_at(reach, _num_samples(problem))
    ropes = [candidates.rope_of(problem, result.bucket), _own(problem)]
    losses_PW, seconds = _measure(problem, bench, text, ropes)
    fitness, own_fitness = np.exp(losses_PW.mean(axis=1)).tolist()
    row = {"short": reach, "name": result.name, "fitness": fitness, "own_fitness": own_fitness}
    row |= {"losses": losses_PW[0].tolist(), "own_losses": losses_PW[1].tolist()}
    return row | {"tokens": losses_PW.size * reach, "seconds": seconds}


def _own(problem: Problem) -> rope.Rope:
    reach = decoder.own_base(problem.model).length
    return candidates.rope_of(problem, decoder.own_rope(problem.model).bucket(reach))


def _measure(problem: Problem, bench: Bench, text: Judge, ropes) -> tuple[np.ndarray, float]:
    """Returns (losses_PW, seconds)."""
    on_text, start = bench.on(text, problem.mesh), time.perf_counter()
    losses = [batch.losses_PW for batch in on_text.measure(ropes, done=set())]
    return np.concatenate(losses), round(time.perf_counter() - start, 3)


def of_windows(judge: Objective, settings, reach: int) -> tuple[Objective, np.ndarray]:
    """Returns the windows of all samples as samples of their own, and the tokens that each of them
    scores, [W, N]. Every window begins with the first token of its sample, the begin token.
    """
    tokens_WT = judge.samples
    plan = _plan(tokens_WT.shape[1] - 1, reach)
    rows = [sliding.rows(sample_T, plan, bos_per_window=True) for sample_T in tokens_WT]
    scored = [np.arange(span.begin, span.end) >= span.scored for span in plan]
    weights = np.tile(np.array(scored, np.float32), (len(tokens_WT), 1))
    windows = dataclasses.replace(
        judge,
        samples={"tokens_WT": np.concatenate(rows), "weights_WT": weights},
        lay_out=functools.partial(objective.lay_out_weighted, settings),
        sample_tokens=reach,
        scored_tokens=float(reach),
    )
    return windows, weights.sum(axis=1).reshape(len(tokens_WT), -1)


def _plan(length: int, reach: int) -> list[sliding.Span]:
    return sliding.spans(length, window=reach, stride=max(1, reach // 2))


def sentences(rows: Sequence[dict]) -> list[str]:
    """Returns the rows of this module in words."""
    lines = []
    for row in rows:
        if "sliding" in row:
            difference = np.mean(row["result_losses"]) - np.mean(row["losses"])
            lines.append(
                f"The model's own window of {row['sliding']:,} tokens, sliding over the same text: "
                f"{row['fitness']:.4f}; the result is {difference:+.4f} nats "
                "from it."
            )
        if "short" in row:
            change = np.mean(row["losses"]) - np.mean(row["own_losses"])
            lines.append(
                f"At {row['short']:,} tokens, with the same factors: {row['fitness']:.4f}, the "
                f"model as it is {row['own_fitness']:.4f} ({change:+.4f} nats)."
            )
    return lines
