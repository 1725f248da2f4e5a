"""Experiment files: loading one, and overriding its keys from text, with help for mistyped keys.

An experiment file is Python: it defines `get_config()`, which returns a ConfigDict. It is executed.
Values are parsed by `ml_collections.config_flags`, by the type that a key has in the file.
"""

import ast
import contextlib
import difflib
import importlib.machinery
import importlib.util
import math
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from jaxrope import errors
from jaxrope.errors import InputError

PACKAGED = Path(__file__).resolve().parent.parent / "configs"  # found by name, in any folder
SELECTORS = ("method", "name", "source")  # a section with one of these keys selects an algorithm
_ALIASES = {"suites": ("eval", "suites")}  # second names that a config may give to a key
_MIXED = {"search.attention_factor": (str, float, int)}  # a law or a number
_NEEDED = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    tuple: "a tuple",
    str: "text",
}


def load(path: str, assignments: Sequence[tuple[str, str | None]] = ()) -> ConfigDict:
    """Returns the resolved, locked config of an experiment file.

    Args:
      path: the file, or the name of a packaged one, with or without "configs/";
        `FILE.py:text` calls `get_config("text")`.
      assignments: (dotted key, text as on the command line; None = a switch without a value).

    Raises:
      InputError: no such file or key, a value of a wrong type, or whatever the file itself raised.
    """
    if not path:
        raise InputError(
            f"--config=FILE is missing: which experiment? {_near_files(Path('configs/base.py'))}"
        )
    config = _get_config(path)
    config.lock()
    override(config, assignments)
    _refuse_non_finite(config)
    aliases = [name for name in _ALIASES if _is_alias(config, name)]
    resolved = config.copy_and_resolve_references()
    with resolved.unlocked():
        for name in aliases:
            del resolved[name]
    return resolved.lock()


def _is_alias(config: ConfigDict, name: str) -> bool:
    section, key = _ALIASES[name]
    if name not in config or section not in config or key not in config[section]:
        return False
    return config.get_ref(name) is config[section].get_ref(key)


def override(config: ConfigDict, assignments: Sequence[tuple[str, str | None]]) -> None:
    """Sets keys of a config from text. Sections that are replaced as a whole come first.

    Args:
      config: changed in place.
      assignments: (dotted key, text as on the command line; None = a switch without a value).

    Raises:
      InputError: no such key, or a value that is not of the key's type.
    """
    texts = {}  # a tuple may be given one element at a time: --config.k=a --config.k=b
    for key, text in assignments:
        texts.setdefault(key, []).append(text)
    by_key = dotted_keys(config)
    sections = [key for key in texts if isinstance(by_key.get(key), ConfigDict)]
    for key in sections + [key for key in texts if key not in sections]:
        _set(config, key, texts[key])


def assign(config: ConfigDict, key: str, value: object, *, setting: str) -> None:
    """Sets a key to a Python value of its type; a section that selects an algorithm, to a dict.

    Args:
      config: changed in place.
      key: dotted.
      value: the new one.
      setting: where the value is written, for messages.

    Raises:
      InputError: no such key, or a value of another type.
    """
    by_key = dotted_keys(config)
    if key not in by_key:
        raise InputError(f"Unknown key '{key}' in {setting}. {errors.nearest(key, by_key)}")
    before = by_key[key]
    kinds = {float: (float, int), ConfigDict: (dict, ConfigDict), tuple: (tuple, list)}
    allowed = _MIXED.get(key) or kinds.get(type(before), (type(before),))
    if type(value) not in allowed:
        names = " or ".join(kind.__name__ for kind in allowed)
        raise InputError(f"{setting}: {key} must be {names}, got {value!r}. Correct it there.")
    if isinstance(before, ConfigDict) and not any(name in before for name in SELECTORS):
        raise InputError(
            f"{setting}: {key} is a section; set its keys one at a time: "
            f"{', '.join(f'{key}.{name}' for name in before)}."
        )
    section = config
    for name in key.split(".")[:-1]:
        section = section[name]
    convert_fn = {dict: ConfigDict, list: tuple}.get(type(value), lambda same: same)
    with section.unlocked(), section.ignore_type():
        section[_last(key)] = convert_fn(value)


