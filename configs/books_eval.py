"""Measures books-6m, extended to 4,096 tokens, on held-out novels: the tables of README.md.

  python -m jaxrope.evaluate --config=configs/books_eval.py --workdir=runs/books_eval

needs runs/books_search, runs/books_finetune and runs/books_control. One window of each of 16 novels;
factors fixed for 4,096 tokens at every length. "sliding" is the model without extension, with a window of 512
that moves by 128 over the same tokens.
"""

from jaxrope.configs import base


def get_config():
    """Returns the configuration of the measurement."""
    config = base.get_config()
    config.model = base.checkpoint_model("../shared/models/books-6m")
    config.rope = dict(method="file", path="runs/books_search/rope.json")
    config.target_len = 4096
    config.data.eval_files = ("../shared/books/val/*.txt",)
    config.eval.lengths = (512, 1024, 2048, 4096)
    config.eval.label = "searched"
    config.eval.methods = ("none", "pi", "ntk", "yarn", "yarn@su", "sliding")
    config.eval.checkpoints = (
        ("fine-tuned", "runs/books_finetune", "model"),
        ("control, sliding", "runs/books_control", "sliding"),
    )
    config.eval.rope_len = 4096
    config.eval.baseline = "yarn@su"
    config.eval.num_windows = 16
    config.eval.windows_per_doc = 1
    config.eval.offset_tokens = 20_000
    return config
