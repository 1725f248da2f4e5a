"""What `python -m jaxrope.evaluate` does: a plan, the rows of a table, and what is written."""

import dataclasses
import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxrope import data, llama, report, setup
from jaxrope.convert import pretrained
from jaxrope.errors import InputError
from jaxrope.evaluate import rows, suites, summary
from jaxrope.evaluate.journal import Journal
from jaxrope.evaluate.scoring import Bench, EvalModel, Result
from jaxrope.mesh import hosts, sharding
from jaxrope.report import tables
from jaxrope.shell import cli
from jaxrope.shell.progress import Progress, duration
from jaxrope.store import files, leaves
from jaxrope.store.lock import run_lock

CONFIGURED = "configured"  # the method of the first row: what config.rope says


@dataclasses.dataclass(frozen=True)
class Spec:
    """A row of the table: its name, the checkpoint, and a method (see rows.py) or "model"."""

    label: str
    path: str
    method: str


@dataclasses.dataclass(frozen=True)
class Plan:
    """A checked evaluation, before anything runs.

    Attributes:
      config: of the program.
      specs: the rows, those of a checkpoint together.
      base: config.model, its parameters on the devices.
      tokenizer: of all rows.
      bench: what evaluators share.
      mesh: the devices.
    """

    config: ConfigDict
    specs: list[Spec]
    base: pretrained.Pretrained
    tokenizer: data.Tokenizer
    bench: Bench
    mesh: Mesh


def run(config, workdir: Path, dry_run: bool) -> None:
    """Evaluates what `config` asks for and writes the results into `workdir`."""
    plan = make_plan(config)
    suite_tokens = costs(plan)
    total = sum(suite_tokens.values())
    operations = 2 * llama.num_params(plan.base.config) * total
    cli.print_line(
        f"{len(plan.specs)} rows x {len(plan.bench.lengths)} lengths: {total:,} forward tokens, "
        f"{operations:.1e} floating point operations and those of attention"
    )
    if dry_run:
        for name, tokens in suite_tokens.items():
            cli.print_line(f"  {name}: {tokens:,} forward tokens at most")
        return
    with run_lock(workdir):
        results, journal = [], Journal(workdir)
        with Progress(total, unit="tokens") as progress:
            for result in measure(plan, progress, journal):
                results.append(result)
                progress.write(_line(result))
        if hosts.is_main():
            write(plan, workdir, results)


def make_plan(config) -> Plan:
    """Returns the plan, with everything checked that can be before a model runs.

    Raises:
      InputError: a setting is wrong, a file is not there, or a length exceeds the rope's last one.
    """
    mesh = sharding.make_mesh(config.mesh)
    base = load(config, _main_path(config), mesh)
    specs = make_specs(config, base)
    tokenizer, place = setup.tokenizer(config, base.tokenizer_dir, base.config.vocab_size)
    bench = suites.bench(config.eval, documents=None, seed=config.seed)
    bench = dataclasses.replace(bench, tokenizer_dir=str(place))
    if suites.needs_text(bench, config.eval.suites):
        documents = setup.documents(
            config, config.data.eval_files, tokenizer, setting="data.eval_files"
        )
        bench = dataclasses.replace(bench, documents=documents)
    plan = Plan(config, specs, base, tokenizer, bench, mesh)
    described = {_main_path(config): base}
    for spec in specs:
        if spec.path not in described:
            described[spec.path] = setup.load_model(_at(config, spec.path), weights=False)
            _check_tokenizer(plan, spec, described[spec.path])
        suites.check(_model(plan, spec, described[spec.path]), bench, config.eval.suites)
    return plan


def costs(plan: Plan) -> dict[str, int]:
    """Returns the tokens that all rows read and write, at most, by suite, as if every checkpoint
    had the base's window.
    """
    total: dict[str, int] = {}
    for spec in plan.specs:
        has_own = spec.method == "model" or rows.is_file(spec.method)
        like = dataclasses.replace(spec, method=rows.OWN) if has_own else spec
        model = _model(plan, like, plan.base)
        for name, tokens in suites.costs(model, plan.bench, plan.config.eval.suites).items():
            total[name] = total.get(name, 0) + tokens
    return total


