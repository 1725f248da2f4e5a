"""Chooses a backend for a mesh and a model; refuses what it does not support before anything is
compiled.
"""

import math

from jax.sharding import Mesh

from jaxrope.attention import zigzag
from jaxrope.attention.backends import BACKENDS, SPREAD, Settings
from jaxrope.attention.flash import LANES
from jaxrope.attention.local import KERNELS
from jaxrope.errors import InputError, choose

AUTO = "auto"
LACK = "cuDNN's attention cannot do"


def resolve(
    backend: str, kernel: str, mesh: Mesh | None, *, platform: str, lack: str | None = None
) -> tuple[str, str]:
    """Returns (backend, kernel) with "auto" replaced.

    A TPU has `flash` with our kernels, a GPU with cuDNN's, where these can do it; else `blockwise`.
    A sequence that is spread over devices goes round a `ring`.

    Args:
      backend, kernel: names, or "auto".
      mesh: where it will run; None: one device.
      platform: of its devices, "tpu", "gpu" or "cpu".
      lack: of cudnn.lacks.

    Raises:
      InputError: an unknown name.
    """
    choose("forward.attention", backend, dict.fromkeys((AUTO, *BACKENDS)))
    choose("forward.attention_kernel", kernel, dict.fromkeys((AUTO, *KERNELS)))
    fused = {"tpu": "flash", "gpu": "blockwise" if lack else "cudnn"}.get(platform, "blockwise")
    context = mesh.shape[zigzag.AXIS] if mesh else 1
    if backend == AUTO and context == 1:
        backend = "blockwise" if fused == "blockwise" else "flash"
    elif backend == AUTO:
        backend = "ring"
    if kernel == AUTO and backend == "flash":
        kernel = "cudnn" if platform == "gpu" else "flash"
    elif kernel == AUTO:
        kernel = "blockwise" if (backend, fused) == ("all_gather", "cudnn") else fused
    return backend, kernel


def check(
    backend: str,
    settings: Settings,
    *,
    platform: str,
    heads: tuple[int, int],
    lack: str | None,
    seq_len: int,
) -> None:
    """Refuses what the backend cannot do on this mesh.

    Args:
      backend: of `resolve`.
      settings: with the kernel of `resolve`, and the mesh where it will run.
      platform: of its devices.
      heads: num_heads and num_kv_heads of the model.
      lack: of cudnn.lacks.
      seq_len: tokens in a row.

    Raises:
      InputError: with the nearest legal values.
    """
    mesh, kernel, ulysses = settings.mesh, settings.kernel, settings.ulysses
    sizes = dict(mesh.shape) if mesh else {}
    context, tensor = sizes.get(zigzag.AXIS, 1), sizes.get("tensor", 1)
    _check_kernel(backend, kernel, platform, lack)
    if context > 1 and backend not in SPREAD:
        raise InputError(
            f"forward.attention '{backend}' sees the tokens of one device, and mesh.context="
            f"{context} spreads a row over {context}. Use {', '.join(SPREAD)} or auto, or "
            "mesh.context=1."
        )
    if backend != "usp" and ulysses != 1:
        raise InputError(
            f"forward.ulysses must be 1 unless forward.attention is 'usp', got {ulysses}."
        )
    if ulysses < 1 or context % ulysses:
        legal = ", ".join(str(n) for n in range(1, context + 1) if context % n == 0)
        raise InputError(
            f"forward.ulysses must divide mesh.context={context}, got {ulysses}. Legal: {legal}."
        )
    num_heads, kv_heads = (number // tensor for number in heads)
    group = {"ulysses": context, "usp": ulysses}.get(backend, 1)
    if not deals(num_heads, kv_heads, group):
        legal = ", ".join(str(n) for n in range(1, num_heads + 1) if deals(num_heads, kv_heads, n))
        key = "mesh.context" if backend == "ulysses" else "forward.ulysses"
        raise InputError(
            f"{key}={group}: '{backend}' deals {num_heads} heads and {kv_heads} kv heads (those of "
            f"a device of mesh.tensor={tensor}) out to as many devices. Legal: {legal}; or use "
            "ring or all_gather."
        )
    _check_length(backend, kernel, context, ulysses, seq_len)


def deals(num_heads: int, num_kv_heads: int, group: int) -> bool:
    """Returns whether heads can be dealt out to a group: evenly, or a kv head to several."""
    return num_heads % group == 0 and (num_kv_heads % group == 0 or group % num_kv_heads == 0)


def _check_kernel(backend: str, kernel: str, platform: str, lack: str | None) -> None:
    used = kernel if backend in SPREAD or backend == "flash" else "blockwise"
    if used == "cudnn" and (platform != "gpu" or backend == "all_gather"):
        raise InputError(
            "forward.attention_kernel 'cudnn' is for flash, ring, ulysses or usp on a GPU, and "
            f"this is '{backend}' on the platform '{platform}'. Use auto."
        )
    if used == "cudnn" and lack:
        raise InputError(f"{LACK} {lack}. Use blockwise or auto.")
    if used == "flash" and platform != "tpu":
        key = "forward.attention" if backend == "flash" else "forward.attention_kernel"
        raise InputError(
            f"{key} 'flash' is a kernel for TPUs, and the devices are of the platform "
            f"'{platform}'. Use blockwise or auto; attention_kernel 'flash_interpret' runs it "
            "anywhere, slowly, to check it."
        )


def length_unit(backend: str, kernel: str, *, context: int, ulysses: int) -> int:
    """Returns the tokens of which every length over a mesh must be a multiple."""
    if context == 1:
        return 1
    ring = zigzag.ring_size(backend, context, ulysses)
    unit = 2 * context if ring > 1 else context
    if kernel == "flash":
        unit = math.lcm(unit, LANES * (2 * ring if ring > 1 else 1), context)
    return unit


def _check_length(backend: str, kernel: str, context: int, ulysses: int, seq_len: int) -> None:
    unit = length_unit(backend, kernel, context=context, ulysses=ulysses)
    if seq_len % unit:
        below = seq_len // unit * unit
        near = " or ".join(f"{n:,}" for n in (below, below + unit) if n)
        raise InputError(
            f"train.seq_len (and every length that is evaluated or searched) must be a multiple of "
            f"{unit:,} for forward.attention '{backend}' over mesh.context={context}, got "
            f"{seq_len:,}. Nearest: {near}."
        )
