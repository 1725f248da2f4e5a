"""The paper's tables out of what paper_stages.py has measured, each with its sentence.

A sentence is about pairs of rows, as the paper orders them (LongRoPE, arXiv 2402.13753, tables 1,
2, 3, 5, 9 to 12 and figure 3): it is computed from the intervals of their differences.
"""

from collections.abc import Sequence

from benchmarks.paper_stages import STARTS
from benchmarks.verdict import PERPLEXITY, Pair, Pool, Table, grid, judge, sentence, show

RECOVERED = 1.01  # of the base's perplexity at its own length: the most after recovery


def make(pool: Pool, base_len: int) -> list[Table]:
    """Returns all tables, in the order of the paper.

    Args:
      pool: of the evaluations of paper_stages.py.
      base_len: tokens that the base was trained on.
    """
    lengths = [base_len * n for n in (1, 2, 4, 8, 16)]
    tables = (table_1, table_2, table_3, table_5, table_9, table_10, table_11, table_12, figure_3)
    return [table_fn(pool, lengths) for table_fn in tables]


def below(best: str, others: Sequence[str], lengths: Sequence[int]) -> list[Pair]:
    """Returns the pairs that say: `best` is below each of `others` at each length."""
    return [Pair(best, other, length) for length in lengths for other in others]


def _table(pool: Pool, name: str, title: str, cells, ordering: str, pairs) -> Table:
    judged = judge(pool, pairs)
    return Table(name, title, cells, sentence(ordering, judged), judged)


def table_1(pool: Pool, lengths: Sequence[int]) -> Table:
    dynamic = "dynamic_ntk, first 0"
    labels, columns = ["none", "pi", dynamic, "yarn", "searched"], lengths[1:3]
    cells = grid(pool, labels, columns)
    cells[labels.index(dynamic) + 1][0] = "dynamic_ntk"
    pairs = below("searched", ["pi", dynamic, "yarn"], columns)
    ordering = "searched below PI, dynamic NTK and YaRN at 2x and 4x"
    return _table(pool, "T1", "methods without training", cells, ordering, pairs)


def table_2(pool: Pool, lengths: Sequence[int]) -> Table:
    """The best number of tokens is chosen on the windows it is judged by, as in the paper."""
    cells, pairs = [["", *(f"n̂ {n}" for n in STARTS)]], []
    for method in ("pi", "dynamic_ntk"):
        for length in lengths[1:3]:
            labels = [f"{method}, first {n}" for n in STARTS]
            found = [pool[PERPLEXITY, label, length] for label in labels]
            cells.append([f"{method} {length:,}", *map(show, found)])
            best = min(labels[1:], key=lambda label: _nll(pool, label, length))
            pairs += [Pair(best, labels[0], length), Pair(labels[0], labels[-1], length)]
    ordering = "some n̂ above 0 is better than none, and the largest is worse than none"
    title = "the first n̂ tokens not interpolated, without training"
    return _table(pool, "T2", title, cells, ordering, pairs)


def table_3(pool: Pool, lengths: Sequence[int]) -> Table:
    length, names = lengths[2], ("pi", "yarn", "searched")
    cells = [[f"at {length:,}", "untrained", "fine-tuned"]]
    for name in names:
        labels = (name, f"{name}, fine-tuned")
        cells.append([name, *(show(pool[PERPLEXITY, label, length]) for label in labels)])
    pairs = []
    for after in ("", ", fine-tuned"):
        pi, yarn, searched = (name + after for name in names)
        pairs += [Pair(searched, yarn, length), Pair(yarn, pi, length)]
    title = "4x, untrained and fine-tuned on equal tokens"
    ordering = "searched below YaRN below PI, untrained and fine-tuned"
    return _table(pool, "T3", title, cells, ordering, pairs)


