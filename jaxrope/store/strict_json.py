"""JSON of any origin: bounded in size and depth, without NaN, without a name given twice."""

import json
import math
from pathlib import Path

from jaxrope.errors import InputError
from jaxrope.store import files

MAX_CONFIG_BYTES = 10_000_000
MAX_INDEX_BYTES = 100_000_000  # names every tensor; safetensors bounds its header likewise
_MAX_DIGITS = 40  # of a whole number; a float holds them
_MAX_DEPTH = 64  # of objects and lists in one another; what reads them further is recursive


def read(path: Path, *, max_bytes: int) -> dict:
    """Returns the JSON object in a file.

    Raises:
      InputError: no regular file, larger than `max_bytes`, not UTF-8, not JSON, NaN or Infinity,
        nested too deeply, a name given twice, or not an object.
    """
    return parse(files.read_bytes(path, max_bytes=max_bytes), where=str(path))


def parse(raw: bytes, *, where: str) -> dict:
    """Returns the JSON object in `raw`; `where` begins every message."""
    if raw.startswith(b"version https://git-lfs"):
        raise InputError(
            f"{where}: is a git-LFS pointer, not the file itself. Run `git lfs pull` in that"
            " folder."
        )
    try:
        value = json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=_object,
            parse_constant=_constant,
            parse_float=_float,
            parse_int=_int,
        )
    except RecursionError:
        raise _too_deep(where) from None
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: is not UTF-8 (byte {error.start}).") from None
    except json.JSONDecodeError as error:
        raise InputError(
            f"{where}: is not JSON: {error.msg}, line {error.lineno}, column {error.colno}."
        ) from None
    except ValueError as error:
        raise InputError(f"{where}: {error}.") from None
    if not isinstance(value, dict):
        raise InputError(f"{where}: must hold a JSON object, holds {kind(value)}.")
    level: list = [value]
    for _ in range(_MAX_DEPTH):
        items = (x for node in level for x in (node.values() if isinstance(node, dict) else node))
        level = [item for item in items if isinstance(item, dict | list)]
    if level:
        raise _too_deep(where)
    return value


def kind(value: object) -> str:
    """Returns what a JSON reader calls the type of `value`, with its value where that is short."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _object(pairs: list[tuple[str, object]]) -> dict:
    value = dict(pairs)
    if len(value) < len(pairs):
        names: set[str] = set()
        twice = next(name for name, _ in pairs if name in names or names.add(name))
        raise ValueError(f"gives {kind(twice)} twice")
    return value


def _constant(name: str):
    raise ValueError(f"holds {name}, which is not JSON")


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"holds {text[:40]}, which is beyond float64")
    return value


def _int(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise ValueError(f"holds {text[:_MAX_DIGITS]}..., a number of {len(text)} digits")
    return int(text)


def _too_deep(where: str) -> InputError:
    return InputError(f"{where}: is nested too deeply.")
