"""A config whose whole search takes a second once compiled: a random model, bytes, random words."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from configs import base
from jaxrope.search import journal
from jaxrope.store.journal import read_rows

HF_CONFIG = dict(
    model_type="llama",
    vocab_size=264,
    num_hidden_layers=1,
    hidden_size=16,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=8,
    intermediate_size=24,
    rms_norm_eps=1e-5,
    rope_theta=10_000.0,
    max_position_embeddings=16,
    tie_word_embeddings=True,
    bos_token_id=256,
    eos_token_id=257,
)
_MLP = {"mlp.gate_proj": (24, 16), "mlp.up_proj": (24, 16), "mlp.down_proj": (16, 24)}


def tiny(folder):
    """Returns Algorithm 1 of LongRoPE to the letter, as an unlocked config; the model, its texts
    and cached tokens are in `folder`.
    """
    config = tiny_default(folder)
    config.search.method = "evolution"
    config.search.attention_factor = "su"
    config.search.judge.num_samples = 0
    config.search.start_tokens = (0, 2, 8)
    return config


def tiny_default(folder):
    """Returns a search with default settings, but few steps, of the same model."""
    model = folder / "model"
    if not model.exists():
        write_model(model)
        write_texts(folder / "texts")
    config = base.get_config()
    config.unlock()
    config.model.path = str(model)
    config.target_len = 64
    config.forward.attention_block = 32
    config.data.train_files = (str(folder / "texts" / "*.txt"),)
    config.data.tokenizer = "bytes"
    config.data.cache_dir = str(folder / "cache")
    config.search.objective = dict(name="perplexity", num_samples=2, offset_tokens=0)
    config.search.gradient.update(steps=3, ramps=1)
    config.search.algorithm.update(population=6, mutations=2, crossovers=2, parents=3, iterations=3)
    return config


def changed(config, **changes):
    """Returns a copy of a config with `section__leaf` values."""
    other = config.copy_and_resolve_references().unlock()
    for key, value in changes.items():
        section, _, leaf = key.rpartition("__")
        target = other[section] if section else other
        with target.ignore_type():
            target[leaf] = value
    return other


def rows_of(workdir):
    """Returns the rows of a search's journal, behind its header."""
    return read_rows(workdir / "journal.jsonl", journal.FORMAT)


def write_model(folder, **changes):
    """Writes a random Llama in Hugging Face format; `changes` are of its config.json."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    config = HF_CONFIG | changes
    layers = [f"model.layers.{i}." for i in range(config["num_hidden_layers"])]
    head = config["head_dim"]
    shapes = dict(
        q_proj=(2 * head, 16), k_proj=(head, 16), v_proj=(head, 16), o_proj=(16, 2 * head)
    )
    shapes = {f"self_attn.{name}": shape for name, shape in shapes.items()} | _MLP
    tensors = {
        f"{layer}{name}.weight": rng.normal(0, 0.3, shape)
        for layer in layers
        for name, shape in shapes.items()
    }
    tensors["model.embed_tokens.weight"] = rng.normal(0, 1, (264, 16))
    tensors["model.norm.weight"] = np.ones(16)
    for layer in layers:
        tensors[f"{layer}input_layernorm.weight"] = np.ones(16)
        tensors[f"{layer}post_attention_layernorm.weight"] = np.ones(16)
    tensors = {name: np.ascontiguousarray(x, np.float32) for name, x in tensors.items()}
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))


def write_texts(folder, seed=0, documents=3, words=40, first=0):
    """Writes documents of five characters a word, from number `first` on."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for i in range(first, first + documents):
        drawn = ("".join(rng.choice(list("abcdef"), 4)) for _ in range(words))
        (folder / f"{i}.txt").write_text(" ".join(drawn))


def get_config(folder):
    """For search.py: --config=tests/search_config.py:FOLDER, or default:FOLDER."""
    if folder.startswith("default:"):
        return tiny_default(Path(folder.removeprefix("default:")))
    return tiny(Path(folder))
