"""One line of progress for a whole search: phases, forward tokens, time left."""

from typing import Any

from jaxrope.shell import Progress


class Meter:
    """Counts forward tokens of all phases of a search against those planned.

    A phase may need less than was planned, and the search goes on with the next one: what was
    spared then counts as done, so that the time left is that of what is left. Use it as a context
    manager.
    """

    def __init__(self, planned: dict[str, int]):
        """`planned`: forward tokens of each phase, at most, in order."""
        self._planned = dict(planned)
        self._phase, self._before, self._spent, self._fields = "", 0, 0, {}
        self._progress = Progress(sum(planned.values()), unit="tokens")

    def __enter__(self) -> "Meter":
        return self

    def __exit__(self, *_) -> None:
        self._progress.close()

    def begin(self, phase: str, done: int = 0, *, spared: dict[str, int] | None = None) -> None:
        """Begins a phase, whose first `done` tokens an earlier run has computed; `spared`: tokens
        of other phases, by name, that it spends.
        """
        names = list(self._planned)
        for name, tokens in (spared or {}).items():
            self._planned[name] -= tokens
            self._planned[phase] += tokens
        before = sum(self._planned[name] for name in names[: names.index(phase)])
        self._progress.skip(before + done - self._before - self._spent)
        self._phase, self._before, self._spent, self._fields = phase, before, done, {}

    def extend(self, phase: str, tokens: int) -> None:
        """Adds to what is planned for a phase."""
        self._planned[phase] += tokens
        self._progress.extend(tokens)

    def add(self, tokens: int) -> None:
        """Counts what was computed, and tells of it."""
        self._spent = min(self._spent + tokens, self._planned[self._phase])
        self._tell()

    def tell(self, **fields: Any) -> None:
        """Shows `fields` in this and later lines of the phase."""
        self._fields = fields
        self._tell()

    def _tell(self) -> None:
        self._progress.update(self._before + self._spent, phase=self._phase, **self._fields)
