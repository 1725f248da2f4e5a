"""Evaluation of a model at a length: perplexity, retrieval and tasks, behind one interface.

for result in run(model, bench(config.eval, ...), config.eval.suites): ...
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "scoring": ["Bench", "EvalModel", "Evaluate", "Result"],
        "suites": [
            "EVALUATORS",
            "Evaluator",
            "all_evaluators",
            "bench",
            "bench_of",
            "check",
            "chosen",
            "cost",
            "costs",
            "needs_text",
            "run",
            "scalars",
        ],
    },
)
