"""Text from a model, token by token: prefill in chunks, a cache of keys and values, sampling.

Factors are chosen for each row by its own length, never by its batch mates, and a row's tokens do
not depend on which other rows there are. A row that grows across the border of a length bucket
follows `Options.policy`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "options": ["Model", "Options", "check"],
        "policy": ["POLICIES"],
        "run": ["Timing", "generate", "stream", "warm_up"],
        "text": ["TextStream"],
    },
)
