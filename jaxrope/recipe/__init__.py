"""Several programs as one: the stages of `config.recipe`, each in a folder of its own.

code = run(config, workdir)                       what train.py calls for a config with a recipe
text = dry_run(config, workdir)                   what it would do, and what that costs
compile_stages(config, topology, workdir)         what --compile_only is for it
plan = prepare(config, workdir)                   every stage checked, before any runs
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={"loop": ["compile_stages", "dry_run", "run"], "plan": ["prepare"]},
)
