"""One live line about a long piece of work: how far, how fast, how much longer.

On a terminal the line is drawn over itself; anywhere else (a file, a pipe, TERM=dumb) a plain line
is written at most every `interval` seconds, so that a log of a day stays readable.
"""

import collections
import os
import shutil
import sys
import time

from jaxrope.mesh import hosts

_REDRAW_SECONDS = 0.1  # a faster redraw is not visible and costs time on a slow link
# The rate is that of the last minute, without the first report, in which programs were compiled.
_WINDOW_SECONDS = 60.0


class Progress:
    """The live line. Use it as a context manager, or call `close` at the end.

    A stream that fails (a closed pipe) makes it silent; it never ends the work that it reports on.
    """

    def __init__(
        self, total, *, unit="steps", start=0, stream=None, interval=10.0, clock=time.monotonic
    ):
        """Begins now.

        Args:
          total: amount of work, in `unit`; 0 = unknown, then there is no ETA.
          unit: what is counted, in the plural.
          start: amount done before this process began (a resumed run).
          stream: where to write; None = standard error, of several processes that of process 0.
          interval: seconds between lines where there is no terminal.
          clock: seconds, monotonic.
        """
        self._total, self._unit, self._interval = total, unit, interval
        self._stream = (sys.stderr if hosts.is_main() else None) if stream is None else stream
        self._clock = clock
        self._live = _is_terminal(self._stream)
        self._history = collections.deque([(clock(), start)])
        self._reports = 0
        self._drawn_at = None  # seconds; when a line was last written
        self._width = 0  # characters of the live line that are on the screen
        self._pending = None  # the newest line, if it was not written

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def update(self, done, **fields):
        """Reports that `done` of the total is done, with `fields` (numbers or text) beside it."""
        now = self._clock()
        self._history.append((now, done))
        self._reports += 1
        if self._reports == 2:
            self._history.popleft()
        while len(self._history) > 2 and now - self._history[1][0] > _WINDOW_SECONDS:
            self._history.popleft()
        self._pending = self._line(done, fields)
        pause = _REDRAW_SECONDS if self._live else self._interval
        if self._drawn_at is None or now - self._drawn_at >= pause or done == self._total:
            self._drawn_at = now
            self._draw(self._pending)

    def skip(self, amount):
        """Reports that `amount` more had been done before: it counts, but not for the rate."""
        self._history = collections.deque((then, done + amount) for then, done in self._history)

    def extend(self, amount):
        """Reports that `amount` more is to be done."""
        self._total += amount

    def write(self, text):
        """Writes a whole line of its own; the live line goes on below it."""
        self._put(f"\r{' ' * self._width}\r{text}\n" if self._live and self._width else f"{text}\n")
        self._width = 0

    def close(self):
        """Writes the newest line if it was held back, and leaves the cursor on a fresh line."""
        if self._pending is not None:
            self._draw(self._pending)
        if self._live and self._width:
            self._put("\n")
            self._width = 0

    def _line(self, done, fields):
        (then, before), (now, _) = self._history[0], self._history[-1]
        rate = (done - before) / (now - then) if now > then else 0.0
        parts = [
            f"{done:,}/{self._total:,} {self._unit}" if self._total else f"{done:,} {self._unit}"
        ]
        parts += [f"{name} {_text(value)}" for name, value in fields.items()]
        parts.append(f"{_text(rate)} {self._unit}/s")
        if self._total and rate > 0:
            parts.append(f"ETA {duration((self._total - done) / rate)}")
        return "  ".join(parts)

    def _draw(self, line):
        self._pending = None
        if not self._live:
            self._put(f"{line}\n")
            return
        # A wrapped line cannot be drawn over.
        line = line[: max(shutil.get_terminal_size().columns - 1, 20)]
        self._put(f"\r{line}{' ' * (self._width - len(line))}")
        self._width = len(line)

    def _put(self, text):
        if self._stream is None:
            return
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):  # ValueError: the stream was closed
            self._stream = None


def duration(seconds):
    """Returns a duration as text: "8s", "3m20s", "2h05m", "3d04h"."""
    seconds = max(round(seconds), 0)
    for unit, small, size, part in (
        ("d", "h", 86_400, 3600),
        ("h", "m", 3600, 60),
        ("m", "s", 60, 1),
    ):
        if seconds >= size:
            return f"{seconds // size}{unit}{seconds % size // part:02d}{small}"
    return f"{seconds}s"


def _text(value):
    if isinstance(value, str):
        return value
    number = float(value)
    if abs(number) >= 10_000:
        return f"{number:,.0f}"
    return f"{value:,}" if isinstance(value, int) else f"{number:.4g}"


def _is_terminal(stream):
    try:
        return stream.isatty() and os.environ.get("TERM") != "dumb"
    except (AttributeError, ValueError):  # no stream at all, or one that was closed
        return False
