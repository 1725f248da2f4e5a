"""Retrieval against length, to sixteen times the window of books-6m: none, PI, NTK, YaRN, searched, fine-tuned.

  python -m jaxrope.train --config=configs/retrieval_books.py --workdir=runs/retrieval_books

needs runs/recipe_books, the result of configs/recipe_books.py, for the row "fine-tuned"; for another folder --config=configs/retrieval_books.py:FOLDER.
Searches factors for 1,024, 2,048, 4,096 and 8,192 tokens on the untrained model, joins them (each length uses the shortest bucket that it fits into)
and measures six rows: passkeys and one of six needles from 256 tokens on, RULER's needles from 512 on, because such a prompt and the 128 tokens of
its answer exceed 256. runs/retrieval_books/compare has eval.md (tables with intervals and the cost in tokens per second), eval.png (curves)
and eval_maps.png (length x depth). --dry_run prints the cost of each stage; --config=configs/retrieval_books.py:tiny is a short trial.
"""

from jaxrope.configs import base

MODEL = "../shared/models/books-6m"
LENGTHS = (256, 512, 1024, 2048, 4096, 8192)
TARGETS = LENGTHS[2:]
# Budgets: objective samples of a search, and items of each suite at each length.
BUDGETS = {
    "whole": dict(samples=4, passkeys=24, needles=48, ruler=24),
    "tiny": dict(samples=1, passkeys=2, needles=2, ruler=1),
}


def get_config(recipe="runs/recipe_books"):
    """Returns the configuration; `recipe` is the workdir of a finished recipe, or "tiny", which has no fine-tuned row."""
    is_tiny = recipe == "tiny"
    spent = BUDGETS["tiny" if is_tiny else "whole"]
    targets = TARGETS[:1] if is_tiny else TARGETS
    config = base.get_config()
    config.model = base.checkpoint_model(MODEL)
    config.data.train_files = ("../shared/books/train/*.txt",)
    config.data.eval_files = ("../shared/books/val/*.txt",)
    config.search.objective = dict(name="perplexity", num_samples=spent["samples"], offset_tokens=20_000)
    config.eval.suites = ()
    config.eval.lengths = LENGTHS[: len(targets) + 2]
    config.eval.methods = ("pi", "ntk", "yarn")
    config.eval.batch_tokens = 32_768
    config.eval.passkey_trials, config.eval.needle_trials = spent["passkeys"], spent["needles"]
    config.eval.ruler.tasks = ("niah_single_1", "niah_multikey_2")
    config.eval.ruler.lengths = LENGTHS[1 : len(targets) + 2]
    config.eval.ruler.samples = spent["ruler"]
    extended = (("searched", "{searched}", "model"),)
    if not is_tiny:
        extended += (("fine-tuned", f"{recipe}/join", "model"),)
    config.recipe = (
        *((f"search_{target}", "search", (("target_len", target),)) for target in targets),
        ("searched", "join", (("join.ropes", tuple(f"{{search_{target}}}" for target in targets)),)),
        ("compare", "evaluate", (("eval.suites", ("passkey", "needle", "ruler")), ("eval.checkpoints", extended))),
    )
    return config
