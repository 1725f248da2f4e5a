"""Every experiment file passes the schema, says how it is run, has the keys of base.py."""

import ast
import json
from pathlib import Path

import pytest

from jaxrope import schema
from jaxrope.errors import InputError
from jaxrope.shell import experiment

ROOT = Path(__file__).resolve().parent.parent
NONE = ("__init__.py", "recipes.py", "stdlib.py")  # no experiments: what others share
FILES = sorted(path for path in (ROOT / "configs").glob("*.py") if path.name not in NONE)
EXPERIMENTS = [path for path in FILES if path.name != "base.py"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_config_is_read_from_any_folder_and_can_be_written_as_json(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = experiment.read(str(path))
    text = json.dumps(config.to_dict(), allow_nan=False)
    assert schema.read(json.loads(text)) == config
    assert schema.read(config) is config


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_an_experiment_opens_with_its_command(path):
    doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    assert f"--config=configs/{path.name}" in doc


def test_a_misspelt_key_is_refused_where_it_is_written():
    from configs import base as module

    config = module.get_config()
    with pytest.raises(AttributeError, match='Did you mean "iterations"'):
        config.search.algorithm.iteratons = 3


def test_a_key_of_base_may_be_overridden_but_none_added():
    with pytest.raises(InputError, match="Unknown key 'search.genes'"):
        experiment.read(str(ROOT / "configs" / "base.py"), [("search.genes", "1")])
