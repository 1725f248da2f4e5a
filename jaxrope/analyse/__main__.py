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

from jaxrope import schema
from jaxrope.shell import Program, cli


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line; see `cli.main`."""
    cli.main(PROGRAM, argv=argv)


def run(config, workdir) -> int:
    """Trains, measures and writes the findings."""
    from jaxrope import analyse

    return analyse.run(config, workdir)


def dry_run(config, workdir, timing) -> str:
    """Returns what the stages and the measurements are and cost, and what is finished."""
    from jaxrope import analyse

    return analyse.dry_run(config, workdir, timing=timing)


def check(config) -> None:
    """Refuses keys of the second model that break their rules."""
    schema.replace(config, config.analysis.second, setting="analysis.second")


PROGRAM = Program(
    package="jaxrope.analyse", doc=__doc__, run=run, dry_run=dry_run, check=check, sweeps=False
)

if __name__ == "__main__":
    main()
