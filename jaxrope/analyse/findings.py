"""What the paper found, and whether it holds here: numbers in, verdicts out.

Every claim states that a number, such as how much closer a pattern is, is above 0. It holds if the
whole 95% interval is above the least difference that counts, and fails if the whole interval is
below its negative; otherwise it is not decided. A claim about several settings holds if it holds
for all of them, and fails if it fails for one.
"""

import collections
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxrope.evaluate import statistics

HOLDS, FAILS, OPEN = "holds here", "does not hold here", "not decided"


class Measured(NamedTuple):
    """A number with its 95% interval; nan where it is not defined.

    Attributes:
      what: in words.
      value, low, high: the number.
      unit: of it, or "".
      least: a smaller difference does not count, however certain: with enough texts even 1e-6 nats
        would "hold".
    """

    what: str
    value: float
    low: float
    high: float
    unit: str = ""
    least: float = 0.0


class Finding(NamedTuple):
    """A claim and its verdict.

    Attributes:
      name: short, such as "patterns-kept".
      claim: the paper's, in words.
      verdict: HOLDS, FAILS or OPEN.
      parts: (what was measured, its own verdict).
      remark: what a reader must know besides, or "".
    """

    name: str
    claim: str
    verdict: str
    parts: tuple[tuple[Measured, str], ...]
    remark: str

    @property
    def evidence(self) -> str:
        """What was measured, in a sentence."""
        measured = (
            "; ".join(describe(part) for part, _ in self.parts) or "nothing could be measured"
        )
        return f"{measured}.{f' {self.remark}' if self.remark else ''}"

    @property
    def why(self) -> str:
        """Why it is not decided, in a few words; "" if it is."""
        if self.verdict != OPEN:
            return ""
        if not self.parts:
            return self.remark.rstrip(".") or "nothing could be measured"
        reasons = collections.Counter(_why(part) for part, verdict in self.parts if verdict == OPEN)
        count = len(self.parts)
        return "; ".join(
            reason if count == 1 else f"{reason} ({num_parts} of {count})"
            for reason, num_parts in reasons.items()
        )

    def plain(self) -> dict[str, Any]:
        """Returns the finding as plain JSON values."""
        return {
            "name": self.name,
            "claim": self.claim,
            "verdict": self.verdict,
            "holds": {HOLDS: True, FAILS: False, OPEN: None}[self.verdict],
            "why": self.why,
            "evidence": self.evidence,
            "measured": [
                {k: _finite(v) for k, v in part._asdict().items()} | {"verdict": verdict}
                for part, verdict in self.parts
            ],
        }


def judge(measured: Measured) -> str:
    """Returns the verdict on the claim that a number exceeds 0 by its least difference."""
    if not all(map(math.isfinite, measured[1:4])):
        return OPEN
    decided = statistics.verdict(measured.low, measured.high, least=measured.least)
    return {True: HOLDS, False: FAILS, None: OPEN}[decided]


def _why(measured: Measured) -> str:
    """Returns why a number decides nothing."""
    value, low, high = measured[1:4]
    if not math.isfinite(value):
        return "the number is not defined"
    if not (math.isfinite(low) and math.isfinite(high)):
        return "there is no interval"
    if low <= 0 <= high:
        return "the interval includes 0"
    return f"the interval reaches below {measured.least:g} {measured.unit}, too little to count"


def finding(name: str, claim: str, measured: Sequence[Measured], remark: str = "") -> Finding:
    """Returns the finding of a claim that all of `measured` are above 0."""
    parts = tuple((number, judge(number)) for number in measured)
    verdicts = [verdict for _, verdict in parts]
    if FAILS in verdicts:
        verdict = FAILS
    else:
        verdict = HOLDS if verdicts and set(verdicts) == {HOLDS} else OPEN
    return Finding(name, claim, verdict, parts, remark)


LEAST = {"nats": 1e-3, "nats a token": 1e-3}  # differences that count, by unit


def mean_of(what: str, values_W, *, num_samples: int, seed: int, unit: str = "") -> Measured:
    """Returns the mean of one number for each text or trial, with its bootstrap interval."""
    values_W = np.asarray(values_W, np.float64)
    low, high = statistics.bootstrap_interval(values_W, num_samples=num_samples, seed=seed)
    return Measured(what, float(values_W.mean()), low, high, unit, LEAST.get(unit, 0.0))


def difference_of_means(
    what: str, one_W, other_V, *, num_samples: int, seed: int, unit: str = ""
) -> Measured:
    """Returns mean(one_W) - mean(other_V) of unpaired texts or trials; each is resampled."""
    one_W, other_V = np.asarray(one_W, np.float64), np.asarray(other_V, np.float64)
    how = dict(num_samples=num_samples, seed=seed)
    low, high = statistics.difference_interval(one_W, other_V, **how)
    value = float(one_W.mean() - other_V.mean())
    return Measured(what, value, low, high, unit, LEAST.get(unit, 0.0))


def above(measured: Measured, level: float) -> Measured:
    """Returns a number's excess over a level: the claim that it is above the level."""
    value, low, high = (x - level for x in measured[1:4])
    return measured._replace(value=value, low=low, high=high)


def describe(measured: Measured) -> str:
    """Returns a number as text."""
    unit = f" {measured.unit}" if measured.unit else ""
    if not math.isfinite(measured.value):
        return f"{measured.what}: not defined"
    if not (math.isfinite(measured.low) and math.isfinite(measured.high)):
        return f"{measured.what} {measured.value:+.3g}{unit}, without an interval"
    return (
        f"{measured.what} {measured.value:+.3g}{unit} [{measured.low:+.3g}, {measured.high:+.3g}]"
    )


def as_markdown(findings: Sequence[Finding], about: Mapping[str, str]) -> str:
    """Returns findings.md.

    Args:
      findings: in order.
      about: title -> paragraph, before them.
    """
    lines = ["# What attention says of RoPE extensions, and whether it holds here", ""]
    for title, text in about.items():
        lines += [f"**{title}.** {text}", ""]
    lines += ["| Finding | Here | Evidence (95% intervals) |", "|---|---|---|"]
    for finding in findings:
        more = f": {finding.why}" if finding.why else ""
        lines.append(f"| {finding.claim} | **{finding.verdict}**{more} | {finding.evidence} |")
    return "\n".join(lines) + "\n"


def _finite(value):
    return None if isinstance(value, float) and not math.isfinite(value) else value
