"""Evaluates any model: perplexity, passkeys and retrieval tasks against length.

  python -m jaxrope.evaluate --config=configs/eval.py --workdir=runs/eval \
      --config.model.path=MODEL --config.data.eval_files='("TEXTS/*.txt",)' \
      --config.suites='("perplexity","passkey","ruler")'

MODEL is a Hugging Face folder or a workdir of jaxrope.train. It is evaluated with its own factors and, beyond
the length it was trained on, with those of PI, NTK and YaRN, chosen for each length. Add --dry_run to see
the cost first. The same command resumes a killed evaluation.

With ../shared/models/books-6m, lengths (512,1024), methods ("none","yarn"), 4 windows, 6 passkeys, 5
depths, 3 objects of kv and 6 questions of ruler/niah_single_1 it reads and writes 72,648 tokens, in 8
minutes on two busy cores: at 1,024 tokens YaRN retrieves every passkey and RULER needle, "none" retrieves none.
"""

from jaxrope.configs import base


def get_config():
    """Returns the configuration of the measurement."""
    config = base.get_config()
    config.eval.suites = ("perplexity", "passkey", "needle", "niah", "kv", "lines", "ruler")
    config.eval.lengths = (1024, 2048, 4096, 8192)
    config.eval.methods = ("none", "pi", "ntk", "yarn")
    config.eval.passkey_trials = 20
    config.eval.ruler.samples = 20  # the first of NVIDIA's 500
    config.eval.batch_tokens = 32_768
    return config
