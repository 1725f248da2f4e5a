"""What `python -m jaxrope.evaluate` does: measures the rows of a table, and writes them."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jaxrope import decoder, report, schema
from jaxrope.errors import InputError
from jaxrope.evaluate import suites, summary
from jaxrope.evaluate.cost import forward_tokens, outline
from jaxrope.evaluate.journal import Journal
from jaxrope.evaluate.plan import Plan, load, prepare
from jaxrope.evaluate.scoring import Bench, Result
from jaxrope.mesh import hosts, sharding
from jaxrope.report import tables
from jaxrope.schema import Identity
from jaxrope.shell import Progress, cli, duration
from jaxrope.store import files, run_lock, sealed

RECORD, ARRAYS = "eval.json", "eval_nll.npz"


def evaluate(config, workdir: Path) -> dict[str, Any]:
    """Evaluates what `config` asks for, or the rest of it, and writes the results into `workdir`.

    Returns:
      The columns of `finished`.

    Raises:
      InputError: see `prepare`; or weights or factors give losses that are no numbers.
    """
    config = schema.read(config)
    sharding.make_mesh(config.mesh)  # all of its devices must be here
    plan = prepare(config)
    cli.print_line(outline(plan))
    for note in plan.notes:
        cli.print_line(f"note: {note}")
    with run_lock(workdir):
        columns = _stored_columns(plan, workdir, shows=True)
        return _measured(plan, workdir) if columns is None else columns


def finished(config, workdir: Path) -> dict[str, Any] | None:
    """Returns the columns of a finished evaluation for the table of a sweep: the score of each
    suite and length of its first row, "perplexity at 512", and "forward tokens" of all rows.

    None: it is not finished, or is the one of another config, or its weights, texts or factors have
    changed.

    Raises:
      InputError: see `prepare`.
    """
    return _stored_columns(prepare(config), workdir, shows=False)


def measure(plan: Plan, progress: Progress, journal: Journal | None = None) -> Iterator[Result]:
    """Yields all results. One checkpoint is in memory at a time.

    Args:
      plan: what is to be measured.
      progress: updated with the number of tokens read and written.
      journal: finished items, and where new ones are stored; None = nowhere.
    """
    bench, path, params = _counted(plan.bench, progress, journal), None, None
    for spec in plan.specs:
        if spec.path != path:
            params = None  # the one before it goes first
            params, path = load(plan, spec.path), spec.path
        model = plan.model(spec, params, stores=journal is not None)
        trained = decoder.own_base(model.config).length
        origin = dict(weights=plan.weights[path], original_len=trained)
        for result in suites.run(model, bench):
            yield dataclasses.replace(result, **origin)


def _stored_columns(plan: Plan, workdir: Path, *, shows: bool) -> dict[str, Any] | None:
    """Returns the columns of eval.json if it is that of this plan, undamaged and whole; `shows`:
    and prints its tables.
    """
    identity = plan.identity  # on all processes

    def read() -> dict[str, Any] | None:
        path = workdir / RECORD
        if not path.exists():
            return None
        try:
            content = sealed.read_json(path, form=summary.FORMAT)
            if Identity.from_json(content["identity"]) != identity:
                return None
            sealed.read_arrays(workdir / ARRAYS, content["arrays"])
        except InputError as error:
            cli.print_line(f"not used: {error}")
            return None
        if shows:
            cli.print_line(tables.as_text(_tables(content)))
            cli.print_line(f"evaluated before, in {workdir}")
        return summary.columns(content)

    return hosts.from_main("evaluated before", read)


def _measured(plan: Plan, workdir: Path) -> dict[str, Any]:
    """Returns the columns of what is measured now."""
    results = []
    with Progress(forward_tokens(plan), unit="tokens") as progress:
        for result in measure(plan, progress, Journal(workdir, say=progress.write)):
            results.append(result)
            progress.write(_line(result))
    return hosts.from_main("results", lambda: _write(plan, workdir, results))


def _write(plan: Plan, workdir: Path, results: Sequence[Result]) -> dict[str, Any]:
    """Writes eval_nll.npz, eval.json, eval.md and the figures, and prints the tables."""
    config, baseline = plan.config, plan.config.eval.baseline
    trained = decoder.own_base(plan.base.config).length
    comparisons = summary.differences(results, baseline=baseline, **plan.bench.resamples)
    arrays = {f"{r.label}|{r.length}": r.nll_WT for r in results if r.nll_WT is not None}
    content = {
        "format": summary.FORMAT,
        "command": cli.command_line(),
        "config": config.to_dict(),
        "identity": plan.identity.to_json(),
        "model": plan.base.config.to_json_dict()
        | {"source": plan.base.source, "trained_len": trained},
        "rows": summary.record(results, comparisons, baseline=baseline),
        "ruler": summary.of_ruler(results),
        "arrays": sealed.write_arrays(workdir / ARRAYS, arrays),
    }
    sealed.write_json(workdir / RECORD, content)
    sections = _tables(content)
    files.write_text_atomic(workdir / "eval.md", tables.as_markdown(sections))
    cli.print_line(tables.as_text(sections))
    for name, draw in (
        ("eval.png", report.evaluation_figure),
        ("eval_maps.png", report.maps_figure),
    ):
        try:
            draw(content["rows"], workdir / name, original_len=trained)
        except InputError as error:  # no plotting library is no reason to fail after hours
            cli.print_line(f"{name} is left out: {error}")
    cli.print_line(f"wrote eval.json, eval.md and eval_nll.npz into {workdir}")
    return summary.columns(content)


def _tables(content: dict[str, Any]) -> list:
    trained = tables.trained_len(content["model"])
    sections = tables.evaluation_tables(content["rows"], original_len=trained)
    if content["ruler"]:
        sections.append(tables.ruler_table(content["ruler"]))
    return [*sections, tables.cost_table(content["rows"])]


def _counted(bench: Bench, progress: Progress, journal: Journal | None) -> Bench:
    done = 0

    def tick(tokens: int) -> None:
        nonlocal done
        done += tokens
        progress.update(done)

    def skip(tokens: int) -> None:
        nonlocal done
        done += tokens
        progress.skip(tokens)

    return dataclasses.replace(bench, tick=tick, skip=skip, journal=journal or Journal())


def _line(result: Result) -> str:
    name, score = next(iter(result.metrics.items()))
    rate, ends = result.tokens / result.seconds, ""
    if tables.has_interval({"items": result.items}):
        ends = f" [{result.metrics['low']:.4g}, {result.metrics['high']:.4g}]"
    return (
        f"{result.suite} {result.label} {result.length:,}: {name} {score:.4g}{ends}  "
        f"{duration(result.seconds)}, {rate:,.0f} tokens/s"
    )
