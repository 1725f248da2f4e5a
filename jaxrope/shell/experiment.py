"""Experiment files: running one, and what the command line says of its keys.

An experiment file is Python: it defines `get_config()`, which returns a ConfigDict. It is executed.
The text of an override becomes the value that the rule of its key in the schema asks for; text that
does not is refused there, as it would be in the file.
"""

import ast
import contextlib
import importlib.machinery
import importlib.util
import re
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from jaxrope import errors, schema
from jaxrope.errors import InputError
from jaxrope.schema import rules

PACKAGED = Path(__file__).resolve().parent.parent / "configs"  # found by name, in any folder
_ALIASES = {"suites": "eval.suites"}  # second names of keys on the command line


def read(path: str, assignments: Sequence[tuple[str, str | None]] = ()) -> schema.Config:
    """Returns the checked configuration of an experiment file, with keys overridden.

    Args:
      path: see `load`.
      assignments: (dotted key, text as on the command line; None = a switch without a value).

    Raises:
      InputError: no such file or key, a value that breaks its rule, or whatever the file raised.
    """
    return override(schema.read(load(path)), assignments)


def load(path: str) -> ConfigDict:
    """Returns the resolved, locked config of an experiment file, as it stands there.

    Args:
      path: the file, or the name of a packaged one, with or without "configs/";
        `FILE.py:text` calls `get_config("text")`.

    Raises:
      InputError: no such file, or whatever the file itself raised.
    """
    if not path:
        raise InputError(
            f"--config=FILE is missing: which experiment? {_near_files(Path('configs/base.py'))}"
        )
    return _get_config(path).copy_and_resolve_references().lock()


def override(config: schema.Config, assignments: Sequence[tuple[str, str | None]]) -> schema.Config:
    """Returns a configuration with keys set from text. Of two texts the last one counts; those of a
    tuple are joined.

    Args:
      config: is not changed.
      assignments: (dotted key, text as on the command line; None = a switch without a value).

    Raises:
      InputError: no such key, or a value that breaks its rule.
    """
    texts: dict[str, list[str | None]] = {}
    for key, text in assignments:
        texts.setdefault(_ALIASES.get(key, key), []).append(text)
    values, changes = config.to_dict(), {}
    for key in sorted(texts, key=lambda key: key.count(".")):  # a section before its keys
        rule = schema.rule_of(values, key)
        changes[key] = _value(key, texts[key], rule)
        if isinstance(rule, rules.Select):
            values = _with_section(values, key, changes[key])
    return schema.replace(config, changes)


def _with_section(values: dict, key: str, section: Any) -> dict:
    name, _, rest = key.partition(".")
    return values | {name: _with_section(values[name], rest, section) if rest else section}


def _value(key: str, texts: list[str | None], rule: Any) -> Any:
    """Returns what texts mean where a rule holds; what means nothing there stays text."""
    if isinstance(rule, rules.Switch):
        texts = ["true" if text is None else text for text in texts]
    if rule is None or isinstance(rule, rules.One):  # schema.replace says what is wrong
        return texts[-1]
    if None in texts:
        raise InputError(f"--config.{key} has no value. Write --config.{key}=VALUE.")
    if isinstance(rule, rules.Many):
        return sum((_tuple(key, text) for text in texts), ())
    if isinstance(rule, rules.Switch):
        return _switch(texts[-1])
    value = texts[-1] if _takes(rule, texts[-1], key) else _literal(texts[-1])
    if isinstance(rule, rules.Select) and not isinstance(value, dict):
        raise InputError(
            f"--config.{key} must be a Python dict that replaces the whole section, got "
            f"{rules.short(texts[-1])}. For example "
            f"--config.{key}=\"{{'{rule.selector}':'{next(reversed(rule.sections))}',...}}\"."
        )
    return value


def _takes(rule: Any, text: str, key: str) -> bool:
    """Returns whether a rule allows the text as it stands."""
    if isinstance(rule, rules.Anything):
        return False
    try:
        return rule.read(text, key) == text
    except InputError:
        return False


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        return text  # no Python, or too much of it


