"""What "auto" means, and what is refused before anything is compiled."""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType

from jaxrope import attention
from jaxrope.errors import InputError
from jaxrope.mesh.sharding import AXES


def mesh_of(**sizes):
    shape = [sizes.get(axis, 1) for axis in AXES]
    devices = jax.devices()[: int(np.prod(shape))]
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


@pytest.mark.parametrize(
    "platform, context, lack, expected",
    [
        ("tpu", 1, None, ("flash", "flash")),
        ("tpu", 4, None, ("ring", "flash")),
        ("gpu", 1, None, ("flash", "cudnn")),
        ("gpu", 4, None, ("ring", "cudnn")),
        ("gpu", 1, "float32", ("blockwise", "blockwise")),
        ("gpu", 4, "float32", ("ring", "blockwise")),
        ("cpu", 1, None, ("blockwise", "blockwise")),
        ("cpu", 8, None, ("ring", "blockwise")),
    ],
)
def test_auto(platform, context, lack, expected):
    mesh = mesh_of(context=context)
    assert attention.resolve("auto", "auto", mesh, platform=platform, lack=lack) == expected


def test_a_name_stays():
    found = attention.resolve("usp", "auto", mesh_of(context=4), platform="tpu")
    assert found == ("usp", "flash")
    found = attention.resolve("flash", "auto", None, platform="gpu")
    assert found == ("flash", "cudnn")
    found = attention.resolve("all_gather", "auto", mesh_of(context=4), platform="gpu")
    assert found == ("all_gather", "blockwise")
    with pytest.raises(InputError, match="Unknown forward.attention 'rign'. Did you mean 'ring'"):
        attention.resolve("rign", "auto", None, platform="cpu")
    with pytest.raises(InputError, match="Unknown forward.attention_kernel 'splash'.*flash"):
        attention.resolve("ring", "splash", None, platform="cpu")


DEFAULTS = dict(
    kernel="blockwise",
    platform="cpu",
    ulysses=1,
    num_heads=8,
    num_kv_heads=4,
    lack=None,
    seq_len=4096,
)


def check(backend, sizes, *, kernel, ulysses, num_heads, num_kv_heads, **rest):
    settings = attention.Settings(kernel=kernel, ulysses=ulysses, mesh=mesh_of(**sizes))
    attention.check(backend, settings, heads=(num_heads, num_kv_heads), **rest)


@pytest.mark.parametrize(
    "backend, sizes, changed, message",
    [
        ("blockwise", dict(context=4), {}, "'blockwise' sees the tokens of one device.*context=4"),
        (
            "flash",
            {},
            dict(kernel="cudnn", platform="gpu", lack="capped logits"),
            "cuDNN's attention cannot do capped logits. Use blockwise or auto",
        ),
        ("ring", dict(context=4), dict(ulysses=2), "ulysses must be 1 unless .* 'usp', got 2"),
        (
            "usp",
            dict(context=8),
            dict(ulysses=3),
            "divide mesh.context=8, got 3. Legal: 1, 2, 4, 8",
        ),
        (
            "ulysses",
            dict(context=8),
            dict(num_heads=12),
            "mesh.context=8: 'ulysses' deals 12 heads and 4 kv heads .*Legal: 1, 2, 4, 12; or ",
        ),
        (
            "usp",
            dict(context=4, tensor=2),
            dict(ulysses=4, num_heads=12),
            r"forward.ulysses=4: 'usp' deals 6 heads and 2 kv heads .*tensor=2\).*Legal: 1, 2, 6",
        ),
        (
            "ring",
            dict(context=8),
            dict(seq_len=4090),
            "multiple of 16 .*4,090. Nearest: 4,080 or 4,096",
        ),
        ("ulysses", dict(context=4), dict(seq_len=4090), "a multiple of 4 .*4,088 or 4,092"),
        (
            "ring",
            dict(context=8),
            dict(kernel="flash", platform="tpu", seq_len=5000),
            "a multiple of 2,048 .*got 5,000. Nearest: 4,096 or 6,144",
        ),
        (
            "flash",
            {},
            dict(kernel="flash"),
            "forward.attention 'flash' is a kernel for TPUs.*'cpu'",
        ),
        (
            "ring",
            dict(context=2),
            dict(kernel="flash"),
            "attention_kernel 'flash' is a kernel for T",
        ),
        ("ring", dict(context=2), dict(kernel="cudnn"), "'cudnn' is for .*'ring' on .*'cpu'"),
        (
            "all_gather",
            dict(context=2),
            dict(kernel="cudnn", platform="gpu"),
            "'cudnn' is for flash, ring, ulysses or usp on a GPU.*'all_gather'",
        ),
    ],
)
def test_refused(backend, sizes, changed, message):
    with pytest.raises(InputError, match=message):
        check(backend, sizes, **DEFAULTS | changed)


@pytest.mark.parametrize(
    "backend, sizes, changed",
    [
        ("blockwise", dict(data=8), dict(seq_len=77, lack="capped logits")),
        ("ring", dict(context=8), {}),
        ("all_gather", dict(context=8), dict(lack="capped logits")),
        ("ring", dict(context=8), dict(kernel="cudnn", platform="gpu")),
        ("ulysses", dict(context=8), {}),
        ("usp", dict(context=8), dict(ulysses=4)),
        ("ring", dict(context=4, tensor=2), dict(kernel="flash", platform="tpu")),
    ],
)
def test_accepted(backend, sizes, changed):
    check(backend, sizes, **DEFAULTS | changed)
