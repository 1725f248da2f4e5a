"""Turns measurements into rows: the lists of attention.json, and Table 1 of the paper.

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
class Measurements:
    """All that was measured of a model.

    Attributes:
      study: the model and its settings.
      texts: label -> the result of measuring.read_texts.
      answers: label -> the result of measuring.read_answers.
      heads: label -> the record of measuring.read_heads.
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
        return self.study.config.analysis.settings

    @property
    def resamples(self) -> dict[str, int]:
        """The arguments of the bootstrap."""
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
        record, arrays = self.answers[label]
        reference = self._trained_patterns()
        return [
            row | {"js": float(patterns.js(curve, reference[row["task"]]).mean())}
            for row, curve in zip(record["items"], arrays["curves"], strict=True)
        ]

    def _trained_patterns(self) -> dict[str, np.ndarray]:
        """Returns {task: pattern of the pre-trained model at its own length}, [L, N, E]."""
        record, arrays = self.answers[BASE]
        trained_len = self.study.trained_len
        tasks = {row["task"] for row in record["items"]}
        picked = {
            task: [
                i
                for i, r in enumerate(record["items"])
                if (r["task"], r["length"]) == (task, trained_len)
            ]
            for task in tasks
        }
        return {task: arrays["curves"][indices].mean(axis=0) for task, indices in picked.items()}


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


def against_base(measurements: Measurements, label: str, length: int, view: str) -> np.ndarray:
    """Returns the divergence of each text from the pre-trained model at half its length, [W]; the
    sink is left out."""
    half = measurements.length(HALF)
    reference = viewed(measurements.curves(BASE, half, "rest"), view, half, half)
    return divergence(
        viewed(measurements.curves(label, length, "rest"), view, length, half), reference
    )


def table1(measurements: Measurements, kind: str = "whole") -> list[Row]:
    """Returns the paper's Table 1: at half the trained length against the pre-trained model, at
    twice against the model that was trained at twice.

    Args:
      measurements: of a model.
      kind: "whole", or "rest": without the sink.
    """
    rows = []
    for multiple, reference in ((HALF, BASE), (TWICE, TWIN)):
        length = measurements.length(multiple)
        reference_curves = measurements.curves(reference, length, kind)
        for label in measurements.texts:
            if label == reference:
                continue
            curves = measurements.curves(label, length, kind)
            js_WLN = patterns.js(curves, reference_curves)
            js_W = js_WLN.mean(axis=(1, 2))
            mean = mean_of("js", js_W, **measurements.resamples)
            rows.append(
                {
                    "label": label,
                    "length": length,
                    "reference": f"{reference} at {length:,}",
                    "kind": "same length" if kind == "whole" else "same length, without the sink",
                    "js": mean.value,
                    "low": mean.low,
                    "high": mean.high,
                    "root_js": float(np.sqrt(js_WLN).mean()),
                    "js_of_mean": patterns.similarity(
                        curves.mean(0), reference_curves.mean(0)
                    ).js_of_mean,
                    "samples": int(js_WLN.size),
                }
            )
    return rows


def similarities(measurements: Measurements) -> list[Row]:
    """Returns Table 1 in both kinds, and every setting and length against the pre-trained model at
    half its length in each view."""
    half = measurements.length(HALF)
    rows = [*table1(measurements), *table1(measurements, "rest")]
    for view in VIEWS:
        for label in measurements.texts:
            for length in measurements.study.lengths(measurements.study.config.analysis.patterns):
                if (label, length) == (BASE, half) or length < half:
                    continue
                js_W = against_base(measurements, label, length, view)
                mean = mean_of("js", js_W, **measurements.resamples)
                rows.append(
                    {
                        "label": label,
                        "length": length,
                        "reference": f"{BASE} at {half:,}",
                        "kind": f"{view}, without the sink",
                        "js": mean.value,
                        "low": mean.low,
                        "high": mean.high,
                        "root_js": float(np.sqrt(js_W).mean()),
                    }
                )
    return rows


def figure_labels(measurements: Measurements) -> list[str]:
    """Returns the labels shown in figures: all but settings before their training."""
    hidden = {untrained(name) for name in measurements.texts}
    return [name for name in measurements.texts if name not in hidden]


def statistic_rows(measurements: Measurements) -> list[Row]:
    """Returns statistics of texts against length, and of answers."""
    rows = []
    for label in figure_labels(measurements):
        record, _ = measurements.texts[label]
        for length, named in record["lengths"].items():
            for name, values_WLN in named.items():
                values_W = np.mean(values_WLN, axis=(1, 2))
                rows.append(_statistic(measurements, label, int(length), name, values_W))
    for label in measurements.answers:
        items = measurements.items(label)
        for length in sorted({row["length"] for row in items}):
            at_length = [row for row in items if row["length"] == length]
            for name in OF_ANSWERS:
                values = [row[name] for row in at_length]
                rows.append(
                    _statistic(measurements, label, length, f"{name} at the answer", values)
                )
    return rows


def _statistic(measurements: Measurements, label: str, length: int, name: str, values) -> Row:
    mean = mean_of(name, values, **measurements.resamples)
    where = {"label": label, "length": length, "name": name}
    return where | {"value": mean.value, "low": mean.low, "high": mean.high}


