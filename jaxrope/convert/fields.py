"""Typed reading of a config from elsewhere.

Every wrong value is an InputError that names the key.
"""

import dataclasses

from jaxrope.errors import InputError
from jaxrope.store import strict_json

_ABSENT = object()
_MAX_COUNT = 2**31 - 1
_MAX_NUMBER = 1e300


@dataclasses.dataclass(frozen=True)
class Fields:
    """A JSON object and its location, for messages."""

    values: dict
    where: str

    def get(self, key: str) -> object:
        """Returns the value, None where the key is absent."""
        return self.values.get(key)

    def count(self, key: str, default: object = _ABSENT, *, low: int = 1) -> int:
        """Returns a whole number from `low` up; `default` where the key is absent or null."""
        value = self.values.get(key)
        if value is None:
            return self._default(key, default)
        whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
        if isinstance(value, bool) or not whole or not low <= value <= _MAX_COUNT:
            raise self.wrong(key, f"be a whole number from {low} to {_MAX_COUNT}")
        return int(value)

    def number(
        self, key: str, default: object = _ABSENT, *, low: float = 0.0, high: float = _MAX_NUMBER
    ) -> float:
        """Returns a number from `low` to `high`; `default` where the key is absent or null."""
        value = self.values.get(key)
        if value is None:
            return self._default(key, default)
        numeric = isinstance(value, int | float) and not isinstance(value, bool)
        if not numeric or not low <= value <= high:  # NaN is neither
            most = "" if high == _MAX_NUMBER else f" and at most {high:g}"
            raise self.wrong(key, f"be a finite number of at least {low:g}{most}")
        return float(value)

    def flag(self, key: str, default: object = _ABSENT) -> bool:
        """Returns true or false; `default` where the key is absent or null."""
        value = self.values.get(key)
        if value is None:
            return self._default(key, default)
        if not isinstance(value, bool):
            raise self.wrong(key, "be true or false")
        return value

    def text(self, key: str, default: object = _ABSENT) -> str:
        """Returns a string; `default` where the key is absent or null."""
        value = self.values.get(key)
        if value is None:
            return self._default(key, default)
        if not isinstance(value, str):
            raise self.wrong(key, "be a string")
        return value

    def token_id(self, key: str) -> int | None:
        """Returns a token's id; the first of a list of them; None where there is none."""
        value = self.values.get(key)
        if isinstance(value, list) and value:
            return Fields({key: value[0]}, self.where).token_id(key)
        return None if value is None or value == [] else self.count(key, low=0)

    def token_ids(self, key: str) -> int | tuple[int, ...] | None:
        """Returns a token's id, or all of a list of them; None where there is none."""
        value = self.values.get(key)
        if isinstance(value, list) and value:
            return tuple(Fields({key: item}, self.where).count(key, low=0) for item in value)
        return None if value == [] else self.token_id(key)

    def pad_id(self) -> int | None:
        """Returns the id of the padding token, which may lie outside the vocabulary (-1 too)."""
        return self.count("pad_token_id", None, low=-1)

    def factors(self, key: str, length: int) -> list[float]:
        """Returns a list of `length` finite positive numbers."""
        value = self.values.get(key)
        numeric = isinstance(value, list) and all(
            isinstance(item, int | float) and not isinstance(item, bool) and 0 < item < 1e300
            for item in value
        )
        if not numeric:
            raise self.wrong(key, "be a list of finite positive numbers")
        if len(value) != length:
            raise self.wrong(key, f"hold {length} numbers, half the dims that turn")
        return [float(item) for item in value]

    def section(self, key: str) -> "Fields | None":
        """Returns the object under `key`; None where it is absent or null."""
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.wrong(key, "be an object")
        return Fields(value, f"{self.where}: {key}.")

    def wrong(self, key: str, rule: str) -> InputError:
        """Returns the error that says `key` must `rule`."""
        actual = strict_json.kind(self.values[key]) if key in self.values else "nothing"
        return InputError(f"{self.path(key)} must {rule}, got {actual}.")

    def path(self, key: str) -> str:
        """Returns "file: key", "file: section.key"."""
        return f"{self.where}{key}" if self.where.endswith(".") else f"{self.where}: {key}"

    def _default(self, key: str, default: object):
        if default is _ABSENT:
            raise InputError(f"{self.path(key)} is missing. A model cannot be run without it.")
        return default
