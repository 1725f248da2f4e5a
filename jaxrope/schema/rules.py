"""What a value of the configuration may be: rules, and sections whose every field has one.

A rule reads a value and returns it in its own type, or raises the line that says what it must be.
A section is a frozen dataclass; building one, however it is built, applies the rules.
"""

import dataclasses
import difflib
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from jaxrope.errors import InputError, choose, nearest

_MOST = 2**53  # whole numbers up to here are exact in JSON readers and in float64


@dataclasses.dataclass(frozen=True)
class Whole:
    """A whole number.

    Attributes:
      least, most: the ends of its range, inclusive.
      unit: what it counts.
      also: a number outside of the range that means something of its own, such as -1.
    """

    least: int = 0
    most: int = _MOST
    unit: str = ""
    also: int | None = None

    def read(self, value: Any, path: str) -> int:
        """Returns the number."""
        is_whole = isinstance(value, int) and not isinstance(value, bool)
        if is_whole and (self.least <= value <= self.most or value == self.also):
            return value
        of = f" of {self.unit}" if self.unit else ""
        limits = f", {self.least} or more"
        if self.most < _MOST:
            limits = f" from {self.least} to {self.most}"
        elif is_whole and value > self.most:
            limits = f" up to {self.most}"
        also = f" (or {self.also})" if self.also is not None else ""
        raise _broken(path, f"a whole number{of}{limits}{also}", value)


@dataclasses.dataclass(frozen=True)
class Number:
    """A finite number; a whole number is taken for one.

    Attributes:
      least, most: the ends of its range, inclusive.
      above, below: the ends of its range, exclusive.
      unit: of what.
      because: why it has no range.
    """

    least: float = -math.inf
    most: float = math.inf
    above: float = -math.inf
    below: float = math.inf
    unit: str = ""
    because: str = ""

    def read(self, value: Any, path: str) -> float:
        """Returns the number."""
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if is_number and abs(value) <= 1e300:  # whole numbers can be too large for a float
            inside = self.least <= value <= self.most and self.above < value < self.below
            if inside and math.isfinite(value):
                return float(value)
        words = {"at least": self.least, "above": self.above, "at most": self.most}
        words["below"] = self.below
        bounds = [f"{word} {bound:g}" for word, bound in words.items() if math.isfinite(bound)]
        of = f" of {self.unit}" if self.unit else ""
        raise _broken(path, f"a number{of} {' and '.join(bounds)}".rstrip(), value)


@dataclasses.dataclass(frozen=True)
class Switch:
    """True or False."""

    def read(self, value: Any, path: str) -> bool:
        """Returns it."""
        if isinstance(value, bool):
            return value
        raise _broken(path, "True or False", value)


@dataclasses.dataclass(frozen=True)
class Text:
    """Text without a NUL.

    Attributes:
      because: why it may be any text.
      least: characters it has at least.
    """

    because: str
    least: int = 0

    def read(self, value: Any, path: str) -> str:
        """Returns the text."""
        if isinstance(value, str) and "\0" not in value and len(value) >= self.least:
            return value
        raise _broken(path, "text" if not self.least else "text that is not empty", value)


@dataclasses.dataclass(frozen=True)
class Choice:
    """One of several names."""

    names: tuple[str, ...]

    def read(self, value: Any, path: str) -> str:
        """Returns the name."""
        if not isinstance(value, str):
            raise _broken(path, f"one of {', '.join(filter(None, self.names))}", value)
        choose(path, value, dict.fromkeys(self.names))
        return value


@dataclasses.dataclass(frozen=True)
class Maybe:
    """None, or what another rule allows."""

    rule: Any

    def read(self, value: Any, path: str) -> Any:
        """Returns None or the value."""
        return None if value is None else self.rule.read(value, path)


@dataclasses.dataclass(frozen=True)
class NameOrNumber:
    """One of several names, or a number."""

    names: Choice
    number: Number

    def read(self, value: Any, path: str) -> str | float:
        """Returns the name or the number."""
        return (self.names if isinstance(value, str) else self.number).read(value, path)


