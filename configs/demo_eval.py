"""The demo's evaluation: held-out files at four lengths, factors fixed for 2,048 tokens.

  python -m jaxrope.evaluate --config=configs/demo_eval.py --workdir=runs/demo/eval
"""

from jaxrope.configs import base, demo_pretrain, demo_search


def get_config():
    """Returns the configuration of the measurement."""
    config = base.get_config()
    config.model = base.checkpoint_model(demo_search.MODEL)
    config.rope = dict(method="file", path="runs/demo/search/rope.json")
    config.target_len = demo_search.TARGET_LEN
    demo_pretrain.texts(config.data)
    config.eval.suites = ("perplexity",)
    config.eval.lengths = (256, 512, 1024, 2048)
    config.eval.label = "searched"
    config.eval.methods = ("none", "pi", "ntk", "yarn", "yarn@su", "sliding")
    config.eval.checkpoints = (("fine-tuned", "runs/demo/finetune", "model"),)
    config.eval.rope_len = demo_search.TARGET_LEN
    config.eval.baseline = "yarn@su"
    config.eval.num_windows = 16
    config.eval.windows_per_doc = 1
    config.eval.offset_tokens = 2_000
    return config
