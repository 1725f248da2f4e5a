"""Text from a model, token by token: prefill in chunks, a cache of keys and values, sampling.

Each row uses the factors for its length, and its tokens do not depend on the other rows of the
batch. `Options.policy` decides what happens when a row outgrows its length bucket.
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
