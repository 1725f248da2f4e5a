"""Every experiment file builds, says how it is run, and sets no key that configs/base.py lacks."""

import ast
import json
from pathlib import Path

import pytest

from jaxrope.errors import InputError
from jaxrope.shell import experiment

ROOT = Path(__file__).resolve().parent.parent
NONE = ("__init__.py", "recipes.py")  # no experiments: the package, what configs for pods share
FILES = sorted(path for path in (ROOT / "configs").glob("*.py") if path.name not in NONE)
EXPERIMENTS = [path for path in FILES if path.name != "base.py"]
SELECTORS = ("method", "name", "source")


def keys_of(config):
    """Returns the dotted keys, without what is inside a section that selects an algorithm."""
    found = experiment.dotted_keys(config)
    replaced = [key for key in found if _selects(found[key])]
    return {key for key in found if not any(key.startswith(f"{name}.") for name in replaced)}


def _selects(value):
    return hasattr(value, "keys") and any(selector in value for selector in SELECTORS)


@pytest.fixture(scope="module")
def base():
    return experiment.load(str(ROOT / "configs" / "base.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_config_builds_from_any_folder_and_can_be_written_as_json(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = experiment.load(str(path))
    assert config.is_locked
    assert json.loads(json.dumps(json.loads(config.to_json()), allow_nan=False))


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_an_experiment_has_exactly_the_keys_of_base(path, base):
    assert keys_of(experiment.load(str(path))) == keys_of(base)


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_an_experiment_opens_with_its_command(path):
    doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    assert f"--config=configs/{path.name}" in doc


def test_a_misspelt_key_is_refused_where_it_is_written():
    from configs import base as module

    config = module.get_config()
    with pytest.raises(AttributeError, match='Did you mean "iterations"'):
        config.search.algorithm.iteratons = 3


@pytest.mark.parametrize(("text", "value"), [("su", "su"), ("yarn", "yarn"), ("1.19", 1.19)])
def test_the_attention_factor_of_a_search_is_a_law_or_a_number(text, value):
    pairs = [("search.attention_factor", text)]
    config = experiment.load(str(ROOT / "configs" / "base.py"), pairs)
    assert config.search.attention_factor == value


def test_a_key_of_base_may_be_overridden_but_none_added():
    with pytest.raises(InputError, match="Unknown --config.search.genes"):
        experiment.load(str(ROOT / "configs" / "base.py"), [("search.genes", "1")])
