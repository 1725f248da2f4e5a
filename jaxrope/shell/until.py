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


def _result(path, config):
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    same = content.get("config") == json.loads(json.dumps(config.to_dict()))
    return content if same else None


class _Evaluation:
    def __init__(self, config):
        self.config = config

    @property
    def identity(self):
        from jaxrope import schema, setup

        weights = [setup.fingerprint(self.config)]
        for _, path, _ in self.config.eval.checkpoints:
            other = schema.replace(self.config, {"model": dict(source="checkpoint", path=path)})
            weights.append(setup.fingerprint(other))
        return schema.identify("evaluate", self.config, {"weights": str(weights)})


def _prepare_evaluate(config, expected=None):
    from jaxrope.evaluate import program

    if expected is None or not expected.models and not expected.ropes:
        program.make_plan(old(config))
    return _Evaluation(config)


def _dry_run_evaluate(config, *, timing=True, expected=None):
    import contextlib
    import io
    from pathlib import Path

    from jaxrope.evaluate import program

    if expected is not None and (expected.models or expected.ropes):
        return "?"
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        program.run(old(config), Path("never"), True)
    return text.getvalue().rstrip()


def _finished_evaluate(config, workdir):
    content = _result(workdir / "eval.json", config)
    if content is None:
        return None
    rows = content["rows"]
    columns = {
        f"{row['suite']}/{row['length']}": next(iter(row["metrics"].values()))
        for row in rows
        if row["label"] == rows[0]["label"]
    }
    return columns | {"forward tokens": sum(row["tokens"] for row in rows)}


_OLD = {
    "jaxrope.evaluate": dict(
        prepare=_prepare_evaluate, dry_run=_dry_run_evaluate, finished=_finished_evaluate
    ),
}
