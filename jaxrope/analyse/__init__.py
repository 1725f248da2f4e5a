"""The experiments of "Understanding the RoPE Extensions of Long-Context LLMs: An Attention
Perspective" (arXiv 2406.13282), in miniature: what `python -m jaxrope.analyse` runs.

code = run(config, workdir)            the experiments, or the rest of them
text = dry_run(config, workdir)        what they cost, and what is done
prepared = prepare(config, workdir)    everything checked, before weights are read
"""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from jaxrope.analyse.program import dry_run as dry_run
    from jaxrope.analyse.program import prepare as prepare
    from jaxrope.analyse.program import run as run

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__, submod_attrs={"program": ["dry_run", "prepare", "run"]}
)
