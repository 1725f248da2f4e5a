"""Every key of the configuration: its type, its range or choices, its unit, stated once.

config = read(experiment.load(...))       nested frozen dataclasses, everything checked
config = replace(config, {"train.steps": 400})
for key, value in leaves(config): ...     dotted keys
identify("search", config, {"weights": digest, ...}).digest

No jax is imported here: a mistake is found before anything is.
"""

from jaxrope.schema.config import KINDS, Config, get, leaves, read, replace, rule_of
from jaxrope.schema.identity import FREE, UNREAD, Identity, identify
from jaxrope.schema.model import Mesh
from jaxrope.schema.rules import Section

__all__ = [
    "FREE",
    "KINDS",
    "UNREAD",
    "Config",
    "Identity",
    "Mesh",
    "Section",
    "get",
    "identify",
    "leaves",
    "read",
    "replace",
    "rule_of",
]
