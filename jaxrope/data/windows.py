"""Windows of text to evaluate on: always the same ones, each within one document.

Letters: W windows, T tokens that are predicted.
"""

from dataclasses import dataclass

import numpy as np

from jaxrope.data.corpus import TokenDocuments
from jaxrope.data.shuffle import permutation
from jaxrope.errors import InputError


@dataclass(frozen=True)
class Windows:
    """Windows of one length.

    The window of a conversation is its beginning, with the begin token of its template; where it is
    shorter than the window, padding follows.

    Attributes:
      tokens_WT: int32 [W, T + 1]: the begin token, then T tokens of text.
      doc_ids_W: int64, the document of each window.
      starts_W: int64, where its text starts in that document, tokens.
      weights_WT: float32, what a token counts: 0 for those of prompts and padding, else such that
        the mean over a window is 1; None: all count 1.
    """

    tokens_WT: np.ndarray
    doc_ids_W: np.ndarray
    starts_W: np.ndarray
    weights_WT: np.ndarray | None = None

    @property
    def targets_WT(self) -> np.ndarray:
        """What it has to predict: [W, T], all of it text."""
        return self.tokens_WT[:, 1:]

    def __len__(self) -> int:
        return len(self.tokens_WT)


def eval_windows(
    documents: TokenDocuments,
    *,
    length: int,
    num_windows: int,
    offset_tokens: int = 0,
    windows_per_doc: int = 1,
    bos_id: int | None,
) -> Windows:
    """Returns the first `num_windows` windows, document by document in sorted order.

    Windows of a document follow one another from its token `offset_tokens` on and do not overlap. A
    document too short for one is passed over. A conversation has one window, from its beginning: it
    has more than half as many tokens, and an answer among them.

    Args:
      documents: the text.
      length: tokens that are predicted in a window.
      num_windows: at least 1.
      offset_tokens: tokens passed over at the start of each document.
      windows_per_doc: windows taken from a document, at most.
      bos_id: the begin token. None puts the preceding token of text in its place (at a document's
        start, the window starts one token later).

    Raises:
      InputError: there are fewer windows; the message says how many tokens are needed and what
        there is.
    """
    _check_at_least(
        ("eval.lengths", length, 1),
        ("eval.num_windows", num_windows, 1),
        ("eval.offset_tokens", offset_tokens, 0),
        ("eval.windows_per_doc", windows_per_doc, 1),
    )
    first = _first_token(offset_tokens, bos_id)
    counts = np.clip((documents.lengths - first) // length, 0, windows_per_doc)
    counts = np.where(documents.are_chats, _suits(documents, length), counts)
    doc_ids = np.repeat(np.arange(len(documents)), counts)
    within = np.arange(len(doc_ids)) - np.repeat(np.cumsum(counts) - counts, counts)
    if len(doc_ids) < num_windows:
        description = f"{num_windows} windows (at most {windows_per_doc} of a document)"
        raise _too_little_text(documents, description, length, first, len(doc_ids))
    doc_ids, within = doc_ids[:num_windows], within[:num_windows]
    starts = np.where(documents.are_chats[doc_ids], 1, first + within * length)
    return _cut(documents, doc_ids, starts, length, bos_id)


def search_windows(
    documents: TokenDocuments,
    *,
    length: int,
    num_windows: int,
    offset_tokens: int = 0,
    seed: int,
    bos_id: int | None,
) -> Windows:
    """Returns windows as `eval_windows` does, each of another document, drawn by `seed`.

    The window of a document is the one that starts at `offset_tokens`, whatever the seed. All
    tokens of conversations count.

    Raises:
      InputError: fewer documents than `num_windows` are long enough.
    """
    _check_at_least(
        ("target_len", length, 1),
        ("search.objective.num_samples", num_windows, 1),
        ("search.objective.offset_tokens", offset_tokens, 0),
    )
    first = _first_token(offset_tokens, bos_id)
    firsts = np.where(documents.are_chats, max(first, 1), first)
    doc_ids = np.flatnonzero(documents.lengths >= firsts + length)
    if len(doc_ids) < num_windows:
        description = f"{num_windows} windows (each of another document)"
        raise _too_little_text(documents, description, length, first, len(doc_ids))
    chosen = doc_ids[permutation(len(doc_ids), seed=seed, epoch=0)[:num_windows]]
    return _cut(documents, chosen, firsts[chosen], length, bos_id)


def fresh_windows(
    documents: TokenDocuments,
    *,
    length: int,
    numbers: range,
    offset_tokens: int = 0,
    seed: int,
    bos_id: int | None,
    part: str = "all",
) -> Windows:
    """Returns windows `numbers` of an endless list: every document once in the order of `seed`,
    then in another order, and so on, each window from a random place on.

    Args:
      documents: the text.
      length: tokens that are predicted in a window.
      numbers: of the windows, from 0.
      part: which documents: "last", a quarter of them, "first", the others, or "all". No text is in
        both parts; a single document is cut in two, where each half has room for a window.
      offset_tokens: tokens passed over at the start of each document.
      seed: of the order and the places.
      bos_id: see eval_windows.

    Raises:
      InputError: no document is long enough.
    """
    first = _first_token(offset_tokens, bos_id)
    firsts = np.where(documents.are_chats, max(first, 1), first)
    doc_ids = np.flatnonzero(documents.lengths >= firsts + length)
    if not len(doc_ids):
        raise _too_little_text(documents, "windows", length, first, 0)
    lasts = documents.lengths - length
    doc_ids = _part(doc_ids, firsts, lasts, (part, length, seed))
    chosen, starts = [], []
    for number in numbers:
        epoch, place = divmod(number, len(doc_ids))
        chosen.append(doc_ids[permutation(len(doc_ids), seed=seed, epoch=epoch)[place]])
        draw = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, number])))
        starts.append(draw.integers(firsts[chosen[-1]], lasts[chosen[-1]], endpoint=True))
    return _cut(documents, np.array(chosen), np.array(starts), length, bos_id)


