"""Several programs as one: the stages of `config.recipe`, each in a folder of its own.

code = run(config, workdir, dry_run)              what train.py calls for a config with a recipe
compile_stages(config, topology, workdir)         what --compile_only is for it
"""

from jaxrope.recipe.loop import compile_stages, run

__all__ = ["compile_stages", "run"]
