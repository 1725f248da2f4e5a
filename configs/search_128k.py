"""Searches factors that extend Llama-2-7B to 131,072 tokens, 32 times its length, without training (LongRoPE, section 4.1).

  python -m jaxrope.search --config=configs/search_128k.py --workdir=runs/search_128k

on a v5p-128 (64 chips). Other models, slices and folders: --config=configs/search_128k.py:llama3_8b,v5e_256,gs://BUCKET/FOLDER
(recipes.py lists them; --workdir=runs/search_128k_llama3_8b then). The word `quick` halves the population and uses
12 iterations and 3 samples: a tenth of the work.

The compiler (--compile_only --topology=v5p:4x4x4, libtpu 0.0.52): 4.9 GiB of a chip's 95.7, every hop of the ring hidden; the cost
model: 63 s per batch of 32 candidates at 54% MFU, 43 minutes for the whole search.

Algorithm 1 with the paper's numbers: 64 candidates, then 32 new ones in each of 39 generations, on 5 texts of PG19's validation split.
"""

from jaxrope.configs import recipes

MESHES = {"v5p_64": (32, 2), "v5e_256": (32, 8), "v6e_256": (32, 8)}  # a generation has 32 new candidates


def get_config(text=""):
    """Returns the configuration; recipes.py documents `text`, which may also contain the word quick."""
    model, mesh, folder, word = recipes.parse(text, "search_128k", MESHES, ("quick",))
    return recipes.search(131_072, model, mesh, folder=folder, source=None, quick=word == "quick")
