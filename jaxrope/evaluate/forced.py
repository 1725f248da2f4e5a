"""Questions with their answers at the end, read in one forward pass: is each digit of a hidden
number the model's first choice after those before it?

All of them are if and only if greedy decoding would write the number.

Legend: W trials, T tokens a row predicts.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from jaxrope.evaluate import filling, scoring, statistics
from jaxrope.evaluate.scoring import Bench, EvalModel, Result, Suite


class Trial(NamedTuple):
    """One question with its answer.

    Attributes:
      tokens: int32, exactly as many as the length.
      digits: places of the number's digits in the answer, ascending.
      about: for the record: the number, "depth", ...
    """

    tokens: np.ndarray
    digits: tuple[int, ...]
    about: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Forced:
    """A kind of question.

    Attributes:
      make: (model, bench, length) -> {suite in the record: trials}; raises InputError if they
        cannot be built.
      count: (config.eval) -> trials of all suites at a length.
      filler: the key of config.eval that says what stands around the number: "text" or "grass".
    """

    make: Callable[[EvalModel, Bench, int], dict[str, list[Trial]]]
    count: Callable[[Any], int]
    filler: str

    def suite(self) -> Suite:
        """Returns it as a suite."""
        return Suite(
            evaluate=self.evaluate,
            items=self.make,
            forward_tokens=self.forward_tokens,
            filled=self.filled,
            needs_text=lambda options: getattr(options, self.filler) == "text",
        )

    def evaluate(self, model: EvalModel, bench: Bench) -> Iterator[Result]:
        """Yields the share of numbers found at each length.

        Metrics: `accuracy`, `low`, `high` (Wilson's 95% interval), `digit_accuracy` (share of
        single digits) and `nll` (mean NLL of the digits, nats). A model whose window slides has
        none: beyond its window it cannot see the number.
        """
        if model.window:
            return
        for length in bench.options.lengths:
            for suite, trials in self.make(model, bench, length).items():
                yield _result(model, bench, suite, trials)

    def forward_tokens(self, model: EvalModel, bench: Bench, length: int) -> int:
        """Returns the tokens the model reads for one length."""
        return 0 if model.window else self.count(bench.options) * length

    def filled(self, model: EvalModel, bench: Bench, length: int) -> tuple[int, int]:
        """Returns (tokens that are computed for one length, those of them that are padding)."""
        tokens = self.forward_tokens(model, bench, length)
        return filling.over_mesh(model.settings, length, tokens)


def _result(model: EvalModel, bench: Bench, suite: str, trials: list[Trial]) -> Result:
    watch = scoring.Stopwatch(bench.journal)
    rows = np.stack([trial.tokens for trial in trials])
    # the model reads the whole text; what follows the last token is not scored
    rows = np.concatenate([rows, rows[:, :1]], axis=1)
    length, prints = rows.shape[1] - 1, [scoring.fingerprint(trial.tokens) for trial in trials]
    scored = scoring.score_with_journal(
        model, bench, rows, suite=suite, length=length, items=prints
    )
    # column t of what is scored is about token t + 1
    places = [np.array(trial.digits) - 1 for trial in trials]
    nlls, digits = ([x_WT[i, at] for i, at in enumerate(places)] for x_WT in scored)
    correct = [bool(hits.all()) for hits in digits]
    low, high = statistics.wilson_interval(sum(correct), len(correct))
    return Result(
        suite=suite,
        label=model.label,
        length=length,
        metrics={
            "accuracy": sum(correct) / len(correct),
            "low": low,
            "high": high,
            "digit_accuracy": float(np.mean(np.concatenate(digits))),
            "nll": float(np.mean(np.concatenate(nlls), dtype=np.float64)),
        },
        items={key: [trial.about[key] for trial in trials] for key in trials[0].about}
        | {
            "found": correct,
            "nll": [float(np.mean(nll, dtype=np.float64)) for nll in nlls],
            "item": prints,
        },
        nll_WT=None,
        fingerprint=scoring.fingerprint(rows, [trial.digits for trial in trials]),
        tokens=len(trials) * length,
        seconds=watch.seconds(),
        chance=0.0,
        columns=("depth",),
    )
