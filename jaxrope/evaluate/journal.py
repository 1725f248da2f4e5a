"""Answers on disk: a killed evaluation continues where it stopped.

`items.jsonl` has a line for each finished item; numbers for every token (NLLs, hits) lie in parts
beside it, one `.npz` a batch, whose digest the line has. An answer is identified by what it depends
on: the row (weights, shape, dtype, tokenizer and factors), the suite, the length, the item, and how
it was asked. If any of these has changed, or what is stored is damaged, it is asked again.
"""

import base64
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxrope.errors import InputError
from jaxrope.mesh import hosts
from jaxrope.rope import Rope
from jaxrope.store import journal, sealed

FORMAT = "jaxrope.items/2"


class Place(NamedTuple):
    """The model, suite and length of items.

    Attributes:
      row: digest of the model and its factors; "" = the model is unknown, nothing is stored.
      label: the row's name, for people.
      suite: which.
      length: tokens.
    """

    row: str
    label: str
    suite: str
    length: int


class Journal:
    """Finished items of the evaluations in one folder.

    Of several processes, process 0 reads and writes; all have the same items.
    """

    def __init__(self, folder: Path | None = None, say: Callable[[str], None] = print):
        """Reads what is there.

        Args:
          folder: the workdir; None = there are no items, and none are stored.
          say: takes a line for the user: what is damaged.

        Raises:
          InputError: items.jsonl is of another program or version, or its first line is damaged.
        """
        self.recalled_seconds = 0.0  # seconds that the answers of `find` took originally
        self._folder, self._say, self._file = folder, say, None
        self._lines: dict[tuple, dict] = {}
        self._parts = 0
        if folder is not None:
            for line in hosts.from_main("items.jsonl", self._open):
                self._take(line)

    @property
    def keeps(self) -> bool:
        """Whether there is a folder."""
        return self._folder is not None

    def find(
        self, place: Place, items: Sequence[str], hows: Sequence[str] | None = None
    ) -> dict[int, dict[str, Any]]:
        """Returns the stored answers, {index in `items`: its line}, with its arrays by name.

        Args:
          place: see Place.
          items: fingerprints.
          hows: of each item, what else its answer depends on; None = nothing.
        """
        if not self.keeps or not place.row:
            return {}
        head = place.row, place.suite, place.length
        keys = [(*head, *pair) for pair in zip(items, hows or [""] * len(items), strict=True)]
        lines = {i: self._lines[key] for i, key in enumerate(keys) if key in self._lines}
        names = dict.fromkeys(line["part"] for line in lines.values() if "part" in line)
        parts = {name: self._arrays(name, lines) for name in names}
        answers = {}
        for i, line in lines.items():
            arrays = parts[line["part"]] if "part" in line else {}
            if arrays is not None:
                answers[i] = line | {name: x[line["place"]] for name, x in arrays.items()}
        self.recalled_seconds += sum(line["seconds"] for line in answers.values())
        return answers

    def add(
        self, place: Place, lines: Sequence[Mapping], arrays: Mapping[str, np.ndarray] | None = None
    ) -> None:
        """Stores a finished batch; it is on disk when this returns.

        Args:
          place: see Place.
          lines: "item", "seconds", perhaps "how" (see `find`), and what the answer is; one for each
            row of `arrays`.
          arrays: numbers by name, [items, ...].
        """
        if not self.keeps or not place.row:
            return
        whole = [{**place._asdict(), "how": "", **line} for line in lines]
        if arrays is not None:
            name, digest = f"{self._parts + 1:06d}.npz", ""
            if hosts.is_main():
                digest = sealed.write_arrays(self._folder / "items" / name, arrays)
            part = {"part": name, "digest": digest}
            whole = [{**line, **part, "place": i} for i, line in enumerate(whole)]
        if hosts.is_main():
            self._file.append(whole)
        for line in whole:
            self._take(line)

    def _open(self) -> list[dict]:
        self._file = journal.Journal(self._folder / "items.jsonl", FORMAT, ordered=False)
        for note in self._file.notes:
            self._say(note)
        if self._file.header is None:
            self._file.begin({})
        return self._file.rows

    def _arrays(self, name: str, lines: Mapping[int, dict]) -> dict[str, np.ndarray] | None:
        """Returns the numbers of a batch; None: they are lost, and their items forgotten."""
        digest = next(line["digest"] for line in lines.values() if line.get("part") == name)
        path = self._folder / "items" / name

        def read() -> str:
            try:
                return base64.b64encode(sealed.read_bytes(path, digest)).decode("ascii")
            except InputError as error:
                self._say(f"{error} What stood there is measured again.")
                return ""

        text = hosts.from_main("items", read)
        if text:
            return sealed.arrays(base64.b64decode(text))
        self._lines = {k: line for k, line in self._lines.items() if line.get("part") != name}
        return None

    def _take(self, line: dict) -> None:
        names = ("row", "suite", "length", "item", "how")
        self._lines[tuple(line[name] for name in names)] = line
        if "part" in line:
            self._parts = max(self._parts, int(line["part"].removesuffix(".npz")))


def row_digest(identity: str, rope: Rope) -> str:
    """Returns what a row's answers depend on beside the question: 16 hex digits, or "" where the
    model is unknown.

    Args:
      identity: see scoring.EvalModel.
      rope: the factors.
    """
    if not identity:
        return ""
    digest = hashlib.sha256(identity.encode())
    for leaf in jax.tree.leaves(rope):
        leaf = np.asarray(leaf)
        digest.update(f"{leaf.dtype.str}{leaf.shape}".encode() + leaf.tobytes())
    digest.update(f"{rope.theta} {rope.per_layer}".encode())
    return digest.hexdigest()[:16]
