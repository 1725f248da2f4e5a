"""TPU slices that are not attached: their shapes, and devices that programs are compiled for.

libtpu holds the compiler of every TPU generation and needs no TPU to run it. A slice is named as
Google Cloud names it: "v5p:4x4x4", "v5e:16x16"; "2xv5p:4x4x4" is two of them.
"""

import importlib.util
import itertools
import math
import os
import re
from collections.abc import Iterator
from importlib import metadata

import jax
from jax.experimental import topologies

from jaxrope.errors import InputError, choose
from jaxrope.mesh import CHIPS, Chip

# Defaults, set before libtpu is loaded: without them it queries a missing metadata server, takes a
# machine-wide lock, and warns of both.
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
_SEVERAL = re.compile(r"([1-9]\d*)x(?=[a-z])")
_REMEDY = 'pip install -e ".[aot]"'


def number(name: str) -> int:
    """Returns how many slices a name means."""
    several = _SEVERAL.match(name)
    return int(several[1]) if several else 1


def parse(name: str) -> tuple[Chip, tuple[int, ...]]:
    """Returns the chip and the shape of a slice such as "v5p:4x4x4", or of each of several.

    Raises:
      InputError: there is no such chip, or no slice of that shape.
    """
    kind, _, text = _SEVERAL.sub("", name).partition(":")
    chip = choose("--topology: chip", kind, CHIPS)
    if not re.fullmatch(r"\d+(x\d+)*", text):
        example = "x".join(str(size) for size in _nearest(chip, (4,) * chip.dims))
        raise InputError(
            f"--topology={name}: the shape of the slice is missing. Write it in chips, for example "
            f"{kind}:{example}."
        )
    shape = tuple(int(size) for size in text.split("x"))
    if shape not in set(_shapes(chip)):
        nearest = "x".join(str(size) for size in _nearest(chip, shape))
        rule = (
            "one of 1x1, 2x2, 2x4, 4x4, 4x8, 8x8, 8x16, 16x16"
            if chip.dims == 2
            else "2x2x1, 2x2x2, 2x2x4, 2x4x4, or three multiples of 4 in ascending order, at most "
            f"{chip.most_chips} chips"
        )
        raise InputError(
            f"--topology={name}: there is no such slice. A slice of {kind} is {rule}. Nearest: "
            f"{kind}:{nearest}."
        )
    return chip, shape


def _shapes(chip: Chip) -> Iterator[tuple[int, ...]]:
    """Yields the shapes of the slices that Google Cloud offers."""
    if chip.dims == 2:
        yield from ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
        return
    yield from ((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4))
    for a, b in itertools.combinations_with_replacement(range(4, 25, 4), 2):
        for c in range(b, chip.most_chips // (a * b) + 1, 4):
            yield a, b, c


def _nearest(chip: Chip, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the same sizes in another order, else the nearest number of chips."""

    def distance(legal):
        return (
            sorted(legal) != sorted(shape),
            abs(math.log(math.prod(legal)) - math.log(max(math.prod(shape), 1))),
            max(legal),
        )

    return min(_shapes(chip), key=distance)


def devices(name: str) -> list[jax.Device]:
    """Returns the devices of a TPU slice, or of several, to compile for; nothing runs on them.

    Args:
      name: such as "v5p:4x4x4" or "2xv5p:4x4x4".

    Raises:
      InputError: see `parse`; or libtpu is not installed.
    """
    chip, shape = parse(name)
    if not installed():
        raise InputError(
            f"--topology={name} needs the compiler for TPUs, libtpu, which is not installed. "
            f"{_REMEDY} brings it; no TPU is needed."
        )
    for key, value in _ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    if not jax.config.jax_platforms:
        jax.config.update("jax_platforms", "cpu")  # or libtpu would look for a TPU to run on
    # only where the devices are could what is kept be read, and jax would warn of it
    jax.config.update("jax_enable_compilation_cache", False)
    kind, configuration = chip.libtpu
    topology = topologies.get_topology_desc(
        platform="tpu",
        topology_name=f"{kind}:{'x'.join(str(size) for size in shape)}",
        chip_config_name=configuration,
        chips_per_host_bounds=(min(shape[0], 2), min(shape[1], 2), 1),
        wrap=wrapped(chip, shape),
        num_slices=number(name),
    )
    return list(topology.devices)


def wrapped(chip: Chip, shape: tuple[int, ...]) -> tuple[bool, ...]:
    """Returns which of three axes of a slice are rings: those of 16 chips in two dimensions, all of
    a slice of whole cubes of 4x4x4 in three."""
    if chip.dims == 2:
        return (*(size == 16 for size in shape), False)
    return (all(size % 4 == 0 for size in shape),) * 3


def installed() -> bool:
    """Returns whether a compiler for TPUs is installed."""
    return bool(os.environ.get("TPU_LIBRARY_PATH") or importlib.util.find_spec("libtpu"))


def libtpu_version() -> str:
    """Returns the version of libtpu, "" where it is not installed as a package."""
    try:
        return metadata.version("libtpu")
    except metadata.PackageNotFoundError:
        return ""
