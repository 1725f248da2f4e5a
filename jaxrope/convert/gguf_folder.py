"""A GGUF file opened as a Hugging Face folder: its texts in the user's cache, its tensors in place.

Such a view holds config.json, the tokenizer's files, and `gguf.json`, which says where the tensors
are; it is made once, when a file is first opened, and made anew when the file changes.
"""

import dataclasses
import json
import os
import re
from collections import Counter
from pathlib import Path

from jaxrope import __version__
from jaxrope.convert import gguf_config, gguf_header, gguf_rope, gguf_tokenizer, gguf_weights
from jaxrope.errors import InputError
from jaxrope.store import files, sealed, strict_json

_POINTER, _KIND = "gguf.json", "gguf"
_FORM = 1  # of a view; another one is another view
_PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")


@dataclasses.dataclass(frozen=True)
class _Model:
    """The parts of a model, and what they say together."""

    parts: tuple[Path, ...]
    header: gguf_header.Header
    owners: dict[str, Path]
    translation: gguf_config.Translation


def is_gguf(path: Path) -> bool:
    """Returns whether a path is a file that begins as a GGUF does, or is called so."""
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        return path.suffix == ".gguf" or file.read(4) == gguf_header.MAGIC


def models_in(folder: Path) -> list[Path]:
    """Returns the GGUF models of a folder: of one in several files, the first."""
    paths = sorted(path for path in folder.glob("*.gguf") if not path.name.startswith("mmproj"))
    matches = {path: _PART.fullmatch(path.name) for path in paths}
    return [path for path, match in matches.items() if match is None or int(match[2]) == 1]


def open_file(path: Path) -> Path:
    """Returns the view of a model.

    Args:
      path: a GGUF file, or one part of a model in several.

    Raises:
      InputError: no whole GGUF, an architecture or a tokenizer that cannot be read.
    """
    parts = _parts(Path(os.path.abspath(path)))
    states = [(os.fspath(part), (stat := part.stat()).st_size, stat.st_mtime_ns) for part in parts]
    key = sealed.digest_of([_FORM, __version__, states])[:32]
    return files.cached(_KIND, key, lambda folder: _write(folder, _read(parts, with_texts=True)))


def is_view(folder: Path) -> bool:
    """Returns whether a folder was made by `open_file`: what others put anywhere is none."""
    folder = files.as_path(folder)
    return folder.parent == files.cache_root(_KIND) and (folder / _POINTER).is_file()


def origin(view: Path) -> str:
    """Returns the file that a view shows."""
    return _pointer(view)["files"][0]


def notes(view: Path) -> list[str]:
    """Returns what was assumed when the view was made."""
    return _pointer(view)["notes"]


def catalogue(view: Path) -> dict[str, gguf_weights.Entry]:
    """Returns every tensor of a view by its name in Hugging Face's terms, without reading any.

    Raises:
      InputError: the files are gone or are not whole.
    """
    model = _read(_parts(Path(origin(view))))
    return {
        name: gguf_weights.entry(
            model.owners[source.name], model.header.places[source.name], source
        )
        for name, source in model.translation.origins.items()
    }


def _pointer(view: Path) -> dict:
    return strict_json.read(view / _POINTER, max_bytes=strict_json.MAX_CONFIG_BYTES)


def _parts(path: Path) -> tuple[Path, ...]:
    match = _PART.fullmatch(path.name)
    if match is None:
        return (path,)
    count = int(match[3])
    if not 1 <= int(match[2]) <= count <= 1000:
        raise InputError(f"{path}: is part {match[2]} of {match[3]}. Name the file as it was made.")
    names = (f"{match[1]}-{number:05d}-of-{count:05d}.gguf" for number in range(1, count + 1))
    parts = tuple(path.parent / name for name in names)
    missing = [part.name for part in parts if not part.is_file()]
    if missing:
        raise InputError(f"{path.parent} does not hold {missing[0]}. Put all {count} parts there.")
    return parts


def read_header(path: Path) -> gguf_header.Header:
    """Returns the metadata, the places of the tensors and the factors of a rope, of all parts.

    Raises:
      InputError: no whole GGUF, or a part is missing.
    """
    return _read_headers(_parts(Path(os.path.abspath(path))))[0]


def _read(parts: tuple[Path, ...], *, with_texts: bool = False) -> _Model:
    texts = gguf_tokenizer.ARRAYS if with_texts else ()
    header, owners = _read_headers(parts, texts)
    return _Model(parts, header, owners, gguf_config.translate(parts[0], header))


def _read_headers(
    parts: tuple[Path, ...], texts: tuple[str, ...] = ()
) -> tuple[gguf_header.Header, dict[str, Path]]:
    """Returns (the header, the part that each tensor lies in)."""
    first, header = parts[0], gguf_header.read(parts[0], gguf_rope.TENSORS)
    arrays = gguf_config.array_keys(str(header.values.get("general.architecture")))
    header = gguf_header.read(first, gguf_rope.TENSORS, (*arrays, *texts))
    if (count := header.values.get("split.count", 1)) != len(parts):
        raise InputError(f"{first}: is one of {count} parts, there are {len(parts)}. Name it so.")
    owners, places, tensors = {}, {}, {}
    for part in parts:
        of_part = header if part == first else gguf_header.read(part, gguf_rope.TENSORS)
        if twice := places.keys() & of_part.places.keys():
            raise InputError(f"{part}: holds {min(twice)[:80]}, which another part has too.")
        owners |= dict.fromkeys(of_part.places, part)
        places |= of_part.places
        tensors |= of_part.tensors
    return dataclasses.replace(header, places=places, tensors=tensors), owners


def _write(folder: Path, model: _Model) -> None:
    where = str(model.parts[0])
    contents, remarks = gguf_tokenizer.files(model.header, where)
    contents["config.json"] = model.translation.config
    kinds = Counter(place.kind for place in model.header.places.values()).most_common()
    names = [(gguf_weights.quantisation_name(kind), count) for kind, count in kinds]
    quantised = ", ".join(f"{name} ({count})" for name, count in names if name)
    if quantised:
        remarks.append(f"quantised tensors are read as float32: {quantised}")
    pointer = {"files": [os.fspath(part) for part in model.parts], "notes": remarks}
    for name, content in {**contents, _POINTER: pointer}.items():
        text = json.dumps(content, ensure_ascii=False, allow_nan=False)
        (folder / name).write_bytes(text.encode("utf-8", "backslashreplace"))
