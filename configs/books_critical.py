"""Measures the critical pair of books-6m for 4,096 tokens (LongRoPE2): NTK below it, factor 8 from it on.

  python -m jaxrope.search --config=configs/books_critical.py --workdir=runs/books_critical

Nothing else is searched: one candidate for each of 15 pairs, with none, PI, NTK and YaRN for comparison; result.json has all of them
("critical_pairs"). 0.54 M forward tokens, 130 s of processor time. Best is pair 18 (perplexity 48.74); the theoretical pair is 16 (49.50);
NTK 72.18, YaRN 47.26.
"""

from jaxrope.configs import base


def get_config():
    """Returns the configuration of the measurement."""
    config = base.get_config()
    config.model = base.checkpoint_model("../shared/models/books-6m")
    config.target_len = 4096
    config.data.train_files = ("../shared/books/train/*.txt",)
    config.search.method, config.search.form = "evolution", "critical"
    config.search.critical_pairs = (6, 20)
    config.search.attention_factor = "su"
    config.search.algorithm.bound = 1.0  # no factor above target_len / training_len
    config.search.algorithm.iterations = 1
    config.search.algorithm.population = 18
    config.search.algorithm.parents = 1
    config.search.judge.num_samples = 0  # a measurement, not a choice
    config.search.objective.num_samples = 4
    config.search.objective.offset_tokens = 20_000
    return config
