"""Sections of config.search whose keys are exactly the fields of a dataclass."""

import dataclasses
from typing import Any

from jaxrope.errors import InputError, choose


def settings_from(cls: type, path: str, section: dict[str, Any]) -> Any:
    """Returns an instance of `cls` with the values of a section.

    Args:
      cls: a dataclass, which checks its values.
      path: of the section, for messages.
      section: its keys and values.

    Raises:
      InputError: a key is unknown or missing, or a value breaks its rule.
    """
    fields = {field.name: None for field in dataclasses.fields(cls)}
    for name in section:
        choose(f"{path} key", name, fields)
    missing = [name for name in fields if name not in section]
    if missing:
        raise InputError(f"{path} lacks {', '.join(missing)}. Give all of: {', '.join(fields)}.")
    return cls(**section)
