"""The recipe of configs/recipe_books.py in seconds: a random Llama of 32 tokens, made-up words."""

import json
from pathlib import Path

from tests import tiny_run

NAMES = (
    "search_2x",
    "search_4x",
    "finetune_2x",
    "finetune_4x",
    "second",
    "recover_1x",
    "recover_2x",
    "join",
    "compare",
)


def at(stage: str) -> dict:
    """Returns the section `model` of a stage that starts from another one."""
    return dict(source="checkpoint", path=f"{{{stage}}}", shape="")


def rope_of(stage: str) -> dict:
    """Returns the section `rope` with the factors that a search found."""
    return dict(method="file", path=f"{{{stage}}}/rope.json")


def stages() -> tuple:
    """Returns 2x and 4x on the base, fine-tuned at both, 4x more, recovery, join, comparison."""
    suites, second = ("eval.suites", ("perplexity",)), ("model", at("finetune_4x"))
    recovery = (second, ("search.highest", 1.5), ("search.attention_factor", "rope"))
    joined = ("{recover_1x}", "{recover_2x}", "{finetune_4x}", "{second}")
    compared = (("base", "{finetune_2x}", "model"), ("4x", "{finetune_4x}", "yarn"))
    return (
        ("search_2x", "search", (("target_len", 64),)),
        ("search_4x", "search", (("target_len", 128),)),
        ("finetune_2x", "train", (("rope", rope_of("search_2x")), ("target_len", 64))),
        (
            "finetune_4x",
            "train",
            (
                ("model", at("finetune_2x")),
                ("rope", rope_of("search_4x")),
                ("train.seq_len", 128),
                suites,
                ("eval.lengths", (32, 128)),
            ),
        ),
        ("second", "search", (second, ("target_len", 256), ("search.multiply", True))),
        ("recover_1x", "search", (*recovery, ("target_len", 32), suites)),
        ("recover_2x", "search", (*recovery, ("target_len", 64))),
        (
            "join",
            "join",
            (second, ("join.ropes", joined), suites, ("eval.lengths", (32, 64, 256))),
        ),
        (
            "compare",
            "evaluate",
            (("model", at("join")), suites, ("eval.checkpoints", compared)),
        ),
    )


def make_config(texts: Path):
    """Returns the unlocked config of the recipe; the texts are written if they are not there."""
    if not texts.exists():
        tiny_run.write_texts(texts)
    config = tiny_run.make_config(texts)
    config.eval.suites = ()
    config.eval.lengths = (32,)
    config.eval.num_windows = 2
    config.train.seq_len = 64
    config.train.steps = 3
    config.train.log_every = 1
    config.checkpoint.every = 2
    config.train.eval_every = 0
    config.optimizer.schedule = dict(name="constant", warmup_steps=0)
    config.forward.attention_block = 32
    config.search.method, config.search.attention_factor = "evolution", "su"
    config.search.judge.num_samples = 1
    config.search.objective = dict(name="perplexity", num_samples=1, offset_tokens=0)
    config.search.algorithm.update(population=6, mutations=2, crossovers=1, parents=3, iterations=2)
    config.recipe = stages()
    return config


def get_config(texts):
    """For train.py: --config=tests/tiny_recipe.py:FOLDER_OF_TEXTS."""
    return make_config(Path(texts))


def left(folder):
    """Returns what a stage left, without what a clock or an interruption could change."""
    found = {}
    for path in sorted(folder.glob("*.json*")):
        rows = (
            [json.loads(line) for line in path.read_text().splitlines()]
            if (path.suffix == ".jsonl")
            else [json.loads(path.read_text())]
        )
        found[path.name] = [_timeless(row) for row in rows]
    found |= {path.name: None for path in folder.iterdir() if path.name[0] != "."}
    if (folder / "checkpoints").is_dir():
        found["arrays"] = {k: v.tolist() for k, v in tiny_run.final_arrays(folder).items()}
    return found


def _timeless(value):
    if isinstance(value, list):
        return [_timeless(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {k: _timeless(v) for k, v in value.items() if k not in ("seconds", "timing", "command")}
