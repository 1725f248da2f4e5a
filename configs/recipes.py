"""The recipes of LongRoPE (arXiv 2402.13753, sections 3.3, 4.1, A.3) by model, for 128k.py, 256k.py, 512k.py, 2m.py, search_*.py, eval_2m.py and recipe_2m.py.

TEXT in --config=configs/256k.py:TEXT has up to three optional parts, separated by commas, in any order: a model of MODELS, a slice of
HARDWARE, and the folder (with a "/") that contains models/, data/ and runs/, on a pod gs://BUCKET/FOLDER.
"""

import difflib

from ml_collections import ConfigDict

from jaxrope.configs import base, longrope_paper

DEFAULT = "llama2_7b"
# Folders in Hugging Face layout. `presets`: the published factors by purpose; a model without them uses those of its search.
# Mistral: config.json of v0.1 has sliding_window 4096; before importing it, set the window you want there, 131072 as the authors of LongRoPE do.
MODELS = {
    "llama2_7b": dict(
        folder="models/Llama-2-7b-hf",
        original_len=0,  # 4,096, as in the checkpoint
        presets={"128k": "ft_la2_128k", "256k": "ft_la2_256k", "512k": "512k_la2_256k", "2m": "2048k_la2_256k", "eval": "llama2-7b-2048k-ft256k"},
    ),
    "llama3_8b": dict(folder="models/Meta-Llama-3-8B", original_len=0, presets={}),  # 8,192; not in the paper: uses Llama-2's recipe
    "mistral_7b": dict(
        folder="models/Mistral-7B-v0.1",
        original_len=4096,  # implied by the published factors
        presets={"128k": "ft_mis_128k", "256k": "ft_mis_256k", "512k": "512k_mis_256k", "2m": "2048k_mis_256k", "eval": "mistral-7b-2048k-ft256k"},
    ),
    # not in the paper: these use Llama-2's recipe, and the factors of their own search
    "qwen3_8b": dict(folder="models/Qwen3-8B", original_len=0, presets={}),
    "qwen3_30b_a3b": dict(folder="models/Qwen3-30B-A3B", original_len=0, presets={}),
    "qwen3_next_80b_a3b": dict(folder="models/Qwen3-Next-80B-A3B-Instruct", original_len=0, presets={}),  # 262,144: for 512k.py and 2m.py; 256k.py to train on as it is
    "olmo3_7b": dict(folder="models/Olmo-3-1025-7B", original_len=0, presets={}),
    "smollm3_3b": dict(folder="models/SmolLM3-3B", original_len=0, presets={}),
    "gemma3_4b": dict(folder="models/gemma-3-4b-pt", original_len=0, presets={}),
}
# Devices of a slice. A config has a mesh for each slice that it fits.
HARDWARE = {"v5p_64": 64, "v5p_128": 128, "v5p_256": 256, "v5e_256": 256, "v6e_256": 256}


def parse(text, file, meshes, choices=()):
    """Returns (model, mesh, folder, choice) for the text after the colon; see the module's docstring.

    Args:
      text: the text.
      file: the config's name, for messages.
      meshes: {slice of HARDWARE: devices on (fsdp, context) or (fsdp, context, tensor)}; the first one is the default.
      choices: additional words, of which the text may contain one; the result is "" if it contains none.

    Raises:
      ValueError: a part is unknown, or two parts are of the same kind.
    """
    found = {}
    for part in filter(None, text.split(",")):
        kinds = {"folder": "/" in part, "model": part in MODELS, "hardware": part in meshes, "choice": part in choices}
        kind = next((kind for kind, fits in kinds.items() if fits), None)
        if kind is None:
            known = [*MODELS, *meshes, *choices]
            near = difflib.get_close_matches(part, known, n=1, cutoff=0.0)[0]
            raise ValueError(f"--config=configs/{file}.py:{text}: unknown '{part}'. Did you mean '{near}'? Known: {', '.join(known)}, or a folder with a '/'.")
        if kind in found:
            raise ValueError(f"--config=configs/{file}.py:{text}: two parts for the {kind}, '{found[kind]}' and '{part}'. Give one.")
        found[kind] = part
    sizes = meshes[found.get("hardware", next(iter(meshes)))]
    mesh = dict(data=1, fsdp=sizes[0], context=sizes[1], tensor=sizes[2] if len(sizes) > 2 else 1)
    return found.get("model", DEFAULT), mesh, found.get("folder", "").rstrip("/"), found.get("choice", "")


def place(folder, path):
    """Returns `path`, inside `folder` if one is given."""
    return f"{folder}/{path}" if folder else path


