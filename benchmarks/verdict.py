"""What a recipe's evaluations say about an ordering: which of two rows is better, by how much, and
whether that many windows or trials decide it.

Perplexity is compared token by token, with an interval over the windows; needles trial by trial,
by the sign test. Pairs that are not decided are said to be so.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from jaxrope.evaluate import statistics
from jaxrope.report import tables
from jaxrope.store import files, sealed

PERPLEXITY = "perplexity"
LEVEL = 0.05  # of the sign test, two-sided
_BOOTSTRAP = 10_000


@dataclasses.dataclass(frozen=True)
class Scored:
    """A row of an evaluation at one length.

    Attributes:
      metrics: of eval.json.
      fingerprint: of the items.
      nll_WT: of every token, nats; None where the suite has trials.
      found: of every trial; () where the suite has windows.
    """

    metrics: Mapping[str, float | None]
    fingerprint: str
    nll_WT: np.ndarray | None
    found: tuple[bool, ...] = ()


Pool = dict[tuple[str, str, int], Scored]  # (suite, label, length)


@dataclasses.dataclass(frozen=True)
class Pair:
    """`better` is said to be better than `worse` at `length` (tokens), in `suite`."""

    better: str
    worse: str
    length: int
    suite: str = PERPLEXITY


@dataclasses.dataclass(frozen=True)
class Judged:
    """What became of a pair.

    Attributes:
      pair: which.
      verdict: "holds", "does not hold" or "not decided".
      told: the difference in words, with its interval.
      distance: from being undecided: the smallest is the closest pair.
    """

    pair: Pair
    verdict: str
    told: str
    distance: float


@dataclasses.dataclass(frozen=True)
class Table:
    """A table and the sentence under it.

    Attributes:
      name: such as "T1".
      title: what was measured.
      cells: text; the first row is the header.
      sentence: whether the paper's ordering holds here.
      judged: of the pairs that the sentence is about.
    """

    name: str
    title: str
    cells: list[list[str]]
    sentence: str
    judged: tuple[Judged, ...]


def read_pool(folders: Sequence[Path]) -> Pool:
    """Returns all rows of the evaluations in `folders`; the first of equal names counts."""
    pool: Pool = {}
    for folder in folders:
        content = sealed.read_json(folder / "eval.json")
        arrays = sealed.read_arrays(folder / "eval_nll.npz", content["arrays"])
        for row in content["rows"]:
            key = row["suite"], row["label"], row["length"]
            is_text = row["suite"] == PERPLEXITY
            nll_WT = arrays[f"{row['label']}|{row['length']}"] if is_text else None
            found = () if is_text else tuple(row["items"]["found"])
            pool.setdefault(key, Scored(row["metrics"], row["fingerprint"], nll_WT, found))
    return pool


def judge(pool: Pool, pairs: Sequence[Pair]) -> tuple[Judged, ...]:
    """Returns what became of every pair.

    Raises:
      ValueError: two rows of a pair answered other items.
    """
    return tuple(map(lambda pair: _judge(pool, pair), pairs))


def _judge(pool: Pool, pair: Pair) -> Judged:
    better, worse = (pool[pair.suite, name, pair.length] for name in (pair.better, pair.worse))
    if better.fingerprint != worse.fingerprint:
        raise ValueError(f"{pair} answered other items: they cannot be compared.")
    if better.nll_WT is None:
        return _judge_trials(pair, better.found, worse.found)
    found = _compare(better, worse)
    mean, low, high = (f"{percent:+.2f}%" for percent in _percents(found))
    told = f"{pair.better} against {pair.worse} at {pair.length:,}: {mean} [{low}, {high}]"
    decided = statistics.verdict(-found.high, -found.low)
    verdict = {True: "holds", False: "does not hold", None: "not decided"}[decided]
    return Judged(pair, verdict, told, max(-found.high, found.low))


def perplexity_gap(pool: Pool, label: str, other: str, length: int) -> tuple[float, float, float]:
    """Returns by how many percent the perplexity of `label` is above that of `other`, with its 95%
    interval, paired over windows."""
    return _percents(_compare(*(pool[PERPLEXITY, name, length] for name in (label, other))))


def _compare(one: Scored, other: Scored) -> statistics.Difference:
    return statistics.compare(one.nll_WT, other.nll_WT, num_samples=_BOOTSTRAP, seed=0)


def _percents(found: statistics.Difference) -> tuple[float, float, float]:
    return tuple(100 * math.expm1(min(nats, 700.0)) for nats in (found.mean, found.low, found.high))


def _judge_trials(pair: Pair, better: Sequence[bool], worse: Sequence[bool]) -> Judged:
    wins = sum(a and not b for a, b in zip(better, worse, strict=True))
    losses = sum(b and not a for a, b in zip(better, worse, strict=True))
    p = sign_test(wins, losses)
    told = (
        f"{pair.better} finds {sum(better)} of {len(better)} and {pair.worse} {sum(worse)} at "
        f"{pair.length:,} ({wins} that the other does not against {losses}, p = {p:.2g})"
    )
    ahead = "holds" if wins > losses else "does not hold"
    return Judged(pair, ahead if p < LEVEL else "not decided", told, LEVEL - p)


def sign_test(wins: int, losses: int) -> float:
    """Returns the two-sided probability of a split at least as uneven by a fair coin."""
    return float(stats.binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0


def sentence(
    ordering: str, judged: Sequence[Judged], *, whose: str = "The paper's ordering"
) -> str:
    """Returns whether an ordering holds, in one sentence: every pair that does not is named.

    Args:
      ordering: in words, as the paper has it.
      judged: its pairs.
      whose: it is, at the beginning of the sentence.
    """
    by_verdict = {
        verdict: [one for one in judged if one.verdict == verdict]
        for verdict in ("holds", "does not hold", "not decided")
    }
    wrong, open_, right = (by_verdict[name] for name in ("does not hold", "not decided", "holds"))
    if not wrong and not open_:
        closest = min(right, key=lambda one: one.distance)
        more = "the closest pair is " if len(right) > 1 else ""
        return f"{whose} ({ordering}) holds: {more}{closest.told}."
    parts = [_listed(wrong)] if wrong else []
    if open_:
        parts.append(("not decided: " if wrong else "") + _listed(open_))
    if right:
        parts.append(f"{len(right)} of {len(judged)} pairs are as it says")
    verdict = "does not hold" if wrong else "is not decided"
    return f"{whose} ({ordering}) {verdict}: {'; '.join(parts)}."


def _listed(judged: Sequence[Judged]) -> str:
    return ", ".join(one.told for one in judged)


def grid(pool: Pool, labels: Sequence[str], lengths: Sequence[int], suite: str = PERPLEXITY):
    """Returns cells: a row for each label, a column for each length; "" where nothing was
    measured. Shares of trials have their interval."""
    cells = [["", *(f"{length:,}" for length in lengths)]]
    for label in labels:
        found = [pool.get((suite, label, length)) for length in lengths]
        cells.append([label, *(show(scored) for scored in found)])
    return cells


def show(scored: Scored | None) -> str:
    """Returns a score as a cell."""
    if scored is None:
        return ""
    metrics = scored.metrics
    if scored.nll_WT is not None:
        return tables.number(metrics["perplexity"])
    return f"{metrics['accuracy']:.2f} [{metrics['low']:.2f}, {metrics['high']:.2f}]"


def report(made: Sequence[Table], about: dict[str, Any], workdir: Path, name: str) -> None:
    """Prints tables and writes NAME.md and NAME.json.

    Args:
      made: the tables.
      about: what the JSON says beside them.
      workdir: where.
      name: of the files.
    """
    texts, marked = [], [f"# {about['title']}\n\n{about['what']}\n"]
    for table in made:
        titled = (f"{table.name}: {table.title}", table.cells)
        texts.append(f"{tables.as_text([titled])}\n{table.sentence}")
        marked.append(f"{tables.as_markdown([titled])}\n{table.sentence}\n")
    print("\n\n".join(texts), flush=True)
    files.write_text_atomic(workdir / f"{name}.md", "\n".join(marked))
    content = about | {"tables": [_plain(table) for table in made]}
    files.write_json_atomic(workdir / f"{name}.json", content)
    print(f"wrote {name}.md and {name}.json into {workdir}", flush=True)


def _plain(table: Table) -> dict:
    found = dataclasses.asdict(table)
    for one in found["judged"]:
        one["distance"] = one["distance"] if math.isfinite(one["distance"]) else None
    return found
