"""Rows of documents joined one behind another, each token attending to all before it.

The documents stand in a random order, begin and end tokens between them; the joined text is cut
into rows. A row begins with BOS, in place of the token that was the last target of the row before;
a begin token within a row is no target. LongRoPE and UltraLong train so.
"""

import numpy as np

from jaxrope.data.sequences import Sequences
from jaxrope.data.shuffle import permutation

_JOINING = (1 << 64) - 1  # in place of an epoch: the order in which documents are joined


class Joined:
    """The joined text in pieces of a row."""

    def __init__(self, sequences: Sequences, docs: np.ndarray, *, seq_len: int, seed: int):
        """Joins documents.

        Args:
          sequences: of the documents.
          docs: which are joined, int64.
          seq_len: tokens in a row.
          seed: of the order.
        """
        self._sequences, self._seq_len = sequences, seq_len
        self._docs = docs[permutation(len(docs), seed=seed, epoch=_JOINING)]
        sizes = sequences.lengths[self._docs]
        self._ends = np.cumsum(sizes)
        self.num_real = int(self._ends[-1]) - 1  # tokens that are no padding
        self.num_rows = -(-self.num_real // seq_len)
        counted = sequences.num_counted(self._docs, sizes)
        if sequences.bos_id is None:  # a text's first token is a target, but for that of all
            is_text = ~sequences.documents.are_chats[self._docs]
            counted[1:] += is_text[1:]
        self.num_targets = int(counted.sum())

    def fill(self, row: dict[str, np.ndarray], chosen: int) -> None:
        """Writes row `chosen` of the joined text into arrays of zeros."""
        begin = chosen * self._seq_len
        ids, weights = self._read(begin, min(begin + self._seq_len + 1, int(self._ends[-1])))
        if self._sequences.bos_id is not None:
            ids[0] = self._sequences.bos_id
        count = len(ids) - 1
        row["tokens_BT"][:count] = ids[:-1]
        row["targets_BT"][:count] = ids[1:]
        row["positions_BT"][:count] = np.arange(count)
        row["segment_ids_BT"][:count] = 1
        row["loss_weights_BT"][:count] = weights[1:]

    def _read(self, begin: int, end: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns (ids, loss weights) `begin` to `end`, exclusive, of the joined text."""
        parts = []
        place = int(np.searchsorted(self._ends, begin, side="right"))
        at = begin
        while at < end:
            first, last = (int(self._ends[i]) if i >= 0 else 0 for i in (place - 1, place))
            stop = min(end, last) - first
            parts.append(self._sequences.read(int(self._docs[place]), at - first, stop))
            at, place = min(end, last), place + 1
        ids, weights = zip(*parts, strict=True)
        return np.concatenate(ids), np.concatenate(weights)
