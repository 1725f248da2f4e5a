"""The English words of RULER, frozen (words.txt; words.md says where they come from)."""

import bisect
import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path

SHA256 = "46b94ee36862ec7d9ba0aeb51d6bc419b3ddca9d34609ab24b8f56481e5d2536"  # of words.txt
_FILE = Path(__file__).with_name("words.txt")


def read() -> tuple[list[str], list[str], list[str]]:
    """Returns (nouns, adjectives, verbs), each sorted and without a word twice."""
    raw = _FILE.read_bytes()
    assert hashlib.sha256(raw).hexdigest() == SHA256, f"{_FILE.name} was changed"
    nouns, adjectives, verbs = raw.decode("utf-8").strip().split("\n\n")
    return nouns.split("\n"), adjectives.split("\n"), verbs.split("\n")


def all_words() -> list[str]:
    """Returns the nouns, adjectives and verbs, sorted, each once: 8,166 words."""
    return sorted(set().union(*read()))


@dataclasses.dataclass(frozen=True)
class Pairs(Sequence):
    """Every "adjective-noun", sorted as texts, without 6,171,620 texts in memory.

    "blue-eyed-boy" stands among the pairs of "blue", so adjectives that begin alike are a block.

    Attributes:
      blocks: the adjectives, those that begin as another one with it.
      nouns: sorted.
      ends: pairs up to the end of each block.
    """

    blocks: tuple[tuple[str, ...], ...]
    nouns: tuple[str, ...]
    ends: tuple[int, ...]

    def __len__(self) -> int:
        return self.ends[-1]

    def __getitem__(self, index: int) -> str:
        number = bisect.bisect_right(self.ends, index)
        block = self.blocks[number]
        place = index - (self.ends[number] - len(block) * len(self.nouns))
        if len(block) == 1:
            return f"{block[0]}-{self.nouns[place]}"
        return sorted(f"{adjective}-{noun}" for adjective in block for noun in self.nouns)[place]


def pairs() -> Pairs:
    """Returns the keys that needles are named by."""
    nouns, adjectives, _ = read()
    blocks: list[list[str]] = []
    for adjective in sorted(adjectives, key=lambda word: word + "-"):
        if blocks and adjective.startswith(blocks[-1][0] + "-"):
            blocks[-1].append(adjective)
        else:
            blocks.append([adjective])
    ends, total = [], 0
    for block in blocks:
        total += len(block) * len(nouns)
        ends.append(total)
    return Pairs(tuple(map(tuple, blocks)), tuple(nouns), tuple(ends))
