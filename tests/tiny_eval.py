"""An evaluation of seconds: a random model, every kind of suite, a batch for nearly each item.

  python -m jaxrope.evaluate --config=tests/tiny_eval.py:FOLDER --workdir=DIR

FOLDER is for the text, which is made when it is missing.
"""

from pathlib import Path

from configs import base

SHAPE = dict(
    family="llama",
    vocab_size=264,
    num_layers=2,
    embed_dim=32,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    mlp_dim=64,
    norm_eps=1e-5,
    tie_embeddings=False,
    qkv_bias=False,
    out_bias=False,
    mlp_bias=False,
    sliding_window=None,
    theta=10_000.0,
    rotary_dim=8,
    original_len=256,
    max_len=512,
    rope={"method": "none"},
    bos_id=256,
    eos_id=257,
)


def get_config(folder: str):
    """Returns the configuration of the measurement; its files are in `folder`."""
    text = Path(folder) / "text.txt"
    if not text.exists():
        text.parent.mkdir(parents=True, exist_ok=True)
        text.write_text("".join(f"Line {i} of a text of no meaning. " for i in range(400)))
    config = base.get_config()
    config.model = dict(source="scratch", **SHAPE)
    config.data.tokenizer = "bytes"
    config.data.eval_files = (str(text),)
    config.data.cache_dir = str(Path(folder) / "cache")
    config.eval.suites = ("perplexity", "passkey", "needle", "kv")
    config.eval.lengths = (512,)
    config.eval.methods = ("none", "pi")
    config.eval.baseline = "pi"
    config.eval.num_windows = 6
    config.eval.windows_per_doc = 6
    config.eval.batch_tokens = 1024
    config.eval.bootstrap_samples = 200
    config.eval.passkey_trials = 6
    config.eval.needle_keys = (1,)
    config.eval.needle_trials = 4
    config.eval.kv.trials = 6
    config.eval.kv.max_new_tokens = 8
    return config
