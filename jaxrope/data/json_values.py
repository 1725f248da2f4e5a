"""Reads JSON values one after another from a text that need not fit into memory.

A top-level array gives its items; otherwise the values that follow one another are given. The
library's decoder is tried on what was read so far, and on twice as much where that was cut off.
"""

import json
from collections.abc import Callable, Iterator
from typing import Any

_BLOCK = 1 << 20  # characters, at least
_NEAR = 16  # a literal, a number or an escape that is cut off is reported so near to the end
_DECODER = json.JSONDecoder()
_SPACE = " \t\n\r"


class BrokenJson(ValueError):
    """The text is no JSON, or not whole; the message says why."""


def values(read: Callable[[int], str]) -> Iterator[Any]:
    """Yields the items of an array, or the values of a text.

    Args:
      read: (characters) -> the next ones, at most as many; "" at the end.

    Raises:
      BrokenJson: what follows is no JSON.
    """
    text = _Text(read)
    if text.peek() != "[":
        while text.peek():
            yield text.value()
        return
    text.skip()
    if text.peek() == "]":
        text.skip()
    else:
        yield text.value()
        while (mark := text.peek()) == ",":
            text.skip()
            yield text.value()
        if mark != "]":
            raise BrokenJson("an array is not closed" if not mark else f"{mark!r} in an array")
        text.skip()
    if text.peek():
        raise BrokenJson("something follows the array")


def is_json(head: str, *, whole: bool) -> bool:
    """Returns whether a text that begins with `head` is JSON as far as can be seen.

    Args:
      head: its first characters.
      whole: there are no others.
    """
    blocks = [head, ""] if whole else [head]

    def read(_count: int) -> str:
        if not blocks:
            raise _Unseen
        return blocks.pop(0)

    try:
        for _ in values(read):
            pass
    except _Unseen:
        return True
    except BrokenJson:
        return False
    return True


class _Unseen(Exception):
    """What follows the beginning of a text is asked for."""


class _Text:
    """What was read and not used yet."""

    def __init__(self, read: Callable[[int], str]):
        self._read, self._text, self._at, self._ended = read, "", 0, False

    def peek(self) -> str:
        """Returns the next character that is no space, "" at the end."""
        while True:
            while self._at < len(self._text):
                if self._text[self._at] not in _SPACE:
                    return self._text[self._at]
                self._at += 1
            if self._ended:
                return ""
            self._more()

    def skip(self) -> None:
        """Passes over the character that `peek` returned."""
        self._at += 1

    def value(self) -> Any:
        """Returns the next value."""
        if not self.peek():
            raise BrokenJson("the text ends where a value is expected")
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
                if self._ended or end < len(self._text) or isinstance(value, str | dict | list):
                    self._at = end
                    return value
            except RecursionError:
                raise BrokenJson("brackets in brackets without an end") from None
            except json.JSONDecodeError as error:
                if self._ended or not self._is_cut(error):
                    raise BrokenJson(error.msg) from None
            except ValueError as error:  # a number of thousands of digits
                raise BrokenJson(" ".join(str(error).split())[:80]) from None
            self._more()

    def _is_cut(self, error: json.JSONDecodeError) -> bool:
        return error.msg.startswith("Unterminated") or error.pos >= len(self._text) - _NEAR

    def _more(self) -> None:
        rest = self._text[self._at :]
        block = self._read(max(_BLOCK, len(rest)))
        self._text, self._at, self._ended = rest + block, 0, not block
