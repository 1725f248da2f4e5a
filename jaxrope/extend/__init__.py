"""From a model to a longer one that serves: the plan, its recipe, the exports, the page.

plan = planning.make(request, folder)   what is done and how long it takes; stored, and read again
code = run.run(plan, folder)            all of it, or the rest
"""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from jaxrope.extend import planning as planning
    from jaxrope.extend import recipes as recipes
    from jaxrope.extend import request as request
    from jaxrope.extend import run as run

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__, submodules=["planning", "recipes", "request", "run"]
)