def dotted_keys(config: ConfigDict, prefix: str = "") -> dict[str, object]:
    """Returns {dotted key: value} for every section and every leaf of a config."""
    by_key = {}
    for key in config:
        by_key[prefix + key] = config[key]
        if isinstance(config[key], ConfigDict):
            by_key |= dotted_keys(config[key], f"{prefix}{key}.")
    return by_key


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


def _set(config, key, texts):
    """Sets one key, whose texts are in the order of the command line."""
    by_key = dotted_keys(config)
    if key not in by_key:
        raise InputError(f"Unknown --config.{key}. {_near_keys(key, by_key)}")
    before = by_key[key]
    if isinstance(before, ConfigDict):
        _check_section(key, before, texts[-1])
    elif isinstance(before, bool):
        texts = ["true" if text is None else text for text in texts]
    if None in texts:
        raise InputError(f"--config.{key} has no value. Write --config.{key}=VALUE.")
    python = [_tuple_text(key, text) for text in texts] if isinstance(before, tuple) else texts
    argv = ["program", *(f"--config.{key}={text}" for text in python)]
    values = flags.FlagValues()
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
        values(argv)
    except (flags.Error, TypeError, ValueError):
        raise _wrong_type(key, before, texts[-1]) from None
    after = dotted_keys(config)[key]
    kinds = {type(item) for item in before} if isinstance(before, tuple) else set()
    if len(kinds) == 1 and not all(_fits(item, *kinds) for item in after):
        raise _wrong_type(key, before, texts[-1])


def _check_section(key, before, text):
    if not any(selector in before for selector in SELECTORS):
        raise InputError(
            f"--config.{key} is a section; set its keys one at a time: "
            f"{', '.join(f'--config.{key}.{name}' for name in before)}."
        )
    try:
        value = ast.literal_eval(text or "")
    except (SyntaxError, ValueError):
        value = None
    if not isinstance(value, dict):
        raise InputError(
            f"--config.{key} must be a Python dict that replaces the whole section, got '{text}'. "
            f'For example --config.{key}="{before.to_dict()}".'
        )


def _tuple_text(key, text):
    """Returns text that reads as a Python tuple: `a,b` means ('a', 'b')."""
    try:
        ast.literal_eval(text)
        return text
    except (SyntaxError, ValueError):
        if text.startswith(("(", "[")):
            raise InputError(
                f"--config.{key} must be a tuple, got '{text}', which is no Python."
            ) from None
        return repr(tuple(part.strip() for part in text.split(",")))


def _fits(item, kind):
    return type(item) is kind or (kind is float and type(item) is int)


def _wrong_type(key, before, text):
    needed = _NEEDED.get(type(before), f"of type {type(before).__name__}")
    kinds = {type(item) for item in before} if isinstance(before, tuple) else set()
    if len(kinds) == 1 and kinds <= _NEEDED.keys():
        needed += f", each {_NEEDED[kinds.pop()]}"
    return InputError(
        f"--config.{key} must be {needed}, got '{text}'. It is {before!r} without this flag."
    )


def _near_keys(key, by_key):
    """Returns help with a dotted key: like ones, the same word elsewhere, what the section has."""
    word = _last(key)
    close = [name for name in by_key if _last(name) == word]
    close += difflib.get_close_matches(key, by_key, n=1, cutoff=0.7)
    close += [name for name in by_key if difflib.get_close_matches(word, [_last(name)], cutoff=0.8)]
    hints = [f"--config.{name}" for name in list(dict.fromkeys(close))[:3]]
    section = key.rpartition(".")[0]
    while section and not isinstance(by_key.get(section), ConfigDict):
        section = section.rpartition(".")[0]
    inside = by_key[section] if section else [name for name in by_key if "." not in name]
    text = f"Did you mean {' or '.join(hints)}? " if hints else ""
    text += f"Known in config{'.' if section else ''}{section}: {', '.join(inside)}."
    if section and any(selector in inside for selector in SELECTORS):
        text += f' Another algorithm replaces the section: --config.{section}="{{...}}".'
    return text


def _last(key):
    return key.rpartition(".")[2]


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
    return f"{place}: {type(error).__name__}: {error}"


def _refuse_non_finite(config):
    for key, value in dotted_keys(config).items():
        for item in value if isinstance(value, tuple) else (value,):
            if isinstance(item, float) and not math.isfinite(item):
                raise InputError(f"config.{key} must be finite, got {item}.")