def table_5(pool: Pool, lengths: Sequence[int]) -> Table:
    labels = ["none", "sliding", "fine-tuned 2x", "fine-tuned 4x", "extended"]
    pairs = below("extended", ["none", "sliding"], lengths[1:])
    pairs += below("extended", ["fine-tuned 4x"], lengths[3:])
    title = "the base (none), in its own sliding window, fine-tuned, and extended"
    ordering = (
        "the extended model below the base beyond the base's length, below its sliding window "
        "too, and below the model that it extends beyond that one's length"
    )
    cells = grid(pool, labels, lengths)
    return _table(pool, "T5", title, cells, ordering, pairs)


def table_9(pool: Pool, lengths: Sequence[int]) -> Table:
    labels, columns = ["pi on top", "yarn on top", "searched on top"], lengths[3:]
    pairs = below(labels[2], labels[:2], columns) + below(labels[1], labels[:1], columns)
    cells = grid(pool, labels, columns)
    title = "second extension of the fine-tuned model, 2x and 4x beyond"
    return _table(pool, "T9", title, cells, "searched below YaRN below PI", pairs)


def table_10(pool: Pool, lengths: Sequence[int]) -> Table:
    """Says also how near the extended model comes to the base at the base's length."""
    columns = lengths[:2]
    labels = ["none", "sliding", "fine-tuned 4x", "without recovery", "extended"]
    cells = grid(pool, labels, columns)
    names = ["base", "base, sliding", "factors of 4x", "factors of 16x", "with recovery"]
    for row, name in zip(cells[1:], names, strict=True):
        row[0] = name
    pairs = below("extended", ["without recovery", "fine-tuned 4x"], columns)
    judged = judge(pool, pairs)
    found = sentence("recovered factors below those of 4x and 16x at short lengths", judged)
    after, before = (
        pool[PERPLEXITY, label, lengths[0]].metrics["perplexity"] for label in ("extended", "none")
    )
    share = after / before if after and before else float("inf")
    goal = "within" if share <= RECOVERED else "not within"
    told = f"At {lengths[0]:,} it is {100 * (share - 1):+.2f}% from the base, {goal} 1%."
    title = "recovery of short lengths, the same weights"
    return Table("T10", title, cells, f"{found} {told}", judged)


def table_11(pool: Pool, lengths: Sequence[int]) -> Table:
    columns, pairs = {"4x": lengths[2], "8x": lengths[3]}, []
    names = ("pi", "per dim", "per dim and start")
    cells = [["", *(f"{length:,}" for length in columns.values())], *([name] for name in names)]
    for scale, length in columns.items():
        labels = ("pi", f"per dim {scale}", f"per dim and start {scale}")
        for row, label in zip(cells[1:], labels, strict=True):
            row.append(show(pool[PERPLEXITY, label, length]))
        pairs += [Pair(labels[1], labels[0], length), Pair(labels[2], labels[1], length)]
    title = "the two non-uniformities, without training"
    ordering = "factors per dimension below PI, start tokens beside them lower still"
    return _table(pool, "T11", title, cells, ordering, pairs)


def table_12(pool: Pool, lengths: Sequence[int]) -> Table:
    columns = lengths[:3]
    cells = grid(pool, ["searched, fine-tuned", "progressive"], columns)
    cells[1][0] = "direct at 4x"
    cells[2][0] = "half at 2x, then half at 4x"
    pairs = below("progressive", ["searched, fine-tuned"], columns[1:])
    title = "direct and progressive fine-tuning on equal tokens"
    return _table(pool, "T12", title, cells, "progressive below direct", pairs)


def figure_3(pool: Pool, lengths: Sequence[int]) -> Table:
    labels, columns = ["pi", "ntk", "yarn", "searched"], lengths[1:]
    cells = grid(pool, [*labels, "sliding"], columns)
    pairs = below("searched", labels[:3], columns)
    title = "how far without training: 2x, 4x, 8x, 16x"
    ordering = "searched below PI, NTK and YaRN at every length"
    return _table(pool, "Figure 3", title, cells, ordering, pairs)


def _nll(pool: Pool, label: str, length: int) -> float:
    found = pool[PERPLEXITY, label, length].metrics["nll"]
    return float("inf") if found is None else found
