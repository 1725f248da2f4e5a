"""RULER's scores: of one answer, of a task, and of a model over lengths.

After NVIDIA/RULER, `scripts/eval`, and the paper (arXiv 2404.06654, section 4).
"""

import re
from collections.abc import Mapping, Sequence

from jaxrope.evaluate.items import Item
from jaxrope.evaluate.ruler.prompts import VERSION

THRESHOLD = 85.6  # per cent: Llama-2-7B at its 4096 tokens, mean of all 13 tasks
NUM_TASKS = 13
ESSAY_TASKS = (
    "niah_single_2",
    "niah_single_3",
    "niah_multikey_1",
    "niah_multivalue",
    "niah_multiquery",
)


def clean(text: str) -> str:
    """Returns the text that is scored: each control character is a new line, ends are stripped."""
    return re.sub(r"[\x00-\x1f]", "\n", text.strip()).strip()


def match_all(text: str, item: Item) -> float:
    """Returns the share of the answers that occur in the text, in capitals or not.

    An answer also counts inside a longer number or word, as with NVIDIA's string_match_all.
    """
    written = clean(text).lower()
    return sum(answer.lower() in written for answer in item.answers) / len(item.answers)


def match_part(text: str, item: Item) -> float:
    """Returns 1.0 if any of the answers occurs in the text, else 0.0 (string_match_part)."""
    written = clean(text).lower()
    return float(any(answer.lower() in written for answer in item.answers))


def percent(scores: Sequence[float]) -> float:
    """Returns a task's score from those of its answers, in per cent, rounded as NVIDIA's."""
    return round(sum(scores) / len(scores) * 100, 2)


def effective_length(means: Mapping[int, float]) -> int | None:
    """Returns the longest length in tokens whose mean score is above 85.6 per cent, or None.

    Args:
      means: length -> mean over all 13 tasks, in per cent.
    """
    return max((length for length, mean in means.items() if mean > THRESHOLD), default=None)


def weighted_average(means: Mapping[int, float], *, increasing: bool) -> float:
    """Returns the mean over lengths with weights 1, 2, 3, ...

    Args:
      means: length -> mean over tasks, in per cent.
      increasing: the longest length weighs most (wAvg(inc)); else the shortest (wAvg(dec)).
    """
    lengths = sorted(means, reverse=not increasing)
    weights = range(1, len(lengths) + 1)
    total = sum(weight * means[length] for weight, length in zip(weights, lengths, strict=True))
    return total / sum(weights)


def summary(scores: Mapping[str, Mapping[int, float]]) -> dict:
    """Returns what RULER says about one model.

    Args:
      scores: task (with "ruler/" or not) -> length in tokens -> share of right answers, 0 to 1.
        Every task has the same lengths.

    Returns:
      `version`, `tasks`, `mean` (length -> per cent), `effective_length` (tokens, or None),
      `wavg_inc`, `wavg_dec` (per cent) and `notes`: sentences that belong beside these numbers.
    """
    lengths = sorted(next(iter(scores.values())))
    assert all(sorted(of_task) == lengths for of_task in scores.values()), "lengths differ"
    means = {
        length: sum(percent([of_task[length]]) for of_task in scores.values()) / len(scores)
        for length in lengths
    }
    tasks = sorted(name.removeprefix("ruler/") for name in scores)
    return {
        "version": VERSION,
        "tasks": tasks,
        "mean": means,
        "effective_length": effective_length(means),
        "wavg_inc": weighted_average(means, increasing=True),
        "wavg_dec": weighted_average(means, increasing=False),
        "notes": _notes(tasks),
    }


def _notes(tasks: Sequence[str]) -> list[str]:
    notes = []
    if len(tasks) < NUM_TASKS:
        notes.append(
            f"The means are over {len(tasks)} of RULER's {NUM_TASKS} tasks; {THRESHOLD} is the "
            "mark for all of them."
        )
    essay_tasks = [name for name in tasks if name in ESSAY_TASKS]
    if essay_tasks:
        notes.append(
            f"Another haystack than NVIDIA's, the text of eval.ruler.essays: "
            f"{', '.join(essay_tasks)}."
        )
    return notes