def forward_tokens(plan: Plan) -> int:
    """Returns the sum of `costs`."""
    return sum(costs(plan).values())


def load(config, path: str, mesh: Mesh) -> pretrained.Pretrained:
    """Returns the checkpoint `path` (config.model, or one beside it) on the devices."""
    loaded = setup.load_model(config if path == _main_path(config) else _at(config, path))
    shardings = llama.param_shardings(loaded.config, mesh)
    return dataclasses.replace(loaded, params=sharding.put(loaded.params, shardings))


def _at(config, path: str) -> ConfigDict:
    """Returns the config with another checkpoint as its model."""
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.model = dict(source="checkpoint", path=path)
    return config


def make_specs(config, base: pretrained.Pretrained) -> list[Spec]:
    """Returns the rows, those of a checkpoint together.

    Raises:
      InputError: a row of eval.checkpoints is malformed, or two rows have one name.
    """
    rope_fn = setup.rope_fn(config, base.config, base.rope_fn)
    is_plain = setup.is_own_rope(rope_fn, base.config)
    main = _main_path(config)
    specs = [
        Spec(config.eval.label or (rows.OWN if is_plain else rope_fn.method), main, CONFIGURED)
    ]
    methods = list(config.eval.methods)
    if is_plain and rows.OWN in methods and not config.eval.label:
        specs = []  # the configured rope is the row "none", which is asked for anyway
    specs += [Spec(name, main, name) for name in methods]
    for entry in config.eval.checkpoints:
        if len(entry) != 3 or not all(isinstance(part, str) and part for part in entry):
            raise InputError(
                "eval.checkpoints holds (label, path, method), for example "
                f"('base', 'models/base', 'sliding'), got {entry!r}."
            )
        if not files.as_path(entry[1]).exists():
            raise InputError(f"eval.checkpoints: '{entry[1]}' of row '{entry[0]}' does not exist.")
        specs.append(Spec(*entry))
    labels = [spec.label for spec in specs]
    for label in labels:
        if labels.count(label) > 1:
            raise InputError(f"eval: two rows are named '{label}'. Set eval.label, or rename one.")
    for spec in specs:
        # a rope.json is compared with the shape of its own checkpoint, when that is read
        later = rows.is_file(spec.method) and spec.path != main
        if spec.method not in (CONFIGURED, "model") and not later:
            rows.method_row(spec.method, base.config, rope_len=0)  # a wrong name is refused at once
    paths = list(dict.fromkeys(spec.path for spec in specs))
    return sorted(specs, key=lambda spec: paths.index(spec.path))


def measure(plan: Plan, progress: Progress, journal: Journal | None = None) -> Iterator[Result]:
    """Yields all results. One checkpoint beside config.model is in memory at a time.

    Args:
      plan: what is to be measured.
      progress: updated with the number of tokens read and written.
      journal: finished items, and where new ones are stored; None = nowhere.
    """
    config, bench = plan.config, _counted(plan.bench, progress, journal)
    loaded, path = plan.base, _main_path(config)
    weights = leaves.describe(loaded.params)
    for spec in plan.specs:
        if spec.path != path:
            loaded = None  # the one before it goes first
            loaded, path = load(config, spec.path, plan.mesh), spec.path
            weights = leaves.describe(loaded.params)
        identity = _identity(plan, loaded, weights) if journal else ""
        model = dataclasses.replace(_model(plan, spec, loaded), identity=identity)
        origin = dict(weights=_digest(weights), original_len=loaded.config.original_len)
        for result in suites.run(model, bench, config.eval.suites):
            yield dataclasses.replace(result, **origin)


