"""From what was measured to rows: the lists of attention.json, and Table 1 of the paper.

A sample of Table 1 is, as in the paper, one (text, layer, head): the Jensen-Shannon divergence of
two settings' attention by distance, in nats, on the same text. Intervals resample texts or needles.

Letters: W texts or trials, L layers, N heads, S distances, E bins.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxrope.analyse.findings import Measured, mean_of
from jaxrope.analyse.plan import BASE, HALF, TWICE, TWIN, Study, untrained
from jaxrope.analysis import patterns, prediction, streaming
from jaxrope.evaluate import statistics

RELATIVE_BINS = 32
FLOOR = 0.05  # share of questions
VIEWS = ("below", "relative", "interpolated")
# predictor of a failure -> (a row of items) -> a number that is high where a failure is expected
PREDICTORS = {
    "normalised_entropy": lambda row: row["normalised_entropy"],
    "entropy": lambda row: row["entropy"],
    "entropy_of_mean": lambda row: row["entropy_of_mean"],
    "non_sink_entropy": lambda row: row["non_sink_entropy"],
    "needle_mass": lambda row: -row["needle_mass"],
    "js": lambda row: row["js"],
}
OF_ANSWERS = ("entropy", "normalised_entropy", "non_sink_entropy", "needle_mass", "entropy_of_mean")

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Found:
    """All that was measured of a model.

    Attributes:
      study: the model and its settings.
      texts: label -> what measuring.read_texts gave.
      answers: label -> what measuring.read_answers gave.
      heads: label -> the first part of what measuring.read_heads gave.
      evaluation: rows of the eval.json of perplexity.
      haystack: the row of Fu's needle, or None.
    """

    study: Study
    texts: Mapping[str, tuple[Row, Mapping[str, np.ndarray]]]
    answers: Mapping[str, tuple[Row, Mapping[str, np.ndarray]]]
    heads: Mapping[str, Row]
    evaluation: Sequence[Row]
    haystack: Row | None

    @property
    def settings(self) -> Sequence[str]:
        """The settings that were trained."""
        section = self.study.config.analysis
        return section.second_settings if self.study.name else section.settings

    @property
    def resamples(self) -> dict[str, int]:
        """How intervals are made."""
        config = self.study.config
        return {"num_samples": config.eval.bootstrap_samples, "seed": config.seed}

    def length(self, multiple: float) -> int:
        """Returns a multiple of the pre-trained length, tokens."""
        return self.study.lengths([multiple])[0]

    def curves(self, label: str, length: int, kind: str = "whole") -> np.ndarray:
        """Returns attention by distance of every text and head, [W, L, N, S]."""
        return self.texts[label][1][f"{kind}-{length}"]

    def items(self, label: str) -> list[Row]:
        """Returns the questions of a subject, each with the divergence of its pattern."""
        told, arrays = self.answers[label]
        reference = self._trained_patterns()
        return [
            row | {"js": float(patterns.js(curve, reference[row["task"]]).mean())}
            for row, curve in zip(told["items"], arrays["curves"], strict=True)
        ]

    def _trained_patterns(self) -> dict[str, np.ndarray]:
        """Returns {task: pattern of the pre-trained model at its own length}, [L, N, E]."""
        told, arrays = self.answers[BASE]
        own = self.study.shape.original_len
        tasks = {row["task"] for row in told["items"]}
        picked = {
            task: [
                i for i, r in enumerate(told["items"]) if (r["task"], r["length"]) == (task, own)
            ]
            for task in tasks
        }
        return {task: arrays["curves"][some].mean(axis=0) for task, some in picked.items()}


def divergence(p_WLNS, q_WLNS) -> np.ndarray:
    """Returns the divergence of each text, nats, mean over layers and heads, [W]."""
    return patterns.js(p_WLNS, q_WLNS).mean(axis=(1, 2))


def viewed(curve_WLNS: np.ndarray, view: str, length: int, reference: int) -> np.ndarray:
    """Returns a curve at `length` as it is compared with one at `reference`, shorter or equal."""
    if view == "below":
        return patterns.below(curve_WLNS, reference)
    if view == "relative":
        return patterns.relative(curve_WLNS, min(RELATIVE_BINS, reference))
    return patterns.interpolated(curve_WLNS, length / reference)


def against_base(found: Found, label: str, length: int, view: str) -> np.ndarray:
    """Returns the divergence of each text from the pre-trained model at half its length, [W]; the
    sink is left out."""
    half = found.length(HALF)
    reference = viewed(found.curves(BASE, half, "rest"), view, half, half)
    return divergence(viewed(found.curves(label, length, "rest"), view, length, half), reference)


def table1(found: Found, kind: str = "whole") -> list[Row]:
    """Returns the paper's Table 1: at half the trained length against the pre-trained model, at
    twice against the model that was trained at twice.

    Args:
      found: of a model.
      kind: "whole", or "rest": without the sink.
    """
    made = []
    for multiple, reference in ((HALF, BASE), (TWICE, TWIN)):
        length = found.length(multiple)
        of = found.curves(reference, length, kind)
        for label in found.texts:
            if label == reference:
                continue
            own = found.curves(label, length, kind)
            js_WLN = patterns.js(own, of)
            js_W = js_WLN.mean(axis=(1, 2))
            told = mean_of("js", js_W, **found.resamples)
            made.append(
                {
                    "label": label,
                    "length": length,
                    "reference": f"{reference} at {length:,}",
                    "kind": "same length" if kind == "whole" else "same length, without the sink",
                    "js": told.value,
                    "low": told.low,
                    "high": told.high,
                    "root_js": float(np.sqrt(js_WLN).mean()),
                    "js_of_mean": patterns.similarity(own.mean(0), of.mean(0)).js_of_mean,
                    "samples": int(js_WLN.size),
                }
            )
    return made


def similarities(found: Found) -> list[Row]:
    """Returns Table 1 in both kinds, and every setting and length against the pre-trained model at
    half its length in each view."""
    half = found.length(HALF)
    made = [*table1(found), *table1(found, "rest")]
    for view in VIEWS:
        for label in found.texts:
            for length in found.study.lengths(found.study.config.analysis.patterns):
                if (label, length) == (BASE, half) or length < half:
                    continue
                js_W = against_base(found, label, length, view)
                told = mean_of("js", js_W, **found.resamples)
                made.append(
                    {
                        "label": label,
                        "length": length,
                        "reference": f"{BASE} at {half:,}",
                        "kind": f"{view}, without the sink",
                        "js": told.value,
                        "low": told.low,
                        "high": told.high,
                        "root_js": float(np.sqrt(js_W).mean()),
                    }
                )
    return made


def shown(found: Found) -> list[str]:
    """Returns the labels that figures have: all but settings before their training."""
    hidden = {untrained(name) for name in found.texts}
    return [name for name in found.texts if name not in hidden]


def statistic_rows(found: Found) -> list[Row]:
    """Returns statistics of texts against length, and of answers."""
    made = []
    for label in shown(found):
        told, _ = found.texts[label]
        for length, named in told["lengths"].items():
            for name, values_WLN in named.items():
                values_W = np.mean(values_WLN, axis=(1, 2))
                made.append(_statistic(found, label, int(length), name, values_W))
    for label in found.answers:
        items = found.items(label)
        for length in sorted({row["length"] for row in items}):
            own = [row for row in items if row["length"] == length]
            for name in OF_ANSWERS:
                values = [row[name] for row in own]
                made.append(_statistic(found, label, length, f"{name} at the answer", values))
    return made


def _statistic(found: Found, label: str, length: int, name: str, values) -> Row:
    told = mean_of(name, values, **found.resamples)
    where = {"label": label, "length": length, "name": name}
    return where | {"value": told.value, "low": told.low, "high": told.high}


def curve_rows(found: Found) -> list[Row]:
    """Returns patterns by distance, in bins of 1, 1, 2, 4, ... tokens, each head's too where the
    paper's figure has them; and by the place of the key, for the last query."""
    figure = {found.length(multiple) for multiple in (HALF, TWICE)}
    made = []
    for label in shown(found):
        for length in found.study.lengths(found.study.config.analysis.patterns):
            edges = _edges(length)
            curve_LNS = found.curves(label, length).mean(axis=0)
            row = _curve(label, length, "distance", curve_LNS, edges)
            made.append(row if length in figure else {k: v for k, v in row.items() if k != "heads"})
            last_LNS = found.texts[label][1][f"last-{length}"]
            row = _curve(label, length, "key", last_LNS, edges)
            made.append({k: v for k, v in row.items() if k != "heads"})
    return made


