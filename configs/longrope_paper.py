"""Algorithm 1 of LongRoPE to the letter (arXiv 2402.13753, section 4.1), on books-6m from 512 to 4,096 tokens.

  python -m jaxrope.search --config=configs/longrope_paper.py --workdir=runs/longrope_paper

Other models and lengths: --config.model.path=MODEL --config.target_len=131072 --config.data.train_files='pg19/validation/*.txt'.
64 candidates, then 32 new ones in each of 39 generations, each on 5 texts: 26.9 M forward tokens, some hours on two cores. There is no last word
on fresh text: the result is the best on the text of the search. Start tokens, if it finds any, only jaxrope can run. The default search
(books_search.py) costs a fraction of it.
"""

from jaxrope.configs import base

START_TOKENS = (0, 1, 2, 4, 8, 12, 16, 20, 24, 28, 32, 64, 128, 256)  # n̂ of Table 4


def get_config():
    """Returns the configuration of the search."""
    config = base.get_config()
    config.model = base.checkpoint_model("../shared/models/books-6m")
    config.target_len = 4096
    config.data.train_files = ("../shared/books/train/*.txt",)
    algorithm_1(config.search)
    config.search.objective.offset_tokens = 20_000
    return config


def algorithm_1(section):
    """Makes `section`, config.search, the search of the paper."""
    section.method, section.form = "evolution", "monotone"
    section.start_tokens = START_TOKENS
    section.attention_factor = "su"  # sqrt(1 + ln s / ln L0), of every candidate
    section.objective = dict(name="perplexity", num_samples=5, offset_tokens=0)
    section.judge.num_samples = 0  # no last word on fresh text
    algorithm = section.algorithm
    algorithm.population, algorithm.mutations, algorithm.crossovers = 64, 16, 16
    algorithm.parents, algorithm.iterations, algorithm.mutation_probability = 32, 40, 0.3
    algorithm.step, algorithm.bound, algorithm.halve_above = 0.01, 1.25, 524_288
