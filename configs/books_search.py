"""Searches factors that extend books-6m from 512 to 4,096 tokens, without training.

  python -m jaxrope.search --config=configs/books_search.py --workdir=runs/books_search

Algorithm 1 with the paper's population, but 8 instead of 40 generations and 4 instead of 5 samples: 288 candidates,
4.7 M forward tokens; the full search (iterations=40, num_samples=5) takes 26.9 M.
"""

from jaxrope.configs import base


def get_config():
    """Returns the configuration of the search."""
    config = base.get_config()
    config.model = base.checkpoint_model("../shared/models/books-6m")
    config.target_len = 4096
    config.data.train_files = ("../shared/books/train/*.txt",)
    config.search.algorithm.iterations = 8
    config.search.objective.num_samples = 4
    config.search.objective.offset_tokens = 20_000
    return config
