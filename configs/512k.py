"""Fine-tunes the 256k Llama-2-7B to 524,288 tokens. The paper does not train above 256k.

  python -m jaxrope.train --config=configs/512k.py --workdir=runs/512k

on a v5p-128 (64 chips), after configs/256k.py, starting from its workdir runs/256k. Other models, slices and folders:
--config=configs/512k.py:llama3_8b,v5e_256,gs://BUCKET/FOLDER (recipes.py lists them).

The recipe of 256k with half the rows, so that a step has the same number of tokens, and 200 steps: 1.7 G tokens; our choice, not a
published result.
The factors are those that the paper searched on the fine-tuned 256k model; llama3_8b has none, so first run
  python -m jaxrope.search --config=configs/search_2m.py:llama3_8b --config.target_len=524288 --workdir=runs/search_512k_llama3_8b
"""

from jaxrope.configs import recipes

MESHES = {"v5p_64": (4, 16), "v5p_128": (8, 16), "v5e_256": (8, 16, 2), "v6e_256": (16, 16)}


def get_config(text=""):
    """Returns the configuration; recipes.py documents `text`."""
    model, mesh, folder, _ = recipes.parse(text, "512k", MESHES)
    config = recipes.finetune(524_288, model, mesh, folder=folder, source="256k", steps=200)
    if model != "mistral_7b":  # its rows are of 16k here too
        config.train.batch_size = 16
        config.train.accumulation = 16 // config.mesh.fsdp
    recipes.factors(config, "512k", model, folder)
    config.forward.remat = "save_attention"
    return config
