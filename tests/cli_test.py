"""The command line as a person meets it: exit codes, one-line errors, odd environments."""

import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from jaxrope.errors import InputError
from jaxrope.shell import cli
from jaxrope.shell.program import Command, Program

ROOT = Path(__file__).resolve().parent.parent
BASE = f"--config={ROOT / 'configs' / 'base.py'}"


def program(run, **more):
    """Returns a program that runs like this."""
    return Program(**(dict(package="jaxrope.search", doc="", run=run) | more))


def record(calls):
    """Returns a program that appends what it was called with."""
    return program(lambda *call: calls.append(call))


def raising(error):
    def run(*_):
        raise error

    return program(run)


def refused(capsys, tried, *argv, code=2):
    """Runs a program that must exit with `code`; returns its line on standard error."""
    with pytest.raises(SystemExit) as caught:
        cli.main(tried, argv=argv)
    assert caught.value.code == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


def test_the_program_gets_config_and_workdir(tmp_path):
    calls = []
    workdir = tmp_path / "a" / "b c"
    argv = [BASE, "--config.train.steps=7", f"--workdir={workdir}", "--config.seed", "3"]
    cli.main(record(calls), argv=argv)
    ((config, folder),) = calls
    assert (config.train.steps, config.seed, folder) == (7, 3, workdir)
    assert workdir.is_dir()


@pytest.mark.parametrize(("flags", "timing"), [([], True), (["--no_timing"], False)])
def test_a_dry_run_makes_no_folder_and_prints_what_the_program_says(
    tmp_path, capsys, flags, timing
):
    def dry_run(config, workdir, may_measure):
        return f"{config.seed} {workdir.name} {may_measure}"

    tried = program(lambda *_: pytest.fail("run"), dry_run=dry_run)
    cli.main(tried, argv=[BASE, "--workdir", str(tmp_path / "a"), "--dry_run", *flags])
    assert capsys.readouterr().out == f"0 a {timing}\n"
    assert not (tmp_path / "a").exists()


def test_compiling_alone_needs_no_workdir(tmp_path):
    runs, calls = [], []
    argv = [BASE, "--compile_only", "--topology=v5e:2x2", f"--workdir={tmp_path / 'a'}"]

    def compile_fn(*args):
        calls.append(args[1:])

    for part in (argv[:2], argv[:3], argv):
        cli.main(program(runs.append, compile=compile_fn), argv=part)
    assert calls == [("", None), ("v5e:2x2", None), ("v5e:2x2", tmp_path / "a")]
    assert not runs


def test_a_switch_without_a_value_and_one_with_no(tmp_path):
    calls = []
    argv = [BASE, f"--workdir={tmp_path}", "--config.search.compare", "--noconfig.search.compare"]
    cli.main(record(calls), argv=argv[:3])
    cli.main(record(calls), argv=argv)
    assert [call[0].search.compare for call in calls] == [True, False]


def test_tilde_and_a_relative_folder(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    cli.main(record(calls), argv=[BASE, "--workdir=~/a"])
    cli.main(record(calls), argv=[BASE, "--workdir=d\u00e9j\u00e0 vu/"])
    assert calls[0][1] == tmp_path / "a"
    assert (tmp_path / "d\u00e9j\u00e0 vu").is_dir()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "--config=FILE is missing"),
        ([BASE], "--workdir=DIR is missing"),
        (["--config"], "Missing value for flag --config"),
        (
            [BASE, "--workdri=x"],
            "Unknown flag '--workdri'. Did you mean '--workdir'? Known: --comp",
        ),
        (
            [BASE, "-x"],
            "Unknown flag '--x'. Known: --compile_only, --config, --config.KEY, --dry_run",
        ),
        ([BASE, "--topology=v5p:4x4x4"], "--topology=v5p:4x4x4 is for compiling alone"),
        ([BASE, "--compile_only"], "--compile_only is for train.py and search.py"),
        ([BASE, "--workdir=x", "extra"], "Unexpected argument 'extra'"),
        (["extra", BASE, "--workdir=x"], "Unexpected argument 'extra'"),
        ([BASE, "--workdir=x", "--", "extra"], "Unexpected argument 'extra'"),
        ([BASE, "--dry_run=perhaps"], "perhaps"),
        ([BASE, "--workdir=gs://bucket/a"], "gs://bucket/a: gs:// needs the package gcsfs"),
        ([BASE, f"--workdir={__file__}"], "cli_test.py is a file"),
        ([BASE, f"--workdir={__file__}/a"], "cannot be made: Not a directory"),
        ([BASE, "--workdir=" + "a" * 300], "File name too long"),
        (["--config=" + "a" * 300, "--workdir=x"], "File name too long"),
        ([BASE, "--config.train.stps=3", "--workdir=x"], "Did you mean train.steps"),
        ([BASE, "--no_timing", "--workdir=x"], "--no_timing is for --dry_run"),
        ([BASE, "--config.stages=a", "--workdir=x"], "config.recipe has no stages"),
        (
            [BASE, "--config.recipe=(('a','search',()),)", "--workdir=x"],
            "config.recipe is for train.py",
        ),
        (
            [BASE, "--config.sweep=(('seed',(1,-2)),)", "--workdir=x"],
            "sweep: seed must be a whole number, 0 or more, got -2",
        ),
        ([BASE, "--config.train.steps", "--workdir=x"], "--config.train.steps has no value"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(capsys, argv, message, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    calls = []
    line = refused(capsys, record(calls), *argv)
    assert line.startswith("error: ")
    assert message in line
    assert not calls
    assert not list(tmp_path.iterdir())


def test_an_input_error_of_the_program_is_one_line(capsys, tmp_path):
    argv = (BASE, f"--workdir={tmp_path}")
    line = refused(capsys, raising(InputError("train.steps must be > 0,\n got -5.")), *argv)
    assert line == "error: train.steps must be > 0, got -5.\n"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS])
