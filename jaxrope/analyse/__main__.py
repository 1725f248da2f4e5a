"""The paper's experiments on attention (arXiv 2406.13282) with a model of your own.

  python -m jaxrope.analyse --config=configs/attention_paper.py --workdir=runs/attention
  python -m jaxrope.analyse compare --checkpoint=MODEL --text=book.txt --ropes=none,yarn,rope.json

Each RoPE extension is fine-tuned at the pre-trained length. Then the program measures perplexity
against length (Figure 1), attention patterns (Figure 2, Table 1), retrieval with the attention
entropy of every answer (Figure 4), training on longer rows with equal tokens, retrieval heads, and
a second model. findings.md reports for each of the paper's findings whether it holds here;
`python -m jaxrope.report` renders the workdir as a page. Finished stages and measurements are kept:
run the same command again to resume.

`compare` puts ropes beside each other on one model and one text, which takes minutes: it has
arguments of its own (compare --help).
"""

import sys
from collections.abc import Sequence

from jaxrope import schema
from jaxrope.shell import Command, Program, cli


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line; see `cli.main` and, for `compare`, `cli.arguments`."""
    typed = sys.argv[1:] if argv is None else list(argv)
    if typed[:1] == ["compare"]:
        cli.arguments(COMPARE, doc=COMPARE.run.__doc__, argv=typed[1:])
    else:
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


def add_compare(parser) -> None:
    """Declares the arguments of `compare`."""
    add = parser.add_argument
    add("--checkpoint", required=True, help="Hugging Face folder, or a workdir of train.py")
    add(
        "--ropes",
        required=True,
        help="two or more: none, pi, ntk, dynamic_ntk, yarn, each also with an attention factor "
        "(yarn@su); model, the checkpoint's own; or a rope.json; all are compared with the first",
    )
    add("--text", action="append", required=True, help="file or glob; may be repeated")
    add("--length", type=int, default=0, help="tokens of a text; 0: twice the trained length (0)")
    add("--texts", type=int, default=4, help="how many texts (4)")
    add("--queries", type=int, default=64, help="tokens of a text whose attention is read (64)")
    add("--tokenizer", default="", help='MODEL, or "bytes", for a model without one')
    add("--workdir", default="", help="gets compare.json, compare.md and compare.png")


def run_compare(args) -> None:
    """Compares ropes on one model and one text: perplexity, entropy, reach, KL, rotary pairs.

    python -m jaxrope.analyse compare --checkpoint=MODEL --text=book.txt --ropes=none,yarn,rope.json

    Each rope has its own forward pass. KL is between the attentions of another rope and of the
    first one on the same queries and keys. Of each rotary pair: its factors, its share of the
    logits' variance, its correlation with the distance, and how the entropy answers to its factor.
    """
    from jaxrope.analyse import comparing

    comparing.run(args)


def dry_run_compare(args) -> str:
    """Returns what would be read, and what it costs."""
    from jaxrope.analyse import comparing

    return comparing.dry_run(args)


COMPARE = Command(arguments=add_compare, run=run_compare, dry_run=dry_run_compare)
PROGRAM = Program(
    package="jaxrope.analyse", doc=__doc__, run=run, dry_run=dry_run, check=check, sweeps=False
)

if __name__ == "__main__":
    main()
