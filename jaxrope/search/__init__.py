"""The search for rope factors (LongRoPE, Algorithm 1): genomes, evolution, objectives, journal.

result = search(config, workdir)      one search, or its rest
text = estimate(config)               what it would cost
table = sweep(config, workdir, fn)    one search for every combination of listed values
"""

from jaxrope.search.cost import estimate
from jaxrope.search.interrupt import exit_at_once
from jaxrope.search.run import Result, search
from jaxrope.search.sweep import members
from jaxrope.search.sweep import run as run_sweep

__all__ = ["Result", "estimate", "exit_at_once", "members", "run_sweep", "search"]
