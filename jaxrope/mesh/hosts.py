"""Many processes as one program: their number, barriers with a timeout, and shared decisions.

A program calls `initialize` before anything touches a device. On a Cloud TPU pod jax finds the
other hosts by itself; elsewhere three environment variables name them, of which jax itself reads
only the first:

    JAX_COORDINATOR_ADDRESS  host:port of process 0
    JAX_NUM_PROCESSES        their number
    JAX_PROCESS_ID           index of this one

Without them there is one process, and everything here returns at once. Every wait has a name and a
timeout (`hosts.timeout_seconds`), and its error names the processes that are late. A process that
dies is detected after `hosts.heartbeat_seconds`: jax then aborts the others. A process that ends
with an error announces it, and the others end within seconds.
"""

import atexit
import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import secrets
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
from jax._src import distributed  # there is no public way to the coordination service
from jax.experimental import multihost_utils

from jaxrope.errors import HostsError, InputError
from jaxrope.mesh import rollcall

_WATCH_SECONDS = 1.0
_ENDED = "jaxrope/ended"
_CHUNK = 1 << 20  # bytes of one value that the coordination service carries


class _Together:
    """What the processes do together; all do the same things in the same order."""

    timeout, work = 300.0, 7200.0  # seconds
    uses: dict[str, int] = {}

    @classmethod
    def key(cls, name: str) -> str:
        """Returns a name that was not used before, the same on every process."""
        cls.uses[name] = cls.uses.get(name, 0) + 1
        return f"jaxrope/{name}/{cls.uses[name]}"


def initialize(*, timeout_seconds: float, heartbeat_seconds: float, work_seconds: float) -> None:
    """Joins the other processes, if there are any; touches no device.

    Args:
      timeout_seconds: the longest that any process waits for another one.
      heartbeat_seconds: a process that is silent for so long counts as dead, and the others end.
      work_seconds: the longest wait for a piece of work that one process does for others.

    Raises:
      InputError: the environment variables are inconsistent, or a process did not connect.
    """
    seconds = {"timeout": timeout_seconds, "heartbeat": heartbeat_seconds, "work": work_seconds}
    for name, value in seconds.items():
        if not value >= 1:
            raise InputError(f"hosts.{name}_seconds must be at least 1, got {value}.")
    _Together.timeout, _Together.work = float(timeout_seconds), float(work_seconds)
    environment = rollcall.from_environment()
    if distributed.global_state.client is not None:
        return
    if environment is None and not _on_cloud_tpu():
        return
    if environment is not None and environment[1] == 1:
        return
    where: dict[str, Any] = {}
    if environment is not None:
        address, count_, index_ = environment
        rollcall.meet(address, index_, count_, timeout=timeout_seconds)
        where = {"coordinator_address": address, "num_processes": count_, "process_id": index_}
        where["cluster_detection_method"] = "deactivate"
    _connect(where, int(timeout_seconds), int(heartbeat_seconds))
    if count() > 1:
        _watch()


def join(config, request: Mapping[str, Any]) -> None:
    """Joins the other processes, which must have the same `request` (JSON values by name) and run
    the same code; see `initialize` and `agree`.
    """
    section = config.hosts
    initialize(
        timeout_seconds=section.timeout_seconds,
        heartbeat_seconds=section.heartbeat_seconds,
        work_seconds=section.work_seconds,
    )
    if count() > 1:
        agree("start", {**request, **code()})


def count() -> int:
    """Returns the number of processes; touches no device."""
    return distributed.global_state.num_processes if _client() is not None else 1


def index() -> int:
    """Returns the index of this process; touches no device."""
    return distributed.global_state.process_id if _client() is not None else 0


def is_main() -> bool:
    """Returns whether this is process 0, the one that prints and writes."""
    return index() == 0


def barrier(name: str, *, long: bool = False) -> None:
    """Waits until every process is here.

    Args:
      name: for the message; the same on every process.
      long: for hosts.work_seconds, not hosts.timeout_seconds.

    Raises:
      HostsError: a process was late; the message names it.
    """
    if count() == 1:
        return
    timeout = _Together.work if long else _Together.timeout
    try:
        _client().wait_at_barrier(_Together.key(name), int(timeout * 1000))
    except jax.errors.JaxRuntimeError as error:
        raise HostsError(_late(name, str(error), timeout)) from None


