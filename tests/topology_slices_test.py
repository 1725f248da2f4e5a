"""Slices that can be had, and those that cannot; what is known of their chips."""

import importlib.util
import os
import re
import types
from pathlib import Path

import jax
import pytest

from jaxrope import topology
from jaxrope.errors import InputError
from jaxrope.mesh import chips
from jaxrope.topology import slices

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(
    ("name", "chip", "shape"),
    [
        ("v5p:4x4x4", "v5p", (4, 4, 4)),
        ("v5p:2x2x1", "v5p", (2, 2, 1)),
        ("v5p:16x20x28", "v5p", (16, 20, 28)),
        ("v5e:16x16", "v5e", (16, 16)),
        ("v6e:2x4", "v6e", (2, 4)),
        ("v4:4x4x8", "v4", (4, 4, 8)),
        ("tpu7x:4x4x12", "tpu7x", (4, 4, 12)),
        ("2xv5p:4x4x4", "v5p", (4, 4, 4)),
    ],
)
def test_names_of_slices(name, chip, shape):
    found = slices.parse(name)
    assert (found[0].name, found[1]) == (chip, shape)
    assert slices.number(name) == (2 if name.startswith("2x") else 1)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v5:4x4x4", r"Unknown --topology: chip 'v5'. Did you mean 'v5p'\? Known: tpu7x, v4, v5e"),
        ("v5p", r"--topology=v5p: the shape of the slice is missing. .* example v5p:4x4x4"),
        ("v5e:", r"for example v5e:4x4\."),
        ("v5p:4x-4x4", "the shape of the slice is missing"),
        ("v5p:8x4x4", r"there is no such slice. .*ascending order.* Nearest: v5p:4x4x8\."),
        ("v5p:4x8x4", r"Nearest: v5p:4x4x8\."),
        ("v5p:4x4", r"Nearest: v5p:2x2x4\."),
        ("v5p:3x4x4", r"Nearest: v5p:4x4x4\."),
        ("v5p:0x0x0", r"Nearest: v5p:2x2x1\."),
        ("v5e:16x32", r"one of 1x1, 2x2, .* Nearest: v5e:16x16\."),
        ("v5e:4x4x4", r"Nearest: v5e:8x8\."),
        ("0xv5p:4x4x4", "Unknown --topology: chip '0xv5p'"),
        ("2xv5p:3x4x4", r"--topology=2xv5p:3x4x4: .* Nearest: v5p:4x4x4\."),
        ("v4:16x16x20", r"at most 4096 chips. Nearest: v4:16x16x16\."),
    ],
)
def test_a_slice_that_cannot_be_had(name, message):
    with pytest.raises(InputError, match=message):
        slices.parse(name)


def test_rings_of_a_torus():
    wraps = {
        "v5p:4x4x4": (True,) * 3,
        "v5p:2x4x4": (False,) * 3,
        "v5e:16x16": (True, True, False),
        "v5e:8x16": (False, True, False),
        "v6e:8x8": (False,) * 3,
    }
    assert {name: slices.wrapped(*slices.parse(name)) for name in wraps} == wraps


def test_without_libtpu_it_says_what_to_install(monkeypatch):
    monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "libtpu" else find(name)
    )
    with pytest.raises(InputError, match=r'not installed. pip install -e "\.\[aot\]" brings it'):
        slices.devices("v5e:2x2")


def test_peaks_are_those_of_the_data_sheets():
    """In a few numbers from other places: a TPU7x chip, two devices, does 2,307 TFLOP/s."""
    peaks = {"TPU v4": 275, "TPU v5 lite": 197, "TPU v5": 459, "TPU v6 lite": 918}
    peaks |= {"TPU7x": 2307 / 2, "NVIDIA H200": 989, "NVIDIA A100-SXM4-80GB": 312, "cpu": None}
    for kind, tera in peaks.items():
        found = chips.peak_flops(types.SimpleNamespace(device_kind=kind))
        assert found == (None if tera is None else tera * 1e12), kind


def test_one_version_of_libtpu_is_pinned():
    pins = [(ROOT / name).read_text(encoding="utf-8") for name in ("pyproject.toml", "Makefile")]
    found = [set(re.findall(r"libtpu==([\d.]+)", text)) for text in pins]
    assert found[0] == found[1] and len(found[0]) == 1


def test_devices_of_this_machine_are_no_chips():
    assert topology.chip_of(jax.devices()[0]) is None


@pytest.mark.parametrize(
    ("name", "num"),
    [("v5p:2x2x2", 8), ("v5e:4x8", 32), ("v6e:1x1", 1), ("v4:2x2x1", 4), ("tpu7x:2x2x1", 8)],
)
def test_devices_of_a_slice(libtpu, name, num, monkeypatch):
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "mine")
    found = topology.devices(name)
    assert len(found) == num
    assert {device.platform for device in found} == {"tpu"}
    assert topology.chip_of(found[0]).name == name.partition(":")[0]
    assert os.environ["TPU_WORKER_HOSTNAMES"] == "mine"  # a user's own stays
    assert jax.default_backend() == "cpu"
