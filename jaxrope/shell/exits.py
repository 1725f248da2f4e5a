"""How a program ends: the exit code, and one line for an error that the user can mend."""

import errno
import logging
import os
import sys
import traceback
from collections.abc import Callable

from jaxrope.errors import HostsError, InputError

_ENVIRONMENT_ERRORS = {
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.ENAMETOOLONG,
}


def run(program: Callable[[], int | None]) -> None:
    """Runs a program; an error that the user can fix becomes one line and an exit code.

    0: done. 1: the run failed, and its log says why. 2: a mistake, `error: ...`. 128 + N: signal N
    stopped it (130 is Ctrl-C, 143 SIGTERM), or 141: its reader has read enough. Any other exception
    is a bug and keeps its traceback.

    What Orbax logs through absl is silenced for the whole process: it logs a failure with its
    trace, which store.checkpoint says in one line.

    Raises:
      SystemExit: with the exit code, when it is not 0.
    """
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a locale without UTF-8 shows \\u2014
    code, reason = 1, "a bug; its log has the traceback"
    try:
        code, reason = _outcome(program)
    finally:
        if reason:
            _leave_hosts(code, reason)
    if code:
        sys.exit(code)


def _outcome(program):
    """Returns (exit code, why this process fails, or "")."""
    try:
        code = program()
        return code, "its log says why" if code == 1 else ""
    except InputError as error:
        return _refuse(error), str(error)
    except HostsError as error:
        _refuse(error)
        return 1, str(error)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130, "interrupted"
    except BrokenPipeError:  # `| head` has read enough; 141 is what the shell gives a SIGPIPE
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141, "its standard output was closed"
    except OSError as error:
        if error.errno not in _ENVIRONMENT_ERRORS:
            raise
        where = f"{error.filename or 'the file system'}: {error.strerror}"
        return _refuse(f"{where}. Give a folder that can be written and has room."), where
    except RuntimeError as error:
        hosts = sys.modules.get("jaxrope.mesh.hosts")
        if hosts is not None and (lost := hosts.lost(error)):
            _refuse(lost)
            return 1, lost
        if "Unable to initialize backend" not in str(error):
            raise
        _refuse(
            f"{error}. JAX_PLATFORMS is '{os.environ.get('JAX_PLATFORMS', '')}': without it, or "
            "with JAX_PLATFORMS=cpu, the program runs on what this machine has."
        )
        return 2, str(error)


def _leave_hosts(code, reason):
    """Ends this process at once if there are others: a normal exit would wait for them."""
    hosts = sys.modules.get("jaxrope.mesh.hosts")
    if hosts is not None and hosts.count() > 1:
        if sys.exc_info()[0] is not None:
            traceback.print_exc()
        hosts.leave(code, reason)


def _refuse(message):
    print("error:", " ".join(str(message).split()), file=sys.stderr)
    return 2
