"""The experiments of "Understanding the RoPE Extensions of Long-Context LLMs: An Attention
Perspective" (arXiv 2406.13282), in miniature: what `python -m jaxrope.analyse` runs.

code = run(config, workdir, dry_run)
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={"program": ["run"]})
