"""RULER's metrics and its table: scores, effective length, weighted averages."""

import random

import pytest
from ruler_golden import SCORES

from jaxrope.evaluate import ruler
from jaxrope.evaluate.items import Item
from jaxrope.evaluate.ruler import metrics


def scored(seed):
    """Returns (predictions, references) of no meaning, with control characters."""
    rng = random.Random(seed)

    def pick(size):
        return "".join(rng.choices("abAB1 \n\t\x00", k=size))

    count = rng.randint(1, 9)
    predictions = [pick(rng.randint(0, 30)) for _ in range(count)]
    references = [[pick(rng.randint(1, 3)) for _ in range(rng.randint(1, 5))] for _ in range(count)]
    return predictions, references


@pytest.mark.parametrize("seed", range(40))
def test_metrics_are_those_of_nvidias_functions(seed):
    predictions, references = scored(seed)
    found = []
    for judge in (metrics.match_all, metrics.match_part):
        pairs = zip(predictions, references, strict=True)
        found.append(metrics.percent([judge(p, Item("", tuple(r), 1, {})) for p, r in pairs]))
    assert tuple(found) == SCORES[seed]


def test_control_characters_become_lines():
    assert metrics.clean(" \x00a\tb\x1fc \n") == "a\nb\nc"
    assert metrics.clean("\x7f é ") == "\x7f é"


# Rows of the table of NVIDIA's README: six means, effective length, wAvg (inc), wAvg (dec).
PUBLISHED = [
    ((96.7, 96.6, 96.4, 96.0, 95.4, 95.1), 131072, 95.7, 96.3),  # Jamba-1.5-large
    ((96.6, 96.3, 95.2, 93.2, 87.0, 81.2), 65536, 89.0, 94.1),  # GPT-4-1106-preview
    ((96.2, 96.1, 95.1, 93.0, 78.8, 23.7), 32768, 70.6, 90.4),
    ((82.3, 78.4, 73.7, 69.1, 68.1, 65.0), None, 69.9, 75.7),
]


@pytest.mark.parametrize("means, effective, increasing, decreasing", PUBLISHED)
def test_effective_length_and_weighted_averages_are_the_published_ones(
    means, effective, increasing, decreasing
):
    lengths = [4096 * 2**i for i in range(6)]
    scores = {
        f"ruler/{task}": {n: mean / 100 for n, mean in zip(lengths, means, strict=True)}
        for task in ruler.NAMES
    }
    found = ruler.summary(scores)
    assert found["effective_length"] == effective
    assert found["wavg_inc"] == pytest.approx(increasing, abs=0.06)
    assert found["wavg_dec"] == pytest.approx(decreasing, abs=0.06)
    assert found["mean"] == pytest.approx(dict(zip(lengths, means, strict=True)))


def test_the_mark_has_to_be_exceeded():
    assert metrics.effective_length({512: 85.6, 1024: 85.59}) is None
    assert metrics.effective_length({512: 85.61, 1024: 50.0, 2048: 86.0}) == 2048


def test_a_summary_of_some_tasks_says_so():
    found = ruler.summary({"ruler/vt": {512: 1.0, 1024: 0.0}, "ruler/fwe": {512: 0.5, 1024: 0.5}})
    assert found["tasks"] == ["fwe", "vt"]
    assert found["mean"] == {512: 75.0, 1024: 25.0}
    assert found["wavg_inc"] == pytest.approx(125 / 3)
    assert found["notes"] == [
        "The means are over 2 of RULER's 13 tasks; 85.6 is the mark for all of them."
    ]
