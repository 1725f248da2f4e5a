"""Documents with the tokens that begin and end them, and which of these count as targets."""

import dataclasses

import numpy as np

from jaxrope.data import answers
from jaxrope.data.corpus import TokenDocuments


@dataclasses.dataclass(frozen=True)
class Sequences:
    """The sequence of a text is begin, tokens, end; a conversation has those of its template.

    Attributes:
      documents: the texts.
      bos_id, eos_id: None: a text begins or ends without one.
    """

    documents: TokenDocuments
    bos_id: int | None
    eos_id: int | None

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each document's sequence, int64."""
        added = (self.bos_id is not None) + (self.eos_id is not None)
        return self.documents.lengths + np.where(self.documents.are_chats, 0, added)

    def read(self, doc: int, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns (int32 ids, float32 loss weights) `start` to `stop`, exclusive, of a sequence.

        A weight is 1 for a token that is to be predicted, and 0 for one that never is: the begin
        token, and a prompt's.
        """
        documents = self.documents
        if documents.is_chat(doc):
            counted = documents.counted(doc, start, stop)
            return documents.tokens(doc, start, stop), counted.astype(np.float32)
        shift = int(self.bos_id is not None)  # token i of the text is number i + shift
        length = int(documents.offsets[doc + 1] - documents.offsets[doc])
        text = documents.tokens(doc, max(start - shift, 0), max(stop - shift, 0))
        ends = self.eos_id is not None and start <= length + shift < stop
        head = [self.bos_id] if shift and start == 0 < stop else []
        ids = np.concatenate([np.array(head, np.int32), text, [self.eos_id] if ends else []])
        weights = np.ones(len(ids), np.float32)
        weights[: len(head)] = 0.0
        return ids.astype(np.int32), weights

    def num_counted(self, docs: np.ndarray, stops: np.ndarray) -> np.ndarray:
        """Returns how many of the targets before `stops` count, of each of `docs`; the first token
        of a sequence is no target.

        Args:
          docs: int64.
          stops: int64, 1 to the sequence's length.
        """
        counts = stops - 1
        for place in np.flatnonzero(self.documents.are_chats[docs]):
            first = int(self.documents.offsets[docs[place]])
            roles = self.documents.roles[first + 1 : first + int(stops[place])]
            counts[place] = np.count_nonzero(roles == answers.ANSWER)
        return counts
