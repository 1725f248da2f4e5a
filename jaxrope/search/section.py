"""Sections of config.search whose keys are exactly the fields of a dataclass."""

import dataclasses
from typing import Any

from jaxrope.errors import InputError, choose


def made(cls: type, path: str, section: dict[str, Any]) -> Any:
    """Returns `cls` with the values of a section.

    Args:
      cls: a dataclass, which checks its values.
      path: of the section, for messages.
      section: its keys and values.

    Raises:
      InputError: a key is unknown or missing, or a value breaks its rule.
    """
    known = {field.name: None for field in dataclasses.fields(cls)}
    for name in section:
        choose(f"{path} key", name, known)
    missing = [name for name in known if name not in section]
    if missing:
        raise InputError(f"{path} lacks {', '.join(missing)}. Give all of: {', '.join(known)}.")
    return cls(**section)
