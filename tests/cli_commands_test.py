"""Commands of a program as a person meets them, and what all answer without jax."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from jaxrope.shell import cli
from jaxrope.shell.program import Command

ROOT = Path(__file__).resolve().parent.parent
BASE = f"--config={ROOT / 'configs' / 'base.py'}"


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
    from jaxrope.convert import __main__, rope_formats

    assert tuple(rope_formats.FORMATS) == __main__.FORMATS


MODEL = str(ROOT / "jaxrope" / "models" / "stdlib-3m")
DRY = {
    "generate": (["--checkpoint=" + MODEL, "--prompt=def f"], "1 prompts of 3 tokens; at most 128"),
    "convert export": (["export", MODEL, "out"], "would write out"),
    "convert import": (["import", MODEL, "out", "--dtype=float32"], "2,754,240 parameters"),
}


@pytest.mark.parametrize("name", DRY)
def test_a_dry_run_of_a_command_says_what_it_would_do_and_leaves_nothing(
    name, tmp_path, monkeypatch, capsys
):
    import importlib

    monkeypatch.chdir(tmp_path)
    argv, text = DRY[name]
    module = importlib.import_module(f"jaxrope.{name.split()[0]}.__main__")
    module.main([*argv, "--dry_run", "--no_timing"])
    assert text in capsys.readouterr().out
    module.main([*argv, "--print_config"])
    assert isinstance(json.loads(capsys.readouterr().out), dict)
    assert not list(tmp_path.iterdir())
