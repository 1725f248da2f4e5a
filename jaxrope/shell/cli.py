"""The command line of every program: its flags, and errors of one line.

`train.py`, `search.py` and `python -m jaxrope.evaluate` are `main(run, doc=__doc__)`; a program
with commands of its own, such as `python -m jaxrope.convert`, is `subcommands(...)`. Exit codes:
0 done; 2 the user's mistake (one line, `error: ...`); 130 Ctrl-C. Any other exception is a bug and
keeps its traceback.
"""

import argparse
import errno
import os
import re
import shlex
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict

from jaxrope import errors
from jaxrope.errors import HostsError, InputError
from jaxrope.shell import experiment, heap
from jaxrope.store import files

_HELP = """
Flags:
  --config=FILE        experiment file, for example configs/base.py. It is Python and is executed:
                       use only files that you trust.
  --config.KEY=VALUE   overrides one key:   --config.train.steps=200
                       a tuple:             --config.eval.lengths='(512,1024)'
                                            --config.eval.suites=perplexity,passkey
                       a section that selects an algorithm, as a whole:
                                            --config.rope="{'method':'yarn','factor':8.0}"
  --workdir=DIR        folder of the results; a run goes on with its own earlier work there
  --dry_run            says what would be done and what it costs, and stops
  --compile_only       compiles the step and prints what it takes, and stops; no data, no weights
  --topology=NAME:AxB  with --compile_only: for that TPU slice, such as v5p:4x4x4 or v5e:16x16,
                       on any machine with libtpu; without it, for the devices of this machine
  --print_config       prints the resolved config as JSON, and stops
  --help               this text
"""
_TEXTS = ("config", "workdir", "topology")
_SWITCHES = ("dry_run", "compile_only", "print_config", "help")
_FLAGS = _TEXTS + _SWITCHES
_ENVIRONMENT_ERRORS = {
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.ENAMETOOLONG,
}


def main(
    run_fn: Callable,
    *,
    doc: str,
    compile_fn: Callable | None = None,
    runs_recipes: bool = False,
    rewrite_fn: Callable[[Sequence[str]], list[str]] = list,
    argv: Sequence[str] | None = None,
) -> None:
    """Runs one program.

    Args:
      run_fn: `run_fn(config, workdir, dry_run)`; may return an exit code.
      doc: what the program is for, shown by --help.
      compile_fn: `compile_fn(config, topology, workdir)` is --compile_only; topology is "" for this
        machine's devices, workdir may be None. None: the program has no such flag.
      runs_recipes: whether it takes a config with a recipe.
      rewrite_fn: arguments -> arguments; it rewrites the flags of the program's own.
      argv: the arguments after the program's name; None = the process's.

    Raises:
      SystemExit: with the exit code, when it is not 0.
    """
    if argv is None:
        heap.keep()
    argv = sys.argv[1:] if argv is None else list(argv)
    _run(lambda: _main(run_fn, compile_fn, runs_recipes, doc, rewrite_fn(argv)))


def subcommands(commands: dict, *, doc: str, argv: Sequence[str] | None = None) -> None:
    """Runs a program that has commands, such as `import` and `export`.

    Args:
      commands: name -> (add_arguments_fn(parser), run_fn(args)); a command's help is the docstring
        of its run_fn, which may return an exit code.
      doc: what the program is for, shown by --help.
      argv: the arguments after the program's name; None = the process's.

    Raises:
      SystemExit: with the exit code, when it is not 0.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    _run(lambda: _subcommands(commands, doc, argv))


def arguments(
    add_arguments_fn: Callable, run_fn: Callable, *, doc: str, argv: Sequence[str] | None = None
) -> None:
    """Runs a program with arguments of its own, such as `python -m jaxrope.report`.

    Args:
      add_arguments_fn: `add_arguments_fn(parser)`.
      run_fn: `run_fn(args)`; may return an exit code.
      doc: what the program is for, shown by --help.
      argv: the arguments after the program's name; None = the process's.

    Raises:
      SystemExit: with the exit code, when it is not 0.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    _run(lambda: run_fn(_parse(None, doc, add_arguments_fn, argv)))


def command_line() -> str:
    """Returns what was typed to start this process; "" if it is not one of our programs."""
    path = Path(sys.argv[0])
    if path.name in ("train.py", "search.py"):
        program = f"python {path.name}"
    elif path.name == "__main__.py" and path.parent.parent.name == "jaxrope":
        program = f"python -m jaxrope.{path.parent.name}"
    elif path.name.startswith("jaxrope-"):
        program = path.name
    else:
        return ""
    return f"{program} {shlex.join(sys.argv[1:])}"


def write_command(workdir: Path) -> None:
    """Writes the command line of one of our programs into command.txt of a workdir."""
    if command := command_line():
        files.write_text_atomic(workdir / "command.txt", f"{command}\n")


def print_line(text: str) -> None:
    """Writes a line of results to standard output, at once."""
    print(text, flush=True)


def _main(run_fn, compile_fn, runs_recipes, doc, argv):
    values, rest = _parse_flags(argv)
    if values["help"]:
        print_line((doc or "").strip() + "\n" + _HELP.rstrip())
        return 0
    config = experiment.load(values["config"], _assignments(rest))
    if values["print_config"]:
        print_line(config.to_json(indent=1))
        return 0
    _check_recipe(config, runs_recipes)
    if values["topology"] and not values["compile_only"]:
        raise InputError(
            f"--topology={values['topology']} is for compiling alone, nothing can run there. Add "
            "--compile_only, or leave --topology out."
        )
    if values["compile_only"]:
        return _compile(compile_fn, config, values)
    workdir = _workdir(values["workdir"], values["dry_run"])
    _join_hosts(config, values)
    return run_fn(config, workdir, values["dry_run"])


