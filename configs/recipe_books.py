"""The recipe of LongRoPE on books-6m: from 512 tokens to 8,192, sixteen times its own, in one command (recipe_2m.py has the paper's size).

  python train.py --config=configs/recipe_books.py --workdir=runs/recipe_books

Searches 2x and 4x on the base, fine-tunes at 1,024 and on at 2,048, searches 4x more without training, searches short factors anew for
512 and 1,024, and joins all of them: runs/recipe_books/join is the extended model, runs/recipe_books/compare measures it beside the base.
Planned for 40 minutes on 2 idle CPU cores; --dry_run says what each stage takes, --config.stages=NAME,NAME runs some of them. To see it
run in some minutes, without use for its numbers: --config=configs/recipe_books.py:tiny
"""

from configs import base

MODEL = "../shared/models/books-6m"
LENGTHS = (512, 1024, 2048, 4096, 8192)
# What stages spend. finetune: steps, and rows of 1,024 and of 2,048 tokens in a step.
BUDGETS = {
    "whole": dict(population=64, children=32, iterations=8, samples=4, finetune=((60, 16), (90, 8)), windows=16, trials=12),
    "tiny": dict(population=8, children=4, iterations=2, samples=1, finetune=((6, 1), (6, 1)), windows=2, trials=2),
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
    config.eval.passkey_trials = spent["trials"]
    config.forward.remat = "none"
    config.optimizer.learning_rate = 5e-4
    config.optimizer.schedule = dict(name="linear", warmup_steps=5, final_fraction=0.0)
    config.optimizer.b2 = 0.95
    config.checkpoint.every, config.checkpoint.keep_last = 20, 1
    config.search.start_tokens = (0,)  # as the paper's fine-tuned models have it; Hugging Face can express no other
    size(config.search.algorithm, spent["population"], spent["children"], spent["iterations"])
    config.search.objective = dict(name="perplexity", num_samples=spent["samples"], offset_tokens=20_000)
    config.recipe = stages(spent)
    return config


def size(algorithm, population, children, iterations):
    """Sets what an evolution spends, in the proportions of the paper."""
    algorithm.population, algorithm.parents, algorithm.iterations = population, population // 2, iterations
    algorithm.mutations = algorithm.crossovers = children // 2


def stages(spent):
    """Returns the stages; `spent` is one of BUDGETS."""
    (steps_2x, rows_2x), (steps_4x, rows_4x) = spent["finetune"]
    methods = ("eval.methods", ("none", "pi", "ntk", "yarn"))
    extended = ("model.path", "{finetune_4x}")
    # Short factors: smaller than those of the fine-tuning, about with the attention factor that the weights have learnt.
    recovery = (extended, ("search.attention_factor", "rope"), ("search.attention_multiples", (0.92, 0.96, 1.0)))
    return (
        ("search_2x", "search", (("target_len", 1024), ("eval.lengths", LENGTHS[:2]), methods)),
        ("search_4x", "search", (("target_len", 2048), ("eval.lengths", LENGTHS[:3]), methods)),
        ("finetune_2x", "train", (
            ("rope", dict(method="file", path="{search_2x}/rope.json")),
            ("target_len", 1024), ("train.seq_len", 1024), ("train.batch_size", rows_2x), ("train.steps", steps_2x),
            ("eval.lengths", LENGTHS[:2]),
        )),
        ("finetune_4x", "train", (
            ("model.path", "{finetune_2x}"),
            ("rope", dict(method="file", path="{search_4x}/rope.json")),
            ("target_len", 2048), ("train.seq_len", 2048), ("train.batch_size", rows_4x), ("train.steps", steps_4x),
            ("eval.lengths", LENGTHS[:3]),
        )),
        ("second", "search", (
            extended, ("search.multiply", True), ("target_len", 8192),
            # the paper too spends less on its longest windows: half the population, 3 of 5 texts
            ("search.algorithm.population", max(spent["population"] // 2, 8)), ("search.algorithm.parents", max(spent["population"] // 4, 4)),
            ("search.algorithm.mutations", spent["children"] // 4), ("search.algorithm.crossovers", spent["children"] // 4),
            ("search.algorithm.iterations", max(spent["iterations"] // 2, 2)), ("search.objective.num_samples", max(spent["samples"] - 1, 1)),
            ("eval.lengths", LENGTHS[2:]),
        )),
        ("recover_1x", "search", (*recovery, ("target_len", 512), ("search.highest", 2.0), ("eval.lengths", LENGTHS[:1]))),
        ("recover_2x", "search", (*recovery, ("target_len", 1024), ("search.highest", 3.0), ("eval.lengths", LENGTHS[1:2]))),
        ("join", "join", (
            extended,
            ("join.ropes", ("{recover_1x}", "{recover_2x}", "{finetune_4x}", "{second}")),
            ("eval.suites", ("perplexity", "passkey")), ("eval.lengths", LENGTHS),
        )),
        ("compare", "evaluate", (
            ("model.path", "{join}"), ("eval.label", "extended"), ("eval.lengths", LENGTHS),
            ("eval.checkpoints", (("base, sliding", MODEL, "sliding"), ("base, yarn@su", MODEL, "yarn@su"))),
            ("eval.baseline", "base, sliding"),
        )),
    )
