"""Devices and processes: the mesh, the sharding of arrays on it, collectives, and many hosts."""
