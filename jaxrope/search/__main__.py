"""Searches rope factors for a longer window, without training.

  python -m jaxrope.search --config=configs/base.py --workdir=runs/search \\
      --config.model.path=MODEL --config.target_len=4096 --config.data.train_files='books/*.txt'

Writes rope.json (the factors, for train.py and for `python -m jaxrope.convert`), journal.jsonl,
result.json and search.png, and prints the known methods, what was found, and whether it is better
than they are, judged on text that chose nothing. Started again with the same --workdir it resumes
where it was stopped or killed. configs/longrope_paper.py is Algorithm 1 of LongRoPE to the letter.
`config.sweep` runs the product of listed values, each in a folder of its own.
"""

from collections.abc import Sequence

from jaxrope.shell import Program, cli


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line; see `cli.main`."""
    cli.main(PROGRAM, argv=argv)


def run(config, workdir) -> None:
    """Searches, draws and prints the result."""
    from jaxrope import report, search
    from jaxrope.mesh import hosts

    result = search.search(config, workdir)
    if not hosts.is_main():
        return
    report.search_figure(
        result.generations,
        result.baselines,
        workdir / "search.png",
        factors=result.factors,
        descents=result.descents,
    )
    cli.print_line(result.table)
    cli.print_line(f"wrote rope.json, journal.jsonl, result.json and search.png into {workdir}")


def compile_only(config, topology, workdir) -> None:
    """Compiles a batch for a TPU slice, which need not be attached, and reports its memory."""
    from jaxrope.topology import compile_search

    compile_search(config, topology, workdir)


PROGRAM = Program(
    package="jaxrope.search",
    doc=__doc__,
    run=run,
    compile=compile_only,
    survives="every batch that was finished",
)

if __name__ == "__main__":
    main()
