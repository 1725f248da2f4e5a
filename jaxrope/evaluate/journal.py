"""Answers on disk: a killed evaluation continues where it stopped.

`items.jsonl` has a line for each finished item; numbers for every token (NLLs, hits) lie in parts
beside it, one `.npz` a batch. An answer is identified by what it depends on: the row
(weights, shape, dtype, tokenizer and factors), the suite, the length, the item, and how it was
asked. If any of these has changed, the question is asked again.
"""

import base64
import functools
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from jaxrope.errors import InputError
from jaxrope.mesh import hosts
from jaxrope.rope import Rope
from jaxrope.store import files

FORMAT = "jaxrope.items/1"


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

    def __init__(self, folder: Path | None = None):
        """Reads what is there.

        Args:
          folder: the workdir; None = there are no items, and none are stored.

        Raises:
          InputError: items.jsonl is broken, or of another program.
        """
        self.recalled_seconds = 0.0  # seconds that the answers of `find` took originally
        self._folder = folder
        self._part = ("", {})  # the part that was read last
        self._lines: dict[tuple, dict] = {}
        self._parts = 0
        if folder is not None:
            for line in hosts.from_main("items.jsonl", lambda: _read(folder)):
                self._take(line)

    @property
    def keeps(self) -> bool:
        """Whether there is a folder."""
        return self._folder is not None

    def find(
        self, place: Place, items: Sequence[str], hows: Sequence[str] | None = None
    ) -> dict[int, dict]:
        """Returns the stored lines: {index in `items`: its line}.

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
        self.recalled_seconds += sum(line["seconds"] for line in lines.values())
        return lines

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
            name = f"{self._parts + 1:06d}.npz"
            whole = [{**line, "part": name, "place": i} for i, line in enumerate(whole)]
        if hosts.is_main():
            if arrays is not None:
                buffer = io.BytesIO()
                np.savez(buffer, **arrays)
                files.write_bytes_atomic(self._folder / "items" / name, buffer.getvalue())
            files.append_jsonl(self._folder / "items.jsonl", whole, durable=True)
        for line in whole:
            self._take(line)

    def arrays(self, line: Mapping) -> dict[str, np.ndarray]:
        """Returns the numbers of one item that `find` returned."""
        if self._part[0] != line["part"]:
            path = self._folder / "items" / line["part"]
            raw = base64.b64decode(hosts.from_main("items", lambda: _base64(path)))
            with np.load(io.BytesIO(raw), allow_pickle=False) as part:
                self._part = line["part"], {name: part[name] for name in part.files}
        return {name: values[line["place"]] for name, values in self._part[1].items()}

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


def _read(folder: Path) -> list[dict]:
    """Returns the lines whose numbers are there; a new journal begins with its format."""
    path = folder / "items.jsonl"
    try:
        lines = files.read_jsonl(path)
    except ValueError as error:
        raise InputError(str(error)) from None
    if not lines:
        files.write_text_atomic(path, json.dumps({"format": FORMAT}) + "\n")
        return []
    if lines[0].get("format") != FORMAT:
        raise InputError(
            f"{path}: format must be '{FORMAT}', got {lines[0].get('format')!r}. Use another "
            "--workdir."
        )
    there = functools.cache(lambda name: (folder / "items" / name).exists())
    return [line for line in lines[1:] if "part" not in line or there(line["part"])]


def _base64(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode("ascii")
