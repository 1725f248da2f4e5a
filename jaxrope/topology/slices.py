"""TPU slices that are not here: their chips in figures, and devices that one can only compile for.

libtpu holds the compiler of every TPU generation and needs no TPU to run it. A slice is named as
Google Cloud names it: "v5p:4x4x4", "v5e:16x16".
"""

import dataclasses
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

_GIB = 2**30
# Set before libtpu is loaded, where the user has not: without them it asks a metadata server that
# is not there, takes a machine-wide lock, and warns of both.
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
_REMEDY = 'pip install "jaxrope[aot]"'


@dataclasses.dataclass(frozen=True)
class Chip:
    """One generation of TPU, in figures of one jax device.

    Peak, bandwidth of the memory and links are the vendor's (docs.cloud.google.com/tpu/docs, pages
    v4, v5e, v5p, v6e, tpu7x; links one way, as the "scaling book" of jax-ml reads them). What a
    program may use of the memory is the limit in the compiler's own out-of-memory error, libtpu
    0.0.52.

    Attributes:
      name: as a person writes it.
      libtpu: name and configuration of the chip in libtpu; megacore joins two cores to one device.
      kinds: jax.Device.device_kind, of the compiler and of the machine.
      dims: axes of the torus.
      most_chips: of the largest slice.
      per_chip: devices of a chip.
      peak_flops: bfloat16, FLOP/s.
      usable_bytes: memory a program may use.
      memory_bandwidth: bytes/s.
      link_bandwidth: bytes/s, one way, of one link to a neighbour.
    """

    name: str
    libtpu: tuple[str, str]
    kinds: tuple[str, ...]
    dims: int
    most_chips: int
    per_chip: int
    peak_flops: float
    usable_bytes: int
    memory_bandwidth: float
    link_bandwidth: float


_ALL = (
    Chip(
        name="v4",
        libtpu=("v4", "megacore"),
        kinds=("TPU v4",),
        dims=3,
        most_chips=4096,
        per_chip=1,
        peak_flops=275e12,
        usable_bytes=int(30.75 * _GIB),
        memory_bandwidth=1.2e12,
        link_bandwidth=45e9,
    ),
    Chip(
        name="v5e",
        libtpu=("v5e", "default"),
        kinds=("TPU v5 lite", "TPU v5e"),
        dims=2,
        most_chips=256,
        per_chip=1,
        peak_flops=197e12,
        usable_bytes=int(15.75 * _GIB),
        memory_bandwidth=0.81e12,
        link_bandwidth=45e9,
    ),
    Chip(
        name="v5p",
        libtpu=("v5", "megacore"),
        kinds=("TPU v5", "TPU v5p"),
        dims=3,
        most_chips=8960,
        per_chip=1,
        peak_flops=459e12,
        usable_bytes=int(95.73 * _GIB),
        memory_bandwidth=2.765e12,
        link_bandwidth=90e9,
    ),
    Chip(
        name="v6e",
        libtpu=("v6e", "default"),
        kinds=("TPU v6 lite", "TPU v6e"),
        dims=2,
        most_chips=256,
        per_chip=1,
        peak_flops=918e12,
        usable_bytes=int(31.24 * _GIB),
        memory_bandwidth=1.64e12,
        link_bandwidth=90e9,
    ),
    Chip(
        name="tpu7x",
        libtpu=("tpu7x", "default"),
        kinds=("TPU7x",),
        dims=3,
        most_chips=9216,
        per_chip=2,
        peak_flops=1153.5e12,
        usable_bytes=int(94.74 * _GIB),
        memory_bandwidth=3.69e12,
        link_bandwidth=50e9,  # shared by the two devices of a chip
    ),
)
CHIPS = {chip.name: chip for chip in _ALL}


def parse(name: str) -> tuple[Chip, tuple[int, ...]]:
    """Returns the chip and the shape of a slice such as "v5p:4x4x4".

    Raises:
      InputError: there is no such chip, or no slice of that shape.
    """
    kind, _, text = name.partition(":")
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
    """Yields the slices that can be had."""
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
    """Returns the devices of a TPU slice that programs can be compiled for; nothing runs on them.

    Args:
      name: such as "v5p:4x4x4".

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
    kind, configuration = chip.libtpu
    found = topologies.get_topology_desc(
        platform="tpu",
        topology_name=f"{kind}:{'x'.join(str(size) for size in shape)}",
        chip_config_name=configuration,
        chips_per_host_bounds=(min(shape[0], 2), min(shape[1], 2), 1),
        wrap=wrapped(chip, shape),
    )
    return list(found.devices)


def wrapped(chip: Chip, shape: tuple[int, ...]) -> tuple[bool, ...]:
    """Returns which of three axes of a slice are rings: those of 16 chips in two dimensions, all of
    a slice of whole cubes of 4x4x4 in three."""
    if chip.dims == 2:
        return (*(size == 16 for size in shape), False)
    return (all(size % 4 == 0 for size in shape),) * 3


def chip_of(device: jax.Device) -> Chip | None:
    """Returns the figures of a device, or None where they are not known (as for every CPU)."""
    return next((chip for chip in _ALL if device.device_kind in chip.kinds), None)


def installed() -> bool:
    """Returns whether there is a compiler for TPUs here."""
    return bool(os.environ.get("TPU_LIBRARY_PATH") or importlib.util.find_spec("libtpu"))


def libtpu_version() -> str:
    """Returns the version of libtpu, "" where it is not installed as a package."""
    try:
        return metadata.version("libtpu")
    except metadata.PackageNotFoundError:
        return ""