def _check_recipe(config, runs_recipes):
    if config.recipe and not runs_recipes:
        raise InputError(
            "config.recipe is for train.py, which runs its stages, each with its own config. Use "
            "train.py, with --config.stages=NAME for one of them."
        )
    if config.stages and not config.recipe:
        raise InputError(
            f"config.stages names {', '.join(config.stages)}, but config.recipe has no stages. "
            "Leave it out, or give the --config of a recipe."
        )


def _join_hosts(config, values):
    """Joins the other processes of the job, which must have this config and this code."""
    # It imports jax: only after the command line has been checked.
    from jaxrope.mesh import hosts

    settings = {f"--{name}": value for name, value in values.items() if name != "config"}
    for key, value in experiment.dotted_keys(config).items():
        if not isinstance(value, ConfigDict):
            settings[key] = str(value)
    hosts.join(config, settings)
    if not hosts.is_main():
        # Process 0 prints for all; errors go to stderr.
        sys.stdout = open(os.devnull, "w", encoding="utf-8")


def _compile(compile_fn, config, values):
    if compile_fn is None:
        raise InputError("--compile_only is for train.py and search.py.")
    workdir = _workdir(values["workdir"], dry_run=False) if values["workdir"] else None
    return compile_fn(config, values["topology"] or "", workdir)


def _parse_flags(argv):
    """Returns ({flag: value}, the remaining arguments)."""
    flag_values = flags.FlagValues()
    flag_values.set_gnu_getopt(True)
    for name in _TEXTS:
        flags.DEFINE_string(name, None, "", flag_values=flag_values)
    for name in _SWITCHES:
        flags.DEFINE_boolean(
            name, False, "", short_name="h" if name == "help" else None, flag_values=flag_values
        )
    try:
        rest = flag_values(["program", *argv], known_only=True)[1:]
    except (flags.Error, ValueError) as error:
        raise InputError(f"{error}. See --help.") from None
    return {name: flag_values[name].value for name in _FLAGS}, rest


def _assignments(rest):
    """Returns [(dotted key, text or None)] of the arguments other than `_FLAGS`."""
    pairs, rest = [], list(rest)
    while rest:
        argument = rest.pop(0)
        match = re.fullmatch(r"--?(no)?config\.([^=]+)(?:=(.*))?", argument, re.DOTALL)
        if match:
            negated, key, text = match.groups()
            if negated:
                text = "false"
            elif text is None and rest and not rest[0].startswith("--"):
                text = rest.pop(0)
            pairs.append((key, text))
        elif argument != "--" and argument.startswith("-"):
            raise InputError(_unknown_flag(argument, [*_FLAGS, "config.KEY"]))
        elif argument != "--":
            raise InputError(
                f"Unexpected argument '{argument}': every flag is --name=value. See --help."
            )
    return pairs


def _unknown_flag(argument, names):
    name = argument.lstrip("-").partition("=")[0]
    return (
        f"Unknown flag '--{name}'. {errors.nearest('--' + name, [f'--{flag}' for flag in names])}"
    )


def _workdir(text, dry_run):
    if not text:
        raise InputError(
            "--workdir=DIR is missing: the folder of the results, for example --workdir=runs/first."
        )
    path = files.as_path(text)
    if files.is_remote(path):
        if not dry_run:
            files.check_writable(path)
        return path
    if path.exists() and not path.is_dir():
        raise InputError(f"--workdir={text} is a file. Give a folder, or a name that is free.")
    if not dry_run:
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"--workdir={text} cannot be made: {error.strerror}. Give a folder that can be "
                "written."
            ) from error
    return path


class _Parser(argparse.ArgumentParser):
    """argparse, with errors of one line."""

    def error(self, message):
        raise InputError(f"{message}. See --help.")


def _subcommands(commands, doc, argv):
    if not argv or argv[0] in ("-h", "--help"):
        lines = [f"  {name:12}{_summary(run_fn)}" for name, (_, run_fn) in commands.items()]
        print_line("\n".join([(doc or "").strip(), "", "Commands (each has --help):", *lines]))
        if argv:
            return 0
        raise InputError(f"A command is missing. Known: {', '.join(commands)}.")
    add_arguments_fn, run_fn = errors.choose("command", argv[0], commands)
    return run_fn(_parse(argv[0], run_fn.__doc__, add_arguments_fn, argv[1:]))


def _parse(prog, doc, add_arguments_fn, argv):
    parser = _Parser(
        prog=prog,
        description=doc,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_arguments_fn(parser)
    args, unknown = parser.parse_known_args(argv)
    if unknown and unknown[0].startswith("-"):
        options = re.findall(r"--([a-z_]+)", parser.format_usage())
        raise InputError(_unknown_flag(unknown[0], [*options, "help"]))
    if unknown:
        raise InputError(
            f"Unexpected argument '{unknown[0]}'. See {prog + ' ' if prog else ''}--help."
        )
    return args


def _summary(run_fn):
    return (run_fn.__doc__ or "").strip().partition("\n")[0]


def _run(program):
    """Runs a program; an error that the user can fix becomes one line and an exit code."""
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
