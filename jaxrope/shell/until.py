"""Doors of programs that do not have prepare, dry_run and finished yet. To be deleted."""

import importlib
import json
from types import SimpleNamespace

from ml_collections import ConfigDict


def old(config):
    """Returns the ConfigDict that a program takes which does not read the schema yet."""
    return ConfigDict(config.to_dict()).lock()


def door(package):
    module = importlib.import_module(package)
    names = ("prepare", "dry_run", "finished")
    if all(hasattr(module, name) for name in names):
        return module
    return SimpleNamespace(**{"run": None} | _OLD[package])


def _prepare_search(config, expected=None):
    from jaxrope.search import problem

    return problem.prepare(old(config))


def _dry_run_search(config, *, timing=True, expected=None):
    from jaxrope import search

    return search.estimate(old(config))


def _result(path, config):
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    same = content.get("config") == json.loads(json.dumps(config.to_dict()))
    return content if same else None


def _finished_search(config, workdir):
    content = _result(workdir / "result.json", config)
    if content is None:
        return None
    fitness = [row["fitness"] for row in content["baselines"] if row["fitness"] is not None]
    return {
        "fitness": content[content["unit"]],
        "best baseline": min(fitness, default=None),
        "forward tokens": content["forward_tokens"],
    }


def _prepare_train(config, expected=None):
    from jaxrope.mesh import sharding
    from jaxrope.train.plan import check_numbers, make_plan

    check_numbers(old(config))
    return make_plan(old(config), sharding.make_mesh(config.mesh), None, weights=False)


def _dry_run_train(config, *, timing=True, expected=None):
    import contextlib
    import io
    import tempfile
    from pathlib import Path

    from jaxrope import train

    text = io.StringIO()
    with contextlib.redirect_stdout(text), tempfile.TemporaryDirectory() as folder:
        train.train(old(config), Path(folder) / "run", True)
    return text.getvalue().rstrip()


def _finished_train(config, workdir):
    from jaxrope.store import files, steps

    path = workdir / "config.json"
    if not path.exists() or (steps.whole_steps(workdir) or [0])[-1] < config.train.steps:
        return None
    if json.loads(path.read_text()) != json.loads(json.dumps(config.to_dict())):
        return None
    rows = files.read_jsonl(workdir / "metrics.jsonl", repair=False)
    losses = [row for row in rows if row.get("loss") is not None]
    return {"loss": losses[-1]["loss"], "trained tokens": sum(row["tokens"] for row in losses)}


_OLD = {
    "jaxrope.search": dict(
        prepare=_prepare_search, dry_run=_dry_run_search, finished=_finished_search
    ),
    "jaxrope.train": dict(prepare=_prepare_train, dry_run=_dry_run_train, finished=_finished_train),
}
