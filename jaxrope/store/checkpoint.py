"""Checkpoints: the only module that knows orbax.

A step is a folder `<workdir>/checkpoints/<step, 8 digits>/` with the items `params`, optionally
`opt_state`, and `meta`, a JSON object. Orbax commits a step by one rename, but it lists any folder
with a step's name, casts dtypes silently, and its data files carry no checksum: a flipped bit
restores without complaint. So `meta` also holds every leaf's shape, dtype and digest: a step is
whole only if its `meta` is (steps.py), a target that differs is refused before anything is read,
and what was read is compared with its digest.
"""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from jaxrope.errors import InputError
from jaxrope.mesh import hosts
from jaxrope.mesh.digest import digest
from jaxrope.store import files
from jaxrope.store import leaves as leaves_lib
from jaxrope.store.steps import (
    FORMAT,
    describe,
    find_step,
    read_meta,
    rejected,
    seal,
    step_folder,
    steps_root,
    whole_steps,
)

__all__ = [
    "CheckpointError",
    "Checkpoints",
    "describe",
    "find_step",
    "restore_params",
    "save_params",
    "step_folder",
    "whole_steps",
]

_TRASH = ".trash"  # orbax renames an old step into it, which is atomic; we empty it
_REJECTED = ".rejected"  # folders with a step's name that hold no whole step


class CheckpointError(RuntimeError):
    """A checkpoint could not be written (a full disk, a lost mount). Its message is one line."""


def save_params(directory: Path, step: int, params, meta: dict) -> Path:
    """Writes parameters alone as a step of a workdir; returns its folder once it is durable."""
    store = Checkpoints(directory, keep_last=None, asynchronous=False)
    try:
        store.save(step, params, None, meta)
    finally:
        store.close()
    return step_folder(directory, step)


def restore_params(path: Path, abstract_params=None, step: int | None = None):
    """Reads the parameters of a step.

    Args:
      path: a workdir, its `checkpoints` folder, or the folder of one step.
      abstract_params: tree of jax.ShapeDtypeStruct, as saved; a leaf without a sharding stays in
        the memory of the host, as a numpy array. None = as nested dicts, as saved.
      step: which step of a workdir; None = the newest whole one.

    Returns:
      (params, meta)

    Raises:
      InputError: there is no whole step; names, shapes or dtypes differ from `abstract_params`; the
        data is damaged (step and leaf are named).
    """
    folder = find_step(path, step)
    meta = read_meta(folder)
    return _restore_item(folder, "params", abstract_params, meta), meta


