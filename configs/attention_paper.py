"""The attention analysis of RoPE extensions (arXiv 2406.13282) on books-6m, and the gain from PI on stdlib-3m for comparison.

  python -m jaxrope.analyse --config=configs/attention_paper.py --workdir=runs/attention

Six settings, each trained further on 0.25 M tokens in rows of 512; a twin at 1,024, a longer training at 2,048; patterns at 256 and 1,024
(half and twice the length, as in the paper) and beyond; passkeys and one of six needles up to 8,192. findings.md reports which findings hold,
and python -m jaxrope.report runs/attention shows them. 90 minutes on one core; --dry_run prints the cost. A short trial, whose numbers are
meaningless: --config=configs/attention_paper.py:quick
"""

import importlib.resources

from jaxrope.configs import base, stdlib

MODEL = "../shared/models/books-6m"
SECOND = str(importlib.resources.files("jaxrope") / "models" / "stdlib-3m")
# Budgets: optimizer steps and rows of a training, steps of the twin, steps of the search, texts and questions, longest multiple of the trained length.
BUDGETS = {
    "whole": dict(steps=30, rows=16, twin=60, search=12, sequences=10, trials=8, depths=4, longest=16.0, draws=5),
    "quick": dict(steps=2, rows=4, twin=2, search=1, sequences=2, trials=2, depths=2, longest=4.0, draws=1),
}


def get_config(budget="whole"):
    """Returns the configuration of the experiments; `budget` is "whole" or "quick"."""
    if budget not in BUDGETS:
        raise ValueError(f"--config=configs/attention_paper.py:{budget}: unknown '{budget}'. Known: {', '.join(BUDGETS)}.")
    spent = BUDGETS[budget]
    config = base.get_config()
    config.model = base.checkpoint_model(MODEL)
    config.data.train_files = ("../shared/books/train/*.txt",)
    config.data.eval_files = ("../shared/books/val/*.txt",)
    config.data.needle_share = 0.2  # otherwise a model of this size forgets how to retrieve; the same rows for every setting
    config.data.needle_weight = 8.0
    config.data.needle_keys = 2  # as many as fit into 512 tokens
    config.forward.remat = "none"
    config.train.steps, config.train.batch_size, config.train.accumulation = spent["steps"], spent["rows"], 2
    config.optimizer.learning_rate = 5e-4
    config.optimizer.schedule = dict(name="linear", warmup_steps=min(5, spent["steps"] - 1), final_fraction=0.0)
    config.optimizer.b2 = 0.95
    config.checkpoint.every, config.checkpoint.keep_last = 15, 1
    config.search.gradient.steps = spent["search"]
    config.search.objective = dict(name="perplexity", num_samples=2, offset_tokens=20_000)
    config.eval.offset_tokens = 20_000
    section = config.analysis
    section.factor = spent["longest"]
    section.twin_steps, section.sequences, section.trials = spent["twin"], spent["sequences"], spent["trials"]
    section.depths, section.heads.draws = spent["depths"], spent["draws"]
    for key in ("perplexity", "patterns", "needles"):
        section[key] = tuple(multiple for multiple in section[key] if multiple <= spent["longest"])
    texts = base.data()
    stdlib.texts(texts)
    section.second = (
        ("model.path", SECOND),
        ("data.train_files", texts.train_files),
        ("data.eval_files", texts.eval_files),
        ("data.exclude", texts.exclude),
        ("data.needle_keys", 1),  # as many as fit into 256 tokens
        ("eval.offset_tokens", 2_000),
        ("analysis.settings", ("none", "pi", "ntk", "yarn", "abf")),
        ("analysis.longer_setting", ""),  # no longer training
        ("analysis.tasks", ("passkey",)),
        ("analysis.haystack", False),
    )
    return config
