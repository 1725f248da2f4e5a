"""The experiments of "Understanding the RoPE Extensions of Long-Context LLMs: An Attention
Perspective" (arXiv 2406.13282), in miniature: what `python -m jaxrope.analysis` runs.

code = run(config, workdir, dry_run)
"""

from jaxrope.explain.program import run

__all__ = ["run"]