class Checkpoints:
    """The checkpoints of one run, for the process that writes them.

    Opening it removes the remains of a kill (orbax's temporary folders, the trash) and moves aside
    every folder with a step's name that is not a whole step: orbax would count it as one, both when
    it looks for the newest and when it removes old ones. `rejected` lists what was moved.

    With several processes each makes one and calls it at the same points: every process writes and
    reads its own parts of the arrays, process 0 does everything else, and its view of the folder
    holds for all.
    """

    def __init__(
        self,
        workdir: Path,
        *,
        keep_last: int | None = 2,
        keep_every: int = 0,
        asynchronous: bool = True,
    ):
        """Opens `<workdir>/checkpoints`, which is created if needed.

        Args:
          workdir: the run's folder.
          keep_last: number of newest steps to keep; None = all.
          keep_every: steps whose number is a multiple of it are kept for ever; 0 = none.
          asynchronous: `save` returns once the arrays are copied; writing goes on behind it.

        Raises:
          InputError: the folder cannot be created or written to.
        """
        self.root = steps_root(workdir)
        self.rejected = hosts.from_main("open the checkpoints", lambda: _tidy(self.root))
        # In a bucket nothing can be renamed: we remove old steps ourselves, their commit first.
        self._retention = (keep_last, keep_every) if files.is_remote(self.root) else None
        self._manager = _manager(
            self.root, None if self._retention else keep_last, keep_every, asynchronous
        )
        self._requested = hosts.from_main("newest checkpoint", self.latest)
        self._durable = self._requested

    def latest(self) -> int | None:
        """Returns the newest whole step that this process sees, or None."""
        steps = whole_steps(self.root)
        return steps[-1] if steps else None

    @property
    def requested_step(self) -> int | None:
        """The newest step that `save` was called for, or that existed before."""
        return self._requested

    @property
    def durable_step(self) -> int | None:
        """The newest step that is on disk; one that is still being written does not count."""
        if self._requested is not None and step_folder(self.root, self._requested).is_dir():
            self._durable = self._requested  # the folder has its name once it is committed
        return self._durable

    def save(self, step: int, params, opt_state, meta: dict) -> None:
        """Saves a step; the arrays may be donated as soon as this returns.

        Raises:
          CheckpointError: this save, or one before it that was still being written, failed.
        """
        self.check()
        # Without the folder orbax would wait 5 minutes for one that cannot be made.
        if not (files.is_remote(self.root) or self.root.is_dir()):
            raise CheckpointError(f"{self.root} is gone: step {step} was not saved.")
        trees = {"params": params}
        if opt_state is not None:
            trees["opt_state"] = opt_state
        leaves = {item: leaves_lib.describe(tree) for item, tree in trees.items()}
        full = {**meta, "step": step, "format": FORMAT, "leaves": leaves}
        full["sha256"] = seal(full)
        args = {item: ocp.args.StandardSave(tree) for item, tree in trees.items()}
        # Without force orbax skips a step that is not above its newest one, and only returns False.
        done = self._surfacing(
            lambda: self._manager.save(
                step, args=ocp.args.Composite(**args, meta=ocp.args.JsonSave(full)), force=True
            )
        )
        if not done:
            raise CheckpointError(f"step {step} was not saved to {self.root}: orbax declined it.")
        self._durable = self.durable_step
        self._requested = step
        self._empty_trash()

    def restore(self, step: int, abstract_params, abstract_opt_state):
        """Reads a step whole, each leaf to the sharding it has in the abstract tree.

        Returns:
          (params, opt_state, meta)

        Raises:
          InputError: as restore_params.
        """
        meta = hosts.from_main("checkpoint", lambda: read_meta(find_step(self.root, step)))
        folder = step_folder(self.root, step)
        params = _restore_item(folder, "params", abstract_params, meta)
        return params, _restore_item(folder, "opt_state", abstract_opt_state, meta), meta

    def check(self) -> None:
        """Raises CheckpointError if a save in the background has failed."""
        self._surfacing(self._manager.check_for_errors)

    def wait(self) -> None:
        """Waits until every requested save is durable.

        Raises:
          CheckpointError: it could not be written.
        """
        self._surfacing(self._manager.wait_until_finished)
        self._durable = self._requested

    def close(self) -> None:
        """Waits, as `wait`, and ends orbax's threads."""
        try:
            self.wait()
        finally:
            self._surfacing(self._manager.close)
            self._empty_trash()

    def _surfacing(self, call: Callable):
        try:
            return call()
        except Exception as error:  # of orbax's storage: ValueError, XlaRuntimeError, ...
            self._requested = self.latest()
            last = "none" if self._requested is None else self._requested
            raise CheckpointError(
                f"a checkpoint could not be written to {self.root}: {_short(error)}. Newest "
                f"durable step: {last}."
            ) from error

    def _empty_trash(self) -> None:
        if hosts.is_main() and self._retention:
            _remove_old(self.root, *self._retention)
        elif hosts.is_main():
            _empty_trash(self.root)


def _tidy(root: Path) -> list[str]:
    """Creates the folder, or cleans it up; returns a line for every folder moved aside."""
    files.check_writable(root)
    lines = _move_aside(root)
    _empty_trash(root)
    return lines


def _empty_trash(root: Path) -> None:
    for old in (root / _TRASH).glob("*"):
        files.remove_tree(old)


