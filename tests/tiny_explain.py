"""The experiments of configs/attention_paper.py in seconds: a random Llama of two layers for 512
bytes, and a smaller one beside it.

  python -m jaxrope.analysis --config=tests/tiny_explain.py:FOLDER --workdir=DIR

FOLDER has the texts and the models, see `prepare`.
"""

import random
from pathlib import Path

from configs import base
from tests import tiny_eval

LENGTH = 512  # of the pre-training: room for a pass key and a needle in bytes
SECOND_LENGTH = 128


def prepare(folder: Path) -> None:
    """Writes the texts and both models, which have learnt nothing."""
    import jax

    from jaxrope import decoder
    from jaxrope.store import checkpoint, sealed

    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefgh", k=rng.randint(2, 6))) for _ in range(40)]
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("train-0", "train-1", "train-2", "held-0", "held-1", "held-2"):
        (folder / f"{name}.txt").write_text(" ".join(rng.choices(words, k=900)))
    for name, length, layers in (("first", LENGTH, 2), ("second", SECOND_LENGTH, 1)):
        size = dict(original_len=length, max_len=length, num_layers=layers)
        shape = decoder.DecoderConfig(**(tiny_eval.SHAPE | size))
        params = decoder.init_params(shape, jax.random.key(layers), dtype="float32")
        about = {"source": "random"}
        checkpoint.save_params(folder / name, 0, params, about)
        sealed.write_json(folder / name / "model.json", shape.to_json_dict())


def get_config(folder: str):
    """Returns the configuration of the experiments."""
    config = _common(Path(folder))
    config.model = base.checkpoint_model(str(Path(folder) / "first"))
    config.search.gradient.update(steps=1, ramps=0)
    config.search.judge.num_samples = 1
    config.search.objective.num_samples = 1
    config.eval.niah.depths = 2
    config.eval.niah.max_new_tokens = 4
    config.eval.needle_keys = (1,)
    section = config.analysis
    section.settings = ("none", "pi", "abf", "searched")
    section.factor, section.longer, section.twin_steps = 2.0, 2, 2
    section.perplexity = section.patterns = (0.5, 1.0, 2.0)
    section.needles = (1.0, 2.0)
    section.sequences, section.queries, section.trials, section.depths = 2, 8, 2, 2
    section.heads.update(multiple=2.0, setting="pi", sizes=(1,), draws=1)
    section.second = (
        ("model.path", str(Path(folder) / "second")),
        ("analysis.settings", ("none", "pi")),
        ("analysis.tasks", ()),
        ("analysis.haystack", False),
        ("analysis.longer_setting", ""),
    )
    return config


def _common(folder: Path):
    config = base.get_config()
    config.unlock()
    config.data.train_files = (f"{folder}/train-*.txt",)
    config.data.eval_files = (f"{folder}/held-*.txt",)
    config.data.tokenizer = "bytes"
    config.data.cache_dir = str(folder / "cache")
    config.forward.remat = "none"
    config.train.steps, config.train.batch_size = 2, 16
    config.optimizer.schedule = dict(name="constant", warmup_steps=0)
    config.optimizer.learning_rate = 3e-3
    config.eval.bootstrap_samples = 100
    config.eval.batch_tokens = 2048
    return config
