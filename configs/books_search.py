"""Searches factors that take books-6m from 512 to 4,096 tokens, without training.

  python search.py --config=configs/books_search.py --workdir=runs/books_search

Algorithm 1 with the population of the paper, cut to 8 of its 40 generations and 4 of its 5 samples: 288 candidates,
4.7 M forward tokens; the whole of it (iterations=40, num_samples=5) is 26.9 M.
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
