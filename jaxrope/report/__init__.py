"""Figures of what programs found, and a page that shows what they wrote into their workdirs.

The only part of the package that knows matplotlib. It reads files and the rows in them; it knows
no model.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "document": ["write"],
        "figures": [
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
        ],
    },
)
