"""Texts of many lengths as rows of few: what each is filled up to, and how much is padding."""

import functools
import math
from collections.abc import Sequence

import numpy as np

from jaxrope import decoder


def by_size(
    settings: decoder.ForwardSettings, lengths: Sequence[int], longest: int, batch_tokens: int
) -> dict[int, list[int]]:
    """Returns {tokens of a row: the texts that are filled up to it, by index}, ascending; see
    decoder.lengths.

    Args:
      settings: how the model is run.
      lengths: tokens of each text, at most `longest`.
      longest: tokens of the longest row there can be.
      batch_tokens: tokens in one forward pass, at most.
    """
    rows_fn = functools.partial(num_rows, batch_tokens=batch_tokens)
    divisor = decoder.legal_length(settings, 1)
    sizes = decoder.lengths.choose(lengths, longest, divisor=divisor, rows_fn=rows_fn)
    groups: dict[int, list[int]] = {size: [] for size in sizes}
    for i, place in enumerate(np.searchsorted(sizes, lengths).tolist()):
        groups[sizes[place]].append(i)
    return groups


def num_rows(count: int, size: int, batch_tokens: int) -> int:
    """Returns the rows that are read for `count` texts of one size: but for a few in all, every
    batch has the same number of rows, so that it has the same shape.
    """
    batch = max(1, batch_tokens // size)
    return count if count <= batch else math.ceil(count / batch) * batch


def over_mesh(settings: decoder.ForwardSettings, size: int, tokens: int) -> tuple[int, int]:
    """Returns (tokens that are computed, those of them that are padding) of rows of one size that
    have `tokens` in all: a mesh fills them up so that its parts are equal.
    """
    padding = (decoder.legal_length(settings, size) - size) * tokens // size
    return tokens + padding, padding