def from_main(name: str, fn: Callable[[], Any]) -> Any:
    """Calls `fn` on process 0 alone and returns its result, as JSON carries it, on every process.

    Args:
      name: for the messages; the same on every process.
      fn: work for one process alone, or with a result that all must share.

    Raises:
      InputError: `fn` raised it; then every process does.
      HostsError: process 0 did not answer in time.
    """
    if count() == 1:
        return fn()
    key = _Together.key(name)
    if is_main():
        try:
            reply = {"value": fn()}
        except InputError as error:
            _publish(key, {"error": str(error)})
            raise
        _publish(key, reply)
        return json.loads(json.dumps(reply))["value"]
    reply = _published(key, name, _Together.timeout)
    if "error" in reply:
        raise InputError(reply["error"])
    return reply["value"]


def build(name: str, folder: Path, fn: Callable[[], None]) -> None:
    """Calls `fn`, which writes into `folder`, once for each file system.

    Process 0 calls it, and so does every process that does not see its files, because its `folder`
    is on another disk. The rest wait until it is done.

    Args:
      name: for the messages.
      folder: exists, and is writable.
      fn: returns at once where its work is already done.

    Raises:
      HostsError: a process took longer than hosts.work_seconds; the message names it.
    """
    if count() == 1:
        fn()
        return
    mark = folder / from_main(name, lambda: f".{secrets.token_hex(8)}.mark")
    if is_main():
        mark.touch()
    barrier(f"{name} begins")
    builds_here = is_main() or not mark.exists()
    barrier(f"{name} is looked for")
    if is_main():
        mark.unlink()
    if builds_here:
        fn()
    barrier(f"{name} is ready", long=True)


def agree(name: str, values: Mapping[str, Any]) -> None:
    """Checks that all processes have the same values.

    Args:
      name: for the messages.
      values: JSON values by name.

    Raises:
      InputError: on every process, with the index of each one that differs from process 0, and the
        values that differ.
    """
    if count() == 1:
        return
    mine = json.loads(json.dumps(values))
    expected = from_main(name, lambda: values)
    different = [key for key in {**expected, **mine} if expected.get(key) != mine.get(key)]
    summary = ", ".join(
        f"{key} ({_short(mine.get(key))}, process 0 has {_short(expected.get(key))})"
        for key in different[:5]
    )
    key = _Together.key(f"{name} compared")
    _client().key_value_set(f"{key}/{index()}", summary)
    barrier(f"{name} compared")
    verdicts = {int(k.rpartition("/")[2]): text for k, text in _client().key_value_dir_get(key)}
    wrong = [f"process {number}: {text}" for number, text in sorted(verdicts.items()) if text]
    if wrong:
        raise InputError(
            f"hosts: the processes are not alike. {'; '.join(wrong[:3])}. Start all of them with "
            "one command, one environment and one version of the code."
        )


def code() -> dict[str, str]:
    """Returns the versions this process runs, and a digest of every file of this package."""
    digest = hashlib.sha256()
    root = Path(__file__).resolve().parents[1]
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root).as_posix()}\0".encode())
        digest.update(path.read_bytes())
    names = ("jax", "jaxlib", "numpy", "orbax-checkpoint", "optax")
    versions = {name: importlib.metadata.version(name) for name in names}
    return versions | {"python": platform.python_version(), "jaxrope's files": digest.hexdigest()}


def preempted(tick: int) -> bool:
    """Returns whether SIGTERM has reached any process; true on all of them at the same tick.

    Every process must call this at every tick, from the same one on. Always false with one process.
    """
    return count() > 1 and multihost_utils.reached_preemption_sync_point(tick)


def lost(error: BaseException) -> str:
    """Returns one line for an error of jax that means a process is gone or late, else ""."""
    signs = ("Gloo", "CoordinationService", "heartbeat", "Connection reset", "Socket closed")
    if count() == 1 or not isinstance(error, jax.errors.JaxRuntimeError):
        return ""
    text = str(error)
    is_lost = any(sign in text for sign in signs)
    return f"hosts: another process is gone or late: {_first_line(error)[:300]}" if is_lost else ""


def late(error: str) -> str:
    """Returns the numbers of the processes that a barrier's error names, or ""."""
    match = re.search(r"timed out task names:\s*([\d\s,]+)", error)
    return ", ".join(re.findall(r"\d+", match.group(1))) if match else ""


