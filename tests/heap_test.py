"""The process that starts itself again."""

import os
import platform
import subprocess
import sys

import pytest

from jaxrope.shell import heap

PROGRAM = """
import os, sys
from jaxrope.shell import heap
before = os.environ.get("TURN", "0")
os.environ["TURN"] = str(int(before) + 1)
heap.keep()
print(os.getpid(), os.environ["TURN"], os.environ["GLIBC_TUNABLES"], sys.argv[1:])
"""


def started(**environment):
    clean = {name: text for name, text in os.environ.items() if name != "GLIBC_TUNABLES"}
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "--a=b c", "d"],
        stdout=subprocess.PIPE,
        text=True,
        env=clean | {"JAX_PLATFORMS": "cpu"} | environment,
    )
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    number, turn, tunables, *arguments = out.split(maxsplit=3)
    assert int(number) == process.pid, "signals must find it under its number"
    assert arguments == ["['--a=b c', 'd']\n"]
    return int(turn), tunables


BLOCKS = """
import numpy as np
from jaxrope.shell import heap
heap.keep()
for size in (1 << 28, heap.LARGEST + (1 << 20)):
    before = heap.resident()
    block = np.empty(size, np.uint8)
    block[: 1 << 28] = 1
    during = heap.resident()
    del block
    print((during - before) >> 20, (heap.resident() - before) >> 20, heap.most(size) // size)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_the_largest_blocks_alone_are_given_back():
    clean = {name: text for name, text in os.environ.items() if name != "GLIBC_TUNABLES"}
    command = [sys.executable, "-c", BLOCKS]
    done = subprocess.run(command, env=clean | {"JAX_PLATFORMS": "cpu"}, capture_output=True)
    kept, largest = (list(map(int, line.split())) for line in done.stdout.splitlines())
    assert kept[0] > 250 and kept[1] > 250 and kept[2] == 4
    assert largest[1] < 50 and largest[2] == 1


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_once_and_as_it_was_started():
    assert started() == (2, heap.TUNABLES)


def test_the_users_own_tunables_stay():
    assert started(GLIBC_TUNABLES="glibc.malloc.perturb=0") == (1, "glibc.malloc.perturb=0")


@pytest.mark.parametrize("name", ["accel0", "vfio/0", "nvidia0"])
def test_a_machine_with_an_accelerator_is_known(tmp_path, name):
    assert not heap._has_accelerator(tmp_path)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    assert heap._has_accelerator(tmp_path)


def test_without_glibc_nothing_happens(monkeypatch):
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(os, "execv", lambda *_: pytest.fail("started again"))
    heap.keep()
