"""The whole recipe of LongRoPE for Llama-2-7B, from 4,096 tokens to 2,097,152 (arXiv 2402.13753, sections 3.3, 4.1), in one workdir.

  python -m jaxrope.train --config=configs/recipe_2m.py --workdir=runs/recipe_2m

on a v5p-128 (64 chips). Searches factors for 128k and 256k on the base; fine-tunes 400 steps at 128k, then 600 steps with the factors for 256k;
searches 2M on the fine-tuned model, without training; searches short factors for 4k and 8k again; joins all of them by length, and
evaluates the result. One stage: --config.stages=search_128k; cost of each: --dry_run, and --compile_only --topology=v5p:4x4x4 for the
compiler's figures. The same command resumes a stopped or preempted run. Other models, slices and folders:
--config=configs/recipe_2m.py:mistral_7b,v5e_256,gs://BUCKET/FOLDER (recipes.py lists them; --workdir=runs/recipe_2m_mistral_7b then).
The word `quick` shortens the searches (see recipes.search).

It was never run as a whole: no pod was available. The cost model's times of its parts are in 128k.py, 256k.py and search_*.py.
"""

from jaxrope.configs import recipes

# Devices on (fsdp, context) by kind of stage. A generation of a search has 32 new candidates, of the 2M search 16.
MESHES = {
    "search": {"v5p_64": (32, 2), "v5p_256": (32, 8), "v5e_256": (32, 8), "v6e_256": (32, 8)},
    "128k": {"v5p_64": (16, 4), "v5p_256": (32, 8), "v5e_256": (32, 8), "v6e_256": (32, 8)},
    "256k": {"v5p_64": (8, 8), "v5p_256": (16, 16), "v5e_256": (16, 16), "v6e_256": (16, 16)},
    "2m": {"v5p_64": (4, 16), "v5p_256": (16, 16), "v5e_256": (16, 16), "v6e_256": (16, 16)},
}
ORIGINAL_LEN = {"llama2_7b": 4096, "llama3_8b": 8192, "mistral_7b": 4096, "qwen3_8b": 32_768}
HIGHEST = 5.0  # the largest short factor: those of the paper that are below the fine-tuned ones end at 2.8 to 5.0 (4k_la2_128k, 8k_la2_256k)


def get_config(text=""):
    """Returns the configuration; recipes.py documents `text`, which may also contain the word quick."""
    parsed = {name: recipes.parse(text, "recipe_2m", meshes, ("quick",)) for name, meshes in MESHES.items()}
    model, _, folder, word = parsed["search"]
    meshes = {name: mesh for name, (_, mesh, _, _) in parsed.items()}
    place = dict(folder=folder, source=None)
    config = recipes.start(0, model, meshes["search"], **place)
    stages = [
        *searches(model, meshes["search"], place, quick=word == "quick"),
        *finetunes(model, meshes, place),
        ("second", "search", second(model, meshes["2m"], place)),
        *recoveries(model, meshes["search"], place, quick=word == "quick"),
        ("join", "join", join(model, meshes["search"], place)),
        ("measure", "evaluate", measure(model, meshes["2m"], place)),
    ]
    config.recipe = tuple((name, kind, recipes.difference(stage, config)) for name, kind, stage in stages)
    return config


def searches(model, mesh, place, *, quick):
    """Yields the searches on the base model."""
    for name, length in (("128k", 131_072), ("256k", 262_144)):
        yield f"search_{name}", "search", recipes.search(length, model, mesh, quick=quick, **place)


def finetunes(model, meshes, place):
    """Yields the two fine-tunings; the second starts from the weights of the first, with the factors for 256k."""
    for name, length, steps, source in (("128k", 131_072, 400, ""), ("256k", 262_144, 600, "{finetune_128k}")):
        config = recipes.finetune(length, model, meshes[name], steps=steps, **place)
        config.model.path = source or config.model.path
        config.rope = dict(method="file", path=f"{{search_{name}}}/rope.json")
        config.forward.remat = "save_attention"
        yield f"finetune_{name}", "train", config


def second(model, mesh, place):
    """Returns the second search: factors that multiply those of the fine-tuning, without training."""
    config = recipes.search(2_097_152, model, mesh, quick=True, **place)
    config.model.path = "{finetune_256k}"
    config.search.multiply = True
    return config


def recoveries(model, mesh, place, *, quick):
    """Yields the searches for short factors on the extended model."""
    for times in (1, 2):
        config = recipes.search(times * ORIGINAL_LEN[model], model, mesh, quick=quick, **place)
        config.model.path = "{finetune_256k}"
        config.search.highest = HIGHEST
        config.search.attention_factor = "rope"
        yield f"recover_{times}x", "search", config


def join(model, mesh, place):
    """Returns the join: short factors up to 2 L0, those of the fine-tuning up to 256k, those of the second search beyond."""
    config = recipes.start(0, model, mesh, **place)
    config.model.path = "{finetune_256k}"
    config.join.ropes = ("{recover_1x}", "{recover_2x}", "{finetune_256k}", "{second}")
    return config


def measure(model, mesh, place):
    """Returns the measurement of eval_2m.py, from L0 on."""
    config = recipes.start(2_097_152, model, mesh, **place)
    config.model.path = "{join}"
    config.eval.suites = ("perplexity", "passkey")
    original_len = ORIGINAL_LEN[model]
    config.eval.lengths = (original_len, 2 * original_len, 131_072, 262_144, 524_288, 1_048_576, 2_097_152)
    config.eval.label = "LongRoPE"
    config.eval.num_windows, config.eval.windows_per_doc = 20, 1
    config.eval.passkey_trials = 10
    config.eval.batch_tokens = 1  # one window at a time for each device of fsdp
    return config
