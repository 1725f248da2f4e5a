"""What is reported beside the verdict, and decides nothing. Each is a line of the journal.

What the model has without any extension: its own window, sliding over the text that judges. A long
window has to beat it to be worth having; it is no candidate, for a program that reads no further
cannot use what lies before its window. Windows move by half their length, so that a token is
predicted from half a window at least:

    {"sliding": tokens of the window, "losses", "fitness", "tokens", "seconds"}

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
from jaxrope.search import candidates, objective
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
    if not applies(problem):
        return
    for kind, measure_fn in (("sliding", _sliding), ("short", _short)):
        if not any(kind in row for row in bench.record.rows):
            bench.record.append([measure_fn(problem, bench, judge, result)])


def applies(problem: Problem) -> bool:
    """Returns whether a window of its own is shorter than the text, and the objective its text."""
    section = problem.config.search
    reach = decoder.own_base(problem.model).length
    return section.objective.name == "perplexity" and 1 < reach < problem.config.target_len


def tokens(problem: Problem) -> int:
    """Returns the forward tokens that it costs."""
    if not applies(problem):
        return 0
    reach = decoder.own_base(problem.model).length
    count = len(_starts(problem.config.target_len, reach))
    return _num_samples(problem) * (count + 2) * reach


def _num_samples(problem: Problem) -> int:
    return problem.config.search.judge.num_samples or problem.objective.num_samples


def _sliding(problem: Problem, bench: Bench, judge: Objective, result: Candidate) -> dict:
    del result
    reach = decoder.own_base(problem.model).length
    windows, weights_WN = of_windows(judge, problem.task.settings, reach)
    losses_P, seconds = _measure(problem, bench, windows, [_own(problem)])
    losses_W = np.average(losses_P[0].reshape(weights_WN.shape), axis=1, weights=weights_WN)
    row = {"sliding": reach, "losses": losses_W.tolist()}
    row |= {"fitness": float(judge.fitness_fn(losses_W.mean()))}
    return row | {"tokens": windows.num_samples * reach, "seconds": seconds}


def _short(problem: Problem, bench: Bench, judge: Objective, result: Candidate) -> dict:
    reach = decoder.own_base(problem.model).length
    text = problem.unseen_at(reach, _num_samples(problem))
    ropes = [candidates.rope_of(problem, result.bucket), _own(problem)]
    losses_PW, seconds = _measure(problem, bench, text, ropes)
    fitness, own_fitness = judge.fitness_fn(losses_PW.mean(axis=1)).tolist()
    row = {"short": reach, "name": result.name, "fitness": fitness, "own_fitness": own_fitness}
    row |= {"losses": losses_PW[0].tolist(), "own_losses": losses_PW[1].tolist()}
    return row | {"tokens": losses_PW.size * reach, "seconds": seconds}


def _own(problem: Problem) -> rope.Rope:
    reach = decoder.own_base(problem.model).length
    return candidates.rope_of(problem, decoder.own_rope(problem.model).bucket(reach))


def _measure(problem: Problem, bench: Bench, judge: Judge, ropes) -> tuple[np.ndarray, float]:
    """Returns (losses_PW, seconds), one candidate at a time on each group of devices."""
    on_text, start = bench.on(judge, problem.mesh, per_device=1), time.perf_counter()
    losses = [batch.losses_PW for batch in on_text.measure(ropes, done=set())]
    return np.concatenate(losses), round(time.perf_counter() - start, 3)


def of_windows(judge: Objective, settings, reach: int) -> tuple[Objective, np.ndarray]:
    """Returns the windows of all samples as samples of their own, and the tokens that each of them
    scores, [W, N]. Every window begins with the first token of its sample, the begin token.
    """
    tokens_WT = judge.samples
    num_samples, length = tokens_WT.shape[0], tokens_WT.shape[1] - 1
    rows, weights = [], []
    for sample_T in tokens_WT:
        scored = 0
        for start in _starts(length, reach):
            text = sample_T[start + 1 : start + 1 + reach]
            rows.append(np.concatenate([sample_T[:1], text]))
            weights.append((np.arange(reach) >= scored - start).astype(np.float32))
            scored = start + reach
    samples = {"tokens_WT": np.stack(rows), "weights_WT": np.stack(weights)}
    windows = dataclasses.replace(
        judge,
        samples=samples,
        lay_out=functools.partial(objective.lay_out_weighted, settings),
        sample_tokens=reach,
        scored_tokens=float(reach),
    )
    return windows, samples["weights_WT"].sum(axis=1).reshape(num_samples, -1)


def _starts(length: int, reach: int) -> list[int]:
    """Returns where windows start: every half window, the last one such that it ends the text."""
    return [*range(0, length - reach, max(1, reach // 2)), length - reach]


def sentences(rows: Sequence[dict], loss: float) -> list[str]:
    """Returns the rows of this module in words; `loss`: of the result on the text that judged."""
    lines = []
    for row in rows:
        if "sliding" in row:
            lines.append(
                f"The model's own window of {row['sliding']:,} tokens, sliding over the same text: "
                f"{row['fitness']:.4f}; the result is {loss - np.mean(row['losses']):+.4f} nats "
                "from it."
            )
        if "short" in row:
            change = np.mean(row["losses"]) - np.mean(row["own_losses"])
            lines.append(
                f"At {row['short']:,} tokens, with the same factors: {row['fitness']:.4f}, the "
                f"model as it is {row['own_fitness']:.4f} ({change:+.4f} nats)."
            )
    return lines
