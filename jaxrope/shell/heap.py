"""A heap that returns only the largest blocks to the system, on huge pages.

XLA's CPU backend takes the memory of a step from the C library and gives it back at its end; glibc
gives it back to the system, and the next step faults in each 4 KiB page again: 230,000 faults and
a fifth to a half of the time of a training step of 4,096 tokens. This way there are none.

What is kept is cut up by what is allocated between two steps, so that the heap holds the block of
a step up to four times over. Above `LARGEST` that is too much memory: such a block comes from the
system each time, on huge pages, which costs a tenth of the step's time.
"""

import os
import platform
import sys
from pathlib import Path

_NAME = "GLIBC_TUNABLES"  # read by glibc (2.35 and later) when a process starts, and only then
LARGEST = 1 << 30  # bytes of a block that is kept
_COPIES = 4  # of a block in the heap, at most: measured, 1.7 to 3.8
_TUNABLES = {
    "hugetlb": 1,  # transparent huge pages
    "mmap_threshold": LARGEST,  # smaller blocks come from the heap,
    "arena_max": 1,  # of which there is one,
    "trim_threshold": 1 << 40,  # and which never shrinks
}
TUNABLES = ":".join(f"glibc.malloc.{name}={value}" for name, value in _TUNABLES.items())


def keep() -> None:
    """Restarts this process, with the same arguments, with such a heap.

    Does nothing if that was done already, if the user has set glibc's tunables, without glibc, and
    if a TPU or a GPU does the work: one arena is slow for the many threads of its host.

    Call it before anything else: the process keeps its PID and its open files.
    """
    if _NAME in os.environ or platform.libc_ver()[0] != "glibc" or not sys.orig_argv:
        return
    if os.environ.get("JAX_PLATFORMS", "") != "cpu" and _has_accelerator(Path("/dev")):
        return
    os.environ[_NAME] = TUNABLES
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def most(block: int) -> int:
    """Returns the bytes that this process takes, at most, for a block of this size that it
    allocates again and again.
    """
    is_kept = os.environ.get(_NAME) == TUNABLES and block <= LARGEST
    return block * (_COPIES if is_kept else 1)


def resident() -> int:
    """Returns the bytes of memory that this process takes now; 0 where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    except (OSError, IndexError, ValueError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def _has_accelerator(devices: Path) -> bool:
    return any(any(devices.glob(name)) for name in ("accel*", "vfio/[0-9]*", "nvidia[0-9]*"))
