"""Measures the fine-tuned 256k model from 128k to 2,097,152 tokens: perplexity and passkeys (LongRoPE, section 4.2).

  python -m jaxrope.evaluate --config=configs/eval_2m.py --workdir=runs/eval_2m

on a v5p-128 (64 chips), after configs/256k.py. 20 books of more than 2M tokens, each with one window per length; 10 passkey trials at
each length. The factors are the published ones for each length. Other models, slices and folders: --config=configs/eval_2m.py:mistral_7b,v5e_256,
gs://BUCKET/FOLDER (recipes.py lists them).

With the word `sliding` it reads the same texts with a window of 256k that moves by 128k, which any 256k model can do (no passkeys):
  python -m jaxrope.evaluate --config=configs/eval_2m.py:sliding --workdir=runs/eval_2m_sliding
"""

from jaxrope.configs import recipes

MESHES = {"v5p_64": (4, 16), "v5p_256": (4, 64), "v5e_256": (16, 16), "v6e_256": (16, 16)}


def get_config(text=""):
    """Returns the configuration; recipes.py documents `text`, which may also contain the word sliding."""
    model, mesh, folder, word = recipes.parse(text, "eval_2m", MESHES, ("sliding",))
    config = recipes.start(2_097_152, model, mesh, folder=folder, source="256k")
    recipes.factors(config, "eval" if recipes.MODELS[model]["presets"] else "2m", model, folder)
    config.eval.suites = ("perplexity", "passkey")
    config.eval.lengths = (131_072, 262_144, 524_288, 1_048_576, 2_097_152)
    config.eval.label = "LongRoPE"
    config.eval.num_windows, config.eval.windows_per_doc = 20, 1
    config.eval.passkey_trials = 10
    config.eval.batch_tokens = 1  # one window at a time for each device of fsdp
    if word == "sliding":
        config.eval.suites = ("perplexity",)
        config.eval.lengths = (524_288, 1_048_576, 2_097_152)
        config.eval.label = "sliding 256k"
        config.eval.window, config.eval.stride = 262_144, 131_072
    return config
