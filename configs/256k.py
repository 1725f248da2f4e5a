"""Fine-tunes the 128k Llama-2-7B to 262,144 tokens: the second stage of LongRoPE (arXiv 2402.13753, section 4.1).

  python -m jaxrope.train --config=configs/256k.py --workdir=runs/256k

on a v5p-128 (64 chips), after configs/128k.py, starting from its workdir runs/128k. Other models, slices and folders:
--config=configs/256k.py:mistral_7b,v5e_256,gs://BUCKET/FOLDER (recipes.py lists them; --workdir=runs/256k_mistral_7b then).
docs/pods.md describes a whole run.

600 steps of 32 rows, 5.0 G tokens, with the published factors for 256k. Figures of the TPU compiler and the cost model, not
measured (--compile_only, with --topology=v5p:4x4x4 and v5e:16x16; libtpu 0.0.52):

  slice               mesh                   HBM of a chip       a step   MFU   the run
  v5p-128, 64 chips   fsdp 8 x context 8     77.9 of 95.7 GiB    156 s    45%   1 d 02 h
  v5e-256, 256 chips  fsdp 16 x context 16   13.6 of 15.75 GiB    93 s    44%   15 h 27 min
"""

from jaxrope.configs import recipes

MESHES = {"v5p_64": (8, 8), "v5e_256": (16, 16), "v6e_256": (16, 16)}


def get_config(text=""):
    """Returns the configuration; recipes.py documents `text`."""
    model, mesh, folder, _ = recipes.parse(text, "256k", MESHES)
    config = recipes.finetune(262_144, model, mesh, folder=folder, source="128k", steps=600)
    recipes.factors(config, "256k", model, folder)
    config.forward.remat = "save_attention"
    if model == "llama2_7b" and config.mesh.context == 8:
        config.forward.remat = "save_mlp"  # 77.9 of the 95.7 GiB of a v5p
    if model == "qwen3_30b_a3b" and config.mesh.context == 16:
        config.forward.remat = "full"  # a layer's experts are 1.1 GiB: what attention gave does not fit beside them on v5e
    return config
