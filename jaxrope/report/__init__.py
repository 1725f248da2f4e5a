"""Figures of what programs found, and a page that shows what they wrote into their workdirs.

The only part of the package that knows matplotlib. It reads files and the rows in them; it knows
no model.
"""

from jaxrope.report.figures import (
    cost_figure,
    difference_figure,
    evaluation_figure,
    maps_figure,
    needle_figure,
    passkey_figure,
    perplexity_figure,
    position_figure,
    search_figure,
    tradeoff_figure,
    training_figure,
)

__all__ = [
    "cost_figure",
    "difference_figure",
    "evaluation_figure",
    "maps_figure",
    "needle_figure",
    "passkey_figure",
    "perplexity_figure",
    "position_figure",
    "search_figure",
    "tradeoff_figure",
    "training_figure",
]
