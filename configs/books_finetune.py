"""Fine-tunes books-6m at 4,096 tokens with the factors of books_search.

  python -m jaxrope.train --config=configs/books_finetune.py --workdir=runs/books_finetune

60 steps of 16,384 tokens, 1.0 M tokens in total. The control is the base, trained further at 512 tokens on the same
number of tokens at the same learning rate:
  python -m jaxrope.train --config=configs/books_finetune.py:control --workdir=runs/books_control
"""

from jaxrope.configs import base


def get_config(variant="extended"):
    """Returns the configuration; `variant` is "extended" or "control"."""
    config = base.get_config()
    config.model = base.checkpoint_model("../shared/models/books-6m")
    config.data.train_files = ("../shared/books/train/*.txt",)
    config.eval.suites = ()  # books_eval.py measures the result
    config.forward.remat = "none"
    config.train.steps = 60
    config.optimizer.learning_rate = 5e-4
    config.optimizer.schedule = dict(name="linear", warmup_steps=5, final_fraction=0.0)
    config.optimizer.b2 = 0.95
    config.checkpoint.every = 20
    sizes = {"extended": (4096, 4), "control": (512, 32)}
    config.train.seq_len, config.train.batch_size = sizes[variant]
    if variant == "extended":
        config.rope = dict(method="file", path="runs/books_search/rope.json")
        config.target_len = 4096
    return config
