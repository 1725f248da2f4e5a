"""Figures of results, and a page that shows the results in workdirs.

The only package that imports matplotlib. It reads result files and needs no model.
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
