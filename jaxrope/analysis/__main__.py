"""The paper's experiments on attention (arXiv 2406.13282) with a model of one's own.

  python -m jaxrope.analysis --config=configs/attention_paper.py --workdir=runs/attention

Each RoPE extension is trained on at the pre-trained length; then come perplexity against length
(Figure 1), attention patterns (Figure 2, Table 1), retrieval with the attention entropy of every
answer (Figure 4), a training at longer rows on equal tokens, retrieval heads, and a second model.
findings.md says of each of the paper's findings whether it holds here; `python -m jaxrope.report`
shows the workdir as a page. What is finished is kept: the same command goes on from there.
"""

import shlex
import sys

from jaxrope import cli


def run(config, workdir, dry_run):
    """Runs the experiments; jax is imported only once the command line is known to be right."""
    from jaxrope import explain

    command = f"python -m jaxrope.analysis {shlex.join(sys.argv[1:])}"
    return explain.run(config, workdir, dry_run, command=command)


if __name__ == "__main__":
    cli.main(run, doc=__doc__)
