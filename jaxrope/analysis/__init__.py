"""Statistics of attention at any length: patterns, uncertainty, frequencies, heads."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from jaxrope.analysis import answers as answers
    from jaxrope.analysis import causal as causal
    from jaxrope.analysis import compare as compare
    from jaxrope.analysis import heads as heads
    from jaxrope.analysis import patterns as patterns
    from jaxrope.analysis import prediction as prediction
    from jaxrope.analysis import rows as rows
    from jaxrope.analysis import streaming as streaming
    from jaxrope.analysis import texts as texts
    from jaxrope.analysis.prediction import Prediction as Prediction

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=[
        "answers",
        "causal",
        "compare",
        "heads",
        "patterns",
        "prediction",
        "rows",
        "streaming",
        "texts",
    ],
    submod_attrs={"prediction": ["Prediction"]},
)
