"""Ctrl-C and SIGTERM end a program at once, even while a device computes or XLA compiles.

Python hears a signal only between its own instructions, and its normal exit waits for the
devices to finish: minutes, with a batch of 256k tokens. A program whose files survive SIGKILL need
not wait.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator

from jaxrope.mesh import hosts


@contextlib.contextmanager
def exit_at_once(message: str) -> Iterator[None]:
    """Makes both signals print `message` and end the process with 128 + the signal's number.

    For programs, in their main thread; nothing is cleaned up.
    """
    read_fd, write_fd = os.pipe()
    os.set_blocking(write_fd, False)
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda *_: None) for number in numbers]
    wakeup = signal.set_wakeup_fd(write_fd, warn_on_full_buffer=False)

    def watch() -> None:
        signals = os.read(read_fd, 1)
        if signals:
            print(f"\n{message}", file=sys.stderr, flush=True)
            hosts.announce(128 + signals[0], signal.Signals(signals[0]).name)
            os._exit(128 + signals[0])

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
        os.close(write_fd)  # the watcher reads nothing and ends
