"""Figures of results, and a page that shows the results in workdirs.

The only package that imports matplotlib. It reads result files and needs no model.
"""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from jaxrope.report import attention as attention
    from jaxrope.report import attention_panels as attention_panels
    from jaxrope.report import figures as figures
    from jaxrope.report import tables as tables
    from jaxrope.report import tabulated as tabulated
    from jaxrope.report.document import write as write
    from jaxrope.report.figures import cost_figure as cost_figure
    from jaxrope.report.figures import evaluation_figure as evaluation_figure
    from jaxrope.report.figures import maps_figure as maps_figure
    from jaxrope.report.figures import perplexity_figure as perplexity_figure
    from jaxrope.report.figures import search_figure as search_figure
    from jaxrope.report.figures import tradeoff_figure as tradeoff_figure
    from jaxrope.report.figures import training_figure as training_figure

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["attention", "attention_panels", "figures", "tables", "tabulated"],
    submod_attrs={
        "document": ["write"],
        "figures": [
            "cost_figure",
            "evaluation_figure",
            "maps_figure",
            "perplexity_figure",
            "search_figure",
            "tradeoff_figure",
            "training_figure",
        ],
    },
)
