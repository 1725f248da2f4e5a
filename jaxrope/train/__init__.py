"""Fine-tuning, or training from scratch.

plan = prepare(config)               everything checked, before weights are read
text = dry_run(config, workdir)      what it is and what it takes
code = train(config, workdir)        one run, or its rest
columns = finished(config, workdir)  of this very run, where it is done
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
