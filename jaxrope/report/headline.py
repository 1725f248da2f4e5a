"""The first screen of a page: did extending work, in one sentence, and what was before and after.

A result is compared with what needs no search and no training: the model's own window sliding over
the text, YaRN and NTK (of several variants the best one), at the longest length, paired over the
windows of text that both have scored.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxrope.report import floors, paired, panels, tables
from jaxrope.report.paired import Gap

Row = Mapping[str, Any]
Cells = list[list[str]]
SLIDING, UNTOUCHED = "sliding", "none"
RIVALS = {"YaRN": ("yarn",), "NTK": ("ntk", "dynamic_ntk")}
NOT_MEASURED = "not measured"


@dataclasses.dataclass(frozen=True)
class Headline:
    """What a page says first.

    Attributes:
      sentence: the verdict.
      kind: "better", "worse" or "open".
      title: of the table.
      cells: before and after; the first row is the header. [] = nothing was compared.
      evaluation: whose perplexity by length is drawn, or None.
    """

    sentence: str
    kind: str
    title: str = ""
    cells: Cells = dataclasses.field(default_factory=list)
    evaluation: Row | None = None


def of_evaluation(content: Row, inside: Sequence[Row] = ()) -> Headline | None:
    """Returns the headline of an evaluation; None if it has no perplexity.

    Args:
      content: of eval.json; its rows may be joined by those of others of the same model.
      inside: of others, with perplexity of other text inside the model's own window; "stage" says
        of what.
    """
    rows = [row for row in content["rows"] if row["suite"] == "perplexity"]
    if not rows:
        return None
    trained = tables.trained_len(content["model"]) or 0
    length = max(row["length"] for row in rows)
    at_end = {row["label"]: row for row in rows if row["length"] == length}
    subjects = [label for label in _subjects(content) if label in at_end]
    if length <= trained:
        what = f"nothing beyond the model's own window of {trained:,} tokens was evaluated"
        return Headline(f"Not decided: {what}.", "open", evaluation=content)
    if not subjects:
        best = min(at_end.values(), key=_nll)
        what = f"only known methods were evaluated; the best at {length:,} tokens is"
        score = tables.number(best["metrics"]["perplexity"])
        sentence = f"Not decided: {what} {best['label']}, with perplexity {score}."
        return Headline(sentence, "open", evaluation=content)
    subject = min(subjects, key=lambda label: _nll(at_end[label]))
    if not math.isfinite(_nll(at_end[subject])):
        what = f"at {length:,} tokens the loss of {subject} is no finite number"
        return Headline(f"Extending did not work: {what}.", "worse", evaluation=content)
    gaps = _rivals(content, at_end, subject, trained)
    sentence, kind = _verdict(gaps, f"at {length:,} tokens {subject}")
    known = {gap.rival for gap in gaps}
    missing = [name for name in RIVALS if name not in known]
    if gaps and missing:
        were = "were" if len(missing) > 1 else "was"
        sentence = f"{sentence[:-1]}; {' and '.join(missing)} {were} not measured."
    for name, old, new, change in _retrieval(content, subject):
        if change in ("better", "worse"):
            old, new = old.partition(" ")[0], new.partition(" ")[0]
            sentence = f"{sentence[:-1]}; {name[0].lower()}{name[1:]}: {new} found, {old} before."
    others = [_short(other, subject, other.get("stage", "other text")) for other in inside]
    short = [_short(content, subject), *others]
    for name, old, new, _ in (line for line in short if NOT_MEASURED not in line):
        sentence = f"{sentence[:-1]}; {name[0].lower()}{name[1:]}: {new}, {old} before."
    windows = tables.num_windows(at_end[subject])
    title = f"Before and after{f', on {windows} windows of text' if windows else ''}"
    cells = [*_table(content, gaps, subject, length), *short]
    return Headline(sentence, kind, title, cells, content)


def of_search(content: Row, journal: Row | None, name: str) -> Headline:
    """Returns the headline of a finished search, from the text that judged it.

    Args:
      content: of result.json.
      journal: see searches.of_journal, or None.
      name: of the result on the page.
    """
    verdict, length = content["verdict"], content["best"]["max_len"]
    if content["unit"] != "perplexity":
        return Headline(f"The search, without training: {verdict['sentence']}", "open")
    losses = {r["judged"]: r["losses"] for r in (journal or {}).get("judged", ()) if "losses" in r}
    beside = {key: row for row in content["beside"] for key in ("sliding", "short") if key in row}
    scores = {row["name"]: row["fitness"] for row in content["judged"]}
    gaps = []
    if row := beside.get("sliding"):
        scores[SLIDING] = row["fitness"]
        ours = row.get("result_losses") or losses.get(verdict["result"])
        if ours and len(ours) == len(row["losses"]):
            words = _own_window(row["sliding"])
            gaps.append(paired.gap(words, SLIDING, ours, row["losses"], paired.students))
    known = verdict["best_baseline"]
    if known and known != verdict["result"]:
        ends, gap = verdict["interval"], verdict.get("difference")
        rival = f"{known}, the best known method"
        gaps.append(Gap(rival, known, gap or 0.0, ends and tuple(ends), verdict["samples"]))
    subject = verdict["result"] if verdict.get("is_baseline") else name
    sentence, kind = _verdict(gaps, f"without training, at {length:,} tokens {subject}")
    after = [tables.number(content["perplexity"])] * len(gaps)
    lines = _lines(length, gaps, [tables.number(scores[gap.label]) for gap in gaps], after)
    if row := beside.get("short"):
        gap = paired.gap("", "", row["losses"], row["own_losses"], paired.students)
        own, result = (f"{np.mean(row[key]):.3f}" for key in ("own_losses", "losses"))
        lines.append([f"Loss at {row['short']:,}", own, result, f"{gap.word}, {gap.nats()}"])
    if original := content.get("original_len"):
        lines.insert(0, _window(original, length))
    where = "fresh samples" if verdict["fresh"] else "samples of the search"
    title = f"Before and after, on {verdict['samples']} {where}"
    return Headline(sentence, kind, title, [_header(subject), *lines] if lines else [])


def _subjects(content: Row) -> list[str]:
    """Returns the labels of what was made, and is no known method: of the config's rope and of the
    checkpoints, but for checkpoints that slide their own window.
    """
    asked = (content.get("config") or {}).get("eval") or {}
    others = {*asked.get("methods", ()), UNTOUCHED, SLIDING}
    others |= set(_controls(content))
    labels = list(dict.fromkeys(row["label"] for row in content["rows"]))
    if "methods" in asked:
        return [label for label in labels if label not in others]
    return [label for label in labels if label not in others and not panels.is_method(label)]


def _controls(content: Row) -> list[str]:
    """Returns the labels of checkpoints that slide their own window."""
    asked = (content.get("config") or {}).get("eval") or {}
    return [label for label, _, method in asked.get("checkpoints", ()) if method == SLIDING]


def _rivals(content: Row, at_end: Mapping[str, Row], subject: str, trained: int) -> list[Gap]:
    """Returns the differences of `subject` from its rivals that have a finite loss."""
    rivals = {_own_window(trained): [SLIDING]} if SLIDING in at_end else {}
    rivals |= {f"the {label}": [label] for label in _controls(content) if label in at_end}
    for name, methods in RIVALS.items():
        labels = [label for label in at_end if label.partition("@")[0] in methods]
        rivals[name] = sorted((n for n in labels if n != subject), key=lambda n: _nll(at_end[n]))
    gaps = [
        _gap(content, words, at_end[subject], at_end[labels[0]])
        for words, labels in rivals.items()
        if labels and math.isfinite(_nll(at_end[labels[0]]))
    ]
    return [gap for gap in gaps if gap is not None]


def _gap(content: Row, words: str, ours: Row, theirs: Row) -> Gap | None:
    """Returns the difference of two rows; None if they have not scored the same text."""
    mine, other = (row["items"].get("window_nll") or () for row in (ours, theirs))
    if ours.get("fingerprint") != theirs.get("fingerprint") or len(mine) != len(other):
        return None
    if len(mine) and None not in (*mine, *other):
        settings = content.get("config") or {}
        resamples = (settings.get("eval") or {}).get("bootstrap_samples", 10_000)
        ends_fn = paired.bootstrap(resamples, settings.get("seed", 0))
        return paired.gap(words, theirs["label"], mine, other, ends_fn)
    gap = ours.get("difference") or {}
    if gap.get("baseline") == theirs["label"] and gap["mean"] is not None:
        ends = gap["low"], gap["high"]
        return Gap(words, theirs["label"], gap["mean"], ends, gap.get("num_windows", 0))
    return Gap(words, theirs["label"], _nll(ours) - _nll(theirs), None, 0)


def _verdict(gaps: Sequence[Gap], subject: str) -> tuple[str, str]:
    """Returns (the sentence, its kind)."""
    words = {gap.label: gap.word for gap in gaps}
    others = [word for label, word in words.items() if label != SLIDING]
    lead, kind = _lead(words.get(SLIDING), others)
    if not gaps:
        return f"{lead}: {subject} was not compared with sliding, YaRN or NTK.", kind
    texts = {"worse": "worse than", "better": "better than", "not decided": "not decided against"}
    phrases = [(text, [gap for gap in gaps if gap.word == word]) for word, text in texts.items()]
    units = {id(gap): "" for gap in gaps} | {id(gaps[0]): "perplexity "}
    told = [
        f"{text} {_and(_told(gap, units[id(gap)]) for gap in some)}"
        for text, some in phrases
        if some
    ]
    few = [gap for gap in gaps if gap.ends is None]
    count = f"{few[0].windows} windows of text are" if few and few[0].windows else "the windows are"
    about = f"; {count} too few for an interval" if few else ""
    missing = "" if SLIDING in words else "; its own sliding window was not measured on this text"
    return f"{lead}: {subject} is {_and(told)}{about}{missing}.", kind


def _lead(sliding: str | None, others: Sequence[str]) -> tuple[str, str]:
    worse, better = "worse" in others, all(word == "better" for word in others)
    if sliding == "worse":
        return "Extending did not work", "worse"
    if sliding == "better" and worse:
        return "Extending worked, but a known method does better", "worse"
    if sliding == "better":
        return "Extending worked", "better" if better else "open"
    if worse:
        return "A known method does better", "worse"
    if sliding is None and others and better:
        return "Better than known methods", "better"
    return "Not decided whether extending worked", "open"


def _told(gap: Gap, unit: str = "") -> str:
    variant = f"{gap.label}, " if gap.rival in RIVALS and "@" in gap.label else ""
    return f"{gap.rival} ({variant}{unit}{gap.percent()})"


def _and(parts) -> str:
    *first, last = parts
    return f"{', '.join(first)} and {last}" if first else last


def _own_window(tokens: int) -> str:
    return f"the model's own sliding window of {tokens:,} tokens"


def _header(subject: str) -> list[str]:
    return ["", "before", f"after: {subject}", "change"]


def _window(original: int, length: int) -> list[str]:
    return ["Window, tokens", f"{original:,}", f"{length:,}", f"{length / original:g}×"]


def _lines(length: int, gaps: Sequence[Gap], before: Sequence[str], after: Sequence[str]) -> Cells:
    """Returns a line of perplexity for each rival, whose row is named at its end."""
    names = [f"Perplexity at {length:,}", *["the same"] * len(gaps)]
    return [
        [f"{name}, {gap.label}", old, new, f"{gap.word}, {gap.percent()}"]
        for name, gap, old, new in zip(names, gaps, before, after, strict=False)
    ]


def _table(content: Row, gaps: Sequence[Gap], subject: str, length: int) -> Cells:
    """Returns what was before and after; what was not measured is said."""
    rows, trained = content["rows"], tables.trained_len(content["model"])
    scored = {(r["suite"], r["label"], r["length"]): r for r in rows}
    lines = [_window(trained, length)] if trained else []
    after = scored["perplexity", subject, length]
    number = tables.number(after["metrics"]["perplexity"])
    before = [tables.score(scored["perplexity", gap.label, length]) for gap in gaps]
    lines += _lines(length, gaps, before, [tables.score(after), *[number] * len(gaps)])
    return [_header(subject), *lines, *_retrieval(content, subject)]


def _before(rows: Sequence[Row]) -> Row | None:
    """Returns the row of the model as it was: with its own window, sliding or not."""
    found = {row["label"]: row for row in rows}
    return found.get(SLIDING) or found.get(UNTOUCHED)


def _retrieval(content: Row, subject: str) -> Cells:
    """Returns a line for pass keys, for needles and for RULER, at the longest length of each."""
    lines, trained = [], tables.trained_len(content["model"])
    suites = dict.fromkeys(row["suite"] for row in content["rows"])
    for suite in (s for s in suites if s == "passkey" or s.startswith("needle-")):
        rows = [row for row in content["rows"] if row["suite"] == suite]
        mine = [row for row in rows if row["label"] == subject]
        if not mine:
            continue
        after = max(mine, key=lambda row: row["length"])
        before = _before([row for row in rows if row["length"] == after["length"]])
        name = "Pass keys" if suite == "passkey" else f"One of {suite[len('needle-') :]} needles"
        name = name.replace("One of 1 needles", "A single needle")
        change = _apart(before, after) if before else ""
        if subject in floors.labels(rows, trained):
            change = "at floor in its own window"
        score = tables.score(before) if before else NOT_MEASURED
        lines.append([f"{name} at {after['length']:,}", score, tables.score(after), change])
    ruler = content.get("ruler") or {}
    if subject in ruler:
        length, mean = list(ruler[subject]["mean"].items())[-1]
        own = next((ruler[k]["mean"] for k in (SLIDING, UNTOUCHED) if k in ruler), {})
        score = f"{own[length]:.1f}" if length in own else NOT_MEASURED
        lines.append([f"RULER at {int(length):,}, %", score, f"{mean:.1f}", ""])
    return lines or [["Pass keys, needles", NOT_MEASURED, NOT_MEASURED, ""]]


def _apart(before: Row, after: Row) -> str:
    """Returns whether the intervals of two shares lie apart."""
    old, new = before["metrics"], after["metrics"]
    if new["low"] > old["high"]:
        return "better"
    return "worse" if new["high"] < old["low"] else "not decided"


def _short(content: Row, subject: str, text: str = "") -> list[str]:
    """Returns the line of the loss inside the window that the model has had before; `text`: of
    what.
    """
    trained = tables.trained_len(content["model"]) or 0
    rows = [r for r in content["rows"] if r["suite"] == "perplexity" and r["length"] <= trained]
    mine = [row for row in rows if row["label"] == subject]
    after = max(mine, key=lambda row: row["length"], default=None)
    before = after and _before([row for row in rows if row["length"] == after["length"]])
    losses = [f"{_nll(row):.3f}" if row else NOT_MEASURED for row in (before, after)]
    gap = before and math.isfinite(_nll(before)) and _gap(content, "", after, before)
    change = f"{gap.word}, {gap.nats()}" if gap and math.isfinite(gap.mean) else ""
    of = f" of {text}" if text else ""
    return [f"Loss{of} at {after['length'] if after else trained:,}", *losses, change]


def _nll(row: Row) -> float:
    """Returns a row's loss, nats per token; inf if it is not finite."""
    metrics = row["metrics"]
    if metrics["perplexity"] is None:
        return math.inf
    return math.log(metrics["perplexity"])
