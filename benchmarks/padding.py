"""What padding takes of texts of 64 to 8,192 tokens, each length as often as any other.

python -m benchmarks.padding            the table of docs/performance.md, in Markdown; no model runs
"""

import argparse

import numpy as np

from jaxrope import generate
from jaxrope.decoder import ForwardSettings, lengths
from jaxrope.evaluate import filling
from jaxrope.generate import state

SHORTEST, LONGEST, CHUNK, UNIT = 64, 8192, 512, 16  # tokens
COUNTS = (5, 20, 100, 200, 400, 1000, 10_000)
BATCH_TOKENS = 8192  # eval.batch_tokens


def together(texts: list[int]) -> tuple[int, float, float]:
    """Returns (lengths that are compiled, share of padding of texts that are known before, the same
    with what fills batches up).
    """
    alone = lengths.choose(texts, LONGEST)
    filled = sum(min(size for size in alone if size >= n) for n in texts)
    groups = filling.by_size(ForwardSettings(), texts, LONGEST, BATCH_TOKENS)
    rows = {
        size: filling.num_rows(len(group), size, BATCH_TOKENS) for size, group in groups.items()
    }
    computed = sum(size * number for size, number in rows.items())
    return len(alone), 1 - sum(texts) / filled, 1 - sum(texts) / computed


def one_by_one(texts: list[int]) -> tuple[int, float, int, float]:
    """Returns (sizes of caches, share of slots that stay empty, sizes of last chunks of prompts,
    share of padding of what is read).
    """
    slots = [state.capacity(n, CHUNK, UNIT) for n in texts]
    last = [generate.pieces(n, CHUNK, UNIT)[-1] for n in texts]
    read = sum(start + size for start, size in last)
    sizes = len({size for _, size in last})
    return len(set(slots)), 1 - sum(texts) / sum(slots), sizes, 1 - sum(texts) / read


def main() -> None:
    """Prints the table."""
    argparse.ArgumentParser(description=__doc__.partition("\n")[0]).parse_args()
    print("| texts | lengths | padding | with whole batches |\n|---|---|---|---|")
    for count in COUNTS:
        texts = np.random.default_rng(0).integers(SHORTEST, LONGEST + 1, count).tolist()
        number, share, with_batches = together(texts)
        print(f"| {count:,} | {number} | {share:.1%} | {with_batches:.1%} |")
    caches, empty, chunks, share = one_by_one(list(range(SHORTEST, LONGEST + 1)))
    print(f"| one by one: slots of a cache | {caches} | {empty:.1%} | |")
    print(f"| one by one: prompts, in chunks of {CHUNK} | {chunks} | {share:.1%} | |")


if __name__ == "__main__":
    main()
