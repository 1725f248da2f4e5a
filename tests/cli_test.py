"""The command line as a person meets it: exit codes, one-line errors."""

import errno
import json
import os
import re
from pathlib import Path

import pytest

from jaxrope.errors import InputError
from jaxrope.shell import cli
from jaxrope.shell.program import Program

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
    argv = [
        BASE,
        f"--workdir={tmp_path}",
        "--config.search.per_layer",
        "--noconfig.search.per_layer",
    ]
    cli.main(record(calls), argv=argv[:3])
    cli.main(record(calls), argv=argv)
    assert [call[0].search.per_layer for call in calls] == [True, False]


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
