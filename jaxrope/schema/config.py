"""The whole configuration, read from what an experiment file gave or JSON kept."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from jaxrope.errors import InputError
from jaxrope.schema import rules
from jaxrope.schema.analysis import PAIR, Analysis
from jaxrope.schema.evaluation import Evaluation
from jaxrope.schema.model import MODEL, PLACES, ROPE, Data, Forward, Mesh
from jaxrope.schema.rules import (
    Choice,
    Fixed,
    Many,
    One,
    Section,
    Select,
    Switch,
    Text,
    Whole,
    field,
)
from jaxrope.schema.search import Search
from jaxrope.schema.training import Lora, Optimizer, Saves, Train

KINDS = ("search", "train", "join", "evaluate")  # of a recipe's stages
_STAGE = Fixed(
    (Text("a folder's name", least=1), Choice(KINDS), Many(PAIR)),
    '("name", "train", (("train.steps", 400),))',
)
_AXIS = Fixed(
    (Text("a dotted key, looked up when it is set", least=1), Many(PAIR.rules[1], least=1)),
    '("target_len", (2048, 4096))',
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hosts(Section):
    """How long processes wait for each other."""

    PATH = "hosts"

    timeout_seconds: int = field(Whole(1, 10**7, unit="seconds"))
    heartbeat_seconds: int = field(Whole(1, 10**7, unit="seconds"))
    work_seconds: int = field(Whole(1, 10**7, unit="seconds"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Join(Section):
    """Factors of several searches in one rope.json."""

    PATH = "join"

    ropes: tuple = field(Many(Text(PLACES, least=1)))
    weights: bool = field(Switch())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Section):
    """Every key of every program; configs/base.py says what each is for."""

    PATH = ""

    seed: int = field(Whole(0, 2**63 - 1))
    model: Any = field(MODEL)
    rope: Any = field(ROPE)
    target_len: int = field(Whole(0, 2**31 - 1, unit="tokens"))
    original_len: int = field(Whole(2, 2**31 - 1, unit="tokens", also=0))
    forward: Forward = field(One(Forward))
    data: Data = field(One(Data))
    mesh: Mesh = field(One(Mesh))
    eval: Evaluation = field(One(Evaluation))
    train: Train = field(One(Train))
    lora: Lora = field(One(Lora))
    optimizer: Optimizer = field(One(Optimizer))
    checkpoint: Saves = field(One(Saves))
    search: Search = field(One(Search))
    analysis: Analysis = field(One(Analysis))
    hosts: Hosts = field(One(Hosts))
    join: Join = field(One(Join))
    recipe: tuple = field(Many(_STAGE))
    stages: tuple = field(Many(Text("names of the user's stages", least=1)))
    sweep: tuple = field(Many(_AXIS))


def read(values: Any) -> Config:
    """Returns the configuration of an experiment file or of a config.json; one that was read
    already, as it is.

    Args:
      values: a Config, a ConfigDict, or nested dicts.

    Raises:
      InputError: a key is unknown or missing, or a value breaks its rule; one line with the key.
    """
    return One(Config).read(values, "")


def replace(config: Config, changes: Mapping[str, Any] | Iterable, *, setting: str = "") -> Config:
    """Returns the configuration with some keys changed.

    Args:
      config: is not changed.
      changes: {dotted key: value} or pairs, in order; a section that selects an algorithm is
        replaced as a whole.
      setting: where the changes stand, for messages.

    Raises:
      InputError: there is no such key, or a value breaks its rule.
    """
    pairs = list(changes.items() if isinstance(changes, Mapping) else changes)
    values = config.to_dict()
    where = f"{setting}: " if setting else ""
    for key, value in pairs:
        _assign(values, key, rules.frozen(value), where)
    try:
        return read(values)
    except InputError as error:
        raise InputError(f"{where}{error}") from None


def leaves(config: Section, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (dotted key, value) of every key that has no keys of its own."""
    for name in rules.rules(type(config)):
        value = getattr(config, name)
        if isinstance(value, Section):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def get(config: Section, key: str) -> Any:
    """Returns the value, or the section, of a dotted key.

    Raises:
      KeyError: there is none.
    """
    value: Any = config
    for name in key.split("."):
        if not isinstance(value, Section) or name not in rules.rules(type(value)):
            raise KeyError(key)
        value = getattr(value, name)
    return value


def rule_of(values: Mapping[str, Any], key: str) -> Any:
    """Returns the rule of a dotted key; None: there is no such key.

    Args:
      values: of the configuration, as `to_dict` has them: which algorithms its sections select.
      key: of a value or of a section.
    """
    rule: Any = One(Config)
    for name in key.split("."):
        section = getattr(rule, "section", None)
        if isinstance(rule, Select):
            section = rule.sections.get(str(values.get(rule.selector)))
        if section is None or name not in rules.rules(section) or name not in values:
            return None
        rule, values = rules.rules(section)[name], values[name]
    return rule


def _assign(values: dict, key: str, value: Any, where: str) -> None:
    *sections, last = key.split(".")
    rule, inside = rule_of(values, key), values
    if rule is None:
        raise InputError(f"{where}Unknown key '{key}'. {_help(values, key)}")
    for name in sections:
        inside = inside[name]
    if isinstance(rule, One):
        names = ", ".join(f"{key}.{name}" for name in inside[last])
        raise InputError(f"{where}{key} is a section; set its keys one at a time: {names}.")
    inside[last] = value


def _help(values: dict, key: str) -> str:
    """Returns help with an unknown dotted key: like ones, and what its section has."""
    hint, place, inside = rules.near(key, list(_dotted(values))), "", values
    for name in key.split(".")[:-1]:
        if not isinstance(inside.get(name), dict):
            break
        inside, place = inside[name], f"{place}.{name}".strip(".")
    choices = f"Known{f' in {place}' if place else ''}: {', '.join(inside)}."
    rule = rule_of(values, place) if place else None
    if isinstance(rule, Select):
        choices += f" Another {rule.selector} replaces the section: {place}={{...}}."
    return f"{hint} {choices}".strip()


def _dotted(values: Mapping, prefix: str = "") -> Iterator[str]:
    for name, value in values.items():
        yield f"{prefix}{name}"
        if isinstance(value, dict):
            yield from _dotted(value, f"{prefix}{name}.")