def test_a_full_or_closed_file_system_is_one_line(capsys, tmp_path, number):
    error = OSError(number, os.strerror(number), "/results/params")
    line = refused(capsys, raising(error), BASE, f"--workdir={tmp_path}")
    assert line.startswith(f"error: /results/params: {os.strerror(number)}. Give a folder")


def test_a_backend_that_is_not_there_is_one_line(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "tpu")
    error = RuntimeError("Unable to initialize backend 'tpu': INTERNAL: no libtpu.so")
    line = refused(capsys, raising(error), BASE, f"--workdir={tmp_path}")
    assert "Unable to initialize backend 'tpu'" in line
    assert "JAX_PLATFORMS is 'tpu': without it, or with JAX_PLATFORMS=cpu, the program runs" in line


def test_ctrl_c(capsys, tmp_path):
    argv = (BASE, f"--workdir={tmp_path}")
    assert refused(capsys, raising(KeyboardInterrupt()), *argv, code=130) == "interrupted\n"


@pytest.mark.parametrize("error", [ValueError("a bug"), RuntimeError("a bug"), OSError(2, "a bug")])
def test_a_bug_keeps_its_traceback(tmp_path, error):
    with pytest.raises(type(error), match="a bug"):
        cli.main(raising(error), argv=[BASE, f"--workdir={tmp_path}"])


def test_the_exit_code_is_what_the_program_returns(tmp_path):
    with pytest.raises(SystemExit) as caught:
        cli.main(program(lambda *_: 3), argv=[BASE, f"--workdir={tmp_path}"])
    assert caught.value.code == 3


def test_print_config_is_json_and_needs_no_workdir(capsys):
    calls = []
    cli.main(record(calls), argv=[BASE, "--config.seed=5", "--print_config"])
    assert json.loads(capsys.readouterr().out)["seed"] == 5
    assert not calls


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_says_what_the_program_is_for_and_that_a_config_is_executed(capsys, flag):
    cli.main(program(None, doc="Frobnicates."), argv=[flag])
    text = capsys.readouterr().out
    assert text.startswith("Frobnicates.\n")
    assert "is executed" in text
    assert {f"--{name}" for name in cli._FLAGS} <= set(re.findall(r"--\w+", text))


def test_what_the_schema_cannot_know_is_refused_before_the_workdir_is_made(capsys, tmp_path):
    def check(config):
        raise InputError(f"seed {config.seed} and the rest do not go together.")

    tried = program(lambda *_: pytest.fail("run"), check=check)
    line = refused(capsys, tried, BASE, f"--workdir={tmp_path / 'a'}")
    assert line == "error: seed 0 and the rest do not go together.\n"
    assert not (tmp_path / "a").exists()


HOSTILE = {
    "--config.stages=2147483648": "stages[0] must be text",
    "--config.eval.checkpoints=-99999999999999999999": "eval.checkpoints[0] must be like",
    "--config.search.seeds=(-5,)": "search.seeds[0] must be text",
    "--config.seed=1" + "0" * 400: "seed must be a whole number up to 9223372036854775807",
    "--config.seed=1" + "0" * 5000: "seed must be a whole number",
    "--config.eval.lengths=" + "(" * 300: "which is no Python",
    "--config.eval.lengths=" + "(" * 90 + "1" + ",)" * 90: "eval.lengths[0] must be a whole",
    "--config.data.train_files=('a\\x00b',)": "data.train_files[0] must be text",
    "--config.rope={[]:1}": "--config.rope must be a Python dict",
}


