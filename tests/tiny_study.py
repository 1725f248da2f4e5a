"""What the paper's experiments could have measured, made up: patterns, answers and losses."""

import math
from pathlib import Path

import numpy as np

from jaxrope import decoder, schema
from jaxrope.analyse import numbers, plan
from jaxrope.shell import experiment
from tests import tiny_eval

ROOT = Path(__file__).resolve().parent.parent


def study(name="", **changes):
    """A study of a model of two layers and four heads for 8 tokens."""
    given = dict(settings=("none", "pi", "yarn"))
    given |= dict(perplexity=(1.0, 2.0), patterns=(0.5, 2.0), needles=(1.0, 2.0))
    given |= dict(longer_setting="pi", depths=2) | changes
    values = {f"analysis.{key}": value for key, value in given.items()}
    values["model.path"] = f"models/{name or 'large'}"
    values["eval.bootstrap_samples"] = 300
    config = schema.replace(experiment.read(str(ROOT / "configs" / "base.py")), values)
    shape = decoder.DecoderConfig(**(tiny_eval.SHAPE | dict(original_len=8, max_len=8)))
    labels = ("base", "none", "pi", "yarn", "twin")
    subjects = [plan.Subject(label, f"{{{label}}}", "", 8, "none", True) for label in labels]
    subjects.append(plan.Subject("pi, trained longer", "{longer}", "", 32, "pi", True))
    return plan.Study(name, config, shape, (), tuple(subjects))


def steep(slope, length, texts=4, noise=0.0):
    """Patterns e^(-slope d), [W, L, N, S], a little different in every text."""
    slopes = slope * (1 + 0.01 * np.arange(texts)) + noise * (-1.0) ** np.arange(texts)
    curve = np.exp(-slopes[:, None] * np.arange(length))
    return np.broadcast_to(curve[:, None, None], (texts, 2, 4, length)).astype(np.float32)


def found(slopes=None, *, answers=None, nll=None, name="", **changes):
    """What was measured, made up: slopes {label: slope}, answers {label: rows}, nll {label: one
    number for each window at 8 and 16 tokens}."""
    slopes = slopes or {}
    texts = {}
    for label, slope in slopes.items():
        slope, noise = slope if isinstance(slope, tuple) else (slope, 0.0)
        arrays = {}
        for length in (4, 16):
            arrays |= {
                f"{k}-{length}": steep(slope, length, noise=noise) for k in ("whole", "rest")
            }
            arrays[f"last-{length}"] = steep(slope, length).mean(0)
        statistics = {"entropy": np.full((4, 2, 4), slope).tolist()}
        texts[label] = ({"lengths": {"4": statistics, "16": statistics}}, arrays)
    told = {}
    for label, rows in (answers or {}).items():
        told[label] = {"items": rows}, {"curves": np.ones((len(rows), 2, 4, 4), np.float32)}
    rows = [
        {"suite": "perplexity", "label": label, "length": n, "items": {"window_nll": values}}
        for label, values in (nll or {}).items()
        for n in (8, 16)
    ]
    return numbers.Measurements(study(name, **changes), texts, told, {}, rows, None)


def item(length, trial, right, entropy, **more):
    row = {"task": "passkey", "length": length, "depth": trial / 8, "trial": trial, "found": right}
    row |= {"entropy": entropy, "normalised_entropy": entropy / math.log(length)}
    row |= {
        "entropy_of_mean": entropy + 1,
        "non_sink_entropy": entropy,
        "needle_mass": 0.5 / entropy,
    }
    return row | more


def trials(right_fn, entropy_fn, lengths=(8, 16), count=8):
    return [item(n, i, right_fn(n, i), entropy_fn(n, i)) for n in lengths for i in range(count)]


def inside(n, i):
    return n == 8
