"""On a CPU, arrays that are written and read again at once are cut to what its caches hold; other
devices have kernels and memory for larger ones. benchmarks/step.py measures it.
"""

from collections.abc import Callable

import jax
from jax.sharding import Mesh

from jaxrope.mesh import sharding


def cut(size: int, bytes_fn: Callable[[int], int], limit: int, *, least: int, mesh: Mesh | None):
    """Returns `size`, on a CPU halved until bytes_fn(size) is at most `limit`.

    Args:
      size: for example tokens of a block.
      bytes_fn: size -> bytes.
      limit: bytes.
      least: it is not halved at or below that.
      mesh: where this runs; None: one device of the default platform.
    """
    platform = sharding.platform(mesh) if mesh else jax.default_backend()
    while platform == "cpu" and size > least and bytes_fn(size) > limit:
        size //= 2
    return size