def run(name, model, folder):
    """Returns the workdir of the run `name` of a model, as in the commands of these files."""
    return place(folder, f"runs/{name}" if model == DEFAULT else f"runs/{name}_{model}")


def factors(config, name, model, folder):
    """Sets config.rope: the published factors for `name` in MODELS, else the result of the run search_NAME.

    To use your own instead of the published ones: --config.rope="{'method': 'file', 'path': 'runs/search_128k/rope.json'}".
    """
    published = MODELS[model]["presets"].get(name)
    searched = dict(method="file", path=run(f"search_{name}", model, folder) + "/rope.json")
    config.rope = dict(method="preset", name=published) if published else searched


def start(length, model, mesh, *, folder, source):
    """Returns a config for a model on a mesh in bfloat16, without factors.

    Args:
      length: target length in tokens.
      model: of MODELS.
      mesh: of `parse`.
      folder: of `parse`.
      source: the run to start from; None: the published model.
    """
    config = base.get_config()
    at = run(source, model, folder) if source else place(folder, MODELS[model]["folder"])
    config.model = base.checkpoint_model(at, shape=model)
    config.original_len = MODELS[model]["original_len"]
    config.target_len = length
    config.mesh.update(mesh)
    config.forward.compute_dtype = "bfloat16"
    config.forward.attention_block = 1024  # of the TPU kernels: 512 is a fifth slower (MaxText #4929)
    config.data.train_files = (place(folder, "data/train/*.jsonl.zst"),)  # long documents: RedPajama's books and arXiv
    config.data.eval_files = (place(folder, "data/books3/*.txt"),)
    config.eval.suites = ()  # eval_2m.py measures the result
    return config


def finetune(length, model, mesh, *, folder, source, steps):
    """Returns the fine-tuning of a model by its paper's recipe, one row per device at a time.

    Args:
      length, model, mesh, folder, source: see `start`.
      steps: optimizer steps; always 400 for Mistral.
    """
    config = start(length, model, mesh, folder=folder, source=source)
    config.train.seq_len, config.train.batch_size, config.train.steps = length, 32, steps
    config.optimizer.learning_rate = 2e-5
    config.optimizer.schedule = dict(name="linear", warmup_steps=20, final_fraction=0.0)
    if model == "mistral_7b":  # section A.3, the setting of YaRN
        config.train.seq_len, config.train.batch_size, config.train.steps = 16_384, 64, 400
        config.optimizer.learning_rate = 1e-6
        config.optimizer.schedule = dict(name="constant", warmup_steps=20)
        devices = mesh["fsdp"] * mesh["context"] * mesh["tensor"]  # 16k tokens fit on any of them: context gets the remaining devices
        config.mesh.fsdp = min(devices, config.train.batch_size)
        config.mesh.context, config.mesh.tensor = devices // config.mesh.fsdp, 1
    config.optimizer.b1, config.optimizer.b2, config.optimizer.eps = 0.9, 0.999, 1e-8
    config.optimizer.weight_decay, config.optimizer.clip_norm = 0.0, 1.0
    config.train.accumulation = max(1, config.train.batch_size // config.mesh.fsdp)
    config.train.param_dtype = "float32"
    config.train.chunk_tokens = 2048
    config.train.log_every = 1  # a step takes minutes
    config.checkpoint.every = 20
    return config


def search(length, model, mesh, *, folder, source, quick):
    """Returns the search for factors: that of the paper, longrope_paper.algorithm_1.

    Args:
      length, model, mesh, folder, source: see `start`.
      quick: half the population, 12 iterations and 3 samples, as in the paper beyond 512k (Figure 6: little gain after 10 to 15 iterations).
    """
    config = start(length, model, mesh, folder=folder, source=source)
    config.data.train_files = (place(folder, "data/pg19/validation/*.txt"),)
    config.data.eval_files = ()
    longrope_paper.algorithm_1(config.search)
    if quick:
        algorithm = config.search.algorithm
        config.search.objective.num_samples = 3
        algorithm.population, algorithm.mutations, algorithm.crossovers = 32, 8, 8
        algorithm.parents, algorithm.iterations = 16, 12
        algorithm.halve_above = 0  # already halved above
    return config


def difference(config, common, prefix=""):
    """Returns the keys in which a config differs from another one, in the form of a stage of config.recipe: (("dotted.key", value), ...)."""
    pairs = []
    for key in config:
        value, other = config[key], common[key]
        if isinstance(value, ConfigDict) and set(value) == set(other):
            pairs += difference(value, other, f"{prefix}{key}.")
        elif value != other:
            pairs.append((prefix + key, value.to_dict() if isinstance(value, ConfigDict) else value))
    return tuple(pairs)
