"""rope.json, the one file format for a result: written whole or not at all, checked fully when
read.

{"format": "jaxrope.rope/1", "method", "constants", "head_dim", "rotary_dim", "theta",
"original_len",
 "buckets": [{"max_len" (inclusive), "factors", "start_tokens", "attention_factor"}], "provenance":
 {...}}

Factors are a list of numbers, one for each rotary pair, or one such list for every layer.

The buckets are authoritative; `method` and `constants` say how they were made, and are checked
against them where they are a formula.
"""

import dataclasses
import json
from pathlib import Path

import numpy as np

from jaxrope.errors import InputError
from jaxrope.rope import methods
from jaxrope.rope.schedule import RopeFn, check_layers
from jaxrope.store.files import as_path, write_json_atomic

FORMAT = "jaxrope.rope/1"
_KEYS = (
    "format",
    "method",
    "constants",
    "head_dim",
    "rotary_dim",
    "theta",
    "original_len",
    "buckets",
    "provenance",
)


def save(
    path: Path | str, rope_fn: RopeFn, provenance: dict, *, max_len: int | None = None
) -> None:
    """Writes `rope_fn` to `path`, atomically.

    Args:
      path: of the file.
      rope_fn: with buckets; dynamic NTK has none.
      provenance: how it was made; anything JSON holds.
      max_len: tokens the last bucket serves, for a method without a limit; by default factor *
        original_len.

    Raises:
      InputError: the method is a formula in the length, or has no limit and none is given.
    """
    if not rope_fn.buckets:
        raise InputError(
            f"rope.method '{rope_fn.method}' has no length buckets to write. Choose factors for "
            "one length."
        )
    limit = max_len or rope_fn.constants.get("factor", 0) * rope_fn.original_len
    if rope_fn.max_len is None and not limit:
        raise InputError(
            f"rope.method '{rope_fn.method}' has no longest length. Say one (max_len, tokens)."
        )
    rows = [dataclasses.asdict(bucket) for bucket in rope_fn.buckets]
    rows[-1]["max_len"] = rows[-1]["max_len"] or int(limit)
    constants = {} if rope_fn.method == "longrope" else dict(rope_fn.constants)
    content = {"format": FORMAT, "method": rope_fn.method, "constants": constants}
    content |= dataclasses.asdict(rope_fn.geometry) | {"buckets": rows, "provenance": provenance}
    write_json_atomic(path, content)


def load(
    path: Path | str,
    *,
    head_dim: int | None = None,
    rotary_dim: int | None = None,
    theta: float | None = None,
    num_layers: int | None = None,
) -> RopeFn:
    """Reads rope.json.

    Args:
      path: of the file.
      head_dim, rotary_dim, theta, num_layers: the model's, to be compared; None: not compared.

    Raises:
      InputError: any rule of the format is broken, or the file is for another model.
    """
    content = read(path)
    for key, expected in (("head_dim", head_dim), ("rotary_dim", rotary_dim), ("theta", theta)):
        if expected is not None and content[key] != expected:
            raise InputError(
                f"{path}: {key} must equal the model's, {expected}, got {content[key]}. "
                "The file is for another model."
            )
    try:
        rope_fn = _checked(content)
        if num_layers is not None:
            check_layers(rope_fn, num_layers)
        return rope_fn
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def provenance(path: Path | str) -> dict:
    """Returns the provenance that the file records."""
    return read(path)["provenance"]


def read(path: Path | str) -> dict:
    """Returns the JSON of a rope.json, its keys and their types checked.

    Raises:
      InputError: no such file, not JSON, another format, or a key is missing, unknown or of another
        type.
    """
    try:
        content = json.loads(
            as_path(path).read_text(encoding="utf-8"), parse_constant=_refuse_constant
        )
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read: {error.strerror}. Name a rope.json that search.py wrote."
        ) from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: must be JSON, got: {str(error)[:80]}.") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        actual = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise InputError(f"{path}: format must be '{FORMAT}', got {actual!r}.")
    if set(content) != set(_KEYS):
        wrong = sorted(set(content) ^ set(_KEYS))
        raise InputError(
            f"{path}: must have exactly the keys {', '.join(_KEYS)}; missing or unknown: "
            f"{', '.join(wrong)}."
        )
    kinds = {
        "head_dim": int,
        "rotary_dim": int,
        "theta": (int, float),
        "original_len": int,
        "method": str,
    }
    kinds |= {"constants": dict, "buckets": list, "provenance": dict}
    for key, kind in kinds.items():
        if not isinstance(content[key], kind) or isinstance(content[key], bool):
            raise InputError(f"{path}: {key} has the wrong type, got {str(content[key])[:60]!r}.")
    return content


def _checked(content: dict) -> RopeFn:
    geometry = {key: content[key] for key in ("head_dim", "rotary_dim", "theta", "original_len")}
    if not content["buckets"]:
        raise InputError("buckets must hold at least one bucket, got none.")
    table = methods.make("longrope", **geometry, buckets=content["buckets"])
    if content["method"] == "longrope":
        return table
    formula = methods.make(content["method"], **geometry, **content["constants"])
    for bucket in table.buckets:
        expected = formula.bucket(bucket.max_len)
        if not np.allclose(bucket.factors, expected.factors, rtol=1e-9, atol=0):
            raise InputError(
                f"the factors of the bucket up to {bucket.max_len} must be those of method "
                f"'{content['method']}' with its constants. Write method 'longrope' for factors of "
                "your own."
            )
    return dataclasses.replace(formula, buckets=table.buckets, schedule=table.schedule)


def _refuse_constant(name: str):
    raise ValueError(f"{name} is not a number of JSON")