@pytest.mark.parametrize("argument", HOSTILE, ids=lambda text: text[:40])
def test_a_hostile_value_is_one_short_line(capsys, argument):
    line = refused(capsys, record([]), BASE, argument, "--workdir=never")
    assert HOSTILE[argument] in line and len(line) < 400


# --- commands


def commands(calls):
    def add_arguments(parser):
        parser.add_argument("folder")
        parser.add_argument("--allow_lossy", action="store_true")
        parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")

    def export(args):
        """Writes a folder."""
        calls.append(args)
        return 4

    def dry_run(args):
        return f"would write {args.folder}"

    return {
        "export": Command(arguments=add_arguments, run=export, dry_run=dry_run),
        "import": Command(arguments=add_arguments, run=calls.append, dry_run=dry_run),
    }


def test_a_command_gets_its_arguments_and_gives_the_exit_code():
    calls = []
    with pytest.raises(SystemExit) as caught:
        cli.subcommands(commands(calls), doc="", argv=["export", "a b", "--allow_lossy"])
    assert caught.value.code == 4
    assert vars(calls[0]) == {"folder": "a b", "allow_lossy": True, "dtype": "float32"}


def test_the_flags_that_all_programs_have(capsys):
    calls = []
    table = commands(calls)
    cli.subcommands(table, doc="", argv=["export", "a", "--dry_run", "--no_timing"])
    assert capsys.readouterr().out == "would write a\n"
    cli.arguments(table["export"], doc="", argv=["a", "--print_config"])
    assert json.loads(capsys.readouterr().out) == {
        "folder": "a",
        "allow_lossy": False,
        "dtype": "float32",
    }
    assert not calls


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "A command is missing. Known: export, import."),
        (["exprot"], "Unknown command 'exprot'. Did you mean 'export'? Known: export, import."),
        (["export"], "the following arguments are required: folder. See --help."),
        (
            ["export", "a", "--alow_lossy"],
            "Unknown flag '--alow_lossy'. Did you mean '--allow_lossy",
        ),
        (["export", "a", "--allow"], "Unknown flag '--allow'"),
        (["export", "a", "b"], "Unexpected argument 'b'. See export --help."),
        (["export", "a", "--dtype=int8"], "argument --dtype: invalid choice: 'int8'"),
    ],
)
def test_a_mistaken_command_is_one_line(capsys, argv, message):
    calls = []
    with pytest.raises(SystemExit) as caught:
        cli.subcommands(commands(calls), doc="", argv=argv)
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}")
    assert error.count("\n") == 1
    assert not calls


def test_help_of_commands(capsys):
    cli.subcommands(commands([]), doc="Converts.", argv=["--help"])
    assert re.search(
        r"^Converts\.\n[^$]*\n  export +Writes a folder\.$", capsys.readouterr().out, re.M
    )
    with pytest.raises(SystemExit) as caught:
        cli.subcommands(commands([]), doc="Converts.", argv=["export", "--help"])
    assert caught.value.code == 0
    assert "Writes a folder." in capsys.readouterr().out


# --- odd environments, each in a process of its own

PROGRAM = """
'''Frobnicates \u2014 n\u0302.'''
from jaxrope.shell import cli
from jaxrope.shell.program import Program

def run(config, workdir):
    cli.print_line(f'n\u0302 = {workdir.name}')
    if config.seed == 1:
        import jax
        jax.devices()

if __name__ == '__main__':
    cli.main(Program(package="jaxrope.search", doc=__doc__, run=run))
"""


def start(tmp_path, *argv, **environment):
    path = tmp_path / "program.py"
    path.write_text(PROGRAM, encoding="utf-8")
    drop = ("HOME", "XLA_FLAGS", "LANG", "LC_ALL", "PYTHONUTF8", "PYTHONIOENCODING")
    kept = {name: value for name, value in os.environ.items() if name not in drop}
    return subprocess.run(
        [sys.executable, path, BASE, *argv],
        env=kept | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        stdin=subprocess.DEVNULL,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize(
    "environment",
    [
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"PYTHONIOENCODING": "latin-1", "TERM": "dumb"},
        {"PYTHONIOENCODING": "ascii:strict"},
    ],
)
def test_no_home_no_terminal_and_no_utf_8(tmp_path, environment):
    done = start(tmp_path, f"--workdir={tmp_path / 'a'}", **environment)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == b"n\\u0302 = a\n"
    assert start(tmp_path, "--help", **environment).returncode == 0


