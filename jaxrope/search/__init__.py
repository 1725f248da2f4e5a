"""The search for rope factors: LongRoPE's and LongRoPE2's evolution, descents along the gradient,
objectives, journal.

result = search(config, workdir)      one search, or its rest
text = estimate(config)               what it would cost
tokens = planned_tokens(config)       the same from the config alone, without model and text
table = sweep(config, workdir, fn)    one search for every combination of listed values
"""

from jaxrope.search.cost import estimate, planned_tokens
from jaxrope.search.interrupt import exit_at_once
from jaxrope.search.run import Result, search
from jaxrope.search.sweep import members
from jaxrope.search.sweep import run as run_sweep

__all__ = [
    "Result",
    "estimate",
    "exit_at_once",
    "members",
    "planned_tokens",
    "run_sweep",
    "search",
]
