"""The mesh, and where each array lies on it.

`RULES` is the one table from the axes that a model names (llama.logical_axes) to the axes of the
mesh. The mesh is in Auto mode: arguments carry their sharding, the compiler does the rest.

Letters: A parts of a batch (accumulation), B batch, T length.
"""

from collections.abc import Mapping, Sequence

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxrope.errors import InputError

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
}
MAY_REPLICATE = ("vocab",)  # 257 or 32,003 words divide by nothing; every other axis must divide


def make_mesh(sizes: Mapping[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Returns the mesh of config.mesh, its axes in the order of `AXES`.

    Args:
      sizes: devices on each axis; one of them may be -1, which takes the rest.
      devices: which; None = all there are.

    Raises:
      InputError: a size is not legal, or the product is not the number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    if sorted(sizes) != sorted(AXES):
        raise InputError(f"mesh must name exactly {', '.join(AXES)}, got {', '.join(sizes)}.")
    for axis in AXES:
        size = sizes[axis]
        if not isinstance(size, int) or isinstance(size, bool) or size < 1 and size != -1:
            raise InputError(
                f"mesh.{axis} must be a positive number of devices or -1, got {size!r}."
            )
    for axis in ("context", "tensor"):
        if sizes[axis] not in (1, -1):
            raise InputError(
                f"mesh.{axis}={sizes[axis]}: attention over this axis is not supported yet. Use "
                f"mesh.{axis}=1, and mesh.data or mesh.fsdp instead."
            )
    shape = [_filled(sizes, len(devices))[axis] for axis in AXES]
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def _filled(sizes: Mapping[str, int], num_devices: int) -> dict[str, int]:
    rest = [axis for axis in AXES if sizes[axis] == -1]
    if len(rest) > 1:
        raise InputError(f"mesh: only one axis may be -1, got {' and '.join(rest)}.")
    product = 1
    for axis in AXES:
        product *= sizes[axis] if axis not in rest else 1
    text = ", ".join(f"{axis}={sizes[axis]}" for axis in AXES)
    if rest and num_devices % product == 0:
        filled = dict(sizes) | {rest[0]: num_devices // product}
        if rest[0] in ("context", "tensor") and filled[rest[0]] > 1:
            raise InputError(
                f"mesh.{rest[0]}=-1 would take {filled[rest[0]]} devices, and attention over this "
                "axis "
                "is not supported yet. Give the -1 to mesh.data or mesh.fsdp."
            )
        return filled
    if rest or product != num_devices:
        raise InputError(
            f"mesh ({text}) needs {'a multiple of ' if rest else ''}{product} devices, there are "
            f"{num_devices}. Nearest that fits: {_nearest_mesh(sizes, num_devices)}."
        )
    return dict(sizes)


def _nearest_mesh(sizes: Mapping[str, int], num_devices: int) -> str:
    """Keeps fsdp as near to what was asked as the number of devices allows."""
    wanted = max(sizes["fsdp"], 1)
    legal = [size for size in range(1, num_devices + 1) if num_devices % size == 0]
    fsdp = min(legal, key=lambda size: abs(size - wanted))
    return f"data={num_devices // fsdp}, fsdp={fsdp}, context=1, tensor=1"


def check_batch(mesh: Mesh, batch_size: int, accumulation: int) -> None:
    """Refuses a batch that cannot be cut into equal parts, and each part over the devices.

    Raises:
      InputError: with the nearest sizes that can.
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


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns where a batch cut into parts, [A, B, T], lies: its rows over data and fsdp."""
    return NamedSharding(mesh, PartitionSpec(None, BATCH_AXES, None))


def row_sharding(mesh: Mesh) -> NamedSharding:
    """Returns where rows [B, T] lie."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES, None))


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of an array that every device has whole."""
    return NamedSharding(mesh, PartitionSpec())


def param_shardings(mesh: Mesh, logical_axes, abstract):
    """Returns the tree of NamedShardings for parameters.

    Args:
      mesh: of make_mesh.
      logical_axes: llama.logical_axes(config): a tuple of axis names for each leaf.
      abstract: llama.abstract_params(config), the same tree with shapes.

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
    ways = 1
    for name in axes:
        ways *= mesh.shape[name]
    if ways == 1:
        return None
    if size % ways == 0:
        return axes
    if axis in MAY_REPLICATE:
        return None
    leaf = jax.tree_util.keystr(path, simple=True, separator="/")
    product = " * ".join(f"mesh.{name}" for name in axes)
    legal = [way for way in range(1, min(size, 4 * ways) + 1) if size % way == 0]
    near = sorted(sorted(legal, key=lambda way: abs(way - ways))[:3])
    raise InputError(
        f"{product} = {ways} must divide the axis '{axis}' of {leaf}, which is {size}. "
        f"Nearest that do: {', '.join(map(str, near))}."
    )
