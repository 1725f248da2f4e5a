"""Measures the critical pair of books-6m for 4,096 tokens (LongRoPE2): NTK below it, factor 8 from it on.

  python -m jaxrope.search --config=configs/books_critical.py --workdir=runs/books_critical

Nothing else is searched: one candidate for each of 15 pairs, with none, PI, NTK and YaRN for comparison. 0.38 M forward
tokens, 100 s of processor time. Best is pair 18 (perplexity 48.74); the theoretical pair is 16 (49.50); NTK 74.13, YaRN 47.26.
"""

from jaxrope.configs import base


def get_config():
    """Returns the configuration of the measurement."""
    config = base.get_config()
    config.model = base.checkpoint_model("../shared/models/books-6m")
    config.target_len = 4096
    config.data.train_files = ("../shared/books/train/*.txt",)
    config.search.algorithm = base.critical_search()
    config.search.algorithm.critical_low = 6
    config.search.algorithm.critical_high = 20
    config.search.algorithm.bound = 1.0  # no factor above target_len / training_len
    config.search.algorithm.iterations = 1
    config.search.algorithm.population = 18
    config.search.algorithm.parents = 1
    config.search.start_tokens = (0,)
    config.search.objective.num_samples = 4
    config.search.objective.offset_tokens = 20_000
    return config
