"""The mesh, and the sharding of each array on it.

`RULES` is the one table from the axes that a model names (decoder.logical_axes) to the axes of the
mesh. Rows of a batch lie over `data` and `fsdp`, their tokens over `context`, heads, the MLP and
(where they divide) words over `tensor`, the model dim of every parameter over `fsdp` and `context`.
The mesh is in Auto mode; the model runs in a shard_map of which all axes are manual.

Letters: A parts of a batch (accumulation), B batch, T length.
"""

import itertools
import math
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from jaxrope import schema
from jaxrope.errors import InputError
from jaxrope.schema.rules import One

AXES = ("data", "fsdp", "context", "tensor")
BATCH_AXES = ("data", "fsdp")

RULES: dict[str, tuple[str, ...]] = {
    "layers": (),
    "vocab": ("tensor",),
    "embed": ("fsdp", "context"),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "head_dim": (),
    "mlp": ("tensor",),
    "experts": (),
    "convolution": (),
    "rank": (),
}
MAY_REPLICATE = ("vocab",)  # 257 or 32,003 words divide by nothing; every other axis must divide


def make_mesh(
    sizes: schema.Section | Mapping[str, int],
    devices: Sequence[jax.Device] | None = None,
    *,
    planned: bool = False,
) -> Mesh | AbstractMesh:
    """Returns the mesh of config.mesh, its axes in the order of `AXES`.

    On a TPU slice neighbours on an axis are neighbours on its torus where that can be; an axis may
    take parts of several axes of the torus. Several slices are parts of axis `data`: only gradients
    go from one to the other, once a step.

    Args:
      sizes: config.mesh, or devices on each axis; one of them may be -1, which takes the rest.
      devices: which; None = all there are.
      planned: where there are fewer devices than the mesh names, an abstract mesh stands for it:
        shapes and shardings can be checked on it, nothing runs there.

    Raises:
      InputError: a size is not legal, or the product is not the number of devices, or `data` does
        not divide by the number of slices.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = One(schema.Mesh).read(sizes, "mesh").to_dict()
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if planned and fixed > len(devices):
        shape = tuple(1 if sizes[axis] == -1 else sizes[axis] for axis in AXES)
        return AbstractMesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES))
    shape = [_filled(sizes, len(devices))[axis] for axis in AXES]
    on_torus = dict(devices=devices, allow_split_physical_axes=True)
    slices = num_slices(devices)
    if slices == 1:
        placed = mesh_utils.create_device_mesh(shape, **on_torus)
    elif shape[0] % slices:
        raise InputError(
            f"mesh.data must be a multiple of the {slices} TPU slices that the devices are of, got "
            f"{shape[0]}: only gradients go between slices."
        )
    else:
        of_slice = [shape[0] // slices, *shape[1:]]
        placed = mesh_utils.create_hybrid_device_mesh(of_slice, [slices, 1, 1, 1], **on_torus)
    return Mesh(placed, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def num_slices(devices: Sequence[jax.Device]) -> int:
    """Returns of how many TPU slices these are; elsewhere 1, for GPUs number their hosts so."""
    if devices[0].platform != "tpu":
        return 1
    return len({getattr(device, "slice_index", 0) for device in devices})


def platform(mesh: Mesh | AbstractMesh) -> str:
    """Returns what the devices of a mesh are: "cpu", "gpu" or "tpu", as a planned mesh is."""
    return "tpu" if isinstance(mesh, AbstractMesh) else mesh.devices.flat[0].platform


def capability(mesh: Mesh) -> float | None:
    """Returns the compute capability of a mesh of NVIDIA GPUs; None: they are of another maker."""
    try:
        return float(mesh.devices.flat[0].compute_capability)
    except ValueError:  # such as "gfx90a"
        return None


def _filled(sizes: Mapping[str, int], num_devices: int) -> dict[str, int]:
    rest = [axis for axis in AXES if sizes[axis] == -1]
    product = math.prod(sizes[axis] for axis in AXES if axis not in rest)
    if rest and num_devices % product == 0:
        return dict(sizes) | {rest[0]: num_devices // product}
    if rest or product != num_devices:
        text = ", ".join(f"{axis}={sizes[axis]}" for axis in AXES)
        raise InputError(
            f"mesh ({text}) needs {'a multiple of ' if rest else ''}{product} devices, there are "
            f"{num_devices}. Nearest that fits: {_nearest_mesh(sizes, num_devices)}."
        )
    return dict(sizes)


def _nearest_mesh(sizes: Mapping[str, int], num_devices: int) -> str:
    """Returns the mesh that changes fsdp, context and tensor least; data follows."""
    legal = [size for size in range(1, num_devices + 1) if num_devices % size == 0]
    requested = [max(sizes[axis], 1) for axis in AXES[1:]]

    def distance(candidate: tuple[int, ...]) -> int:
        return sum(abs(size - target) for size, target in zip(candidate, requested, strict=True))

    fits = (f for f in itertools.product(legal, repeat=3) if num_devices % math.prod(f) == 0)
    fsdp, context, tensor = min(fits, key=distance)
    data = num_devices // (fsdp * context * tensor)
    return f"data={data}, fsdp={fsdp}, context={context}, tensor={tensor}"


def check_batch(mesh: Mesh, batch_size: int, accumulation: int) -> None:
    """Checks that a batch divides into equal parts, and each part over the devices.

    Raises:
      InputError: it does not; the message has the nearest sizes that do.
    """
    unit = accumulation * mesh.shape["data"] * mesh.shape["fsdp"]
    if batch_size % unit:
        below = batch_size // unit * unit
        legal = " or ".join(str(size) for size in (below, below + unit) if size)
        raise InputError(
            f"train.batch_size must be a multiple of train.accumulation * mesh.data * mesh.fsdp = "
            f"{accumulation} * {mesh.shape['data']} * {mesh.shape['fsdp']}, got {batch_size}. "
            f"Nearest: {legal}."
        )


def ways(mesh: Mesh | None, *axes: str) -> int:
    """Returns the number of devices along these axes, multiplied; without a mesh 1."""
    return 1 if mesh is None else math.prod(mesh.shape[axis] for axis in axes)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a batch in parts, [A, B, T]: rows over data and fsdp, tokens over
    context.
    """
    return NamedSharding(mesh, PartitionSpec(None, BATCH_AXES, "context"))


