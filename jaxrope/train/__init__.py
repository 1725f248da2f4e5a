"""Fine-tuning, or training from scratch.

code = train(config, workdir)        one run, or its rest
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "run": ["train"],
        "step": ["TrainState", "flops_per_token", "init_state", "make_step"],
    },
)
