"""The search for rope factors: LongRoPE's and LongRoPE2's evolution, descents along the gradient,
objectives, journal.

problem = prepare(config)             everything checked; no weights are read, nothing is compiled
problem = outline(config, mesh)       without text and checkpoint, for devices that are not here
text = dry_run(config)                what it would do and cost
result = search(config, workdir)      one search, or its rest
columns = finished(config, workdir)   of a search of this very model, text and config, or None
"""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from jaxrope.search import cost as cost
    from jaxrope.search import descent as descent
    from jaxrope.search import evaluator as evaluator
    from jaxrope.search import gradient as gradient
    from jaxrope.search import plan as plan
    from jaxrope.search.cost import dry_run as dry_run
    from jaxrope.search.cost import measured as measured
    from jaxrope.search.cost import planned as planned
    from jaxrope.search.objective import Objective as Objective
    from jaxrope.search.objective import Task as Task
    from jaxrope.search.objective import lay_out_weighted as lay_out_weighted
    from jaxrope.search.objective import perplexity as perplexity
    from jaxrope.search.objective import register as register
    from jaxrope.search.preparing import outline as outline
    from jaxrope.search.preparing import prepare as prepare
    from jaxrope.search.problem import Problem as Problem
    from jaxrope.search.problem import build_rope as build_rope
    from jaxrope.search.run import Result as Result
    from jaxrope.search.run import finished as finished
    from jaxrope.search.run import search as search

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["cost", "descent", "evaluator", "gradient", "plan"],
    submod_attrs={
        "cost": ["dry_run", "measured", "planned"],
        "objective": ["Objective", "Task", "lay_out_weighted", "perplexity", "register"],
        "preparing": ["outline", "prepare"],
        "problem": ["Problem", "build_rope"],
        "run": ["Result", "finished", "search"],
    },
)
