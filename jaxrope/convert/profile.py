"""A model for servers that know one set of factors, such as vLLM: a folder for each length bucket.

OUT/512, OUT/4096, ...: each config.json holds the factors of its bucket for every length up to it.
The weights are there once: the folders share them by hard links. `router` stands in front of the
servers.
"""

import dataclasses
from pathlib import Path

from jaxrope import rope
from jaxrope.convert import exporting, folders
from jaxrope.errors import InputError


def write(model: exporting.Model, target: Path | str, settings: exporting.Settings) -> list[str]:
    """Writes the folders; returns what is lost, and the commands that serve them.

    Args:
      model: of `pretrained.load(path, dtype=None)`.
      target: must not exist, or be empty.
      settings: dtype, arch and allow_lossy are used.

    Raises:
      InputError: the model has one set of factors for all lengths, or see
        `exporting.export_folder`.
    """
    *shorter, longest = of_buckets(model)
    folder = folders.check_target(target)
    with folders.staged(folder) as staging:
        weights = staging / str(longest.config.max_len)
        notes = exporting.export_folder(longest, weights, settings)
        beside = dataclasses.replace(settings, weights=weights)
        for part in shorter:
            exporting.export_folder(part, staging / str(part.config.max_len), beside)
    lengths = [part.config.max_len for part in (*shorter, longest)]
    return [*(f"note: {note}" for note in notes), *commands(folder, lengths)]


def of_buckets(model: exporting.Model) -> list[exporting.Model]:
    """Returns the model once for each bucket, with its factors for every length that it serves.

    Raises:
      InputError: there are fewer than two.
    """
    rope_fn = model.rope_fn
    if len(rope_fn.buckets) < 2:
        raise InputError(
            f"{model.source}: its rope ({rope_fn.method}) has no length buckets: there is nothing"
            " to choose between. Write one folder with export, or name factors with two buckets or"
            " more: --rope=rope.json."
        )
    return [_of_bucket(model, bucket) for bucket in rope_fn.buckets]


def _of_bucket(model: exporting.Model, bucket: rope.Bucket) -> exporting.Model:
    # its length as the original one: vLLM opens a longrope at that length
    geometry = dataclasses.asdict(model.rope_fn.geometry) | {"original_len": bucket.max_len}
    is_plain = {*bucket.factors, bucket.attention_factor} == {1.0}
    table = {"method": "longrope", "buckets": [dataclasses.asdict(bucket)]}
    rope_fn = rope.make(**({"method": "none"} if is_plain else table), **geometry)
    config = dataclasses.replace(model.config, max_len=bucket.max_len)
    return dataclasses.replace(model, config=config, rope_fn=rope_fn)


def commands(folder: Path, lengths: list[int]) -> list[str]:
    """Returns the command lines of the servers and of the router, in order."""
    ports = range(8001, 8001 + len(lengths))
    servers = ",".join(f"http://localhost:{port}" for port in ports)
    rows = [
        f"vllm serve {folder / str(length)} --served-model-name={folder.name} --port={port}"
        for length, port in zip(lengths, ports, strict=True)
    ]
    return [*rows, f"python -m jaxrope.convert route {folder} --servers={servers}"]


def lengths_of(folder: Path | str) -> list[int]:
    """Returns the lengths that the folders in `folder` serve, ascending.

    Raises:
      InputError: there are none.
    """
    path = folders.open_folder(folder)
    lengths = sorted(int(part.parent.name) for part in path.glob("[1-9]*/config.json"))
    if not lengths:
        raise InputError(
            f"{path} has no folders by length. Make them: python -m jaxrope.convert serve MODEL"
            " OUT."
        )
    return lengths
