"""A training run of seconds: a few files of made-up words, and a Llama of 35,000 parameters."""

import argparse
import json
import random
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from configs import base

MODEL = dict(
    source="scratch",
    vocab_size=264,
    num_layers=2,
    embed_dim=32,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    mlp_dim=64,
    norm_eps=1e-5,
    theta=10_000.0,
    rotary_dim=8,
    original_len=32,
    max_len=32,
    tie_embeddings=False,
)


def write_texts(folder: Path) -> None:
    """Writes train-0.txt to train-2.txt and held-out.txt."""
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefgh", k=rng.randint(2, 6))) for _ in range(40)]
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("train-0", "train-1", "train-2", "held-out"):
        (folder / f"{name}.txt").write_text(" ".join(rng.choices(words, k=700)))


def make_config(texts: Path):
    """Returns a config of 12 steps that saves every 3, evaluates every 6 and logs every 2."""
    config = base.get_config()
    config.unlock()
    config.model = dict(MODEL)
    config.data.train_files = (f"{texts}/train-*.txt",)
    config.data.eval_files = (f"{texts}/held-out.txt",)
    config.data.tokenizer = "bytes"
    config.data.cache_dir = str(texts / "cache")
    config.train.seq_len = 32
    config.train.batch_size = 8
    config.train.steps = 12
    config.train.log_every = 2
    config.train.eval_every = 6
    config.optimizer.learning_rate = 3e-3
    config.optimizer.schedule = dict(name="linear", warmup_steps=3, final_fraction=0.1)
    config.checkpoint.every = 3
    config.eval.suites = ("perplexity",)
    config.eval.lengths = (32,)
    config.eval.num_windows = 4
    config.eval.bootstrap_samples = 100
    return config


def rows(workdir: Path) -> list[dict]:
    """Returns metrics.jsonl without what a clock measured."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    return [{key: value for key, value in row.items() if key != "timing"} for row in found]


def final_arrays(workdir: Path) -> dict[str, np.ndarray]:
    """Returns the parameters of the newest step, by name."""
    import jax

    from jaxrope.store import checkpoint

    params, _ = checkpoint.restore_params(workdir)
    pairs, _ = jax.tree_util.tree_flatten_with_path(params)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in pairs}


def differences(workdir: Path, reference: Path) -> list[str]:
    """Returns what differs, to the bit, between two finished runs."""
    from jaxrope.store import steps

    found = []
    if rows(workdir) != rows(reference):
        found.append("metrics.jsonl differs")
    ours, theirs = final_arrays(workdir), final_arrays(reference)
    found += [name for name in theirs if not np.array_equal(ours.get(name), theirs[name])]
    if steps.whole_steps(workdir) != steps.whole_steps(reference):
        found.append("other steps are kept")
    last = steps.describe(workdir)["leaves"], steps.describe(reference)["leaves"]
    if last[0] != last[1]:
        found.append("digests of the newest step differ, the optimizer's among them")
    return found


def kills(doc: str, main: Callable[[int, int], int]) -> int:
    """Runs the command line of a program that kills others; returns the exit code of main(kills,
    seed).
    """
    parser = argparse.ArgumentParser(description=doc.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}")
    return main(arguments.kills, arguments.seed)
