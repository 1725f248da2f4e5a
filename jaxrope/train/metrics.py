"""What a run writes down: metrics.jsonl always, TensorBoard if tensorboardX is installed and the
workdir is no bucket.

A row of metrics.jsonl has `step` (optimizer steps done) and either the step's numbers or `eval`.
Whatever a clock measured is under the one key `timing`, so that the rows of a run that was killed
and resumed equal those of an undisturbed one in everything else.
"""

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path

from jaxrope.errors import InputError
from jaxrope.mesh import hosts
from jaxrope.store import files

FILE = "metrics.jsonl"


def read(path: Path) -> tuple[list[dict], list[int]]:
    """Returns (the rows of a metrics.jsonl, the numbers of lines that are damaged); what a killed
    process left of a last line is dropped.

    Raises:
      InputError: the file cannot be read.
    """
    try:
        lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror or error}). Move it away."
        ) from None
    rows = [_row(line) for line in lines]
    whole = [row for row in rows if row is not None]
    return whole, [number for number, row in enumerate(rows, start=1) if row is None]


def _row(line: bytes) -> dict | None:
    """Returns what a line holds; None: it is none of ours."""
    try:
        row = json.loads(line)
        is_row = type(row["step"]) is int and ("eval" in row or type(row["tokens"]) is int)
        return row if is_row else None
    except (ValueError, RecursionError, TypeError, KeyError):
        return None


class MetricsLog:
    """Rows on their way to the disk. A disk that is full costs rows or time, never the training.

    With several processes, only process 0 writes; the others record which steps were evaluated.
    """

    def __init__(self, workdir: Path, *, resumed_step: int, say: Callable[[str], None]):
        """Opens the log and cuts off the rows of steps after `resumed_step`, which will come again.

        Args:
          workdir: the run's folder.
          resumed_step: optimizer steps done.
          say: prints a line; called once if something cannot be written.

        Raises:
          InputError: the file there cannot be read.
        """
        self.path = workdir / FILE
        self._say = say
        self._rows: list[dict] = []
        self._complained = False
        self._board = None
        if hosts.is_main() and not files.is_remote(workdir):
            self._board = _tensorboard(workdir / "tensorboard", resumed_step, say)
        self._evaluated = set(hosts.from_main("metrics", lambda: self._evaluations(resumed_step)))

    def add(self, row: dict) -> None:
        """Takes a row; `flush` writes it."""
        if "eval" in row:
            self._evaluated.add(row["step"])
        if not hosts.is_main():
            return
        self._rows.append({key: _plain(value) for key, value in row.items()})
        if self._board is not None:
            self._try(lambda: _to_board(self._board, row))

    def has_evaluation(self, step: int) -> bool:
        """Returns whether there is a row of an evaluation at `step`."""
        return step in self._evaluated

    def flush(self) -> None:
        """Writes the rows taken so far; those that cannot be written are kept for the next time."""
        if self._rows and self._try(lambda: files.append_jsonl(self.path, self._rows)):
            self._rows = []

    def close(self) -> None:
        """Writes what is left."""
        self.flush()
        if self._board is not None:
            self._try(self._board.close)

    def _evaluations(self, step: int) -> list[int]:
        return [row["step"] for row in self._cut(step) if "eval" in row]

    def _cut(self, step: int) -> list[dict]:
        rows, damaged = read(self.path)
        if damaged:
            numbers = ", ".join(map(str, damaged[:5])) + ("" if len(damaged) <= 5 else ", ...")
            self._say(f"{self.path}, line {numbers}: damaged, left out")
        earlier_rows = [row for row in rows if row["step"] <= step]
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in earlier_rows)
        if self.path.exists() and self.path.read_bytes() != text.encode():
            self._try(lambda: files.write_text_atomic(self.path, text))
        return earlier_rows

    def _try(self, write: Callable[[], object]) -> bool:
        size = files.size(self.path) if self.path.exists() else 0
        try:
            write()
            return True
        except OSError as error:
            if not self._complained:
                self._say(
                    f"metrics cannot be written ({error.strerror}: {self.path}); training goes on"
                )
            self._complained = True
            self._mend(size)
            return False

    def _mend(self, size: int) -> None:
        """A full disk can take half of a row: the file goes back to the length it had."""
        if files.is_remote(self.path):
            return  # what is written there is whole
        try:
            with open(self.path, "r+b") as file:
                file.truncate(size)
        except OSError:
            pass  # reported already; a torn last line is repaired when the run is resumed


def _plain(value):
    """Returns a value that JSON holds: NaN and infinity, which it does not, become text."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _tensorboard(folder: Path, resumed_step: int, say: Callable[[str], None]):
    hidden = "torch" not in sys.modules
    if (
        hidden
    ):  # where torch is installed tensorboardX imports it, two seconds, for what we never write
        sys.modules["torch"] = None
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        return None
    finally:
        if hidden:
            del sys.modules["torch"]
    try:
        return SummaryWriter(str(folder), purge_step=resumed_step + 1)
    except OSError as error:
        say(f"TensorBoard cannot be written ({error.strerror}: {folder}); training goes on")
        return None


def _to_board(board, row: dict, prefix: str = "") -> None:
    for key, value in row.items():
        if isinstance(value, dict):
            _to_board(board, {"step": row["step"], **value}, f"{prefix}{key}/")
        elif key != "step" and isinstance(value, int | float):
            board.add_scalar(prefix + key, value, row["step"])
