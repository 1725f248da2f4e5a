"""Checks that devices that hold the same part of an array hold the same bits.

Silent data corruption, a chip that computes wrongly without an error, leaves copies of a parameter
that differ. Nothing else detects this: each device continues with its own copy.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxrope.mesh.digest import mixed_sums


def any_copies(tree: Any) -> bool:
    """Returns whether two devices hold the same part of any leaf."""
    return any(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.sharding.num_devices > leaf.size
        for leaf in jax.tree.leaves(tree)
    )


def make_check(mesh: Mesh, like: Any) -> Callable[[Any], jax.Array]:
    """Returns digests(tree) -> uint32 [devices, leaves, 2], the same on every process.

    Each device computes the digest of its own part; only the digests are sent.

    Args:
      mesh: of the tree.
      like: a tree with the leaves' shardings, NamedShardings of that mesh.
    """
    specs = jax.tree.map(lambda leaf: leaf.sharding.spec, like)

    def local(tree):
        return jnp.stack([mixed_sums(leaf) for leaf in jax.tree.leaves(tree)])[None]

    each = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(specs,),
        out_specs=PartitionSpec(mesh.axis_names),
        check_vma=False,  # the digest of a copy is not assumed to be that of the other copies
    )
    return jax.jit(each, out_shardings=NamedSharding(mesh, PartitionSpec()))


def differences(mesh: Mesh, tree: Any, digests_DL2: np.ndarray) -> list[str]:
    """Returns a line for each leaf whose copies differ: its name, and the devices of each version.

    Args:
      mesh: as in make_check.
      tree: the leaves, or anything with their shapes and shardings.
      digests_DL2: of make_check, in the order of mesh.devices.
    """
    devices = list(mesh.devices.flat)
    pairs, _ = jax.tree_util.tree_flatten_with_path(tree)
    lines = []
    for number, (path, leaf) in enumerate(pairs):
        where = leaf.sharding.devices_indices_map(leaf.shape)
        versions: dict[str, dict[bytes, list[str]]] = {}
        for device, digest_2 in zip(devices, digests_DL2[:, number], strict=True):
            same_part = versions.setdefault(str(where[device]), {})
            name = f"{device.platform}:{device.id} of process {device.process_index}"
            same_part.setdefault(digest_2.tobytes(), []).append(name)
        for part in versions.values():
            if len(part) > 1:
                groups = " against ".join(", ".join(names[:8]) for names in part.values())
                name = jax.tree_util.keystr(path, simple=True, separator="/")
                lines.append(f"{name} differs: {groups}")
    return lines
