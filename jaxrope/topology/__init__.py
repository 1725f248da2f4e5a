"""Compiles steps for TPU slices that are not attached, and reports memory, traffic and time.

compile_train(config, "v5p:4x4x4", workdir)    cost of a step of train.py there
compile_search(config, "v5p:4x4x4", workdir)   cost of a search there, by method
devices = topology.devices("v5p:4x4x4")        to compile for; nothing runs on them
schedule = topology.read_schedule(text)        collectives, and which of them overlap
"""

from jaxrope.mesh import CHIPS, Chip, chip_of
from jaxrope.topology.compile import compile_train
from jaxrope.topology.schedule import Collective, Schedule
from jaxrope.topology.schedule import read as read_schedule
from jaxrope.topology.searches import compile_search
from jaxrope.topology.slices import devices, libtpu_version

__all__ = [
    "CHIPS",
    "Chip",
    "Collective",
    "Schedule",
    "chip_of",
    "compile_search",
    "compile_train",
    "devices",
    "libtpu_version",
    "read_schedule",
]