def _tuple(key: str, text: str) -> tuple:
    """Returns the tuple that a text means; `a,b` means ('a', 'b')."""
    value = _literal(text)
    if value is not text:
        return tuple(value) if isinstance(value, tuple | list) else (value,)
    if text.startswith(("(", "[")):
        raise InputError(
            f"--config.{key} must be a tuple, got {rules.short(text)}, which is no Python."
        )
    return tuple(part.strip() for part in text.split(","))


def _switch(text: str) -> bool | str:
    try:
        return flags.BooleanParser().parse(text)
    except ValueError:
        return text


def _get_config(path):
    name, colon, argument = (path, "", "") if Path(path).is_file() else path.partition(":")
    file = _find_file(path, Path(name).expanduser())
    try:
        with _imports_of(file):
            loader = importlib.machinery.SourceFileLoader("experiment", str(file))
            spec = importlib.util.spec_from_loader("experiment", loader)
            module = importlib.util.module_from_spec(spec)
            loader.exec_module(module)
            get_config_fn = getattr(module, "get_config", None)
            has_function = callable(get_config_fn)
            config = get_config_fn(*([argument] if colon else [])) if has_function else None
    except InputError:
        raise
    except (Exception, SystemExit) as error:  # the file is a program: it may raise anything
        raise InputError(_where(error, file)) from error
    if not has_function:
        raise InputError(
            f"{file} has no function get_config(). An experiment file defines it and returns "
            "the config; configs/base.py shows how."
        )
    if not isinstance(config, ConfigDict):
        raise InputError(
            f"{file}: get_config() must return a ConfigDict, got {type(config).__name__}. "
            "Is its `return config` missing?"
        )
    return config


def _find_file(path, file):
    """Returns the file that is there, else the packaged one of that name."""
    if file.is_file():
        return file
    if _may_be_packaged(file) and (PACKAGED / file.name).is_file():
        return PACKAGED / file.name
    raise InputError(f"--config={path}: no such file. {_near_files(file)}")


def _may_be_packaged(file):
    return file.parent in (Path(), Path("configs"))


@contextlib.contextmanager
def _imports_of(file: Path) -> Iterator[None]:
    """Lets an experiment file import what lies beside it, and `configs`, with which it begins.

    `configs` is the folder of that name beside the file or above it, and what that lacks is the
    packaged one's; neither one in the current folder nor one that was imported before.
    """
    folders = [file.resolve().parent.parent, file.resolve().parent]
    places = [folder / "configs" for folder in folders if (folder / "configs").is_dir()]
    places.append(PACKAGED)
    before, path = _configs_modules(), list(sys.path)
    for name in before:
        del sys.modules[name]
    sys.path += map(str, folders)
    try:
        first = next(place for place in places if (place / "__init__.py").is_file())
        spec = importlib.util.spec_from_file_location(
            "configs", first / "__init__.py", submodule_search_locations=[*map(str, places)]
        )
        sys.modules["configs"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["configs"])
        yield
    finally:
        sys.path[:] = path
        for name in _configs_modules():
            del sys.modules[name]
        sys.modules.update(before)


def _configs_modules():
    return {name: sys.modules[name] for name in sys.modules if name.split(".")[0] == "configs"}


def _near_files(file):
    """Returns help with the path of an experiment file: what its folder has, and the package."""
    folders = [file.parent, PACKAGED] if _may_be_packaged(file) else [file.parent]
    names = {path.name for folder in folders for path in folder.glob("[!_]*.py")}
    if not names:
        return f"The folder {file.parent} has no experiment file."
    return errors.nearest(file, [file.parent / name for name in names])


def _where(error, file):
    """Returns "FILE, line N: what" for an exception out of an experiment file."""
    folder = file.resolve().parent
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).resolve().is_relative_to(folder)
    ]
    name, line = (frames[-1].filename, frames[-1].lineno) if frames else (file, None)
    if isinstance(error, SyntaxError) and error.filename:
        name, line = error.filename, error.lineno
    place = f"{name}, line {line}" if line else f"{name}"
    # a locked ConfigDict lists all that it has: thousands of characters
    text = re.sub(r"Other fields present: .*?(?=Did you mean|\Z)", "", str(error), flags=re.DOTALL)
    return f"{place}: {type(error).__name__}: {text}"
