"""Batches of several kinds of rows: long text, documents with needles, packed short pieces.

Needle rows teach retrieval at the length that is trained: each is a document of `data.needles` with
1, 2, ... keys in turn, words of the text, all of which are asked for one after another. Short rows
are LongRoPE2's mixed context window (arXiv 2502.20082, section 3.3): pieces of at most the original
length, packed, each attending to itself alone and rotated by the original rope, so that the model
stays good at short texts.

Which kind a row is, and what is in it, is a function of its number, counted over all steps. Kinds
lie evenly: of the first n rows each kind has its share, to within two. Tokens of all rows count
alike in the loss, but for the digits of answers.

Letters: B rows, T tokens in a row.
"""

import dataclasses
import hashlib
import json
from fractions import Fraction

import numpy as np

from jaxrope.data import needles
from jaxrope.data.corpus import TokenDocuments
from jaxrope.data.loader import Rows, TrainLoader, empty_rows, packed_rows
from jaxrope.data.sequences import Sequences
from jaxrope.data.tokenizer import Tokenizer
from jaxrope.errors import InputError

FORMAT = "jaxrope.mixture/2"
LONG, SHORT = 0, 1  # rope ids: that of the length that is trained, and the original one


@dataclasses.dataclass(frozen=True)
class Shares:
    """What a mixture is made of.

    Attributes:
      needle: share of rows that are documents with needles, 0 to 1.
      needle_keys: most keys of a document.
      needle_weight: what a digit of an answer counts in the loss; any other token counts 1.
      short: share of rows that are packed short pieces, 0 to 1.
      short_len: tokens of the longest short piece: the original length.
    """

    needle: float
    needle_keys: int
    needle_weight: float
    short: float
    short_len: int

    @property
    def any(self) -> bool:
        """Whether there is more than text."""
        return self.needle > 0 or self.short > 0


def check_shares(shares: Shares, seq_len: int) -> None:
    """Refuses rows that are too short for short rows beside them.

    Raises:
      InputError: the key, and what it must be.
    """
    if shares.short and shares.short_len >= seq_len:
        raise InputError(
            f"data.short_share: rows of train.seq_len {seq_len:,} tokens are no longer than the "
            f"original length {shares.short_len:,}. Set it to 0, or train on longer rows."
        )


class MixtureLoader:
    """Batches of mixed rows, with the interface of TrainLoader."""

    def __init__(
        self,
        text: TrainLoader,
        documents: TokenDocuments,
        shares: Shares,
        *,
        tokenizer: Tokenizer,
        bos_id: int | None,
        eos_id: int | None,
    ):
        """Lays short pieces out in rows, and checks that needles have room.

        Args:
          text: makes the rows of text; its length, size and seed are those of the mixture.
          documents: the text.
          shares: how much of what; check_shares has passed it.
          tokenizer: of the documents.
          bos_id, eos_id: see TrainLoader.

        Raises:
          InputError: needles do not fit into a row, or no document is long enough to hide them in.
        """
        self._text, self._shares = text, shares
        self._needle_share, self._short_share = (
            Fraction(str(share)) for share in (shares.needle, shares.short)
        )
        haystack = needles.text(documents)
        keys = needles.training_words(documents, tokenizer) if shares.needle else ()
        self._source = needles.Source(tokenizer, haystack, "training", "train.seq_len", keys)
        self._short = None
        if shares.short:
            sequences, docs = Sequences(documents, bos_id, eos_id), np.arange(len(documents))
            layout = packed_rows(sequences, docs, text.seq_len, piece_len=shares.short_len)
            self._short = Rows(layout, seed=text.seed)
        if shares.needle:
            self._check_room()
        self.num_rows, self.num_targets = text.num_rows, text.num_targets
        self.num_real, self.parts = text.num_real, text.parts
        self.real_share = self._real_share()
        described = [FORMAT, text.fingerprint, dataclasses.asdict(shares), tokenizer.fingerprint]
        words = [needles.OPENING, needles.NEEDLE, needles.QUESTION, *keys]
        content = json.dumps([*described, words]).encode("ascii")
        self.fingerprint = hashlib.sha256(content).hexdigest()

    def batch(self, step: int, *, rows: slice = slice(None)) -> dict[str, np.ndarray]:
        """Returns what TrainLoader.batch does; with short rows also rope_ids_BT, int32: LONG or
        SHORT, the same in all of a row.
        """
        if step < 0:
            raise ValueError(f"step must be at least 0, got {step}")
        size = self._text.batch_size
        numbers = range(step * size, (step + 1) * size)[rows]
        batch = empty_rows(len(numbers), self._text.seq_len)
        if self._short:
            batch["rope_ids_BT"] = np.full((len(numbers), self._text.seq_len), LONG, np.int32)
        for place, number in enumerate(numbers):
            kind, index = self.kind(number)
            row = {name: array[place] for name, array in batch.items()}
            if kind == "needle":
                self._fill_needle(row, index)
            elif kind == "short":
                self._short.fill(row, index)
                row["rope_ids_BT"][:] = SHORT
            else:
                self._text.rows.fill(row, index)
        return batch

    def kind(self, number: int) -> tuple[str, int]:
        """Returns ("text", "needle" or "short", how many rows of that kind came before)."""
        both = self._needle_share + self._short_share
        special = int(both * number)
        if int(both * (number + 1)) == special:
            return "text", number - special
        share = self._needle_share / both
        before = int(share * special)
        if int(share * (special + 1)) > before:
            return "needle", before
        return "short", special - before

    def _fill_needle(self, row: dict[str, np.ndarray], index: int) -> None:
        keys = 1 + index % self._shares.needle_keys
        document = needles.make_document(
            self._source,
            length=self._text.seq_len + 1,
            num_keys=keys,
            seed=self._text.seed,
            index=index,
            depth=needles.spread_depth(index),
            num_asked=keys,
        )
        row["tokens_BT"][:] = document.tokens[:-1]
        row["targets_BT"][:] = document.tokens[1:]
        row["positions_BT"][:] = np.arange(self._text.seq_len)
        row["segment_ids_BT"][:] = 1
        row["loss_weights_BT"][:] = 1.0
        for places in document.answers:
            row["loss_weights_BT"][np.array(places) - 1] = self._shares.needle_weight

    def _real_share(self) -> float:
        """Returns the share of a batch's tokens that are no padding."""
        text = 1.0 - self._shares.needle - self._shares.short
        short = 0.0
        if self._short:
            short = self._short.num_real / (self._short.num_rows * self._text.seq_len)
        needle, of_text = self._shares.needle, self._text.real_share
        return needle + self._shares.short * short + text * of_text

    def _check_room(self) -> None:
        keys, room = self._shares.needle_keys, self._text.seq_len + 1
        needed = needles.most_tokens(self._source, keys, keys)
        if needed > room:
            raise InputError(
                f"data.needle_keys: {keys} needles, all asked for, have up to {needed:,} tokens, "
                f"rows of train.seq_len {room - 1:,} have no room for them. Use fewer keys, or "
                "longer rows."
            )
        self._source.haystack(room, 0)  # refuses where no document is long enough
