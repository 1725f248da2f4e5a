"""Fine-tuning, or training from scratch.

plan = prepare(config)               checks everything before weights are read
model = outline(config)              what it will leave, from the config alone
text = dry_run(config, workdir)      describes the run and its cost
code = train(config, workdir)        runs it, or resumes it
columns = finished(config, workdir)  the result of this run if it is complete, else None
"""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from jaxrope.train import program as program
    from jaxrope.train import resume as resume
    from jaxrope.train.describe import dry_run as dry_run
    from jaxrope.train.plan import outline as outline
    from jaxrope.train.plan import prepare as prepare
    from jaxrope.train.resume import finished as finished
    from jaxrope.train.run import train as train
    from jaxrope.train.step import TrainState as TrainState
    from jaxrope.train.step import flops_per_token as flops_per_token
    from jaxrope.train.step import init_state as init_state
    from jaxrope.train.step import make_step as make_step

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["program", "resume"],
    submod_attrs={
        "describe": ["dry_run"],
        "plan": ["outline", "prepare"],
        "resume": ["finished"],
        "run": ["train"],
        "step": ["TrainState", "flops_per_token", "init_state", "make_step"],
    },
)
