"""Fine-tuning, or training from scratch.

plan = prepare(config)               checks everything before weights are read
text = dry_run(config, workdir)      describes the run and its cost
code = train(config, workdir)        runs it, or resumes it
columns = finished(config, workdir)  the result of this run if it is complete, else None
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "describe": ["dry_run"],
        "plan": ["prepare"],
        "resume": ["finished"],
        "run": ["train"],
        "step": ["TrainState", "flops_per_token", "init_state", "make_step"],
    },
)
