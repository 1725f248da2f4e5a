"""The last stage of a recipe: factors of several searches beside one model, chosen by length.

LongRoPE (arXiv 2402.13753, section 3.3) searches short factors anew for L0 and 2 L0 on the extended
model, and takes them for sequences up to there; longer ones get the factors of the extension. Where
two lengths have the same factors, they have one bucket.
"""

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from pathlib import Path

from jaxrope import decoder, rope, schema, setup
from jaxrope.convert import Pretrained, importing, pretrained
from jaxrope.decoder import DecoderConfig
from jaxrope.errors import InputError
from jaxrope.mesh import hosts, sharding
from jaxrope.schema import Config, Identity
from jaxrope.setup import Expected
from jaxrope.shell import Program, cli
from jaxrope.store import checkpoint, files, sealed, steps
from jaxrope.train import resume


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What is to be joined.

    Attributes:
      config: of the program.
      model: the model, without its weights.
      ropes: (path, its rope) of each of config.join.ropes.
      joined: the rope by length.
    """

    config: Config
    model: Pretrained
    ropes: tuple[tuple[Path, rope.RopeFn], ...]
    joined: rope.RopeFn

    @functools.cached_property
    def identity(self) -> Identity:
        """What the result depends on; reads all weights."""
        content = {
            "weights": hosts.from_main("weights", lambda: setup.fingerprint(self.config)),
            "ropes": sealed.digest_of([setup.rope_digest(fn) for _, fn in self.ropes]),
        }
        return schema.identify("join", self.config, content)

    @property
    def outcome(self) -> Pretrained:
        """The model that it will leave, without weights; see setup.Expected."""
        shape = dataclasses.replace(self.model.config, max_len=self.joined.max_len)
        tokenizer_dir = self.model.tokenizer_dir
        if self.config.data.tokenizer not in ("", "bytes"):
            tokenizer_dir = pretrained.open_tokenizer(self.config.data.tokenizer)
        return dataclasses.replace(
            self.model, config=shape, rope_fn=self.joined, tokenizer_dir=tokenizer_dir
        )


def prepare(config: Config, expected: Expected = setup.NOTHING) -> Prepared:
    """Returns what is to be joined, before any weights are read.

    Raises:
      InputError: there is no such model or rope, two have factors up to one length, or one is of
        another model.
    """
    config = schema.read(config)
    if not config.join.ropes:
        raise InputError("join.ropes is empty. List rope.json files, or workdirs with one.")
    model = setup.load_model(config, weights=False, expected=expected)
    ropes = tuple(_rope(path, model.config, expected) for path in config.join.ropes)
    named = [(_name(path), rope_fn) for path, rope_fn in ropes]
    return Prepared(config, model, ropes, merge(named, model.config))


def dry_run(config: Config, *, timing: bool = True, expected: Expected = setup.NOTHING) -> str:
    """Returns what would be joined."""
    prepared = prepare(config, expected)
    ends = ", ".join(f"{bucket.max_len:,}" for bucket in prepared.joined.buckets)
    return f"factors for up to {ends} tokens beside {prepared.model.source}"


def finished(config: Config, folder: Path) -> dict | None:
    """Returns the columns of a join that was done; None: it was not, or of something else."""
    prepared, path = prepare(config), folder / "rope.json"
    is_there = _is_saved(prepared, folder) if config.join.weights else path.exists()
    if not is_there or not path.exists():
        return None
    return {"buckets": len(prepared.joined.buckets)}


def run(config: Config, folder: Path) -> None:
    """Makes `folder` a workdir: the model of `config`, and one rope.json of all of
    `config.join.ropes`; without `config.join.weights` that alone.

    A sequence takes the factors of the first bucket that it fits into: those of the shortest
    max_len that is not below its length.

    Raises:
      InputError: see prepare.
    """
    prepared = prepare(config)
    if prepared.config.join.weights and not _is_saved(prepared, folder):
        _save_params(prepared, folder)
    hosts.from_main("joined", lambda: _write(prepared, folder))
    what = "checkpoints, model.json and " if prepared.config.join.weights else ""
    buckets = ", ".join(f"{bucket.max_len:,}" for bucket in prepared.joined.buckets)
    cli.print_line(f"factors for up to {buckets} tokens\nwrote {what}rope.json into {folder}")


PROGRAM = Program(package="jaxrope.recipe.join", doc=__doc__, run=run)


def merge(ropes: Sequence[tuple[str, rope.RopeFn]], model: DecoderConfig) -> rope.RopeFn:
    """Returns one rope with the buckets of all, ascending in max_len, those that are the same as
    the next as one; where one is left, it is the rope of the longest as it is.

    Args:
      ropes: (name, rope).
      model: whose geometry they have.

    Raises:
      InputError: two have factors up to one length.
    """
    owner: dict[int, str] = {}
    buckets = []
    for name, rope_fn in ropes:
        for bucket in rope_fn.buckets:
            length = bucket.max_len
            if length in owner:
                raise InputError(
                    f"join.ropes: {owner[length]} and {name} both have factors up to {length:,} "
                    "tokens. Leave one of them out."
                )
            owner[length] = name
            buckets.append(bucket)
    buckets.sort(key=lambda bucket: bucket.max_len)
    kept = [
        bucket
        for bucket, longer in itertools.pairwise([*buckets, None])
        if longer is None or dataclasses.replace(bucket, max_len=longer.max_len) != longer
    ]
    if len(kept) == 1:
        return next(rope_fn for _, rope_fn in ropes if kept[0] in rope_fn.buckets)
    return rope.make(
        "longrope", **model.geometry, buckets=[dataclasses.asdict(bucket) for bucket in kept]
    )


def _rope(path: str, model: DecoderConfig, expected: Expected) -> tuple[Path, rope.RopeFn]:
    if path in expected.ropes:
        file = files.as_path(path)
        file = file if file.name.endswith(".json") else file / "rope.json"
        return file, expected.ropes[path]
    file = setup.rope_file(path)
    geometry = dict(head_dim=model.head_dim, rotary_dim=model.rotary_dim, theta=model.theta)
    loaded = rope.load(file, **geometry, num_layers=model.num_layers)
    if loaded.original_len != model.original_len:
        raise InputError(
            f"{file}: original_len must equal the model's, {model.original_len:,}, got "
            f"{loaded.original_len:,}. The file is for another model."
        )
    return file, loaded


def _name(file: Path) -> str:
    return f"{file.parent.name}/{file.name}"  # a workdir may be moved


def _is_saved(prepared: Prepared, folder: Path) -> bool:
    """Returns whether the folder holds the weights of this very join."""
    digest = prepared.identity.digest

    def saved() -> bool:
        return bool(steps.whole_steps(folder)) and steps.describe(folder).get("join") == digest

    return hosts.from_main("joined before", saved)


def _save_params(prepared: Prepared, folder: Path) -> None:
    """Saves each process's part, in place of what may be there of another join."""
    digest = prepared.identity.digest
    hosts.from_main("joined otherwise", lambda: files.remove_tree(steps.steps_root(folder)))
    loaded = setup.load_model(prepared.config)
    mesh = sharding.make_mesh(prepared.config.mesh)
    params = sharding.put(loaded.params, decoder.param_shardings(loaded.config, mesh))
    about = {"source": Path(loaded.source).name, "join": digest}
    checkpoint.save_params(folder, 0, params, about)


def _write(prepared: Prepared, folder: Path) -> None:
    outcome, config, with_model = prepared.outcome, prepared.config, prepared.config.join.weights
    place = config.data.tokenizer or prepared.model.tokenizer_dir
    if with_model and place:
        importing.copy_tokenizer(pretrained.open_tokenizer(place), folder)
    origins = [{"file": _name(f), "provenance": rope.provenance(f)} for f, _ in prepared.ropes]
    rope.save(folder / "rope.json", outcome.rope_fn, {"made_by": "train.py", "joined": origins})
    if with_model:
        sealed.write_json(folder / "model.json", outcome.config.to_json_dict())
    resume.write_config(config, folder)
