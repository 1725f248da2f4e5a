"""Fine-tunes Llama-2-7B at 131,072 tokens: the first stage of LongRoPE (arXiv 2402.13753, section 4.1).

  python -m jaxrope.train --config=configs/128k.py --workdir=runs/128k

on a v5p-128 (64 chips). Other models, slices and folders: --config=configs/128k.py:mistral_7b,v5e_256,gs://BUCKET/FOLDER
(recipes.py lists them; --workdir=runs/128k_mistral_7b then). docs/pods.md describes a whole run.

400 steps of 32 rows, 1.7 G tokens, with the published factors for 128k. Figures of the TPU compiler and the cost model, not
measured (--compile_only --topology=v5p:4x4x4, libtpu 0.0.52):

  slice              mesh                  HBM of a chip      a step   MFU   the run
  v5p-128, 64 chips  fsdp 16 x context 4   28.3 of 95.7 GiB    45 s    45%   5 h 02 min
"""

from jaxrope.configs import recipes

MESHES = {"v5p_64": (16, 4), "v5e_256": (32, 8), "v6e_256": (32, 8)}


def get_config(text=""):
    """Returns the configuration; recipes.py documents `text`."""
    model, mesh, folder, _ = recipes.parse(text, "128k", MESHES)
    config = recipes.finetune(131_072, model, mesh, folder=folder, source=None, steps=400)
    recipes.factors(config, "128k", model, folder)
    config.forward.remat = "save_attention"
    return config
