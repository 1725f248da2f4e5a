"""Several programs in one run: the stages of `config.recipe`, each in a separate folder.

code = run(config, workdir)                       runs a config with a recipe, for train.py
text = dry_run(config, workdir)                   the stages, their cost, and which are finished
compile_stages(config, topology, workdir)         its --compile_only
plan = prepare(config, workdir)                   checks every stage before any runs
"""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from jaxrope.recipe.loop import compile_stages as compile_stages
    from jaxrope.recipe.loop import dry_run as dry_run
    from jaxrope.recipe.loop import run as run
    from jaxrope.recipe.plan import prepare as prepare

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={"loop": ["compile_stages", "dry_run", "run"], "plan": ["prepare"]},
)
