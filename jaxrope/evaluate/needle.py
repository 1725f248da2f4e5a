"""Multi-key needles, teacher-forced: is each digit of the number that is asked for the model's
first choice, with other numbers of the same form in the text?

The documents are those of `jaxrope.data.needles` (RULER's wording). As for the pass key, all digits
are the first choice if and only if greedy decoding would write the number. RULER counts a number
anywhere in the next 128 tokens; this is stricter.

Legend: W trials, T tokens a row predicts.
"""

from collections.abc import Iterator

import numpy as np

from jaxrope.data import needles
from jaxrope.data.needles import NeedleDocument
from jaxrope.errors import InputError, choose
from jaxrope.evaluate import scoring, statistics
from jaxrope.evaluate.scoring import Bench, EvalModel, Result


def make_trials(model: EvalModel, bench: Bench, length: int) -> dict[int, list[NeedleDocument]]:
    """Returns the trials of one length by number of keys: the same for every model with the same
    tokenizer.

    Of n trials the one of index i has the needle that is asked for at depth (i + 0.5) / n of the
    text, the others anywhere. What is drawn depends on the seed and i only: lengths and numbers of
    keys share it.

    Raises:
      InputError: a setting is out of range, `length` has no room, or the documents are too short.
    """
    count, most = bench.needle_trials, len(needles.NOUNS) // 2
    if not bench.needle_keys or not all(1 <= keys <= most for keys in bench.needle_keys):
        raise InputError(
            f"eval.needle_keys names one number of keys at least, each from 1 to {most}, got "
            f"{tuple(bench.needle_keys)}."
        )
    haystack_fn = choose("eval.needle_filler", bench.needle_filler, FILLERS)
    source = needles.Source(
        model.tokenizer, haystack_fn(model, bench), "evaluation", "eval.lengths"
    )
    return {
        keys: [
            needles.make_document(
                source,
                length=length,
                num_keys=keys,
                seed=bench.seed,
                index=i,
                depth=(i + 0.5) / count,
            )
            for i in range(count)
        ]
        for keys in dict.fromkeys(bench.needle_keys)
    }


def _text(model: EvalModel, bench: Bench) -> needles.Haystack:
    if bench.documents is None:
        raise InputError("eval.needle_filler is 'text', which needs text: set data.eval_files.")
    return needles.text(bench.documents)


FILLERS = {"text": _text, "grass": lambda model, bench: needles.grass(model.tokenizer)}


def evaluate(model: EvalModel, bench: Bench) -> Iterator[Result]:
    """Yields the share of numbers found, as suite "needle-K", for each length and number of keys K.

    Metrics: `accuracy`, `low`, `high` (Wilson's 95% interval), `digit_accuracy` (share of single
    digits) and `nll` (mean NLL of the digits, nats). A model whose window slides has none: beyond
    its window it cannot see the needle.
    """
    if model.window:
        return
    for length in bench.lengths:
        for keys, trials in make_trials(model, bench, length).items():
            yield _result(model, bench, keys, trials)


def forward_tokens(model: EvalModel, bench: Bench, length: int) -> int:
    """Returns the tokens the model reads for one length."""
    counts = len(set(bench.needle_keys))
    return 0 if model.window else counts * bench.needle_trials * length


def _result(model: EvalModel, bench: Bench, keys: int, trials: list[NeedleDocument]) -> Result:
    watch, suite = scoring.Stopwatch(bench.journal), f"needle-{keys}"
    rows = np.stack([trial.tokens for trial in trials])
    # the model reads the whole document; what follows the last token is not scored
    rows = np.concatenate([rows, rows[:, :1]], axis=1)
    length, prints = rows.shape[1] - 1, [scoring.fingerprint(trial.tokens) for trial in trials]
    scored = scoring.score_with_journal(
        model, bench, rows, suite=suite, length=length, items=prints
    )
    # column t of what is scored is about token t + 1
    places = [np.array(trial.answers[0]) - 1 for trial in trials]
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
        items={
            "word": [trial.words[0] for trial in trials],
            "number": [trial.numbers[0] for trial in trials],
            "depth": [trial.depths[0] for trial in trials],
            "found": correct,
            "nll": [float(np.mean(nll, dtype=np.float64)) for nll in nlls],
            "item": prints,
        },
        nll_WT=None,
        fingerprint=scoring.fingerprint(rows, [trial.answers for trial in trials]),
        tokens=len(trials) * length,
        seconds=watch.seconds(),
        chance=0.0,
        columns=("depth",),
    )
