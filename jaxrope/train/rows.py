"""What is said of the rows that a training is fed with, before it is paid for."""

import numpy as np

from jaxrope import data
from jaxrope.schema import Config

LEAST_REAL = 0.8  # of a batch's tokens; fewer are told with the remedy
_REMEDIES = {
    "chunk": 'data.mode="pack" fills rows with several documents, masked apart, "concat" joins '
    "them",
    "pack": 'data.mode="concat" joins documents and fills every row; or use shorter rows',
    "concat": "use shorter rows, or more text",
}


def describe_rows(config: Config, documents: data.TokenDocuments, loader) -> list[str]:
    """Returns lines for the user: how full rows are, what counts in them, the groups' epochs.

    Args:
      config: of the program.
      documents: the text.
      loader: data.TrainLoader or data.MixtureLoader of it.
    """
    seq_len, real = config.train.seq_len, loader.real_share
    line = f"rows ({config.data.mode}): {real:.1%} of a batch's tokens are real, the rest padding"
    if real < LEAST_REAL:
        line += f"; {_REMEDIES[config.data.mode]}"
    lines = [line]
    if documents.roles is not None:
        lines += _chats(documents, loader, seq_len, config.data.mode)
    of_text = 1.0 - config.data.needle_share - config.data.short_share
    rows = of_text * config.train.steps * config.train.batch_size
    lines += [
        f"rows of {name}: {share:.1%}, {rows * share / num_rows:.2f} epochs of them"
        for name, (num_rows, share) in loader.parts.items()
    ]
    return lines


def _chats(documents: data.TokenDocuments, loader, seq_len: int, mode: str) -> list[str]:
    chats = documents.are_chats
    counted = loader.num_targets / loader.num_real
    lines = [
        f"conversations: {np.count_nonzero(chats):,}; answers alone are learned, {counted:.1%} of "
        "the real tokens of an epoch count"
    ]
    names = [name for name, is_chat in zip(documents.names, chats, strict=True) if is_chat]
    if apart := len(names) - len(set(names)):
        lines.append(
            f"the chat template writes earlier messages otherwise once others follow: each answer "
            f"is learned in a text of its own, {len(set(names)):,} records are {len(names):,} "
            f"conversations, {apart:,} more"
        )
    longer = np.count_nonzero(chats & (documents.lengths - 1 > seq_len))
    if longer and mode != "concat":
        lines.append(
            f"{longer:,} conversations are longer than a row of {seq_len:,} tokens and lose their "
            "end; those without an answer before it are left out"
        )
    return lines
