"""Evaluation of a model at a length: perplexity, retrieval and tasks, behind one interface.

plan = prepare(config)                what can be known before weights are read, checked
text = dry_run(config)                what it would cost
columns = evaluate(config, workdir)   one evaluation, or its rest
columns = finished(config, workdir)   those of a finished one, or None
for result in run(model, Bench(config.eval, config.seed, documents)): ...
"""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from jaxrope.evaluate import needle as needle
    from jaxrope.evaluate import passkey as passkey
    from jaxrope.evaluate import scoring as scoring
    from jaxrope.evaluate import statistics as statistics
    from jaxrope.evaluate.cost import dry_run as dry_run
    from jaxrope.evaluate.plan import Plan as Plan
    from jaxrope.evaluate.plan import prepare as prepare
    from jaxrope.evaluate.plan import texts as texts
    from jaxrope.evaluate.program import evaluate as evaluate
    from jaxrope.evaluate.program import finished as finished
    from jaxrope.evaluate.rows import method_row as method_row
    from jaxrope.evaluate.scoring import Bench as Bench
    from jaxrope.evaluate.scoring import EvalModel as EvalModel
    from jaxrope.evaluate.scoring import Result as Result
    from jaxrope.evaluate.scoring import Suite as Suite
    from jaxrope.evaluate.suites import SUITES as SUITES
    from jaxrope.evaluate.suites import check as check
    from jaxrope.evaluate.suites import forward_tokens as forward_tokens
    from jaxrope.evaluate.suites import needs_text as needs_text
    from jaxrope.evaluate.suites import run as run
    from jaxrope.evaluate.suites import scalars as scalars

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["needle", "passkey", "scoring", "statistics"],
    submod_attrs={
        "cost": ["dry_run"],
        "plan": ["Plan", "prepare", "texts"],
        "program": ["evaluate", "finished"],
        "rows": ["method_row"],
        "scoring": ["Bench", "EvalModel", "Result", "Suite"],
        "suites": ["SUITES", "check", "forward_tokens", "needs_text", "run", "scalars"],
    },
)
