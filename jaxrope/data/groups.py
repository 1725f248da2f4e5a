"""Groups of documents, each with a share of the rows: sources with weights, text beside
conversations, and a mix by length.
"""

import dataclasses
import hashlib
import os
from collections.abc import Mapping, Sequence
from fractions import Fraction

import numpy as np

from jaxrope.data.corpus import TokenDocuments
from jaxrope.data.sources import matching_paths
from jaxrope.errors import InputError


@dataclasses.dataclass(frozen=True)
class Group:
    """Documents that have a share of the rows.

    Attributes:
      name: what they are, for messages.
      docs: int64, which documents.
      share: of the rows, above 0 to 1.
    """

    name: str
    docs: np.ndarray
    share: Fraction

    @property
    def digest(self) -> str:
        """SHA-256 of which documents they are, in hex."""
        return hashlib.sha256(self.docs.astype("<i8").tobytes()).hexdigest()


def make_groups(
    documents: TokenDocuments,
    sources: Sequence[tuple[str, float]],
    *,
    long_share: float,
    long_tokens: int,
    chat_share: float = 0.0,
) -> tuple[Group, ...]:
    """Returns the groups of a mix; (): all documents are one.

    Args:
      documents: of all sources.
      sources: (files or glob, weight) pairs; (): all files are one source.
      long_share: of the rows of each source, for its long documents; 0: length does not matter.
      long_tokens: a document is long that has so many tokens, or more.
      chat_share: of the rows, for conversations; 0: as they come. Not beside `sources`.

    Raises:
      InputError: a file belongs to two sources, or a group has no documents.
    """
    if not sources and not long_share and not chat_share:
        return ()
    groups = _by_kind(documents, chat_share) if chat_share else _by_source(documents, sources)
    return _by_length(documents, groups, long_share, long_tokens) if long_share else groups


def _by_source(documents: TokenDocuments, sources: Sequence[tuple[str, float]]) -> tuple:
    if not sources:
        return (Group("", np.arange(len(documents)), Fraction(1)),)
    weights = [Fraction(str(weight)) for _, weight in sources]
    source_of: dict[str, int] = {}  # real path -> source
    for number, (pattern, _) in enumerate(sources):
        for path in matching_paths(pattern, documents.setting):
            if source_of.setdefault(path, number) != number:
                first = sources[source_of[path]][0]
                raise InputError(
                    f"{documents.setting}: '{path}' belongs to two sources, '{first}' and "
                    f"'{pattern}'. Name every file once."
                )
    of_file = [source_of[os.path.realpath(file.path)] for file in documents.files]
    of_doc = np.array(of_file)[documents.file_numbers]
    groups = [
        Group(pattern, np.flatnonzero(of_doc == number), weights[number] / sum(weights))
        for number, (pattern, _) in enumerate(sources)
    ]
    for group in groups:
        if not len(group.docs):
            raise InputError(
                f"{documents.setting}: no document of '{group.name}' has any text. Leave it out."
            )
    return tuple(groups)


def _by_kind(documents: TokenDocuments, chat_share: float) -> tuple[Group, ...]:
    """Tells conversations from text."""
    are_chats, share = documents.are_chats, Fraction(str(chat_share))
    if are_chats.all() or not are_chats.any():
        raise InputError(
            f"data.chat_share is {chat_share:g}, and {documents.setting} has "
            f"{'conversations alone' if are_chats.any() else 'no conversations'}. Set it to 0, or "
            "give text and conversations."
        )
    kinds = (("text", ~are_chats, 1 - share), ("conversations", are_chats, share))
    return tuple(Group(name, np.flatnonzero(chosen), part) for name, chosen, part in kinds)


def _by_length(
    documents: TokenDocuments, groups: Sequence[Group], long_share: float, long_tokens: int
) -> tuple[Group, ...]:
    """Splits every group in long documents and short ones."""
    is_long = documents.lengths >= long_tokens
    share, split = Fraction(str(long_share)), []
    kinds: Mapping = {"long": (is_long, share), "short": (~is_long, 1 - share)}
    for group in groups:
        of = f" of '{group.name}'" if group.name else ""
        for kind, (chosen, part) in kinds.items():
            docs = group.docs[chosen[group.docs]]
            if part and not len(docs):
                raise InputError(
                    f"data.long_share is {long_share:g}, and no document{of} is {kind}: has "
                    f"{'' if kind == 'long' else 'less than '}data.long_tokens="
                    f"{long_tokens:,} tokens{' or more' if kind == 'long' else ''}. Set it to 0, "
                    "or give such documents."
                )
            if part:
                name = f"{group.name}, {kind}" if group.name else f"{kind} documents"
                split.append(Group(name, docs, group.share * part))
    return tuple(split)
