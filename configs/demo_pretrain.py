"""Trains the small model that ships with the project, from scratch, on Python's standard library.

  python -m jaxrope.demo pretrain --workdir=runs/demo_pretrain

trains the tokenizer and runs this file. To run it by hand, with a tokenizer.json in DIR:
  python -m jaxrope.train --config=configs/demo_pretrain.py --workdir=runs/demo_pretrain --config.data.tokenizer=DIR

2.0 M parameters, window 256, 6.6 M tokens (2.6 epochs). The other demo files use its texts.
"""

import sysconfig

from jaxrope.configs import base

ORIGINAL_LEN = 256  # tokens; the window that the demo extends eight times
VOCAB_SIZE = 2048

STDLIB = sysconfig.get_paths()["stdlib"]
# Held out for evaluation: long files that exist in every Python from 3.11 on.
HELD_OUT = (
    "argparse.py",
    "asyncio/base_events.py",
    "configparser.py",
    "difflib.py",
    "http/cookiejar.py",
    "inspect.py",
    "ipaddress.py",
    "logging/handlers.py",
    "mailbox.py",
    "pickle.py",
    "shutil.py",
    "statistics.py",
    "subprocess.py",
    "tarfile.py",
    "typing.py",
    "xml/etree/ElementTree.py",
)
# Not in every installation, not text, tables, or not part of the library.
LEFT_OUT = ("site-packages", "test", "tests", "idlelib", "lib2to3", "encodings", "pydoc_data", "turtledemo", "__pycache__")


def texts(section):
    """Sets the files of a data section: the held-out ones for evaluation, the rest for training."""
    section.train_files = (f"{STDLIB}/**/*.py",)
    section.eval_files = tuple(f"{STDLIB}/{name}" for name in HELD_OUT)
    folders = tuple(f"**/{name}/**" for name in LEFT_OUT)
    section.exclude = section.eval_files + folders + ("**/_sysconfigdata*", "**/config-*/**")


def get_config():
    """Returns the configuration of the pre-training run."""
    config = base.get_config()
    config.model = dict(
        source="scratch",
        vocab_size=VOCAB_SIZE,
        num_layers=4,
        embed_dim=192,
        num_heads=3,
        num_kv_heads=1,
        head_dim=64,
        mlp_dim=512,
        norm_eps=1e-5,
        theta=10_000.0,
        original_len=ORIGINAL_LEN,
        max_len=ORIGINAL_LEN,
        rotary_dim=64,
        tie_embeddings=True,
        bos_id=0,
        eos_id=1,
    )
    texts(config.data)
    config.eval.suites = ("perplexity",)
    config.eval.lengths = (ORIGINAL_LEN,)
    config.forward.remat = "none"
    config.train.seq_len = ORIGINAL_LEN
    config.train.batch_size = 32
    config.train.steps = 800
    config.optimizer.learning_rate = 2e-3
    config.optimizer.schedule = dict(name="cosine", warmup_steps=50, final_fraction=0.0)
    config.optimizer.b2 = 0.95
    config.optimizer.weight_decay = 0.1
    config.checkpoint.every = 250
    return config
