"""A config whose whole search takes a second once compiled: a random model, bytes, random words."""

import numpy as np

from configs import base

MODEL = dict(
    source="scratch",
    vocab_size=264,
    num_layers=1,
    embed_dim=16,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    mlp_dim=24,
    norm_eps=1e-5,
    theta=10_000.0,
    original_len=16,
    max_len=16,
    rotary_dim=8,
    tie_embeddings=True,
)


def tiny(folder):
    """Returns an unlocked config; its texts and cached tokens are in `folder`."""
    texts = folder / "texts"
    if not texts.exists():
        texts.mkdir(parents=True)
        rng = np.random.default_rng(0)
        for i in range(3):
            words = ("".join(rng.choice(list("abcdef"), 4)) for _ in range(40))
            (texts / f"{i}.txt").write_text(" ".join(words))
    config = base.get_config()
    config.unlock()
    config.model = MODEL
    config.target_len = 64
    config.forward.attention_block = 32
    config.data.train_files = (str(texts / "*.txt"),)
    config.data.tokenizer = "bytes"
    config.data.cache_dir = str(folder / "cache")
    config.search.start_tokens = (0, 2, 8)
    config.search.objective = dict(name="perplexity", num_samples=2, offset_tokens=0)
    config.search.algorithm.update(population=6, mutations=2, crossovers=2, parents=3, iterations=3)
    return config


def get_config(folder):
    """For search.py: --config=FILE:FOLDER."""
    from pathlib import Path

    return tiny(Path(folder))
