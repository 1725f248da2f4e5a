"""The search for rope factors: LongRoPE's and LongRoPE2's evolution, descents along the gradient,
objectives, journal.

result = search(config, workdir)      one search, or its rest
text = estimate(config)               what it would cost
tokens = planned_tokens(config)       the same from the config alone, without model and text
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={"run": ["Result", "search"], "cost": ["estimate", "planned_tokens"]},
)
