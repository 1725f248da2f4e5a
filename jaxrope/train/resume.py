"""What a run writes about itself when it begins, and whether it may go on."""

from collections.abc import Sequence
from pathlib import Path

import jax

from jaxrope import rope, schema, setup
from jaxrope.convert import importing, pretrained
from jaxrope.errors import InputError
from jaxrope.mesh import hosts
from jaxrope.schema import Config, Identity
from jaxrope.shell import cli
from jaxrope.store import describe, files, sealed, whole_steps
from jaxrope.train import metrics
from jaxrope.train.plan import Plan, prepare

FILE, FORMAT = "identity.json", "jaxrope.identity/1"
_STEPS, _LONGER = "train.steps", "lengths"  # a run may be made longer; it is told from others then
_KEY_OF = {"weights": "model.path", "text": "data.train_files", "tokenizer": "data.tokenizer"}
_KEY_OF["batches"] = "data.sources"  # whose shares alone no key tells


def begin(plan: Plan, workdir: Path) -> None:
    """Writes config.json, model.json, rope.json (if the rope is not the model's own), tokenizer."""
    config = plan.config
    if not setup.is_own_rope(plan.rope_fn, plan.model):
        origin = {
            "made_by": "train.py",
            "rope": config.rope.to_dict(),
            "model": model_name(config),
        }
        if config.rope.method == "file":
            origin["file"] = rope.provenance(files.as_path(config.rope.path))
        rope.save(workdir / "rope.json", plan.rope_fn, origin, max_len=plan.model.max_len)
    else:
        (workdir / "rope.json").unlink(missing_ok=True)
    sealed.write_json(workdir / "model.json", plan.model.to_json_dict())
    importing.copy_tokenizer(plan.tokenizer_at, workdir)
    write_config(config, workdir)
    _write(workdir, plan.identity)


def write_config(config: Config, workdir: Path) -> None:
    """Writes the resolved config, and the command that gave it."""
    sealed.write_json(workdir / "config.json", config.to_dict())
    cli.write_command(workdir)


def check_workdir(workdir: Path) -> None:
    """Refuses a folder that belongs to something else.

    Raises:
      InputError: a search lives there, or a model of Hugging Face.
    """
    path = workdir / "config.json"
    if path.exists() and "train" not in sealed.read_json(path, sealed=False):
        raise InputError(
            f"--workdir={workdir} has a config.json that train.py did not write. Give the training "
            "a folder of its own."
        )
    if (workdir / "journal.jsonl").exists():
        raise InputError(
            f"--workdir={workdir} holds a search (journal.jsonl). Give the training a folder of "
            "its own."
        )


def stand(
    config: Config,
    workdir: Path,
    expected: setup.Expected = setup.NOTHING,
    *,
    devices: Sequence[jax.Device] | None = None,
) -> tuple[Plan, int | None]:
    """Returns (the run of a config, the step it has reached in `workdir`; None: it is new).

    Args:
      config: of the program.
      workdir: the run's folder.
      expected, devices: see prepare.

    Raises:
      InputError: see prepare; or the run there is another one: what differs is named, with both
        values.
    """
    step = hosts.from_main("where the run stands", lambda: _newest(workdir))
    if step is None:
        return prepare(config, expected, devices=devices), None
    is_gone = config.model.source == "checkpoint" and not pretrained.is_here(config.model.path)
    if is_gone:  # the run has what it needs of it
        begun = pretrained.load(workdir, dtype=None, weights=False)
        expected = setup.Expected({config.model.path: begun}, expected.ropes)
    plan = prepare(config, expected, devices=devices)
    before = _begun(workdir)
    now = plan.identify(before.content["weights"]) if is_gone else _on_main(plan)
    if changes := before.without(_STEPS, _LONGER).changes(now.without(_STEPS, _LONGER)):
        raise InputError(
            f"the run in {workdir} began otherwise: {_telling(changes)}. Set it back, or give "
            "another --workdir."
        )
    return plan, step


def goes_on(plan: Plan, workdir: Path) -> None:
    """Writes what may have changed when a run goes on: its config, and how long it is."""
    write_config(plan.config, workdir)
    before, steps = _read(workdir), plan.config.train.steps
    if before.settings[_STEPS] != steps:
        lengths = f"{before.content.get(_LONGER, before.settings[_STEPS])}, {steps}"
        content, settings = {_LONGER: lengths}, {_STEPS: steps}
        _write(
            workdir,
            Identity(
                before.program,
                {**before.settings, **settings},
                {**before.content, **content},
            ),
        )


def finished(
    config: Config, workdir: Path | str, *, devices: Sequence[jax.Device] | None = None
) -> dict[str, float | str] | None:
    """Returns what the run of a config came to, by name, for a table: None if there is no such run
    in `workdir`, or it has not come to its end. `devices` are those of `prepare`.

    Raises:
      InputError: see prepare; or a file of the run is damaged.
    """
    config, workdir = schema.read(config), files.absolute(workdir)
    if hosts.from_main("where it ended", lambda: _newest(workdir)) != config.train.steps:
        return None
    plan = prepare(config, devices=devices)
    if _begun(workdir).changes(_on_main(plan)):
        return None
    rows = hosts.from_main("metrics", lambda: metrics.read(workdir / metrics.FILE)[0])
    steps = [row for row in rows if "loss" in row]
    last = [float(row["loss"]) for row in steps[-config.train.log_every :]]
    columns = {"trained tokens": sum(row["tokens"] for row in steps)}
    columns |= {"loss": sum(last) / len(last)} if last else {}
    if plan.bench is not None:
        scores = [row for row in rows if row.get("of") == plan.measured]
        columns |= scores[-1]["eval"] if scores and scores[-1]["step"] == config.train.steps else {}
    return columns


def model_name(config: Config) -> str:
    """Returns what the model was made of, for the record."""
    return str(config.model.path) if config.model.source == "checkpoint" else "scratch"


def _newest(workdir: Path) -> int | None:
    """Returns the newest whole step. Hosts may see a file system differently, so all use what
    process 0 sees.
    """
    steps = whole_steps(workdir)
    if steps and "opt_state" not in describe(workdir, steps[-1])["leaves"]:
        raise InputError(
            f"--workdir={workdir} holds a model without an optimizer's state (an import), which "
            "cannot be continued. Name it as config.model.path and give another --workdir."
        )
    return steps[-1] if steps else None


def _begun(workdir: Path) -> Identity:
    """Returns the identity that the run in `workdir` began with."""
    return Identity.from_json(hosts.from_main("identity", lambda: _read(workdir).to_json()))


def _telling(changes: list[str]) -> str:
    """Returns the changes that others follow from: settings, else what they name."""
    settings = [line for line in changes if not line.startswith("the ")]
    content = [line for line in changes if not line.startswith("the batches (")]
    lines = (settings or content or changes)[:3]
    for name, key in _KEY_OF.items():
        lines = [line.replace(f"the {name} (", f"the {name} of {key} (") for line in lines]
    return "; ".join(lines)


def _on_main(plan: Plan) -> Identity:
    """Returns the plan's identity; process 0 alone reads the weights."""
    if hosts.is_main():
        plan.identity  # noqa: B018 - read here, for as long as it takes
    hosts.barrier("the weights are read", long=True)
    return Identity.from_json(hosts.from_main("identity now", lambda: plan.identity.to_json()))


def _read(workdir: Path) -> Identity:
    return Identity.from_json(sealed.read_json(workdir / FILE, form=FORMAT))


def _write(workdir: Path, identity: Identity) -> None:
    sealed.write_json(workdir / FILE, {"format": FORMAT, **identity.to_json()})
