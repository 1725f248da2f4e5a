"""The paper's experiments on attention (arXiv 2406.13282) with a model of your own.

  python -m jaxrope.analyse --config=configs/attention_paper.py --workdir=runs/attention

Each RoPE extension is fine-tuned at the pre-trained length. Then the program measures perplexity
against length (Figure 1), attention patterns (Figure 2, Table 1), retrieval with the attention
entropy of every answer (Figure 4), training on longer rows with equal tokens, retrieval heads, and
a second model. findings.md reports for each of the paper's findings whether it holds here;
`python -m jaxrope.report` renders the workdir as a page. Finished stages and measurements are kept:
run the same command again to resume.
"""

from collections.abc import Sequence

from jaxrope.shell import cli


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line; see `cli.main`."""
    cli.main(run, doc=__doc__, argv=argv)


def run(config, workdir, dry_run):
    """Runs the experiments; jax is imported only after the command line has been checked."""
    from jaxrope.analyse import program

    return program.run(config, workdir, dry_run)


if __name__ == "__main__":
    main()
