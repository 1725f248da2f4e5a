"""books-6m, 512 tokens, at four times its length: every rope that an export can have."""

import dataclasses
import math

import numpy as np

from jaxrope import rope
from jaxrope.convert import pretrained

ORIGINAL, LONGEST = 512, 2048
LENGTHS = (300, 1000, 2000)
_YARN = dict(method="yarn", factor=4.0)
BY_LAW = math.sqrt(1 + math.log(4) / math.log(ORIGINAL))


def extended(books_6m, kind: str) -> pretrained.Pretrained:
    """Returns the model with one of KINDS."""
    model = pretrained.load(books_6m, dtype=None)
    rope_fn = rope.make(**KINDS[kind], **dataclasses.asdict(model.rope_fn.geometry))
    return dataclasses.replace(model, rope_fn=rope_fn)


def where(length: int) -> str:
    """Returns the column of the table for a length."""
    return "inside" if length <= ORIGINAL else "beyond"


def _sets(*factors, attention=(1.1,) * 2):
    borders = (ORIGINAL, LONGEST)[-len(factors) :]
    rows = zip(borders, factors, attention, strict=False)
    rows = [dict(max_len=n, factors=f, attention_factor=a, start_tokens=0) for n, f, a in rows]
    return dict(method="longrope", buckets=rows)


_SHORT, _LONG = np.linspace(1, 1.2, 32).tolist(), np.geomspace(1, 4, 32).tolist()
KINDS = {
    "one set": _sets(_LONG),
    "two sets": _sets(_SHORT, _LONG),
    "two sets by the law": _sets(_SHORT, _LONG, attention=(BY_LAW, BY_LAW)),
    "two attention factors": _sets(_SHORT, _LONG, attention=(1.05, 1.1)),
    "yarn": _YARN,
    "own yarn": _YARN | dict(beta_fast=20.0, beta_slow=0.5, attention_factor=1.2),
    "pi": dict(method="pi", factor=4.0),
    "ntk": dict(method="ntk", factor=4.0),
    "dynamic ntk": dict(method="dynamic_ntk", factor=4.0),
    "llama3": dict(
        method="llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0, max_len=LONGEST
    ),
}
