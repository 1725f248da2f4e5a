"""Searches factors that extend the fine-tuned 256k model to 2,097,152 tokens, without training (LongRoPE, sections 3.3, 4.1).

  python -m jaxrope.search --config=configs/search_2m.py --workdir=runs/search_2m

on a v5p-512 (256 chips), after configs/256k.py, on the model in its workdir runs/256k. Other models, slices and folders:
--config=configs/search_2m.py:mistral_7b,v5e_256,gs://BUCKET/FOLDER (recipes.py lists them).

The compiler (--compile_only --topology=v5p:4x8x8, libtpu 0.0.52): every hop of the ring hidden; the cost model: 958 s per batch of 16
candidates at 50% MFU, 3 h 27 m for the whole search.

Half the population and 3 texts, as in the paper beyond 512k, in 12 generations: 32 candidates, then 16 new ones in each of 11.
"""

from jaxrope.configs import recipes

MESHES = {"v5p_256": (16, 16), "v5e_256": (16, 16), "v6e_256": (16, 16)}  # a generation has 16 new candidates


def get_config(text=""):
    """Returns the configuration; recipes.py documents `text`."""
    model, mesh, folder, _ = recipes.parse(text, "search_2m", MESHES)
    return recipes.search(2_097_152, model, mesh, folder=folder, source="256k", quick=True)
