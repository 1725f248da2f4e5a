"""Batches to train on, as a pure function of (seed, step, row).

The five arrays of a batch are described, with an example, in `jaxrope.data`.
Letters: B rows, T tokens in a row.
"""

import bisect
import hashlib
import json
from dataclasses import dataclass

import numpy as np

from jaxrope.data.corpus import TokenDocuments
from jaxrope.data.shuffle import permutation
from jaxrope.errors import InputError, choose

FORMAT = "jaxrope.loader/1"


@dataclass(frozen=True)
class Pieces:
    """Where each piece of a document is, and in which row.

    A piece predicts the tokens `starts + 1` to `starts + lengths` of its document's sequence
    begin, tokens, end. Pieces of a row lie one behind another: row i has those from
    row_starts[i] to row_starts[i + 1]. All int64.
    """

    doc_ids: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    row_starts: np.ndarray


class Rows:
    """Pieces of documents laid out in rows, in a new random order each epoch.

    The rows of an epoch are used once each; row `number` counts on over all epochs.
    """

    def __init__(
        self,
        documents: TokenDocuments,
        pieces: Pieces,
        *,
        seed: int,
        bos_id: int | None,
        eos_id: int | None,
    ):
        """Takes the text, its pieces, and the arguments of TrainLoader."""
        self._documents, self._pieces, self._seed = documents, pieces, seed
        self._bos_id, self._eos_id = bos_id, eos_id
        self._orders: dict[int, np.ndarray] = {}
        self.num_rows = len(pieces.row_starts) - 1  # in an epoch
        self.num_targets = int(pieces.lengths.sum())  # in an epoch; tokens with weight 1

    def fill(self, row: dict[str, np.ndarray], number: int) -> None:
        """Writes row `number` into arrays of zeros; see TrainLoader.batch."""
        epoch, index = divmod(number, self.num_rows)
        pieces = self._pieces
        chosen = self._order(epoch)[index]
        at = 0
        first, last = pieces.row_starts[chosen], pieces.row_starts[chosen + 1]
        for segment, piece in enumerate(range(first, last), start=1):
            sequence = self._sequence(piece)
            span = slice(at, at + len(sequence) - 1)
            row["tokens_BT"][span] = sequence[:-1]
            row["targets_BT"][span] = sequence[1:]
            row["positions_BT"][span] = np.arange(len(sequence) - 1)
            row["segment_ids_BT"][span] = segment
            row["loss_weights_BT"][span] = 1.0
            at = span.stop

    def _sequence(self, piece: int) -> np.ndarray:
        """Returns a piece's tokens: one before the first target, then its targets."""
        doc = int(self._pieces.doc_ids[piece])
        start, length = int(self._pieces.starts[piece]), int(self._pieces.lengths[piece])
        num_tokens = int(self._documents.lengths[doc])
        has_bos = self._bos_id is not None
        shift = int(has_bos)  # token i of the document is number i + shift of its sequence
        text = self._documents.tokens(doc, max(start - shift, 0), start + length + 1 - shift)
        ends = start + length - shift == num_tokens  # its last target is the end token
        head = [self._bos_id] if has_bos and start == 0 else []
        tail = [self._eos_id] if ends else []
        sequence = np.concatenate([np.array(head, np.int32), text, np.array(tail, np.int32)])
        if has_bos:
            sequence[0] = self._bos_id
        return sequence

    def _order(self, epoch: int) -> np.ndarray:
        """Returns the order of the rows in an epoch; two are kept, as a batch may touch both."""
        order = self._orders.get(epoch)
        if order is None:
            order = permutation(self.num_rows, seed=self._seed, epoch=epoch)
            self._orders = {
                **{e: o for e, o in self._orders.items() if e == epoch - 1},
                epoch: order,
            }
        return order


class TrainLoader:
    """Rows of `seq_len` tokens in a new random order each epoch.

    `batch(step)` depends on nothing but the arguments of the constructor and `step`: a run that is
    resumed, or has another number of hosts, trains on the same batches. The rows of an epoch are
    used once each; a batch may begin in one epoch and end in the next.
    """

    def __init__(
        self,
        documents: TokenDocuments,
        *,
        seq_len: int,
        batch_size: int,
        seed: int,
        mode: str = "chunk",
        bos_id: int | None,
        eos_id: int | None,
    ):
        """Lays the documents out in rows.

        Args:
          documents: the text.
          seq_len: tokens in a row.
          batch_size: rows in a batch, over all hosts.
          seed: 0 to 2**64 - 1.
          mode: "chunk": a row holds tokens of one document. "pack": a row holds as many documents
            as fit, only a document longer than a row is cut.
          bos_id: begins every piece; None: the text begins without one.
          eos_id: ends every document; None: it ends without one.

        Raises:
          InputError: a number is out of range, `mode` is unknown, or no document fills a row in
            mode "chunk".
        """
        _check(documents, seq_len, batch_size, seed, {"bos_id": bos_id, "eos_id": eos_id})
        arrange = choose("data.mode", mode, {"chunk": _one_a_row, "pack": packed_rows})
        self.seq_len, self.batch_size, self.seed = seq_len, batch_size, seed
        pieces = arrange(documents, seq_len, (bos_id is not None) + (eos_id is not None))
        self.rows = Rows(documents, pieces, seed=seed, bos_id=bos_id, eos_id=eos_id)
        self.num_rows, self.num_targets = self.rows.num_rows, self.rows.num_targets
        described = [FORMAT, documents.fingerprint, seed, seq_len, batch_size, mode, bos_id, eos_id]
        self.fingerprint = hashlib.sha256(json.dumps(described).encode("ascii")).hexdigest()

    def batch(self, step: int, *, rows: slice = slice(None)) -> dict[str, np.ndarray]:
        """Returns one batch, or the part of it that this host feeds.

        Args:
          step: number of the optimizer step, from 0.
          rows: which of the `batch_size` rows.

        Returns:
          tokens_BT, targets_BT, positions_BT, segment_ids_BT, all int32, and loss_weights_BT,
          float32.
        """
        if step < 0:
            raise ValueError(f"step must be at least 0, got {step}")
        numbers = range(step * self.batch_size, (step + 1) * self.batch_size)[rows]
        batch = empty_rows(len(numbers), self.seq_len)
        for place, number in enumerate(numbers):
            self.rows.fill({key: array[place] for key, array in batch.items()}, number)
        return batch