def row_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of rows [B, T]."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES, "context"))


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of an array that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def put(tree, shardings):
    """Puts arrays of the host on the mesh; each process transfers the parts of its own devices, and
    no device ever holds more than its part.

    Args:
      tree: numpy arrays, the same in every process.
      shardings: the same tree, or one sharding for all.
    """
    if isinstance(shardings, NamedSharding):
        shardings = jax.tree.map(lambda _: shardings, tree)

    def place(leaf, where):
        host = np.asarray(leaf)
        return jax.make_array_from_callback(host.shape, where, lambda index: host[index])

    return jax.tree.map(place, tree, shardings)


def unnamed_axes(where: NamedSharding) -> tuple[str, ...]:
    """Returns the axes of more than one device over which an array is not cut."""
    named = {axis for axes in where.spec for axis in _as_tuple(axes)}
    return tuple(a for a in AXES if where.mesh.shape[a] > 1 and a not in named)


def _as_tuple(axes) -> tuple[str, ...]:
    return (axes,) if isinstance(axes, str) else tuple(axes or ())


def param_shardings(mesh: Mesh, logical_axes, abstract):
    """Returns the tree of NamedShardings for parameters.

    Args:
      mesh: of make_mesh.
      logical_axes: decoder.logical_axes(config): a tuple of axis names for each leaf.
      abstract: decoder.abstract_params(config), the same tree with shapes.

    Raises:
      InputError: an axis does not divide by its devices, and may not be replicated.
    """

    def place(path, leaf, axes):
        spec = [
            _mesh_axes(mesh, path, axis, size) for axis, size in zip(axes, leaf.shape, strict=True)
        ]
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree_util.tree_map_with_path(place, abstract, logical_axes)


def _mesh_axes(mesh: Mesh, path, axis: str, size: int) -> tuple[str, ...] | None:
    axes = RULES[axis]
    parts = ways(mesh, *axes)
    if parts == 1:
        return None
    if size % parts == 0:
        return axes
    if axis in MAY_REPLICATE:
        return None
    leaf = jax.tree_util.keystr(path, simple=True, separator="/")
    product = " * ".join(f"mesh.{name}" for name in axes)
    legal = [way for way in range(1, min(size, 4 * parts) + 1) if size % way == 0]
    near = sorted(sorted(legal, key=lambda way: abs(way - parts))[:3])
    raise InputError(
        f"{product} = {parts} must divide the axis '{axis}' of {leaf}, which is {size}. "
        f"Nearest that do: {', '.join(map(str, near))}."
    )
