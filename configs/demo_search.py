"""The demo's search: 256 to 2,048 tokens, without training, on the shipped model.

  python -m jaxrope.search --config=configs/demo_search.py --workdir=runs/demo/search

The default search, 0.4 M forward tokens at most; about half a minute on 2 idle CPU cores.
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
    return config