def _part(doc_ids, firsts, lasts, asked: tuple[str, int, int]) -> np.ndarray:
    """Returns the documents of a part; of a single one changes where its windows may start, in
    place. The last part are the last documents in the order of epoch 0, which search_windows takes
    its first ones from.
    """
    part, length, seed = asked
    if part == "all":
        return doc_ids
    if len(doc_ids) > 1:
        ordered = doc_ids[permutation(len(doc_ids), seed=seed, epoch=0)]
        count = max(1, len(doc_ids) // 4)
        return np.sort(ordered[-count:] if part == "last" else ordered[:-count])
    (doc,) = doc_ids
    room = lasts[doc] - firsts[doc] - length  # of starts in both halves
    if room >= 0 and part == "last":
        firsts[doc] = lasts[doc] - room // 4
    elif room >= 0:
        lasts[doc] = firsts[doc] + room - room // 4
    return doc_ids


def _check_at_least(*settings: tuple[str, int, int]) -> None:
    """Refuses a setting, (config path, value, minimum), that is below its minimum."""
    for path, value, minimum in settings:
        if value < minimum:
            raise InputError(f"{path} must be at least {minimum}, got {value}.")


def _first_token(offset_tokens: int, bos_id: int | None) -> int:
    """Returns the first token of a document that can be predicted."""
    return max(offset_tokens, 1) if bos_id is None else offset_tokens


def _too_little_text(
    documents: TokenDocuments, description: str, length: int, first: int, num_available: int
) -> InputError:
    lengths = documents.lengths
    longest = int(np.argmax(lengths))
    enough = int(np.count_nonzero(lengths >= first + length))
    return InputError(
        f"{documents.setting}: {description} of {length:,} tokens need documents of "
        f"{first + length:,} tokens ({first:,} are passed over); {enough} of {len(documents)} are "
        f"so long and give {num_available}, the longest has {lengths[longest]:,} "
        f"('{documents.names[longest]}'). Give longer or more documents, or ask for shorter or "
        "fewer windows."
    )


def _cut(
    documents: TokenDocuments,
    doc_ids: np.ndarray,
    starts: np.ndarray,
    length: int,
    bos_id: int | None,
) -> Windows:
    tokens_WT = np.zeros((len(doc_ids), length + 1), np.int32)
    counted_WT = np.zeros((len(doc_ids), length), np.float32)
    for row, (doc, start) in enumerate(zip(doc_ids.tolist(), starts.tolist(), strict=True)):
        text = documents.tokens(doc, start, start + length)
        before = bos_id  # a conversation has its own at the beginning
        if bos_id is None or (start == 1 and documents.is_chat(doc)):
            before = documents.tokens(doc, start - 1, start)[0]
        tokens_WT[row, 0], tokens_WT[row, 1 : len(text) + 1] = before, text
        counted_WT[row, : len(text)] = documents.counted(doc, start, start + length)
    sums_W1 = counted_WT.sum(axis=1, keepdims=True)
    weights_WT = None
    if documents.are_chats[doc_ids].any():
        weights_WT = counted_WT * (length / np.maximum(sums_W1, 1))
    return Windows(tokens_WT, doc_ids.astype(np.int64), starts.astype(np.int64), weights_WT)


def _suits(documents: TokenDocuments, length: int) -> np.ndarray:
    """Returns whether each document is a conversation that a window of `length` tokens suits."""
    suits = documents.are_chats & (documents.lengths - 1 > length // 2)
    for doc in np.flatnonzero(suits):
        suits[doc] = documents.counted(doc, 1, 1 + length).any()
    return suits
