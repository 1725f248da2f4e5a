"""The lengths that programs are compiled for: a text is filled up to the next one.

All programs take them from one sequence, the ladder, so that few are ever compiled, and the next
run finds them in the cache of compiled programs: a unit and its doubles up to a stride, then 1, 2,
..., 8, 10, 12, 14, 16, 20, ... strides, four in each doubling. With 64 and 512 tokens these are 15
up to 8,192, and of texts of 64 to 8,192 tokens, each length as often as any other, padding is 8.3%
of the tokens that are computed.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

MOST = 16  # lengths that are compiled for one set of texts
# Tokens that cost as much as a compilation: some seconds of 135 M parameters on two cores. A small
# model or a fast chip reads more in that time, but what was compiled is kept on disk.
COMPILATION = 4096


def ladder(unit: int = 64, stride: int = 512) -> Iterator[int]:
    """Yields the lengths, without an end; see the module. `stride` is one of them in any case."""
    yield from itertools.takewhile(lambda n: n < stride, (unit << e for e in itertools.count()))
    yield from (stride * n for n in range(1, 5))
    yield from ((stride * n) << e for e in itertools.count() for n in range(5, 9))


def choose(
    lengths: Sequence[int],
    longest: int,
    *,
    divisor: int = 1,
    rows_fn: Callable[[int, int], int] = lambda count, size: count,
) -> list[int]:
    """Returns the lengths that texts are filled up to, ascending: of the ladder and `longest` the
    MOST or fewer with the least cost, which is every token that is computed and COMPILATION for
    each length. So a few short texts have one length, and of 200 texts or more of 64 to 8,192
    tokens less than 10% is padding.

    Args:
      lengths: tokens of each text, at most `longest`.
      longest: the last length there can be.
      divisor: of which the others are multiples.
      rows_fn: (texts filled up to a length, the length) -> rows that are computed: more of them
        where batches are filled up.
    """
    legal = (math.ceil(step / divisor) * divisor for step in ladder())
    sizes = [*dict.fromkeys(itertools.takewhile(lambda size: size < longest, legal)), longest]
    ends = np.searchsorted(np.sort(np.asarray(lengths, np.int64)), sizes, side="right").tolist()
    # {the shortest texts, by their number: (cost, sizes) of reading them}, with more and more sizes
    plans: dict[int, tuple[int, tuple[int, ...]]] = {0: (0, ())}
    complete = []
    for _ in range(MOST):
        longer: dict[int, tuple[int, tuple[int, ...]]] = {}
        for size, end in zip(sizes, ends, strict=True):
            for done, (cost, chosen) in plans.items():
                if done < end:
                    total = cost + COMPILATION + size * rows_fn(end - done, size)
                    longer[end] = min(longer.get(end, (math.inf, ())), (total, (*chosen, size)))
        plans = longer
        complete += [plans[ends[-1]]] if ends[-1] in plans else []
    return list(min(complete)[1]) if complete else []


def describe(computed: int, padding: int) -> list[str]:
    """Returns a line for the user; none where nothing is padding.

    Args:
      computed: tokens, padding included.
      padding: those that belong to no text.
    """
    if not padding:
        return []
    return [f"padding: {padding / computed:.1%} of the {computed:,} tokens that are computed"]
