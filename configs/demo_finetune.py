"""The demo's fine-tuning: 60 steps at 2,048 tokens with the factors of demo_search.

  python -m jaxrope.train --config=configs/demo_finetune.py --workdir=runs/demo/finetune

0.5 M tokens; about two minutes on 2 CPU cores.
"""

from jaxrope.configs import base, demo_pretrain, demo_search


def get_config():
    """Returns the configuration of the fine-tuning."""
    config = base.get_config()
    config.model = base.checkpoint_model(demo_search.MODEL)
    config.rope = dict(method="file", path="runs/demo/search/rope.json")
    config.target_len = demo_search.TARGET_LEN
    demo_pretrain.texts(config.data)
    config.eval.suites = ()  # demo_eval.py measures the result
    config.forward.remat = "none"
    config.train.seq_len = demo_search.TARGET_LEN
    config.train.batch_size = 4
    config.train.steps = 60
    config.optimizer.learning_rate = 5e-4
    config.optimizer.schedule = dict(name="linear", warmup_steps=5, final_fraction=0.0)
    config.optimizer.b2 = 0.95
    config.checkpoint.every = 20
    return config