@dataclasses.dataclass(frozen=True)
class OneOrMany:
    """What a rule allows, or a tuple of it."""

    rule: Any

    def read(self, value: Any, path: str) -> Any:
        """Returns the value or the tuple."""
        if isinstance(value, tuple | list):
            return Many(self.rule, least=1).read(value, path)
        return self.rule.read(value, path)


@dataclasses.dataclass(frozen=True)
class Many:
    """A tuple whose items follow one rule.

    Attributes:
      rule: of each item.
      least: items it has at least.
      ascending: each item exceeds the one before it.
      distinct: no item stands twice.
      includes: items that it must have.
    """

    rule: Any
    least: int = 0
    ascending: bool = False
    distinct: bool = False
    includes: tuple = ()

    def read(self, value: Any, path: str) -> tuple:
        """Returns the tuple."""
        if not isinstance(value, tuple | list):
            raise _broken(path, "a tuple, such as (a, b)", value)
        items = tuple(self.rule.read(item, f"{path}[{i}]") for i, item in enumerate(value))
        if len(items) < self.least:
            count = "one item" if self.least == 1 else f"{self.least} items"
            raise _broken(path, f"a tuple of {count} or more", tuple(value))
        if self.ascending and any(b <= a for a, b in zip(items, items[1:], strict=False)):
            raise _broken(path, "ascending numbers", tuple(value))
        if self.distinct and len(set(items)) < len(items):
            raise _broken(path, "a tuple that lists nothing twice", tuple(value))
        for item in self.includes:
            if item not in items:
                raise InputError(f"{path} must have {item}, got {short(tuple(value))}. Add it.")
        return items


@dataclasses.dataclass(frozen=True)
class Fixed:
    """A tuple with a rule for each place.

    Attributes:
      rules: of the places.
      example: how it is written.
    """

    rules: tuple
    example: str

    def read(self, value: Any, path: str) -> tuple:
        """Returns the tuple."""
        is_tuple = isinstance(value, tuple | list) and len(value) == len(self.rules)
        if not is_tuple:
            raise InputError(
                f"{path} must be like {self.example}, got {short(value)}. In a tuple of one pair "
                "the comma after it is easily lost."
            )
        pairs = zip(self.rules, value, strict=True)
        return tuple(rule.read(item, f"{path}[{i}]") for i, (rule, item) in enumerate(pairs))


@dataclasses.dataclass(frozen=True)
class Anything:
    """A value that is checked elsewhere, once it is known whose it is.

    Attributes:
      because: where.
    """

    because: str

    def read(self, value: Any, path: str) -> Any:
        """Returns the value, its lists made tuples."""
        return frozen(value)


def frozen(value: Any) -> Any:
    """Returns a value of a config as plain immutable Python: lists as tuples, sections as dicts."""
    if isinstance(value, Section):
        return value.to_dict()
    if isinstance(value, Mapping):
        return {key: frozen(item) for key, item in value.items()}
    if hasattr(value, "to_dict"):  # a ConfigDict
        return frozen(value.to_dict())
    if isinstance(value, tuple | list):
        return tuple(frozen(item) for item in value)
    return value


class Section:
    """A section of the configuration: a frozen dataclass whose fields are made by `field`.

    Attributes:
      PATH: its place in the configuration, "" for the whole.
    """

    PATH: ClassVar[str] = ""

    def __post_init__(self):
        for name, rule in rules(type(self)).items():
            value = rule.read(getattr(self, name), self.key_of(name))
            object.__setattr__(self, name, value)
        self.check()

    def check(self) -> None:
        """Refuses fields that do not go together."""

    @classmethod
    def key_of(cls, name: str) -> str:
        """Returns the dotted key of a field."""
        return f"{cls.PATH}.{name}" if cls.PATH else name

    def require(self, holds: bool, name: str, rule: str, remedy: str = "") -> None:
        """Refuses the field `name` unless `holds`: "PATH must RULE, got VALUE. REMEDY"."""
        if not holds:
            value, end = short(getattr(self, name)), f" {remedy}" if remedy else ""
            raise InputError(f"{self.key_of(name)} must {rule}, got {value}.{end}")

    def to_dict(self) -> dict[str, Any]:
        """Returns the section as nested dicts of plain values."""
        values = ((name, getattr(self, name)) for name in rules(type(self)))
        return {n: v.to_dict() if isinstance(v, Section) else v for n, v in values}


