"""Devices and processes: the mesh, what is spread over it, and how many hosts act as one."""
