"""Figures of accelerators from vendors and compilers, for one jax device."""

import dataclasses

import jax

_GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One generation of TPU; figures are for one jax device.

    Peak, bandwidth of the memory and links are the vendor's (docs.cloud.google.com/tpu/docs, pages
    v4, v5e, v5p, v6e, tpu7x; links one way and a device's share of its host's network, as the
    "scaling book" of jax-ml reads them). What a
    program may use of the memory is the limit in the compiler's own out-of-memory error, libtpu
    0.0.52.

    Attributes:
      name: as users write it.
      libtpu: name and configuration of the chip in libtpu; megacore joins two cores to one device.
      kinds: jax.Device.device_kind, of the compiler and of the machine.
      dims: axes of the torus.
      most_chips: of the largest slice.
      per_chip: devices of a chip.
      peak_flops: bfloat16, FLOP/s.
      usable_bytes: memory a program may use.
      memory_bandwidth: bytes/s.
      link_bandwidth: bytes/s, one way, of one link to a neighbour.
      network_bandwidth: bytes/s, one way, to other slices.
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
    network_bandwidth: float


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
        network_bandwidth=6.25e9,
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
        network_bandwidth=3.125e9,
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
        network_bandwidth=6.25e9,
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
        network_bandwidth=12.5e9,
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
        network_bandwidth=6.25e9,  # as well
    ),
)
CHIPS = {chip.name: chip for chip in _ALL}

# bfloat16 FLOP/s without sparsity, from the vendor's data sheets, by the beginning of device_kind.
_GPU_PEAKS = {
    "NVIDIA A100": 312e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
}


def chip_of(device: jax.Device) -> Chip | None:
    """Returns the figures of a device, or None where they are unknown (as for every CPU)."""
    return next((chip for chip in _ALL if device.device_kind in chip.kinds), None)


def peak_flops(device: jax.Device) -> float | None:
    """Returns a device's bfloat16 FLOP/s, or None where it is unknown (as for every CPU)."""
    chip = chip_of(device)
    if chip:
        return chip.peak_flops
    for kind, peak in _GPU_PEAKS.items():
        if device.device_kind.startswith(kind):
            return peak
    return None
