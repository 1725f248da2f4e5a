"""What is installed: programs, configs and the model in any folder, and what that needs."""

import ast
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from jaxrope import demo, search
from jaxrope.errors import InputError
from jaxrope.shell import cli, experiment
from jaxrope.train.__main__ import PROGRAM
from tests.processes import ROOT, environment

PROGRAMS = "analyse convert demo evaluate extend generate recipe report search train".split()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# Files that nothing imports unless the user asks for what an extra is for.
OF_AN_EXTRA = ("jaxrope/convert/router.py", "jaxrope/evaluate/harness_lm.py")


@pytest.fixture
def empty(tmp_path, monkeypatch):
    """An empty folder, which is the current one."""
    folder = tmp_path / "empty"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def write(path, text):
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


# --- configs by name


def test_configs_can_be_imported_from_the_checkout_and_from_the_package():
    from configs import base
    from jaxrope.configs import base as packaged

    assert base.get_config().to_json() == packaged.get_config().to_json()
    assert (ROOT / "jaxrope" / "configs").resolve() == ROOT / "configs"


@pytest.mark.parametrize("name", ["256k.py", "configs/256k.py", "./256k.py"])
def test_a_config_is_found_by_name_in_any_folder(empty, name):
    there = experiment.load(f"{ROOT / 'configs' / '256k.py'}:llama3_8b")
    assert experiment.load(f"{name}:llama3_8b").to_json() == there.to_json()


def test_a_file_that_is_there_comes_first(empty):
    mine = write(empty / "configs" / "base.py", "from jaxrope.configs.base import get_config")
    assert experiment.load("configs/base.py").seed == 0
    write(mine, "from jaxrope.configs import base\n\ndef get_config():\n    1 / 0\n")
    with pytest.raises(InputError, match="^configs/base.py, line 4: ZeroDivisionError"):
        experiment.load("configs/base.py")


@pytest.mark.parametrize("folder", ["", "configs/"])
def test_a_name_that_is_nowhere_is_one_line_and_exit_code_2(empty, capsys, folder):
    with pytest.raises(SystemExit) as caught:
        cli.main(PROGRAM, argv=[f"--config={folder}257k.py:llama3_8b"])
    error = capsys.readouterr().err
    assert caught.value.code == 2 and error.count("\n") == 1
    assert f"257k.py:llama3_8b: no such file. Did you mean '{folder}256k.py'? Known: " in error
    assert "__init__" not in error


def test_only_a_bare_name_is_looked_up(empty):
    with pytest.raises(InputError, match="The folder mine has no experiment file"):
        experiment.load("mine/256k.py")


# --- what `from configs import ...` means in an experiment file

FOREIGN = "raise RuntimeError('the configs of another project')\n"
MINE = """
from configs import base, recipes

def get_config():
    config = base.get_config()
    config.seed = 7
    return config
"""


def test_a_foreign_configs_in_the_current_folder_is_not_taken(empty, monkeypatch):
    write(empty / "configs" / "__init__.py", FOREIGN)
    monkeypatch.syspath_prepend(str(empty))
    assert experiment.load("256k.py").target_len == 262_144


def test_a_configs_that_is_imported_already_is_not_taken_and_stays(empty, monkeypatch):
    foreign = type(sys)("configs")
    foreign.__path__ = []
    monkeypatch.setitem(sys.modules, "configs", foreign)
    monkeypatch.setitem(sys.modules, "configs.base", type(sys)("configs.base"))
    before, path = dict(sys.modules), list(sys.path)
    assert experiment.load("256k.py").target_len == 262_144
    after = {name: sys.modules[name] for name in sys.modules if name.startswith("configs")}
    assert after == {name: before[name] for name in before if name.startswith("configs")}
    assert sys.path == path


@pytest.mark.parametrize("file", ["mine.py", "configs/mine.py", "mine/mine.py"])
def test_a_file_of_one_s_own_has_the_configs_beside_it_and_else_the_packaged(empty, file):
    assert experiment.load(str(write(empty / file, MINE))).seed == 7
    base = "from jaxrope.configs import base\n\ndef get_config():\n    return base.get_config()\n"
    write(empty / "configs" / "base.py", base.replace("return", "raise KeyError;"))
    with pytest.raises(InputError, match="KeyError"):
        experiment.load(file)


# --- the demo


def test_the_demo_runs_in_any_folder(empty, monkeypatch, capsys):
    rate = SimpleNamespace(tokens=20_000.0, ready=3.0)
    monkeypatch.setattr(search, "measured", lambda *_: rate)
    demo.main(["--dry_run"])
    plan = capsys.readouterr().out
    assert "256 tokens" in plan and "2,048 tokens, 8 times as many" in plan
    assert "16 held-out texts" in plan and not os.listdir(empty)
    demo.main(["--print_config", "--budget=1h", "--control"])
    asked = json.loads(capsys.readouterr().out)
    assert (asked["budget"], asked["control"]) == ("1h", True)
    assert Path(asked["model"], "model.safetensors").is_file()
    assert all(Path(name).is_file() for name in asked["eval_text"].split(","))


