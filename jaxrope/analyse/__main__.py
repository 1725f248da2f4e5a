"""The paper's experiments on attention (arXiv 2406.13282) with a model of one's own.

  python -m jaxrope.analyse --config=configs/attention_paper.py --workdir=runs/attention

Each RoPE extension is trained on at the pre-trained length; then come perplexity against length
(Figure 1), attention patterns (Figure 2, Table 1), retrieval with the attention entropy of every
answer (Figure 4), a training at longer rows on equal tokens, retrieval heads, and a second model.
findings.md says of each of the paper's findings whether it holds here; `python -m jaxrope.report`
shows the workdir as a page. What is finished is kept: the same command goes on from there.
"""

from collections.abc import Sequence

from jaxrope.shell import cli


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line; see `cli.main`."""
    cli.main(run, doc=__doc__, argv=argv)


def run(config, workdir, dry_run):
    """Runs the experiments; jax is imported only once the command line is known to be right."""
    from jaxrope.analyse import program

    return program.run(config, workdir, dry_run)


if __name__ == "__main__":
    main()
