"""Exceptions for wrong input and for lost processes, and suggestions for misspelt names."""

import difflib
from collections.abc import Iterable

_MOST = 2000  # characters of a message; what a file holds may be of any length


class InputError(ValueError):
    """A mistake in the user's input. Its message is one line: the setting, the rule, the actual
    value, the remedy; programs print it and exit with 2.

    It is made one line, whatever it quotes of a file: without breaks, control characters, or an
    end.
    """

    def __init__(self, message: str):
        text = " ".join(str(message)[: 2 * _MOST].split())
        text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
        super().__init__(text if len(text) <= _MOST else text[: _MOST - 3] + "...")


class TooShort(InputError):
    """A length is too short for the task.

    Attributes:
      least: tokens of a length that is enough; None: not known.
    """

    def __init__(self, message: str, *, least: int | None):
        super().__init__(message)
        self.least = least


class UnsupportedError(InputError, NotImplementedError):
    """The request is valid, but the chosen backend does not support it; the message names those
    that do.
    """


class HostsError(RuntimeError):
    """Another process of the job was late, or is gone. Its message is one line; programs exit
    with 1.
    """


def nearest(name: object, choices: Iterable[object]) -> str:
    """Returns "Did you mean 'x'? Known: a, b, x." for a name that is not among `choices`."""
    names = sorted(str(item) for item in choices)
    close = difflib.get_close_matches(str(name), names, n=1)
    hint = f"Did you mean '{close[0]}'? " if close else ""
    return f"{hint}Known: {', '.join(names)}."


def choose(path: str, name: object, choices: dict):
    """Returns known[name].

    Raises:
      InputError: there is no such name; `path` says which setting is meant.
    """
    if name not in choices:
        raise InputError(f"Unknown {path} '{name}'. {nearest(name, choices)}")
    return choices[name]
