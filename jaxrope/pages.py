"""Large arrays on huge pages.

XLA's CPU backend takes the memory of a step from the C library and gives it back at its end, so
that every step faults in each 4 KiB page again: 230,000 faults and a quarter of the time of a
training step of 4,096 tokens. With huge pages there are 1,200.
"""

import os
import platform
import sys

_NAME = "GLIBC_TUNABLES"  # read by glibc (2.35 and later) when a process starts, and only then


def use_huge_pages() -> None:
    """Starts this process again, as it was started, with glibc's malloc on huge pages; returns
    where that is done already, where the user has set glibc's tunables, and without glibc.

    To be called before anything is done: the process keeps its number and its open files.
    """
    if _NAME in os.environ or platform.libc_ver()[0] != "glibc" or not sys.orig_argv:
        return
    os.environ[_NAME] = "glibc.malloc.hugetlb=1"
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
