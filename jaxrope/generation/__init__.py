"""Text from a model, token by token: prefill in chunks, a cache of keys and values, sampling.

Factors are chosen for each row by its own length, never by its batch mates, and a row's tokens do
not depend on which other rows there are. A row that grows across the border of a length bucket
follows `Options.policy`.
"""

from jaxrope.generation.options import Model, Options, check
from jaxrope.generation.policy import POLICIES
from jaxrope.generation.run import Timing, generate, stream, warm_up
from jaxrope.generation.text import TextStream

__all__ = [
    "POLICIES",
    "Model",
    "Options",
    "TextStream",
    "Timing",
    "check",
    "generate",
    "stream",
    "warm_up",
]
