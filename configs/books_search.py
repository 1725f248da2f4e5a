"""Searches factors that extend books-6m from 512 to 4,096 tokens, without training.

  python -m jaxrope.search --config=configs/books_search.py --workdir=runs/books_search

The default search: the baselines, the moves of YaRN's ramp, a descent along the natural gradient, and a last word on fresh text.
The paper's search of the same factors is longrope_paper.py, which costs 26.9 M forward tokens.
"""

from jaxrope.configs import base


def get_config():
    """Returns the configuration of the search."""
    config = base.get_config()
    config.model = base.checkpoint_model("../shared/models/books-6m")
    config.target_len = 4096
    config.data.train_files = ("../shared/books/train/*.txt",)
    config.search.objective.offset_tokens = 20_000
    return config