def curve_rows(measurements: Measurements) -> list[Row]:
    """Returns patterns by distance, in bins of 1, 1, 2, 4, ... tokens, each head's too where the
    paper's figure has them; and by the place of the key, for the last query."""
    figure = {measurements.length(multiple) for multiple in (HALF, TWICE)}
    rows = []
    for label in figure_labels(measurements):
        for length in measurements.study.lengths(measurements.study.config.analysis.patterns):
            edges = streaming.edges(length)
            curve_LNS = measurements.curves(label, length).mean(axis=0)
            row = _curve(label, length, "distance", curve_LNS, edges)
            rows.append(row if length in figure else {k: v for k, v in row.items() if k != "heads"})
            last_LNS = measurements.texts[label][1][f"last-{length}"]
            row = _curve(label, length, "key", last_LNS, edges)
            rows.append({k: v for k, v in row.items() if k != "heads"})
    return rows


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


def map_rows(measurements: Measurements) -> list[Row]:
    """Returns maps of layers and heads: head scores, and entropy and divergence at twice the
    trained length."""
    rows = []
    for label, record in measurements.heads.items():
        for name, values in record["maps"].items():
            row = {"label": label, "length": record["length"], "name": name, "values_LN": values}
            rows.append(row)
    twice = measurements.length(TWICE)
    for label, (record, _) in measurements.texts.items():
        if label not in (BASE, *measurements.settings):
            continue
        where = {"label": label, "length": twice}
        entropy = np.mean(record["lengths"][str(twice)]["entropy"], axis=0)
        js = patterns.js(measurements.curves(label, twice), measurements.curves(TWIN, twice)).mean(
            axis=0
        )
        for name, values in (("entropy", entropy), ("js", js)):
            rows.append(where | {"name": name, "values_LN": values.tolist()})
    return rows


def needle_rows(measurements: Measurements) -> list[Row]:
    """Returns cells of length and depth: share found, and mean entropy, both ways."""
    depths = measurements.study.config.analysis.depths
    rows = []
    for label in measurements.answers:
        cells: dict[tuple, list[Row]] = {}
        for row in measurements.items(label):
            cell = min(int(row["depth"] * depths), depths - 1)
            key = needle_label(label, row["task"]), row["length"], (cell + 0.5) / depths
            cells.setdefault(key, []).append(row)
        for (name, length, depth), cell_rows in cells.items():
            means = {
                key: float(np.mean([row[key] for row in cell_rows]))
                for key in ("entropy", "entropy_of_mean", "normalised_entropy", "needle_mass")
            }
            score = float(np.mean([row["found"] for row in cell_rows]))
            cell = {"label": name, "length": length, "depth": depth, "score": score}
            rows.append(cell | means | {"trials": len(cell_rows)})
    return rows


def needle_label(label: str, task: str) -> str:
    """Returns the name of a heat map."""
    return f"{label}, {task}"


def predictions(
    measurements: Measurements, labels: Sequence[str]
) -> dict[str, prediction.Prediction]:
    """Returns how well each number tells failures from successes, over the answers of `labels`."""
    items = [row | {"label": label} for label in labels for row in measurements.items(label)]
    if not items:
        return {}
    return prediction.judge(
        {name: [fn(row) for row in items] for name, fn in PREDICTORS.items()},
        [not row["found"] for row in items],
        [row["length"] for row in items],
        [f"{row['task']} {row['trial']}" for row in items],
        **measurements.resamples,
    )


def prediction_rows(predicted: Mapping[str, prediction.Prediction]) -> list[Row]:
    """Returns the rows of attention.json; a number that is not defined is left out."""
    rows = []
    for name, performance in predicted.items():
        if np.isfinite(performance.auroc.value):
            bounds = {k: _finite_or_none(getattr(performance.auroc, k)) for k in ("low", "high")}
            partial = _finite_or_none(performance.partial.value)
            rows.append(
                {"name": name, "auroc": performance.auroc.value, "partial": partial} | bounds
            )
    return rows


def _finite_or_none(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def accuracy(measurements: Measurements, label: str, lengths=None) -> list[bool]:
    """Returns whether each question of a subject was answered, at these lengths or at all."""
    return [
        r["found"] for r in measurements.items(label) if lengths is None or r["length"] in lengths
    ]


def is_at_floor(measurements: Measurements) -> bool:
    """Returns whether the pre-trained model cannot retrieve inside its own window: the lower end of
    Wilson's interval of its share is not above FLOOR."""
    right = accuracy(measurements, BASE, {measurements.study.trained_len})
    return not right or statistics.wilson_interval(sum(right), len(right))[0] <= FLOOR


def window_nll(measurements: Measurements, label: str, length: int) -> np.ndarray:
    """Returns the loss of each window of text, nats a token, [W]."""
    for row in measurements.evaluation:
        if (row["suite"], row["label"], row["length"]) == ("perplexity", label, length):
            return np.array(row["items"]["window_nll"])
    raise KeyError(f"no perplexity of {label} at {length}")


def causal_effect(row: Row) -> Measured:
    """Returns what masking the best heads costs beyond masking as many others."""
    words = f"share lost by masking the best {row['num_heads']} beyond as many others"
    return Measured(words, row["effect"], row["low"], row["high"])
