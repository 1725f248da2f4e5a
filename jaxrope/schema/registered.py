"""Sections of what users add: a rope method, an objective of the search."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from jaxrope.errors import InputError
from jaxrope.schema import model, search
from jaxrope.schema.rules import Choice, Number, Section, Select, Switch, Text, Whole, field

_WHY = "it is an argument of the user's own function"
_RULES = {
    bool: Switch(),
    int: Whole(least=-(2**31)),
    float: Number(because=_WHY),
    str: Text(_WHY),
}


def method(name: str, make_fn: Callable) -> None:
    """Makes `name` a method of config.rope, with the arguments of `make_fn` after the first.

    Raises:
      InputError: there is one of that name, or an argument is of no plain type.
    """
    arguments = _arguments(name, make_fn, skipped=1)
    section = _section("rope", "method", name, arguments)
    for select in (model.METHOD, model.ROPE):
        _add(select, name, section, "rope.method")


def objective(name: str, make_fn: Callable) -> None:
    """Makes `name` an objective of config.search, with the arguments of `make_fn` after the task.

    Raises:
      InputError: see `method`; or there is no argument num_samples.
    """
    arguments = _arguments(name, make_fn, skipped=1)
    if "num_samples" not in arguments:
        raise InputError(
            f"'{name}' must have an argument num_samples, how many samples are drawn. Add it."
        )
    section = _section("search.objective", "name", name, arguments)
    _add(search.OBJECTIVE, name, section, "search.objective.name")


def _arguments(name: str, make_fn: Callable, skipped: int) -> dict[str, inspect.Parameter]:
    parameters = list(inspect.signature(make_fn).parameters.values())[skipped:]
    for parameter in parameters:
        if parameter.annotation not in _RULES:
            kinds = ", ".join(kind.__name__ for kind in _RULES)
            raise InputError(
                f"'{name}': argument {parameter.name} must be annotated with one of {kinds}, got "
                f"{parameter.annotation!r}. Annotate it."
            )
    return {parameter.name: parameter for parameter in parameters}


def _section(path: str, selector: str, name: str, arguments: Mapping[str, Any]) -> type[Section]:
    fields = [(selector, str, field(Choice((name,))))]
    for key, parameter in arguments.items():
        has_default = parameter.default is not inspect.Parameter.empty
        options = {"default": parameter.default} if has_default else {}
        rule = model.FACTOR if (path, key) == ("rope", "factor") else _RULES[parameter.annotation]
        fields.append((key, parameter.annotation, field(rule, **options)))
    namespace = {"PATH": path, "__doc__": f"'{name}', which a user has added."}
    options = dict(bases=(Section,), namespace=namespace, frozen=True, kw_only=True)
    return dataclasses.make_dataclass("Registered", fields, **options)


def _add(select: Select, name: str, section: type[Section], path: str) -> None:
    if name in select.sections:
        raise InputError(f"{path}: there is a '{name}' already. Choose another name.")
    select.sections[name] = section
