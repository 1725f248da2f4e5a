"""The exception that means "your input", the one that means "another process", and help with a
misspelt name.
"""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """The user's mistake. Its message is one line: where, the rule, the value got, the remedy;
    programs print it and exit with 2.
    """


class TooShort(InputError):
    """A length has no room for what is asked at it.

    Attributes:
      least: tokens of a length that has; None: not known.
    """

    def __init__(self, message: str, *, least: int | None):
        super().__init__(message)
        self.least = least


class UnsupportedError(InputError, NotImplementedError):
    """What was asked for is right, but what was chosen by name cannot do it; the message names
    those that can.
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
