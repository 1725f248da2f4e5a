"""Evaluation of a model at a length: perplexity, retrieval and tasks, behind one interface.

plan = prepare(config)                what can be known before weights are read, checked
text = dry_run(config)                what it would cost
columns = evaluate(config, workdir)   one evaluation, or its rest
columns = finished(config, workdir)   those of a finished one, or None
for result in run(model, Bench(config.eval, config.seed, documents)): ...
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "cost": ["dry_run"],
        "plan": ["Plan", "prepare"],
        "program": ["evaluate", "finished"],
        "scoring": ["Bench", "EvalModel", "Result", "Suite"],
        "suites": ["SUITES", "TASKS", "check", "costs", "needs_text", "run", "scalars"],
    },
)
