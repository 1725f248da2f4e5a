"""The command line of every program: its flags, and errors of one line.

A program with a config is `main(PROGRAM)`, one with arguments of its own `arguments(COMMAND)`, one
with commands `subcommands({name: COMMAND})`; see `program`. All take --dry_run, --no_timing,
--print_config and --help, and end with one of the exit codes of `exits`.
"""

import argparse
import importlib
import json
import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from absl import flags

from jaxrope import errors, schema
from jaxrope.errors import InputError
from jaxrope.shell import compiled, exits, experiment, heap
from jaxrope.shell.program import Command, Program
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
  --dry_run            checks everything, says what would be done and what it costs, and stops
  --no_timing          with --dry_run: measures nothing
  --compile_only       compiles the step and prints what it takes, and stops; no data, no weights
  --topology=NAME:AxB  with --compile_only: for that TPU slice, such as v5e:16x16 or 2xv5p:4x4x4,
                       on any machine with libtpu; without it, for the devices of this machine
  --print_config       prints the resolved config as JSON, and stops
  --help               this text
"""
_TEXTS = ("config", "workdir", "topology")
_SWITCHES = ("dry_run", "no_timing", "compile_only", "print_config", "help")
_FLAGS = _TEXTS + _SWITCHES


def main(program: Program, *, argv: Sequence[str] | None = None) -> None:
    """Runs a program with a config.

    The process first executes itself anew, with the same arguments and the same PID: glibc reads
    the settings of a heap that suits XLA (`heap.keep`) only when a process starts. It does so
    before anything is read or written, and only if `argv` is None: for a process of its own.

    The config is read into the schema, and all that needs no model, text or device is checked,
    before jax is imported.

    Args:
      program: which.
      argv: the arguments after the program's name; None = the process's.

    Raises:
      SystemExit: with the exit code, when it is not 0.
    """
    if argv is None:
        heap.keep()
    argv = _argv(argv)
    exits.run(lambda: _main(program, program.rewrite(argv)))


def subcommands(
    commands: Mapping[str, Command], *, doc: str, argv: Sequence[str] | None = None
) -> None:
    """Runs a program that has commands, such as `import` and `export`.

    Args:
      commands: by name.
      doc: what the program is for, shown by --help.
      argv: the arguments after the program's name; None = the process's.

    Raises:
      SystemExit: with the exit code, when it is not 0.
    """
    argv = _argv(argv)
    exits.run(lambda: _subcommands(commands, doc, argv))


def arguments(command: Command, *, doc: str, argv: Sequence[str] | None = None) -> None:
    """Runs a program with arguments of its own, such as `python -m jaxrope.report`.

    Args:
      command: the program.
      doc: what it is for, shown by --help.
      argv: the arguments after the program's name; None = the process's.

    Raises:
      SystemExit: with the exit code, when it is not 0.
    """
    argv = _argv(argv)
    exits.run(lambda: _run_command(command, None, doc, argv))


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


def _argv(argv: Sequence[str] | None) -> list[str]:
    """Returns the arguments; those of a process of its own, where they are None."""
    if argv is not None:
        return list(argv)
    compiled.keep()
    return sys.argv[1:]


def _main(program: Program, argv: list[str]) -> int | None:
    values, rest = _parse_flags(argv)
    if values["help"]:
        print_line((program.doc or "").strip() + "\n" + _HELP.rstrip())
        return 0
    config = experiment.read(values["config"], _assignments(rest))
    if values["print_config"]:
        print_line(json.dumps(config.to_dict(), indent=1))
        return 0
    program = _that_runs(program, config)
    program.check(config)
    _check_flags(program, values)
    if values["compile_only"]:
        workdir = _workdir(values["workdir"], dry_run=False) if values["workdir"] else None
        return program.compile(config, values["topology"] or "", workdir)
    workdir = _workdir(values["workdir"], values["dry_run"])
    _join_hosts(config, values)
    if values["dry_run"]:
        print_line(program.describe(config, workdir, timing=not values["no_timing"]))
        return 0
    return program.start(config, workdir)


def _that_runs(program: Program, config: schema.Config) -> Program:
    """Returns the program itself, that of its recipes, or its sweep."""
    if config.recipe and not program.recipe:
        raise InputError(
            "config.recipe is for train.py, which runs its stages, each with its own config. Use "
            "train.py, with --config.stages=NAME for one of them."
        )
    if config.stages and not config.recipe:
        raise InputError(
            f"config.stages names {', '.join(config.stages)}, but config.recipe has no stages. "
            "Leave it out, or give the --config of a recipe."
        )
    chosen = program
    if config.recipe:
        chosen = importlib.import_module(f"{program.recipe}.__main__").PROGRAM
    if not config.sweep:
        return chosen
    if not chosen.sweeps:
        raise InputError(
            f"config.sweep: {chosen.package} has no sweep, only a search, a training and an "
            "evaluation have one. Leave it out."
        )
    from jaxrope.shell import sweep

    return sweep.program(chosen)


def _check_flags(program: Program, values: dict) -> None:
    if values["compile_only"] and program.compile is None:
        raise InputError("--compile_only is for train.py and search.py.")
    if values["topology"] and not values["compile_only"]:
        raise InputError(
            f"--topology={values['topology']} is for compiling alone, nothing can run there. Add "
            "--compile_only, or leave --topology out."
        )
    if values["no_timing"] and not values["dry_run"]:
        raise InputError("--no_timing is for --dry_run. Add that, or leave it out.")


def _join_hosts(config: schema.Config, values: dict) -> None:
    """Joins the other processes of the job, which must have this config and this code."""
    # It imports jax: only after the command line has been checked.
    from jaxrope.mesh import hosts

    settings = {f"--{name}": value for name, value in values.items() if name != "config"}
    hosts.join(config, settings | {key: str(value) for key, value in schema.leaves(config)})
    if not hosts.is_main():
        # Process 0 prints for all; errors go to stderr.
        sys.stdout = open(os.devnull, "w", encoding="utf-8")


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
        lines = [f"  {name:12}{_summary(command)}" for name, command in commands.items()]
        print_line("\n".join([(doc or "").strip(), "", "Commands (each has --help):", *lines]))
        if argv:
            return 0
        raise InputError(f"A command is missing. Known: {', '.join(commands)}.")
    command = errors.choose("command", argv[0], commands)
    return _run_command(command, argv[0], command.run.__doc__, argv[1:])


def _run_command(command, prog, doc, argv):
    args = _parse(prog, doc, command.arguments, argv)
    dry_run, print_config = args.dry_run, args.print_config
    for name in ("dry_run", "no_timing", "print_config"):
        delattr(args, name)
    if print_config:
        print_line(json.dumps(vars(args), indent=1))
        return 0
    if dry_run:
        print_line(command.dry_run(args))
        return 0
    return command.run(args)


def _parse(prog, doc, add_arguments_fn, argv):
    parser = _Parser(
        prog=prog,
        description=doc,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_arguments_fn(parser)
    switch = dict(action="store_true")
    parser.add_argument("--dry_run", **switch, help="checks and says what would be done, no more")
    parser.add_argument("--no_timing", **switch, help="with --dry_run: measures nothing")
    parser.add_argument("--print_config", **switch, help="prints the arguments as JSON, no more")
    args, unknown = parser.parse_known_args(argv)
    if unknown and unknown[0].startswith("-"):
        options = re.findall(r"--([a-z_]+)", parser.format_usage())
        raise InputError(_unknown_flag(unknown[0], [*options, "help"]))
    if unknown:
        raise InputError(
            f"Unexpected argument '{unknown[0]}'. See {prog + ' ' if prog else ''}--help."
        )
    return args


def _summary(command):
    return (command.run.__doc__ or "").strip().partition("\n")[0]
