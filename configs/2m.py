"""Fine-tunes the 512k Llama-2-7B to 2,097,152 tokens. The paper does not train at this length: its 2M is search and evaluation only
(search_2m.py, eval_2m.py).

  python -m jaxrope.train --config=configs/2m.py --workdir=runs/2m

on a v5p-512 (256 chips), after configs/512k.py, starting from its workdir runs/512k. Other models and folders:
--config=configs/2m.py:llama3_8b,gs://BUCKET/FOLDER (recipes.py lists them).

The recipe of 256k with 4 rows, the same number of tokens per step, and 100 steps: 0.8 G tokens; our choice, not a published result.
The factors are those that the paper searched on the fine-tuned 256k model. Figures of the TPU compiler and the cost model, not
measured (--compile_only --topology=v5p:4x8x8, libtpu 0.0.52):

  slice               mesh                  HBM of a chip      a step   MFU   the run
  v5p-512, 256 chips  fsdp 4 x context 64   27.3 of 95.7 GiB   280 s    43%   7 h 47 min
"""

from jaxrope.configs import recipes

MESHES = {"v5p_256": (4, 64)}


def get_config(text=""):
    """Returns the configuration; recipes.py documents `text`."""
    model, mesh, folder, _ = recipes.parse(text, "2m", MESHES)
    config = recipes.finetune(2_097_152, model, mesh, folder=folder, source="512k", steps=100)
    if model != "mistral_7b":  # its rows are of 16k here too
        config.train.batch_size = 4
        config.train.accumulation = 4 // config.mesh.fsdp
    recipes.factors(config, "2m", model, folder)
    config.forward.remat = "save_attention"
    return config