def empty_rows(num_rows: int, seq_len: int) -> dict[str, np.ndarray]:
    """Returns the arrays of a batch, all zero."""
    names = ("tokens_BT", "targets_BT", "positions_BT", "segment_ids_BT")
    batch = {name: np.zeros((num_rows, seq_len), np.int32) for name in names}
    return batch | {"loss_weights_BT": np.zeros((num_rows, seq_len), np.float32)}


def _check(
    documents: TokenDocuments, seq_len: int, batch_size: int, seed: int, special: dict
) -> None:
    if seq_len < 1:
        raise InputError(f"train.seq_len must be at least 1 token, got {seq_len}.")
    if batch_size < 1:
        raise InputError(f"train.batch_size must be at least 1 row, got {batch_size}.")
    if not 0 <= seed < 1 << 64:
        raise InputError(f"seed must be from 0 to 2**64 - 1, got {seed}.")
    for name, value in special.items():
        if value is not None and not 0 <= value < documents.vocab_size:
            raise InputError(
                f"data.tokenizer: {name} must be below the tokenizer's {documents.vocab_size} ids, "
                f"got {value}. Use the model's own tokenizer."
            )


def _cut_documents(
    documents: TokenDocuments, seq_len: int, num_added: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns (doc_ids, starts, lengths) of pieces of at most `seq_len` targets."""
    targets = documents.lengths + num_added - 1  # the first token of a sequence is no target
    counts = -(-targets // seq_len)
    doc_ids = np.repeat(np.arange(len(documents)), counts)
    starts = seq_len * (np.arange(len(doc_ids)) - np.repeat(np.cumsum(counts) - counts, counts))
    return doc_ids, starts, np.minimum(seq_len, np.repeat(targets, counts) - starts)


def _one_a_row(documents: TokenDocuments, seq_len: int, num_added: int) -> Pieces:
    """Gives every piece a row of its own."""
    doc_ids, starts, lengths = _cut_documents(documents, seq_len, num_added)
    if not np.any(lengths == seq_len):
        longest = int(np.argmax(documents.lengths))
        raise InputError(
            f"{documents.setting}: train.seq_len={seq_len:,} needs a document of "
            f"{seq_len + 1 - num_added:,} tokens, the longest of {len(documents)} has "
            f"{documents.lengths[longest]:,} ('{documents.names[longest]}'). Give longer "
            'documents, a smaller train.seq_len, or data.mode="pack".'
        )
    return Pieces(doc_ids, starts, lengths, np.arange(len(doc_ids) + 1))


def packed_rows(
    documents: TokenDocuments, seq_len: int, num_added: int, piece_len: int = 0
) -> Pieces:
    """Fills rows by best fit, longest piece first: it joins the fullest row that has room for it.

    The rows do not depend on the seed, only their order does.

    Args:
      documents: the text.
      seq_len: tokens in a row.
      num_added: begin and end tokens that a document gets.
      piece_len: tokens of the longest piece; 0 = seq_len.
    """
    doc_ids, starts, lengths = _cut_documents(documents, piece_len or seq_len, num_added)
    if not len(lengths):
        raise InputError(
            f"{documents.setting}: no document has a token to predict. Give longer documents."
        )
    rows: list[list[int]] = []
    rooms: list[int] = []  # the different numbers of free tokens, ascending
    rows_with_room: dict[int, list[int]] = {}
    for piece in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[piece])
        place = bisect.bisect_left(rooms, length)
        if place < len(rooms):
            room = rooms[place]
            row = rows_with_room[room].pop()
            if not rows_with_room[room]:
                del rooms[place]
        else:
            room, row = seq_len, len(rows)
            rows.append([])
        rows[row].append(piece)
        remainder = room - length
        if remainder:
            rows_with_room.setdefault(remainder, []).append(row)
            if len(rows_with_room[remainder]) == 1:
                bisect.insort(rooms, remainder)
    order = np.array([piece for row in rows for piece in row])
    row_starts = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
    return Pieces(doc_ids[order], starts[order], lengths[order], row_starts)
