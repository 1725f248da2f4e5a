"""rope.json, the one file format for a result: written whole or not at all, checked fully when
read.

{"format": "jaxrope.rope/1", "method", "constants", "head_dim", "rotary_dim", "theta",
"original_len",
 "buckets": [{"max_len" (inclusive), "factors", "start_tokens", "attention_factor"}], "provenance":
 {...}, "sha256"}

Factors are a list of numbers, one for each rotary pair, or one such list for every layer.

The buckets are authoritative; `method` and `constants` say how they were made, and are checked
against them where they are a formula. "sha256" is the digest of the rest (store.sealed); a file
that was written by hand has none.
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from jaxrope.errors import InputError
from jaxrope.rope import checks, methods
from jaxrope.rope.schedule import RopeFn, check_layers
from jaxrope.store import sealed

FORMAT = "jaxrope.rope/1"
_GEOMETRY = ("head_dim", "rotary_dim", "theta", "original_len")
_KEYS = ("format", "method", "constants", *_GEOMETRY, "buckets", "provenance")


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
    if max_len is not None:
        checks.require(checks.whole(max_len, 1), "max_len", "be a number of tokens", max_len)
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
    sealed.write_json(path, content)


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


def unfinished_notes(source: Path | str, provenance: dict) -> list[str]:
    """Returns a note where the rope of a file or a model is not final, by its provenance or by that
    of a file which it is from; [] where nothing says so.
    """
    reason = _unfinished(provenance)
    if not reason:
        return []
    return [f"{source}: its factors are unfinished, {reason}. Start the search again to end it"]


def _unfinished(provenance: Any) -> str:
    if isinstance(provenance, dict) and "unfinished" in provenance:
        return str(provenance["unfinished"])
    inside = provenance.values() if isinstance(provenance, dict) else provenance
    if not isinstance(provenance, dict | list):
        return ""
    return next(filter(None, map(_unfinished, inside)), "")


def read(path: Path | str) -> dict:
    """Returns the JSON of a rope.json, its keys and their types checked.

    Raises:
      InputError: no such file, damaged or edited, another format, or a key is missing, unknown or
        of another type.
    """
    content = sealed.read_json(path, form=FORMAT, sealed=False)
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
    geometry = {key: content[key] for key in _GEOMETRY}
    for key in {"method", *geometry} & set(content["constants"]):
        raise InputError(f"constants must be those of the method, got '{key}'. Take it out.")
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