def _edges(length: int) -> list[int]:
    whole = streaming.bin_edges(streaming.num_bins(length))
    return [edge for edge in whole if edge < length] + [length]


def _curve(label: str, length: int, axis: str, curve_LNS, edges: list[int]) -> Row:
    heads_XE = patterns.binned(curve_LNS, edges).reshape(-1, len(edges) - 1) / np.diff(edges)
    return {
        "label": label,
        "length": length,
        "axis": axis,
        "edges": edges,
        "mass": heads_XE.mean(axis=0).tolist(),
        "heads": heads_XE.tolist(),
    }


def map_rows(found: Found) -> list[Row]:
    """Returns maps of layers and heads: what heads are for, and entropy and divergence at twice the
    trained length."""
    made = []
    for label, told in found.heads.items():
        for name, values in told["maps"].items():
            row = {"label": label, "length": told["length"], "name": name, "values_LN": values}
            made.append(row)
    twice = found.length(TWICE)
    for label, (told, _) in found.texts.items():
        if label not in (BASE, *found.settings):
            continue
        where = {"label": label, "length": twice}
        entropy = np.mean(told["lengths"][str(twice)]["entropy"], axis=0)
        js = patterns.js(found.curves(label, twice), found.curves(TWIN, twice)).mean(axis=0)
        for name, values in (("entropy", entropy), ("js", js)):
            made.append(where | {"name": name, "values_LN": values.tolist()})
    return made


