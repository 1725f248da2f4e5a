"""Batches to train on, as a pure function of (seed, step, row).

The five arrays of a batch are described, with an example, in `jaxrope.data`.
Letters: B rows, T tokens in a row.
"""

import bisect
import functools
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from jaxrope.data.corpus import TokenDocuments
from jaxrope.data.groups import Group
from jaxrope.data.joined import Joined
from jaxrope.data.sequences import Sequences
from jaxrope.data.shuffle import permutation
from jaxrope.errors import InputError, choose

FORMAT = "jaxrope.loader/1"


@dataclass(frozen=True)
class Pieces:
    """Where each piece of a document is, and in which row.

    A piece predicts the tokens `starts + 1` to `starts + lengths` of its document's sequence
    (`Sequences`), `counted` of which count. Pieces of a row lie one behind another: row i has those
    from row_starts[i] to row_starts[i + 1]. All int64.
    """

    doc_ids: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    counted: np.ndarray
    row_starts: np.ndarray


class Apart:
    """Rows of pieces, each of which attends to itself alone."""

    def __init__(self, sequences: Sequences, pieces: Pieces):
        self._sequences, self._pieces = sequences, pieces
        self.num_rows = len(pieces.row_starts) - 1
        self.num_real = int(pieces.lengths.sum())  # tokens that are no padding
        self.num_targets = int(pieces.counted.sum())  # tokens with weight 1

    def fill(self, row: dict[str, np.ndarray], chosen: int) -> None:
        """Writes row `chosen` into arrays of zeros."""
        pieces, at = self._pieces, 0
        first, last = pieces.row_starts[chosen], pieces.row_starts[chosen + 1]
        for segment, piece in enumerate(range(first, last), start=1):
            ids, weights = self._read(piece)
            span = slice(at, at + len(ids) - 1)
            row["tokens_BT"][span] = ids[:-1]
            row["targets_BT"][span] = ids[1:]
            row["positions_BT"][span] = np.arange(len(ids) - 1)
            row["segment_ids_BT"][span] = segment
            row["loss_weights_BT"][span] = weights[1:]
            at = span.stop

    def _read(self, piece: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns a piece's (tokens, loss weights): one before the first target, then its targets;
        in mid text BOS takes its place.
        """
        doc, start = int(self._pieces.doc_ids[piece]), int(self._pieces.starts[piece])
        stop = start + int(self._pieces.lengths[piece]) + 1
        ids, weights = self._sequences.read(doc, start, stop)
        if start > 0 and self._sequences.bos_id is not None:
            ids[0] = self._sequences.bos_id
        return ids, weights


class Rows:
    """Rows in a new random order each epoch.

    The rows of an epoch are used once each; row `number` counts on over all epochs.
    """

    def __init__(self, layout: Apart | Joined, *, seed: int):
        self._layout, self._seed = layout, seed
        self._orders: dict[int, np.ndarray] = {}
        self.num_rows, self.num_real = layout.num_rows, layout.num_real  # in an epoch
        self.num_targets = layout.num_targets

    def fill(self, row: dict[str, np.ndarray], number: int) -> None:
        """Writes row `number` into arrays of zeros; see TrainLoader.batch."""
        epoch, index = divmod(number, self.num_rows)
        self._layout.fill(row, int(self._order(epoch)[index]))

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


class Blend:
    """Rows of several groups, each with its share; every group has epochs of its own.

    Of the first n rows each group has its share, to within one for each group.
    """

    def __init__(self, parts: Sequence[Rows], shares: Sequence[Fraction]):
        self._parts, self._shares = parts, shares
        self.num_rows, self.num_real, self.num_targets = (
            sum(getattr(part, name) for part in parts)
            for name in ("num_rows", "num_real", "num_targets")
        )

    def fill(self, row: dict[str, np.ndarray], number: int) -> None:
        """Writes row `number` into arrays of zeros; see TrainLoader.batch."""
        part, index = self.part(number)
        self._parts[part].fill(row, index)

    def part(self, number: int) -> tuple[int, int]:
        """Returns (the group of a row, how many rows of the group came before)."""
        rest = Fraction(1)
        for part, share in enumerate(self._shares[:-1]):
            before = int(share / rest * number)
            if int(share / rest * (number + 1)) > before:
                return part, before
            number, rest = number - before, rest - share
        return len(self._shares) - 1, number


class TrainLoader:
    """Rows of `seq_len` tokens in a new random order each epoch.

    `batch(step)` depends on nothing but the arguments of the constructor and `step`: a run that is
    resumed, or has another number of hosts, trains on the same batches. The rows of an epoch are
    used once each; a batch may begin in one epoch and end in the next.

    Attributes:
      rows: what fills a row.
      num_rows, num_real, num_targets: of an epoch: rows, tokens that are no padding, tokens that
        count in the loss.
      real_share: of a batch's tokens, those that are no padding, 0 to 1.
      parts: group -> (rows of its epoch, its share of the rows); {}: there are no groups.
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
        groups: Sequence[Group] = (),
    ):
        """Lays the documents out in rows.

        Args:
          documents: the text.
          seq_len: tokens in a row.
          batch_size: rows in a batch, over all hosts.
          seed: 0 to 2**64 - 1.
          mode: "chunk": a row holds tokens of one document. "pack": a row holds as many documents
            as fit, only a document longer than a row is cut. "concat": documents are joined, and
            the joined text is cut into rows.
          bos_id: begins every piece; None: the text begins without one.
          eos_id: ends every document; None: it ends without one.
          groups: of documents, each with its share of the rows; (): all are one.

        Raises:
          InputError: a number is out of range, `mode` is unknown, no document fills a row in mode
            "chunk", or none has a target that counts.
        """
        _check(documents, seq_len, batch_size, seed, {"bos_id": bos_id, "eos_id": eos_id})
        modes = {"chunk": _one_a_row, "pack": packed_rows}
        modes["concat"] = functools.partial(_joined_rows, seed=seed)
        arrange = choose("data.mode", mode, modes)
        self.seq_len, self.batch_size, self.seed = seq_len, batch_size, seed
        sequences = Sequences(documents, bos_id, eos_id)
        chosen = groups or [Group("", np.arange(len(documents)), Fraction(1))]
        parts = [Rows(arrange(sequences, group.docs, seq_len), seed=seed) for group in chosen]
        self.rows = Blend(parts, [group.share for group in groups]) if groups else parts[0]
        self.num_rows, self.num_targets = self.rows.num_rows, self.rows.num_targets
        self.num_real = self.rows.num_real
        shares = [float(group.share) for group in chosen]
        self.real_share = sum(
            share * part.num_real / (part.num_rows * seq_len)
            for share, part in zip(shares, parts, strict=True)
        )
        self.parts = {
            group.name: (part.num_rows, float(group.share))
            for group, part in zip(chosen, parts, strict=True)
            if group.name
        }
        described = [FORMAT, documents.fingerprint, seed, seq_len, batch_size, mode, bos_id, eos_id]
        described += [[str(group.share), group.digest] for group in groups]
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
    sequences: Sequences, docs: np.ndarray, seq_len: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Returns (doc_ids, starts, lengths, counted) of pieces of at most `seq_len` targets.

    A conversation is not cut: one that is longer than a row loses its end, as an answer without its
    question teaches nothing, and one that then has no answer is left out.
    """
    is_chat = sequences.documents.are_chats[docs]
    targets = sequences.lengths[docs] - 1  # the first token of a sequence is no target
    targets = np.where(is_chat, np.minimum(targets, seq_len), targets)
    if is_chat.any():
        keep = ~is_chat | (sequences.num_counted(docs, targets + 1) > 0)
        docs, targets = docs[keep], targets[keep]
    pieces = -(-targets // seq_len)
    firsts = np.repeat(np.cumsum(pieces) - pieces, pieces)
    doc_ids = np.repeat(docs, pieces)
    starts = seq_len * (np.arange(len(doc_ids)) - firsts)
    lengths = np.minimum(seq_len, np.repeat(targets, pieces) - starts)
    counted = np.where(
        sequences.documents.are_chats[doc_ids],
        sequences.num_counted(doc_ids, lengths + 1),
        lengths,
    )
    return doc_ids, starts, lengths, counted


def _one_a_row(sequences: Sequences, docs: np.ndarray, seq_len: int) -> Apart:
    """Gives every piece a row of its own."""
    doc_ids, starts, lengths, counted = _cut_documents(sequences, docs, seq_len)
    if not np.any(lengths == seq_len):
        documents = sequences.documents
        added = (sequences.lengths - documents.lengths)[docs].max(initial=0)
        longest = docs[int(np.argmax(documents.lengths[docs]))]
        raise InputError(
            f"{documents.setting}: train.seq_len={seq_len:,} needs a document of "
            f"{seq_len + 1 - added:,} tokens, the longest of {len(docs)} has "
            f"{documents.lengths[longest]:,} ('{documents.names[longest]}'). Give longer "
            'documents, a smaller train.seq_len, or data.mode="pack".'
        )
    pieces = Pieces(doc_ids, starts, lengths, counted, np.arange(len(doc_ids) + 1))
    return Apart(sequences, pieces)


def _joined_rows(sequences: Sequences, docs: np.ndarray, seq_len: int, *, seed: int) -> Joined:
    """Joins the documents, and cuts the joined text."""
    joined = Joined(sequences, docs, seq_len=seq_len, seed=seed)
    if not joined.num_targets:
        raise _nothing_to_predict(sequences)
    return joined


def _nothing_to_predict(sequences: Sequences) -> InputError:
    return InputError(
        f"{sequences.documents.setting}: no document has a token to predict. Give longer documents."
    )


def packed_rows(
    sequences: Sequences, docs: np.ndarray, seq_len: int, *, piece_len: int = 0
) -> Apart:
    """Fills rows by best fit, longest piece first: it joins the fullest row that has room for it.

    The rows do not depend on the seed, only their order does.

    Args:
      sequences: of the documents.
      docs: which of them, int64.
      seq_len: tokens in a row.
      piece_len: tokens of the longest piece; 0 = seq_len.
    """
    cut = _cut_documents(sequences, docs, piece_len or seq_len)
    lengths = cut[2]
    if not len(lengths):
        raise _nothing_to_predict(sequences)
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
    return Apart(sequences, Pieces(*(array[order] for array in cut), row_starts))
