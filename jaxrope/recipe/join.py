"""The last stage of a recipe: factors of several searches beside one model, chosen by length.

LongRoPE (arXiv 2402.13753, section 3.3) searches short factors anew for L0 and 2 L0 on the extended
model, and takes them for sequences up to there; longer ones get the factors of the extension.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from jaxrope import llama, rope, setup
from jaxrope.convert.pretrained import Pretrained
from jaxrope.errors import InputError
from jaxrope.llama import LlamaConfig
from jaxrope.mesh import hosts, sharding
from jaxrope.store import checkpoint, sealed, steps
from jaxrope.train import resume


def run(config, folder: Path) -> rope.RopeFn:
    """Makes `folder` a workdir: the model of `config`, and one rope.json of all of
    `config.join.ropes`.

    A sequence takes the factors of the first bucket that it fits into: those of the shortest
    max_len that is not below its length.

    Returns:
      The rope by length.

    Raises:
      InputError: there is no such model or rope, two have factors up to one length, or one is of
        another model.
    """
    loaded = setup.load_model(config)
    sources = hosts.from_main("ropes", lambda: _read_all(config, loaded.config))
    joined = merge([(row["file"], row["buckets"]) for row in sources], loaded.config)
    _save_params(config, folder, loaded)
    origins = [{name: row[name] for name in ("file", "provenance")} for row in sources]
    hosts.from_main("joined", lambda: _write(config, folder, loaded, joined, origins))
    return joined


def merge(ropes: Sequence[tuple[str, Sequence[dict]]], model: LlamaConfig) -> rope.RopeFn:
    """Returns one rope with the buckets of all, ascending in max_len.

    Args:
      ropes: (name, its buckets as rope.json has them).
      model: whose geometry they have.

    Raises:
      InputError: two have factors up to one length.
    """
    owner: dict[int, str] = {}
    buckets = []
    for name, rows in ropes:
        for bucket in rows:
            length = bucket["max_len"]
            if length in owner:
                raise InputError(
                    f"join.ropes: {owner[length]} and {name} both have factors up to {length:,} "
                    "tokens. Leave one of them out."
                )
            owner[length] = name
            buckets.append(bucket)
    return rope.make(
        "longrope",
        head_dim=model.head_dim,
        rotary_dim=model.rotary_dim,
        theta=model.theta,
        original_len=model.original_len,
        buckets=sorted(buckets, key=lambda bucket: bucket["max_len"]),
    )


def _read_all(config, model: LlamaConfig) -> list[dict]:
    """Returns the ropes as JSON values: file, buckets and provenance of each."""
    geometry = dict(head_dim=model.head_dim, rotary_dim=model.rotary_dim, theta=model.theta)
    sources = []
    for path in config.join.ropes:
        file = setup.rope_file(path)
        loaded = rope.load(file, **geometry, num_layers=model.num_layers)
        if loaded.original_len != model.original_len:
            raise InputError(
                f"{file}: original_len must equal the model's, {model.original_len:,}, got "
                f"{loaded.original_len:,}. The file is for another model."
            )
        rows = [dataclasses.asdict(bucket) for bucket in loaded.buckets]
        name = f"{file.parent.name}/{file.name}"  # a workdir may be moved
        sources.append({"file": name, "buckets": rows, "provenance": rope.provenance(file)})
    return sources


def _save_params(config, folder: Path, loaded: Pretrained) -> None:
    """Saves each process's part, unless there is a complete step already."""
    source = Path(loaded.source).name
    if hosts.from_main("joined before", lambda: steps.whole_steps(folder)):
        return
    mesh = sharding.make_mesh(config.mesh)
    params = sharding.put(loaded.params, llama.param_shardings(loaded.config, mesh))
    checkpoint.save_params(folder, 0, params, {"data_fingerprint": "", "source": source})


def _write(config, folder: Path, loaded: Pretrained, joined: rope.RopeFn, origins: list) -> None:
    model = dataclasses.replace(loaded.config, max_len=joined.max_len)
    if place := config.data.tokenizer or loaded.tokenizer_dir:
        resume.copy_tokenizer(place, folder)
    rope.save(folder / "rope.json", joined, {"made_by": "train.py", "joined": origins})
    sealed.write_json(folder / "model.json", model.to_json_dict())
    resume.write_config(config, folder)