def needle_rows(found: Found) -> list[Row]:
    """Returns cells of length and depth: share found, and mean entropy, both ways."""
    depths = found.study.config.analysis.depths
    made = []
    for label in found.answers:
        cells: dict[tuple, list[Row]] = {}
        for row in found.items(label):
            cell = min(int(row["depth"] * depths), depths - 1)
            key = needle_label(label, row["task"]), row["length"], (cell + 0.5) / depths
            cells.setdefault(key, []).append(row)
        for (name, length, depth), some in cells.items():
            means = {
                key: float(np.mean([row[key] for row in some]))
                for key in ("entropy", "entropy_of_mean", "normalised_entropy", "needle_mass")
            }
            score = float(np.mean([row["found"] for row in some]))
            cell = {"label": name, "length": length, "depth": depth, "score": score}
            made.append(cell | means | {"trials": len(some)})
    return made


def needle_label(label: str, task: str) -> str:
    """Returns the name of a heat map."""
    return f"{label}, {task}"


def predictions(found: Found, labels: Sequence[str]) -> dict[str, prediction.Prediction]:
    """Returns how well each number tells failures from successes, over the answers of `labels`."""
    items = [row | {"label": label} for label in labels for row in found.items(label)]
    if not items:
        return {}
    return prediction.judge(
        {name: [fn(row) for row in items] for name, fn in PREDICTORS.items()},
        [not row["found"] for row in items],
        [row["length"] for row in items],
        [f"{row['task']} {row['trial']}" for row in items],
        **found.resamples,
    )


def prediction_rows(predicted: Mapping[str, prediction.Prediction]) -> list[Row]:
    """Returns the rows of attention.json; a number that is not defined is left out."""
    made = []
    for name, one in predicted.items():
        if np.isfinite(one.auroc.value):
            bounds = {k: _known(getattr(one.auroc, k)) for k in ("low", "high")}
            partial = _known(one.partial.value)
            made.append({"name": name, "auroc": one.auroc.value, "partial": partial} | bounds)
    return made


def _known(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def accuracy(found: Found, label: str, lengths=None) -> list[bool]:
    """Returns whether each question of a subject was answered, at these lengths or at all."""
    return [r["found"] for r in found.items(label) if lengths is None or r["length"] in lengths]


def is_at_floor(found: Found) -> bool:
    """Returns whether the pre-trained model cannot retrieve inside its own window: the lower end of
    Wilson's interval of its share is not above FLOOR."""
    right = accuracy(found, BASE, {found.study.shape.original_len})
    return not right or statistics.wilson_interval(sum(right), len(right))[0] <= FLOOR


def window_nll(found: Found, label: str, length: int) -> np.ndarray:
    """Returns the loss of each window of text, nats a token, [W]."""
    for row in found.evaluation:
        if (row["suite"], row["label"], row["length"]) == ("perplexity", label, length):
            return np.array(row["items"]["window_nll"])
    raise KeyError(f"no perplexity of {label} at {length}")


def causal_effect(row: Row) -> Measured:
    """Returns what the best heads cost beyond as many others."""
    words = f"share lost by masking the best {row['num_heads']} beyond as many others"
    return Measured(words, row["effect"], row["low"], row["high"])
