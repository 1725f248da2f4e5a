"""Ctrl-C and SIGTERM end a program at once, even while a device computes or XLA compiles.

Python hears a signal only between its own instructions, and its normal exit waits for what the
devices still do: minutes, with a batch of 256k tokens. A program whose files survive SIGKILL need
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
    hear, tell = os.pipe()
    os.set_blocking(tell, False)
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda *_: None) for number in numbers]
    wakeup = signal.set_wakeup_fd(tell, warn_on_full_buffer=False)

    def watch() -> None:
        heard = os.read(hear, 1)
        if heard:
            print(f"\n{message}", file=sys.stderr, flush=True)
            hosts.announce(128 + heard[0], signal.Signals(heard[0]).name)
            os._exit(128 + heard[0])

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
        os.close(tell)  # the watcher reads nothing and ends
