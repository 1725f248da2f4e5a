"""A roll call of the processes before jax connects, which names those that are missing.

If a process does not connect in time, jax ends with a stack trace that does not say which one is
missing. So the processes meet first, on the port where process 0 will run jax's coordination
service: each sends its index, and all go on together or not at all.
"""

import contextlib
import os
import socket
import time
from collections.abc import Iterator

from jaxrope.errors import InputError

VARIABLES = ADDRESS, COUNT, INDEX = (
    "JAX_COORDINATOR_ADDRESS",
    "JAX_NUM_PROCESSES",
    "JAX_PROCESS_ID",
)
_RETRY_SECONDS = 0.2
_LONGEST = 4096  # bytes of a line; a longer one is not from this program


def from_environment() -> tuple[str, int, int] | None:
    """Returns (address of process 0, number of processes, index of this one); None: nothing is set.

    Raises:
      InputError: the variables are incomplete or inconsistent.
    """
    variables = {name: os.environ.get(name, "") for name in VARIABLES}
    if variables[COUNT] == "1":
        return "", 1, 0
    if not any(variables.values()):
        return None
    missing = [name for name, value in variables.items() if not value]
    present = [name for name, value in variables.items() if value]
    if missing:
        raise InputError(
            f"{', '.join(missing)} is not set, but {', '.join(present)} is. "
            f"Set all of {ADDRESS}, {COUNT} and {INDEX}, or none."
        )
    for name in (COUNT, INDEX):
        if not variables[name].isdigit():
            raise InputError(f"{name} must be a whole number, got '{variables[name]}'.")
    total, number = int(variables[COUNT]), int(variables[INDEX])
    if not 0 <= number < total:
        raise InputError(f"{INDEX} must be from 0 to {total - 1} ({COUNT} - 1), got {number}.")
    return variables[ADDRESS], total, number


def meet(address: str, index: int, count: int, *, timeout: float) -> None:
    """Returns once all `count` processes have connected.

    Args:
      address: "host:port" of process 0.
      index: of this process.
      count: of all processes.
      timeout: seconds.

    Raises:
      InputError: a process did not connect in time; the message names the missing ones on process
        0, and wherever its answer arrives.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise InputError(f"JAX_COORDINATOR_ADDRESS must be host:port, got '{address}'.")
    until = time.monotonic() + timeout
    if index == 0:
        _call(int(port), count, until, timeout)
    else:
        _answer(host.strip("[]"), int(port), index, until, timeout)


def _call(port: int, count: int, until: float, timeout: float) -> None:
    present: dict[int, socket.socket] = {}
    try:
        with contextlib.ExitStack() as stack, _listen(port) as server:
            while len(present) < count - 1:
                server.settimeout(max(until - time.monotonic(), 0.001))
                try:
                    peer, _ = server.accept()
                except TimeoutError:
                    break
                stack.enter_context(peer)
                number = _number(peer)
                if number is not None and 0 < number < count:
                    present[number] = peer
            missing = [number for number in range(1, count) if number not in present]
            reply = _missing(missing, count, timeout) if missing else "go"
            for peer in present.values():
                _end(peer, reply)
    except OSError as error:
        raise InputError(
            f"JAX_COORDINATOR_ADDRESS: process 0 cannot listen on port {port}: {error.strerror}. "
            "Give a port that is free."
        ) from None
    if missing:
        raise InputError(reply)


def _answer(host: str, port: int, index: int, until: float, timeout: float) -> None:
    while time.monotonic() < until:
        try:
            with socket.create_connection((host, port), timeout=5.0) as peer:
                peer.sendall(f"process {index}\n".encode())
                # process 0 waits as long as this one does, and then names the missing processes
                peer.settimeout(max(until - time.monotonic(), 0.001) + 5.0)
                reply = _line(peer)
        except OSError:
            reply = ""
        if reply == "go":
            return
        if reply:
            raise InputError(reply)
        time.sleep(_RETRY_SECONDS)
    raise InputError(
        f"hosts: process 0 did not answer at {host}:{port} within {timeout:g} s "
        "(hosts.timeout_seconds). Look at its log, and see that JAX_COORDINATOR_ADDRESS can be "
        "reached from here."
    )


def _missing(missing: list[int], count: int, timeout: float) -> str:
    names = ", ".join(map(str, missing[:20])) + (", ..." if len(missing) > 20 else "")
    return (
        f"hosts: of {count} processes, number {names} did not come within {timeout:g} s "
        "(hosts.timeout_seconds). Look at their logs, and start all again."
    )


@contextlib.contextmanager
def _listen(port: int) -> Iterator[socket.socket]:
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    with socket.create_server(
        ("", port), family=family, backlog=1024, dualstack_ipv6=both
    ) as server:
        yield server


def _number(peer: socket.socket) -> int | None:
    peer.settimeout(5.0)
    try:
        word, _, number = _line(peer).partition(" ")
    except OSError:
        return None
    return int(number) if word == "process" and number.isdigit() else None


def _line(peer: socket.socket) -> str:
    received = b""
    while not received.endswith(b"\n") and len(received) < _LONGEST:
        block = peer.recv(256)
        if not block:
            break
        received += block
    return received.decode("utf-8", "replace").rstrip("\n") if received.endswith(b"\n") else ""


def _end(peer: socket.socket, text: str) -> None:
    """The other side closes first: a port that waits for stray packets could not be used again."""
    with contextlib.suppress(OSError):
        peer.settimeout(5.0)
        peer.sendall(f"{text}\n".encode())
        peer.recv(1)