@dataclasses.dataclass(frozen=True)
class One:
    """A section with these fields, no more and no less."""

    section: type[Section]

    def read(self, value: Any, path: str) -> Section:
        """Returns the section."""
        if isinstance(value, self.section):
            return value
        return build(self.section, _mapping(value, path), path)


@dataclasses.dataclass(frozen=True)
class Select:
    """A section that selects an algorithm and has exactly its arguments.

    Attributes:
      selector: the key that names it.
      sections: name -> the section of its arguments, which has the selector as a field.
    """

    selector: str
    sections: Mapping[str, type[Section]]

    def __hash__(self):
        return hash((self.selector, tuple(self.sections)))

    def read(self, value: Any, path: str) -> Section:
        """Returns the section of what is selected."""
        if isinstance(value, tuple(self.sections.values())):
            return value
        values = _mapping(value, path)
        if self.selector not in values:
            names = ", ".join(self.sections)
            raise InputError(f"{path}.{self.selector} is missing. Give one of: {names}.")
        name = values[self.selector]
        if not isinstance(name, str):
            raise _broken(f"{path}.{self.selector}", "a name", name)
        section = choose(f"{path}.{self.selector}", name, self.sections)
        return build(section, values, path, of=f"'{name}'")


def field(rule: Any, **options: Any) -> Any:
    """Returns a field of a section; `options` are those of dataclasses.field (default)."""
    return dataclasses.field(metadata={"rule": rule}, **options)


def rules(section: type[Section]) -> dict[str, Any]:
    """Returns {name: rule} of a section's fields."""
    return {f.name: f.metadata["rule"] for f in dataclasses.fields(section)}


def build(section: type[Section], values: Mapping[str, Any], path: str, of: str = "") -> Section:
    """Returns the section with `values`.

    Args:
      section: which.
      values: by name.
      path: of the section, for messages.
      of: what was selected, for messages.

    Raises:
      InputError: a key is unknown or missing, or a value breaks its rule.
    """
    fields = {f.name: f for f in dataclasses.fields(section)}
    dot = f"{path}." if path else ""
    where = f" of {of}" if of else ""
    for name in values:
        if name not in fields:
            raise InputError(f"Unknown key {dot}{name}{where}. {nearest(name, fields)}")
    needed = [n for n, f in fields.items() if f.default is dataclasses.MISSING]
    for name in needed:
        if name not in values:
            have = f" {of} has" if of else " Give all of"
            raise InputError(f"{dot}{name} is missing.{have}: {', '.join(fields)}.")
    return section(**values)


def near(key: str, keys: Sequence[str]) -> str:
    """Returns help with a dotted key that is not among `keys`: like ones, and the same last word
    elsewhere.
    """
    word = key.rpartition(".")[2]
    close = [name for name in keys if name.rpartition(".")[2] == word]
    close += difflib.get_close_matches(key, keys, n=1, cutoff=0.7)
    last = {name: name.rpartition(".")[2] for name in keys}
    close += [n for n in keys if difflib.get_close_matches(word, [last[n]], cutoff=0.8)]
    names = list(dict.fromkeys(close))[:3]
    return f"Did you mean {' or '.join(names)}?" if names else ""


def _mapping(value: Any, path: str) -> Mapping[str, Any]:
    if isinstance(value, Section):
        return value.to_dict()
    if hasattr(value, "to_dict"):  # a ConfigDict
        return {key: value[key] for key in value}
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return value
    raise _broken(path or "config", "a section: a dict of its keys", value)


def short(value: Any) -> str:
    """Returns a value as a message shows it, whatever it is."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of thousands of digits; tuples in tuples
        return f"a {type(value).__name__} that cannot be shown"
    return text if len(text) <= 120 else text[:117] + "..."


def _broken(path: str, rule: str, value: Any) -> InputError:
    return InputError(f"{path} must be {rule}, got {short(value)}.")
