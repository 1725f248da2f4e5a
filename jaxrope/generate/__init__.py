"""Text from a model, token by token: prefill in chunks, a cache of keys and values, sampling.

Each row uses the factors for its length, and its tokens do not depend on the other rows of the
batch. `Options.policy` decides what happens when a row outgrows its length bucket.
"""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from jaxrope.generate.options import Model as Model
    from jaxrope.generate.options import Options as Options
    from jaxrope.generate.options import check as check
    from jaxrope.generate.policy import POLICIES as POLICIES
    from jaxrope.generate.run import Timing as Timing
    from jaxrope.generate.run import generate as generate
    from jaxrope.generate.run import stream as stream
    from jaxrope.generate.run import warm_up as warm_up
    from jaxrope.generate.state import pieces as pieces
    from jaxrope.generate.text import TextStream as TextStream

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "options": ["Model", "Options", "check"],
        "policy": ["POLICIES"],
        "run": ["Timing", "generate", "stream", "warm_up"],
        "state": ["pieces"],
        "text": ["TextStream"],
    },
)
