"""Every key of the configuration: its type, range or choices, and unit, each stated once.

config = read(experiment.load(...))       nested frozen dataclasses, fully checked
config = replace(config, {"train.steps": 400})
for key, value in leaves(config): ...     dotted keys
identify("search", config, {"weights": digest, ...}).digest

jax is not imported here: the config is checked before any heavy import.
"""

from jaxrope.schema import evaluation, model, registered, rules, training
from jaxrope.schema.config import KINDS, Config, get, leaves, read, replace, rule_of
from jaxrope.schema.identity import FREE, UNREAD, Identity, identify
from jaxrope.schema.model import Mesh
from jaxrope.schema.rules import Section

__all__ = [
    "Config",
    "FREE",
    "Identity",
    "KINDS",
    "Mesh",
    "Section",
    "UNREAD",
    "evaluation",
    "get",
    "identify",
    "leaves",
    "model",
    "read",
    "registered",
    "replace",
    "rule_of",
    "rules",
    "training",
]