# --- what has to be installed


def imports(tree):
    """Yields the top names that a tree of syntax imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module.split(".")[0]


def when_imported(tree):
    """Returns the tree without its functions: what runs when the file is imported."""
    body = [node for node in tree.body if not isinstance(node, ast.FunctionDef)]
    return ast.Module(body=body, type_ignores=[])


def plain(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def names(requirements):
    return {plain(re.match(r"[\w.-]+", line)[0]) for line in requirements if line[0] != "#"}


def test_what_is_imported_is_declared():
    needed = names((ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines())
    extra = names(line for lines in PROJECT["optional-dependencies"].values() for line in lines)
    owners, used = importlib.metadata.packages_distributions(), set()
    files = [*(ROOT / "jaxrope").rglob("*.py"), *(ROOT / "configs").glob("*.py")]
    assert len(files) > 100
    for path in files:
        tree, name = ast.parse(path.read_text(encoding="utf-8")), path.relative_to(ROOT).as_posix()
        at_once = set(imports(when_imported(tree)))
        ours = {"jaxrope", "configs"} | sys.stdlib_module_names
        for library in set(imports(tree)) - ours:
            brings = {plain(owner) for owner in owners.get(library, [library])}
            used |= brings
            is_optional = library not in at_once or name in OF_AN_EXTRA
            assert brings & (needed | extra if is_optional else needed), f"{name}: {library}"
    assert needed <= used, "nothing imports it"


def test_help_needs_no_jax():
    program = """
import importlib, sys
import jaxrope
assert not {"numpy", "ml_collections"} & set(sys.modules), "import jaxrope"
for name in sys.argv[1:]:
    module = importlib.import_module(name)
    try:
        module.main(["--help"])
    except SystemExit as error:
        assert not error.code, name
    assert "jax" not in sys.modules, name
"""
    modules = [PROJECT["scripts"][f"jaxrope-{name}"].partition(":")[0] for name in PROGRAMS]
    command = [sys.executable, "-c", program, *modules]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_program_is_a_command():
    tops = {path.parent.name for path in (ROOT / "jaxrope").glob("*/__main__.py")}
    assert tops - {"analysis"} | {"demo"} == set(PROGRAMS)  # analysis: a former name
    assert PROJECT["scripts"].keys() == {f"jaxrope-{name}" for name in PROGRAMS}


# --- the wheel


def pip(*argv):
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *argv, "--no-index"]
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=variables)
    assert done.returncode == 0, done.stdout + done.stderr


def build(folder):
    """Returns a wheel of the checkout, built from a copy: an old build/ would get into it."""
    source = folder / "source"
    for name in ("jaxrope", "configs"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignore)
    for name in ("pyproject.toml", "requirements.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip("wheel", "--no-deps", "--no-build-isolation", f"--wheel-dir={folder}", str(source))
    (wheel,) = folder.glob("*.whl")
    return wheel


def install(wheel, folder):
    """Returns the folder of the programs of a new environment with the wheel.

    It borrows the libraries of this one: from a .pth file, so that no .pth of theirs is read, which
    would bring the checkout of an editable install.
    """
    venv.create(folder)
    pip(f"--python={folder / 'bin' / 'python'}", "install", "--no-deps", str(wheel))
    (site,) = folder.glob("lib/python*/site-packages")
    paths = dict.fromkeys(sysconfig.get_paths()[name] for name in ("purelib", "platlib"))
    (site / "borrowed.pth").write_text("\n".join(paths), encoding="utf-8")
    return folder / "bin"


@pytest.mark.slow
def test_the_wheel_works_without_the_checkout(tmp_path):
    wheel = build(tmp_path)
    files = set(zipfile.ZipFile(wheel).namelist())
    configs = {f"jaxrope/configs/{path.name}" for path in (ROOT / "configs").glob("*.py")}
    assert configs <= files and "jaxrope/models/stdlib-3m/model.safetensors" in files
    assert {name.split("/")[0] for name in files} == {"jaxrope", "jaxrope-0.1.0.dist-info"}

    programs, empty = install(wheel, tmp_path / "venv"), tmp_path / "empty"
    empty.mkdir()
    variables = environment()
    del variables["PYTHONPATH"]

    def run(program, *argv):
        command = [str(programs / program), *argv]
        done = subprocess.run(
            command, cwd=empty, env=variables, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    place = run("python", "-c", "import jaxrope; print(jaxrope.__file__)")
    assert Path(place).is_relative_to(tmp_path / "venv")
    imported = "from jaxrope.configs import base; print(base.get_config().seed)"
    assert run("python", "-c", imported) == "0\n"
    for name in PROGRAMS:
        assert f"jaxrope.{name}" in run(f"jaxrope-{name}", "--help")
    config = run("jaxrope-train", "--config=256k.py:llama3_8b", "--print_config")
    assert json.loads(config)["target_len"] == 262_144
    assert not os.listdir(empty)

    assert "2,048 tokens, 8 times as many" in run("jaxrope-demo", "--dry_run")
    assert not os.listdir(empty)
