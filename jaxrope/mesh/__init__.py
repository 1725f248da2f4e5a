"""Devices and processes: the mesh, the sharding of arrays on it, collectives, and many hosts."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from jaxrope.mesh import cache as cache
    from jaxrope.mesh import chips as chips
    from jaxrope.mesh import collectives as collectives
    from jaxrope.mesh import digest as digest
    from jaxrope.mesh import hosts as hosts
    from jaxrope.mesh import replicas as replicas
    from jaxrope.mesh import sharding as sharding
    from jaxrope.mesh.chips import CHIPS as CHIPS
    from jaxrope.mesh.chips import Chip as Chip
    from jaxrope.mesh.chips import chip_of as chip_of

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["cache", "chips", "collectives", "digest", "hosts", "replicas", "sharding"],
    submod_attrs={"chips": ["CHIPS", "Chip", "chip_of"]},
)
