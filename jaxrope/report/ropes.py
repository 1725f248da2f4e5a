"""Factor curves: of a rope.json, of methods by their formulas, and published ones."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxrope import rope
from jaxrope.errors import InputError
from jaxrope.report import searches
from jaxrope.report.page import Origin, Section
from jaxrope.store import files

METHODS = ("pi", "ntk", "yarn")  # drawn beside factors, at the usual constants


def section(
    path: Path, *, name: str, origin: Origin, published: Mapping[str, Any]
) -> tuple[Section, Any]:
    """Returns (the section of a rope.json, the factors of its last bucket).

    Args:
      path: of the file.
      name: of the row of the page that has this rope.
      origin: of the section.
      published: name -> factors to draw for comparison.
    """
    rope_fn = rope.load(path)
    cells = [["tokens", "start tokens", "attention factor", "factors"]]
    curves: dict[str, Any] = {}
    for bucket in rope_fn.buckets:
        factors, reach = np.asarray(bucket.factors), f"{bucket.max_len:,}"
        extent = f"{factors.min():g} to {factors.max():g}"
        cells.append([reach, str(bucket.start_tokens), f"{bucket.attention_factor:.4f}", extent])
        curves[f"{name}, to {reach}"] = bucket.factors
    last = rope_fn.buckets[-1]
    if len(rope_fn.buckets) == 1:
        curves = {name: last.factors}
    curves = {**by_formula(rope_fn, last.max_len), **published, **curves}
    figure = searches.factors_figure(curves, {"start_tokens": last.start_tokens})
    title = f"Rope to {last.max_len:,} tokens"
    tables = [("The factors of each length", cells)]
    return Section(title, tables, [figure], origin, kind="factors"), last.factors


def by_formula(rope_fn: rope.RopeFn, max_len: int) -> dict[str, Any]:
    """Returns {method: its factors for `max_len` tokens} of METHODS, for the same geometry."""

    factor = max_len / rope_fn.original_len
    if factor <= 1:
        return {}
    geometry = dict(
        head_dim=rope_fn.head_dim,
        rotary_dim=rope_fn.rotary_dim,
        theta=rope_fn.theta,
        original_len=rope_fn.original_len,
    )
    ropes = {n: rope.make(n, **geometry, factor=factor) for n in METHODS}
    return {name: method_rope.bucket(max_len).factors for name, method_rope in ropes.items()}


def matching(path: Path) -> dict[str, Any]:
    """Returns the published factors for the model and the length of a rope.json."""
    rope_fn = rope.load(path)
    curves = {}
    for name, entry in rope.catalogue().items():
        keys = ("head_dim", "rotary_dim", "theta", "original_len")
        single = len(entry["buckets"]) == 1
        reach = entry["buckets"][-1]["max_len"]
        if (
            single
            and reach == rope_fn.max_len
            and all(entry[k] == getattr(rope_fn, k) for k in keys)
        ):
            curves[f"published {name}"] = rope.preset(name).buckets[-1].factors
    return curves


def published(names: Sequence[str]) -> dict[str, Any]:
    """Returns {name: the factors of its last bucket}.

    Args:
      names: of presets (`rope.catalogue`), or paths of rope.json.

    Raises:
      InputError: there is no such preset or file, or it is broken.
    """
    curves = {}
    for name in names:
        if name.endswith(".json"):
            path = files.as_path(name)
            if not path.is_file():
                raise InputError(f"--published={name}: no such file. Give a rope.json or a preset.")
            label = path.parent.name if path.stem == "rope" else path.stem
            curves[label] = rope.load(path).buckets[-1].factors
        else:
            curves[f"published {name}"] = rope.preset(name).buckets[-1].factors
    return curves
