"""Benches for tests: config.eval of configs/base.py with changes."""

from typing import Any

from configs import base
from jaxrope import schema
from jaxrope.evaluate import Bench

_BASE = schema.read(base.get_config())


def make_bench(documents: Any = None, *, seed: int = 0, **changes: Any) -> Bench:
    """Returns a bench.

    Args:
      documents: held-out text.
      seed: of what is drawn.
      changes: keys of config.eval; of a section a dict of those of its keys that change.
    """
    values = {}
    for key, value in changes.items():
        is_section = isinstance(value, dict)
        values |= {f"eval.{key}.{k}": v for k, v in value.items()} if is_section else {}
        values |= {} if is_section else {f"eval.{key}": value}
    return Bench(schema.replace(_BASE, values).eval, seed, documents)
