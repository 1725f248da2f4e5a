"""Published factor vectors by name, with model, length and source (`presets.json`)."""

import json
from importlib import resources

from jaxrope.errors import choose
from jaxrope.rope import methods
from jaxrope.rope.schedule import RopeFn


def catalogue() -> dict[str, dict]:
    """Returns {name: {"model", "source", "head_dim", "rotary_dim", "theta", "original_len",
    "buckets": [{"max_len", "factors" (name of a vector), ...}]}}.

    Single vectors have one bucket, up to the length they were searched for. The four tables
    `...-2048k-ft...` are the authors' choice by length: tokens rounded up into 4, 8, 16, 32, 128,
    256, 512, 1024, 2048 k, the next longer vector where one is not published.
    """
    return _read()["presets"]


def preset(name: str) -> RopeFn:
    """Returns the published factors called `name`.

    Raises:
      InputError: there is no such preset; the message lists them.
    """
    content = _read()
    entry = choose("rope preset", name, content["presets"])
    geometry = {key: entry[key] for key in ("head_dim", "rotary_dim", "theta", "original_len")}
    buckets = [
        dict(
            max_len=row["max_len"],
            factors=content["vectors"][row["factors"]],
            start_tokens=0,
            attention_factor=row["attention_factor"],
        )
        for row in entry["buckets"]
    ]
    return methods.make("longrope", **geometry, buckets=buckets)


def _read() -> dict:
    return json.loads(
        resources.files("jaxrope.rope").joinpath("presets.json").read_text(encoding="utf-8")
    )