def announce(exit_code: int, text: str) -> None:
    """Announces to the others that this process ends for a reason that they may not share."""
    if count() == 1:
        return
    notice = json.dumps({"process": index(), "code": exit_code, "text": text})
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # another process was first
        _client().key_value_set(_ENDED, notice)
    if is_main():
        time.sleep(3 * _WATCH_SECONDS)  # this process runs the service, and the others must read it


def leave(exit_code: int, text: str) -> None:
    """Ends a process that failed, without waiting for the others; returns if there are none."""
    if count() == 1:
        return
    announce(exit_code, text)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)


def _client():
    return distributed.global_state.client


def _on_cloud_tpu() -> bool:
    """Returns whether this machine has TPU chips that jax will use."""
    from jax._src.cloud_tpu_init import running_in_cloud_tpu_vm  # set when jax was imported

    return running_in_cloud_tpu_vm and "tpu" in (jax.config.jax_platforms or "tpu")


def _connect(where: dict, timeout: int, heartbeat: int) -> None:
    def give_up() -> None:
        text = f"error: hosts: not all processes came within {timeout} s (hosts.timeout_seconds)."
        print(f"{text} Look at their logs, and start all again.", file=sys.stderr, flush=True)
        os._exit(2)

    # jax would abort with a stack trace that names no process
    alarm = threading.Timer(timeout, give_up)
    alarm.daemon = True
    alarm.start()
    try:
        jax.distributed.initialize(
            **where,
            initialization_timeout=timeout + 30,
            heartbeat_timeout_seconds=heartbeat,
            shutdown_timeout_seconds=timeout,
        )
    except ValueError as error:
        raise InputError(
            f"hosts: jax does not find the other hosts of this TPU ({error}). Set "
            f"{rollcall.COUNT}=1 if there are none, else {', '.join(rollcall.VARIABLES)}."
        ) from None
    finally:
        alarm.cancel()


def _watch() -> None:
    """Ends this process when another one announces that it ends with an error."""
    over = threading.Event()
    atexit.register(over.set)  # before jax's own handler, which releases the client

    def watch() -> None:
        while not over.wait(_WATCH_SECONDS):
            try:
                notice = json.loads(_client().key_value_try_get(_ENDED))
            except (jax.errors.JaxRuntimeError, AttributeError):  # no notice yet; client is gone
                continue
            if notice["process"] == index():
                return
            text = f"error: process {notice['process']} of {count()} ended: {notice['text']}"
            print(text, file=sys.stderr, flush=True)
            if is_main():
                time.sleep(3 * _WATCH_SECONDS)
            os._exit(notice["code"])

    threading.Thread(target=watch, daemon=True).start()


def _publish(key: str, value: dict) -> None:
    text = json.dumps(value)
    parts = [text[i : i + _CHUNK] for i in range(0, len(text), _CHUNK)]
    for i, part in enumerate(parts):
        _client().key_value_set(f"{key}/part{i}", part)
    _client().key_value_set(f"{key}/parts", str(len(parts)))


def _published(key: str, name: str, timeout: float) -> dict:
    try:
        number = int(_client().blocking_key_value_get(f"{key}/parts", int(timeout * 1000)))
        parts = [
            _client().blocking_key_value_get(f"{key}/part{i}", int(timeout * 1000))
            for i in range(number)
        ]
    except jax.errors.JaxRuntimeError as error:
        if "DEADLINE_EXCEEDED" not in str(error):
            raise HostsError(f"hosts: '{name}': {_first_line(error)}") from None
        raise HostsError(
            f"hosts: '{name}': process 0 did not answer within {timeout:g} s "
            "(hosts.timeout_seconds). Look at its log."
        ) from None
    return json.loads("".join(parts))


def _late(name: str, error: str, timeout: float) -> str:
    processes = late(error)
    if "DEADLINE_EXCEEDED" in error and processes:
        return (
            f"hosts: '{name}' was not reached within {timeout:g} s by process "
            f"{processes} of {count()} (hosts.timeout_seconds, hosts.work_seconds). "
            "Look at its log."
        )
    return f"hosts: '{name}' failed: {_first_line(error)}"


def _first_line(error: object) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