def _remove_old(root: Path, keep_last: int | None, keep_every: int) -> None:
    steps = whole_steps(root)
    for step in steps[:-keep_last] if keep_last else []:
        if not keep_every or step % keep_every:
            (
                step_folder(root, step) / "commit_success.txt"
            ).unlink()  # from now on it is not a whole step
            files.remove_tree(step_folder(root, step))


def _move_aside(root: Path) -> list[str]:
    lines = []
    for name, why in rejected(root).items():
        if files.is_remote(root):  # nothing can be renamed there
            files.remove_tree(root / name)
            lines.append(f"{root / name} is not a whole checkpoint ({why}); removed")
            continue
        place = root / _REJECTED / name
        for number in range(1, 10_000):
            if not place.exists():
                break
            place = root / _REJECTED / f"{name}-{number}"
        place.parent.mkdir(exist_ok=True)
        (root / name).rename(place)
        lines.append(f"{root / name} is not a whole checkpoint ({why}); moved to {place}")
    return lines


def _manager(root: Path, keep_last: int | None, keep_every: int, asynchronous: bool):
    policies = ocp.checkpoint_managers
    rules = [policies.LatestN(keep_last)]  # LatestN(None) keeps all
    if keep_every:
        rules.append(policies.EveryNSteps(keep_every))
    options = ocp.CheckpointManagerOptions(
        preservation_policy=policies.AnyPreservationPolicy(rules),
        enable_async_checkpointing=asynchronous,
        cleanup_tmp_directories=True,
        todelete_subdir=None if files.is_remote(root) else _TRASH,
        step_format_fixed_length=8,
        create=False,  # _tidy has made it
        multiprocessing_options=_multiprocessing(),
    )
    return ocp.CheckpointManager(root, item_names=("params", "opt_state", "meta"), options=options)


def _multiprocessing():
    """Lists the processes: orbax then waits for them by number, at most 5 minutes (saves: 20).

    Without it orbax waits in a collective of the devices, for ever.
    """
    processes = set(range(hosts.count())) if hosts.count() > 1 else None
    return ocp.options.MultiprocessingOptions(primary_host=0, active_processes=processes)


def _restore_item(folder: Path, item: str, abstract, meta: dict):
    leaves = meta["leaves"].get(item)
    if leaves is None:
        raise InputError(
            f"{folder} has no item '{item}': it holds {', '.join(meta['leaves'])} only. It can be "
            "loaded as a model, not continued as a run."
        )
    if abstract is None:
        abstract = leaves_lib.nested(
            {
                name: jax.ShapeDtypeStruct(tuple(leaf["shape"]), jnp.dtype(leaf["dtype"]))
                for name, leaf in leaves.items()
            }
        )
    leaves_lib.compare(folder, item, leaves, abstract)
    target = jax.tree.map(_target, abstract)
    try:
        with ocp.StandardCheckpointer(multiprocessing_options=_multiprocessing()) as reader:
            tree = reader.restore(folder / item, target)
    except Exception as error:  # a damaged file raises anything from KeyError to JSONDecodeError
        raise InputError(
            f"{folder}, item {item}: cannot be read, so it is damaged ({_short(error)}). "
            f"{_remedy(folder)}"
        ) from error
    for name, leaf in leaves_lib.named(tree).items():
        if digest(leaf) != leaves[name]["digest"]:
            raise InputError(
                f"{folder}, leaf {item}/{name}: the data is damaged (its digest is {digest(leaf)}, "
                f"saved was {leaves[name]['digest']}). {_remedy(folder)}"
            )
    return tree


def _target(leaf):
    """Returns orbax's restore target for a leaf: on devices, or on the host."""
    if leaf.sharding is None:
        return np.empty(leaf.shape, leaf.dtype)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)


def _remedy(folder: Path) -> str:
    earlier = [step for step in whole_steps(folder.parent) if step < int(folder.name)]
    if earlier:
        return f"Remove that folder to go on from step {earlier[-1]}."
    return "There is no earlier step to go on from."


def _short(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    if who := hosts.late(str(error)):  # a barrier of orbax
        return f"process {who} of {hosts.count()} was late; look at its log"
    return text if len(text) <= 160 else f"{text[:160]}..."
