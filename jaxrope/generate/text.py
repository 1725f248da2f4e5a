"""Tokens into text as they come: whole characters only, and nothing behind a stop text."""

from collections.abc import Iterable, Sequence

_BROKEN = "\ufffd"  # what a tokenizer makes of the first bytes of a character


class TextStream:
    """The text of one row.

    A token may be a part of a character: its bytes wait for those that follow. What may be the
    beginning of a stop text waits too.
    """

    def __init__(self, tokenizer, prompt: Iterable[int], stops: Sequence[str] = ()):
        """Args:
        tokenizer: data.Tokenizer.
        prompt: ids before the first token; some tokenizers drop the space at the beginning of a
          text.
        stops: texts at which the row ends; they are not shown.
        """
        self._tokenizer, self._stops = tokenizer, tuple(stop for stop in stops if stop)
        self._ids = list(prompt)[-_CONTEXT:]
        self._num_decoded = len(self._ids)  # ids whose text was returned or is held
        self._held = ""
        self.ended = False

    def push(self, token: int) -> str:
        """Returns the text that a new token makes certain."""
        self._ids.append(int(token))
        return self._pass(self._decoded(final=False))

    def finish(self) -> str:
        """Returns what was held back, when no token follows."""
        return "" if self.ended else self._pass(self._decoded(final=True)) + self._take_held()

    def _decoded(self, *, final: bool) -> str:
        before = self._tokenizer.decode(self._ids[: self._num_decoded])
        whole = self._tokenizer.decode(self._ids)
        if not final and whole.endswith(_BROKEN) and len(self._ids) - self._num_decoded < _CONTEXT:
            return ""
        text = whole[len(before) :]
        self._ids = self._ids[-_CONTEXT:]
        self._num_decoded = len(self._ids)
        return text

    def _pass(self, text: str) -> str:
        if self.ended:
            return ""
        self._held += text
        ends = [place for stop in self._stops if (place := self._held.find(stop)) >= 0]
        if ends:
            self.ended = True
            released, self._held = self._held[: min(ends)], ""
            return released
        keep = max((_overlap(self._held, stop) for stop in self._stops), default=0)
        released = self._held[: len(self._held) - keep]
        self._held = self._held[len(self._held) - keep :]
        return released

    def _take_held(self) -> str:
        held, self._held = self._held, ""
        return held


_CONTEXT = 8  # tokens before the new ones that are decoded with them; a character has 4 bytes


def _overlap(text: str, stop: str) -> int:
    """Returns how many characters at the end of `text` begin `stop`."""
    sizes = range(min(len(text), len(stop) - 1), 0, -1)
    return next((size for size in sizes if text.endswith(stop[:size])), 0)
