"""The TPU compiler as a test bench: what a step takes on a slice that is not here.

compile_train(config, "v5p:4x4x4", workdir)    what the step of train.py takes there
compile_search(config, "v5p:4x4x4", workdir)   what a batch of search.py takes there
devices = topology.devices("v5p:4x4x4")        to compile for; nothing runs on them
schedule = topology.read_schedule(text)        what a compiled program sends, and what hides it
"""

from jaxrope.mesh.chips import CHIPS, Chip, chip_of
from jaxrope.topology.compile import compile_search, compile_train
from jaxrope.topology.schedule import Collective, Schedule
from jaxrope.topology.schedule import read as read_schedule
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
