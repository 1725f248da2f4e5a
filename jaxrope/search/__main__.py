"""Searches rope factors for a longer window, without training (LongRoPE, Algorithm 1).

  python -m jaxrope.search --config=configs/base.py --workdir=runs/search \\
      --config.model.path=MODEL --config.target_len=4096 --config.data.train_files='books/*.txt'

Writes rope.json (the factors, for train.py and for `python -m jaxrope.convert`), journal.jsonl,
result.json and search.png, and prints their fitness beside that of none, PI, NTK and YaRN. Started
again with the same --workdir it resumes where it was stopped or killed. `config.sweep` runs the
product of listed values, each in a folder of its own.
"""

from collections.abc import Sequence

from jaxrope.shell import cli


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line; see `cli.main`."""
    cli.main(run, doc=__doc__, compile_fn=compile_only, argv=argv)


def run(config, workdir, dry_run):
    """Searches; jax is imported only after the command line has been checked."""
    from jaxrope.shell import sweep
    from jaxrope.shell.interrupt import exit_at_once

    rest = f"{workdir} has every batch that was finished. The same command goes on from there."
    with exit_at_once(rest):
        if not config.sweep:
            run_member(config, workdir, dry_run)
        elif dry_run:
            for name, member in sweep.members(config).items():
                cli.print_line(name)
                run_member(member, workdir, dry_run)
        else:
            cli.print_line(sweep.run(config, workdir, run_member))


def run_member(config, workdir, dry_run=False):
    """Runs one search, or prints its cost; returns its result."""
    from jaxrope import report, search
    from jaxrope.mesh import hosts

    if dry_run:
        cli.print_line(search.dry_run(config))
        return None
    result = search.search(config, workdir)
    if not hosts.is_main():
        return result
    report.search_figure(
        result.generations, result.baselines, workdir / "search.png", factors=result.factors
    )
    cli.print_line(result.table)
    cli.print_line(f"wrote rope.json, journal.jsonl, result.json and search.png into {workdir}")
    return result


def compile_only(config, topology, workdir):
    """Compiles a batch for a TPU slice, which need not be attached, and reports its memory."""
    from jaxrope.topology import compile_search

    compile_search(config, topology, workdir)


if __name__ == "__main__":
    main()
