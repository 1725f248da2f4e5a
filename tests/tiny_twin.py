"""A finished recipe with the stages of configs/recipe_books.py, of a tiny model, for benchmarks."""

import random
from pathlib import Path

from jaxrope import recipe, train
from tests import tiny_recipe, tiny_run


def write_texts(folder: Path, words: int = 700) -> None:
    """Writes three texts to train on and two held-out ones: windows are each of another."""
    rng = random.Random(0)
    known = ["".join(rng.choices("abcdefgh", k=rng.randint(2, 6))) for _ in range(40)]
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("train-0", "train-1", "train-2", "held-out", "held-out-2"):
        (folder / f"{name}.txt").write_text(" ".join(rng.choices(known, k=words)))


def make_base(texts: Path, folder: Path, original_len: int = 32) -> None:
    """Trains the base: a step of the random model."""
    config = tiny_run.make_config(texts)
    config.model.update(original_len=original_len, max_len=original_len)
    config.train.steps, config.train.eval_every = 1, 0
    config.optimizer.schedule = dict(name="constant", warmup_steps=0)
    assert train.train(config, folder) == 0


def run(texts: Path, base: Path, folder: Path) -> None:
    """Runs the recipe on the base, to 16 times its length as that of configs/recipe_books.py."""
    config = tiny_recipe.make_config(texts)
    config.data.eval_files = (f"{texts}/held-out*.txt",)
    config.model = dict(source="checkpoint", path=str(base), shape="")
    unmeasured, far = ("eval.suites", ()), ("target_len", 16 * tiny_run.MODEL["original_len"])
    config.recipe = tuple(
        (name, kind, (*pairs, unmeasured, *([far] if name == "second" else [])))
        for name, kind, pairs in config.recipe[:-1]
    )
    assert recipe.run(config, folder) == 0
