"""The demo's search: 256 to 2,048 tokens, without training, on the shipped model.

  python -m jaxrope.search --config=configs/demo_search.py --workdir=runs/demo/search

A small population: 160 candidates on 3 files, 1.0 M forward tokens; about a minute on 2 CPU cores.
"""

import importlib.resources

from jaxrope.configs import base, demo_pretrain

MODEL = str(importlib.resources.files("jaxrope") / "models" / "stdlib-2m")
TARGET_LEN = 8 * demo_pretrain.ORIGINAL_LEN


def get_config():
    """Returns the configuration of the search."""
    config = base.get_config()
    config.model = base.checkpoint_model(MODEL)
    config.target_len = TARGET_LEN
    demo_pretrain.texts(config.data)
    config.search.start_tokens = (0,)  # transformers cannot express others
    config.search.algorithm.population = 32
    config.search.algorithm.parents = 16
    config.search.algorithm.iterations = 5
    config.search.objective.num_samples = 3
    return config
