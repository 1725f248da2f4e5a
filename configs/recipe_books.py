"""The recipe of LongRoPE on books-6m: from 512 tokens to 8,192, sixteen times its length, in one command (recipe_2m.py is the full-size one).

  python -m jaxrope.train --config=configs/recipe_books.py --workdir=runs/recipe_books

Searches 2x and 4x on the base, fine-tunes at 1,024 and then at 2,048, searches another 4x without training, searches short factors for
512 and 1,024 again, and joins all of them: runs/recipe_books/join is the extended model, runs/recipe_books/compare compares it with the base.
With the search before the natural gradient, 56 minutes on two cores under heavy load; 3.3 M trained and 6.1 M forward tokens. Perplexity of 16 held-out novels at 512,
1,024, 2,048, 4,096, 8,192: 38.15 38.05 36.39 37.73 37.58; the base sliding its window 38.62 39.52 38.51 39.09 39.37. One of six needles:
0.98 0.95 0.94 0.92 0.88, the base at 500 tokens 0.89 (docs/recipes.md has the rest).
--dry_run prints the cost of each stage, --config.stages=NAME,NAME runs some of them. A trial of some minutes, whose numbers are
meaningless: --config=configs/recipe_books.py:tiny
"""

from jaxrope.configs import base

MODEL = "../shared/models/books-6m"
LENGTHS = (512, 1024, 2048, 4096, 8192)
# Budgets: steps of a descent, samples of the objective, fine-tuning (steps, rows) at 1,024 and at 2,048 tokens, windows, and trials of both retrieval tasks.
BUDGETS = {
    "whole": dict(steps=18, samples=4, finetune=((50, 16), (150, 8)), windows=16, passkeys=24, needles=96),
    "tiny": dict(steps=2, samples=2, finetune=((4, 4), (4, 4)), windows=2, passkeys=2, needles=2),
}


def get_config(budget="whole"):
    """Returns the configuration of the recipe; `budget` is "whole" or "tiny"."""
    if budget not in BUDGETS:
        raise ValueError(f"--config=configs/recipe_books.py:{budget}: unknown '{budget}'. Known: {', '.join(BUDGETS)}.")
    spent = BUDGETS[budget]
    config = base.get_config()
    config.model = base.checkpoint_model(MODEL)
    config.data.train_files = ("../shared/books/train/*.txt",)
    config.data.eval_files = ("../shared/books/val/*.txt",)
    config.eval.suites = ("perplexity",)
    config.eval.num_windows, config.eval.windows_per_doc = spent["windows"], 1
    config.eval.offset_tokens = 20_000
    config.eval.passkey_trials, config.eval.needle_trials = spent["passkeys"], spent["needles"]
    config.forward.remat = "none"
    config.train.accumulation = 2
    config.optimizer.learning_rate = 5e-4
    config.optimizer.schedule = dict(name="linear", warmup_steps=min(5, spent["finetune"][0][0]), final_fraction=0.0)
    config.optimizer.b2 = 0.95
    config.checkpoint.every, config.checkpoint.keep_last = 25, 1
    config.search.gradient.steps = spent["steps"]
    config.search.objective = dict(name="perplexity", num_samples=spent["samples"], offset_tokens=20_000)
    config.recipe = stages(spent)
    return config


def stages(spent):
    """Returns the stages; `spent` is one of BUDGETS."""
    (steps_2x, rows_2x), (steps_4x, rows_4x) = spent["finetune"]
    # Half of the rows ask for magic numbers hidden in text; a fifth are short pieces with the original rope.
    mixture = (("data.needle_share", 0.5), ("data.needle_weight", 8.0), ("data.short_share", 0.2))
    extended = ("model.path", "{finetune_4x}")
    recovery = (extended, ("search.attention_factor", "rope"), ("eval.suites", ()))
    mixed = dict(
        name="mix", num_samples=2 * spent["samples"], text_weight=1.0, needle_weight=0.3, offset_tokens=20_000, num_keys=6, place="spread"
    )
    return (
        ("search_2x", "search", (("target_len", 1024), ("eval.suites", ()))),
        ("search_4x", "search", (("target_len", 2048), ("eval.suites", ()))),
        ("finetune_2x", "train", (
            ("rope", dict(method="file", path="{search_2x}/rope.json")),
            ("target_len", 1024), ("train.seq_len", 1024), ("train.batch_size", rows_2x), ("train.steps", steps_2x), *mixture,
            ("eval.lengths", LENGTHS[:2]),
        )),
        ("finetune_4x", "train", (
            ("model.path", "{finetune_2x}"),
            ("rope", dict(method="file", path="{search_4x}/rope.json")),
            ("target_len", 2048), ("train.seq_len", 2048), ("train.batch_size", rows_4x), ("train.steps", steps_4x), *mixture,
            ("eval.lengths", LENGTHS[:3]),
        )),
        ("second", "search", (
            extended, ("search.multiply", True), ("target_len", 8192), ("search.objective", mixed), ("eval.lengths", LENGTHS[3:]),
        )),
        ("recover_1x", "search", (*recovery, ("target_len", 512), ("search.highest", 2.0))),
        ("recover_2x", "search", (*recovery, ("target_len", 1024), ("search.highest", 3.0))),
        ("join", "join", (
            extended,
            ("join.ropes", ("{recover_1x}", "{recover_2x}", "{finetune_4x}", "{second}")),
            ("eval.suites", ("perplexity", "passkey", "needle")), ("eval.lengths", LENGTHS),
        )),
        ("compare", "evaluate", (
            ("model.path", "{join}"), ("eval.label", "extended"), ("eval.lengths", LENGTHS),
            ("eval.checkpoints", (("base, sliding", MODEL, "sliding"), ("base, yarn@su", MODEL, "yarn@su"))),
            ("eval.baseline", "base, sliding"),
        )),
    )