def write(plan: Plan, workdir: Path, results: Sequence[Result]) -> None:
    """Writes eval.json, eval.md, eval_nll.npz and the figures, and prints the tables."""
    config, baseline = plan.config, plan.config.eval.baseline
    comparisons = summary.differences(
        results, baseline=baseline, num_samples=config.eval.bootstrap_samples, seed=config.seed
    )
    content = {
        "format": summary.FORMAT,
        "command": cli.command_line(),
        "config": config.to_dict(),
        "model": plan.base.config.to_json_dict() | {"source": plan.base.source},
        "rows": summary.record(results, comparisons, baseline=baseline),
        "ruler": summary.of_ruler(results),
    }
    files.write_json_atomic(workdir / "eval.json", content)
    arrays = {f"{r.label}|{r.length}": r.nll_WT for r in results if r.nll_WT is not None}
    write_arrays(workdir / "eval_nll.npz", arrays)
    original_len = plan.base.config.original_len
    sections = tables.evaluation_tables(content["rows"], original_len=original_len)
    if content["ruler"]:
        sections.append(tables.ruler_table(content["ruler"]))
    sections.append(tables.cost_table(content["rows"]))
    files.write_text_atomic(workdir / "eval.md", tables.as_markdown(sections))
    cli.print_line(tables.as_text(sections))
    for name, draw in (
        ("eval.png", report.evaluation_figure),
        ("eval_maps.png", report.maps_figure),
    ):
        try:
            draw(content["rows"], workdir / name, original_len=original_len)
        except InputError as error:  # no plotting library is no reason to fail after hours
            cli.print_line(f"{name} is left out: {error}")
    cli.print_line(f"wrote eval.json, eval.md and eval_nll.npz into {workdir}")


def write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes arrays as .npz, atomically."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    files.write_bytes_atomic(path, buffer.getvalue())


def _main_path(config) -> str:
    """Returns what a row of config.model has as its path; a model from scratch has none."""
    return config.model.path if config.model.source == "checkpoint" else ""


def _model(plan: Plan, spec: Spec, loaded: pretrained.Pretrained) -> EvalModel:
    config, shape, window = plan.config, loaded.config, plan.config.eval.window
    if spec.method == CONFIGURED:
        rope_fn = setup.rope_fn(config, shape, loaded.rope_fn)
        row = rows.Row(spec.label, rope_fn, window)
    elif spec.method == "model":
        row = rows.Row(spec.label, loaded.rope_fn, window)
    else:
        row = rows.method_row(spec.method, shape, rope_len=config.eval.rope_len, window=window)
    settings, _ = setup.forward_settings(config, plan.mesh, shape)
    return EvalModel(
        config=shape,
        params=loaded.params,
        rope_fn=row.rope_fn,
        tokenizer=plan.tokenizer,
        settings=settings,
        label=spec.label,
        window=row.window,
    )


def _check_tokenizer(plan: Plan, spec: Spec, loaded: pretrained.Pretrained) -> None:
    if plan.config.data.tokenizer or not loaded.tokenizer_dir:
        return
    other = data.load_tokenizer(loaded.tokenizer_dir)
    if other.fingerprint != plan.tokenizer.fingerprint:
        raise InputError(
            f"eval.checkpoints: row '{spec.label}' has another tokenizer than "
            f"config.model: losses per token cannot be compared. Evaluate it by itself."
        )


def _identity(plan: Plan, loaded: pretrained.Pretrained, weights: dict) -> str:
    """Returns a digest of all but the factors that answers depend on."""
    excluded = ("rope", "original_len", "max_len")  # the factors say it
    shape = {k: v for k, v in loaded.config.to_json_dict().items() if k not in excluded}
    content = {
        "weights": weights,
        "shape": shape,
        "tokenizer": plan.tokenizer.fingerprint,
        "compute_dtype": plan.config.forward.compute_dtype,
    }
    return _digest(content)


def _digest(content) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


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
    rate = result.tokens / result.seconds
    return (
        f"{result.suite} {result.label} {result.length:,}: {name} {score:.4g} "
        f"[{result.metrics['low']:.4g}, {result.metrics['high']:.4g}]  "
        f"{duration(result.seconds)}, {rate:,.0f} tokens/s"
    )