def test_no_tpu(tmp_path):
    done = start(tmp_path, f"--workdir={tmp_path}", "--config.seed=1", JAX_PLATFORMS="tpu")
    if done.returncode == 0:
        pytest.skip("this machine has a TPU")
    assert done.returncode == 2
    last = done.stderr.decode().splitlines()[-1]
    assert re.match(r"error: Unable to initialize backend 'tpu': .*JAX_PLATFORMS is 'tpu'", last)
    assert b"Traceback" not in done.stderr


def test_a_reader_that_has_read_enough(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM, encoding="utf-8")
    command = (
        f"'{sys.executable}' program.py '{BASE}' --print_config | true; echo ${{PIPESTATUS[0]}}"
    )
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert done.stderr == b""
    assert done.stdout.strip() in (b"141", b"0")  # 0: it had written all before the pipe was closed


@pytest.mark.parametrize("program", ["train.py", "search.py"])
def test_the_command_is_kept_as_it_can_be_typed_again(program, tmp_path, monkeypatch):
    argv = [f"/some/where/{program}", "--config=a b.py", "--config.seed=3"]
    monkeypatch.setattr(sys, "argv", argv)
    cli.write_command(tmp_path)
    text = (tmp_path / "command.txt").read_text()
    assert text == f"python {program} '--config=a b.py' --config.seed=3\n"


def test_another_program_leaves_no_command(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/some/where/pytest", "--config=a.py"])
    cli.write_command(tmp_path)
    assert not list(tmp_path.iterdir())


# --- what every program answers without jax

ANSWERED = """
import importlib, sys
for name, *argv in {commands!r}:
    try:
        importlib.import_module(name + ".__main__").main(argv)
    except SystemExit as error:
        assert error.code in (0, 2, None), (name, error.code)
    assert "jax" not in sys.modules, (name, argv)
"""
STAGE = "--config.recipe=(('a','search',(('search.start_tokens',(-3,)),)),)"
COMMANDS = [
    *(("jaxrope.convert", name, "--help") for name in ("import", "export", "rope")),
    ("jaxrope.search", BASE, "--config.search.objective.num_samples=0"),
    ("jaxrope.evaluate", BASE, "--config.sweep=(('seed',(1,-1)),)", "--workdir=x"),
    ("jaxrope.train", BASE, STAGE, "--workdir=x"),
    ("jaxrope.analyse", BASE, "--config.analysis.second=(('seed',-1),)", "--workdir=x"),
    ("jaxrope.train", BASE, "--workdir=x", "--config.stages=a"),
    ("jaxrope.generate", "--prompt=a"),
    ("jaxrope.report", "--out=a.html"),
]


def test_help_and_mistakes_are_answered_before_jax_is_imported(tmp_path):
    """In one process: jax would stay imported."""
    done = subprocess.run(
        [sys.executable, "-c", ANSWERED.format(commands=COMMANDS)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    errors = done.stderr.splitlines()
    assert len(errors) == len(COMMANDS) - 3 and all(line.startswith("error: ") for line in errors)
    assert not list(tmp_path.iterdir())


def test_the_help_of_convert_lists_what_there_is():
    from jaxrope.convert import __main__, rope_formats, rope_gguf

    assert tuple(rope_formats.FORMATS) == __main__.FORMATS
    assert tuple(rope_gguf.ARCHITECTURES) == __main__.ARCHITECTURES


MODEL = str(ROOT / "jaxrope" / "models" / "stdlib-2m")
DRY = {
    "generate": (["--checkpoint=" + MODEL, "--prompt=def f"], "1 prompts of 3 tokens; at most 128"),
    "convert export": (["export", MODEL, "out"], "would write out"),
    "convert import": (["import", MODEL, "out", "--dtype=float32"], "1,967,808 parameters"),
    "demo": (["run", "--workdir=out"], "python -m jaxrope.search --config=configs/demo_search.py"),
}


@pytest.mark.parametrize("name", DRY)
def test_a_dry_run_of_a_command_says_what_it_would_do_and_leaves_nothing(
    name, tmp_path, monkeypatch, capsys
):
    import importlib

    monkeypatch.chdir(tmp_path)
    argv, text = DRY[name]
    package = f"jaxrope.{name.split()[0]}"
    module = importlib.import_module(package if name == "demo" else f"{package}.__main__")
    module.main([*argv, "--dry_run", "--no_timing"])
    assert text in capsys.readouterr().out
    module.main([*argv, "--print_config"])
    assert isinstance(json.loads(capsys.readouterr().out), dict)
    assert not list(tmp_path.iterdir())
