"""How many candidates to evaluate together, and what a search will cost, before it begins."""

import dataclasses
import math
import os

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh

from jaxrope import decoder
from jaxrope.errors import InputError
from jaxrope.mesh import chips, sharding
from jaxrope.search.objective import CHUNK

AnyMesh = Mesh | AbstractMesh

_GIB = 2**30
_SHARE = 0.9  # of the memory of an accelerator that a search takes
_MARGIN = 1.25  # what XLA allots beyond the live arrays counted here
# Tokens of a batch on one device beyond which it is no faster. On two cores, books-6m: 8,000
# tokens/s at 1 x 512 and 8,800 at 8 x 512, 5,000 at 1 x 4,096 and 3,900 at 4 x 4,096.
_CPU_TOKENS = 4096
# Llama-3-8B at 256k on v5p:4x4x4 gathers its weights in 0.4% of the time of so many, in 5% of that
# of 4,096 (cost model); --compile_only says what memory holds, and what suits a search.
_ACCELERATOR_TOKENS = 65_536


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one device.

    Attributes:
      params: of the model.
      candidate: of each candidate of a batch, in one forward pass.
      available: what the search may use; None: only the devices themselves could tell.
    """

    params: int
    candidate: int
    available: int | None

    @property
    def candidates(self) -> float:
        """How many fit."""
        if self.available is None:
            return math.inf
        return max(0, (self.available - self.params) // self.candidate)


def memory(
    config: decoder.DecoderConfig,
    settings: decoder.ForwardSettings,
    *,
    sample_tokens: int,
    memory_gb: float,
    mesh: AnyMesh,
) -> Memory:
    """Returns an estimate of the memory that candidates need, and of what is available.

    Args:
      config: the model's shape.
      settings: how it is run.
      sample_tokens: tokens of one sample.
      memory_gb: GiB of each device that may be used; 0 asks the device.
      mesh: over which parameters and samples are spread.

    Raises:
      InputError: memory_gb is too little for one candidate.
    """
    size = np.dtype(decoder.DTYPES[settings.compute_dtype]).itemsize
    available = int(memory_gb * _GIB) or _device_memory(mesh)
    estimate = Memory(
        params=_param_bytes(config, mesh, size),
        candidate=int(_MARGIN * _forward_bytes(config, settings, mesh, sample_tokens, size)),
        available=available,
    )
    if memory_gb and not estimate.candidates:
        needed = (estimate.params + estimate.candidate) / _GIB
        raise InputError(
            f"search.memory_gb must be at least {needed:.2f} for one candidate of "
            f"{sample_tokens:,} tokens, got {memory_gb}. Raise it, or lower target_len."
        )
    return estimate


def per_device(
    batch_size: int, space: Memory, *, sample_tokens: int, most: int, mesh: AnyMesh
) -> int:
    """Returns how many candidates each device, or each group that shares a sequence, evaluates
    together.

    Args:
      batch_size: `search.batch_size`, over all devices; 0 chooses.
      space: see `memory`.
      sample_tokens: tokens of one sample.
      most: candidates of the largest generation.
      mesh: where they are evaluated.
    """
    groups = sharding.ways(mesh, *sharding.BATCH_AXES)
    if batch_size:
        return math.ceil(batch_size / groups)
    is_cpu = sharding.platform(mesh) == "cpu"
    tokens = math.ceil(sample_tokens / sharding.ways(mesh, "context"))
    useful = max(1, (_CPU_TOKENS if is_cpu else _ACCELERATOR_TOKENS) // tokens)
    fits = max(1, space.candidates)  # the estimate errs upwards: one is worth trying
    count = min(useful, fits, math.ceil(most / groups))
    return 2 ** int(math.log2(count))  # generations of 64 and 32 then leave no slot empty


def _param_bytes(config, mesh: AnyMesh, size: int) -> int:
    """A device's shard of the parameters, and what it gathers: two layers, or the head."""
    shardings = jax.tree.leaves(decoder.param_shardings(config, mesh))
    leaves = jax.tree.leaves(decoder.abstract_params(config))
    local_weights = sum(
        math.prod(where.shard_shape(leaf.shape))
        for leaf, where in zip(leaves, shardings, strict=True)
    )
    if sharding.ways(mesh, *sharding.RULES["embed"]) == 1:
        return local_weights * size
    head = config.vocab_size * config.embed_dim
    layer = (decoder.num_params(config) - head) // config.num_layers
    return (local_weights + max(head, 2 * layer // sharding.ways(mesh, "tensor"))) * size


def _forward_bytes(config, settings, mesh: AnyMesh, sample_tokens: int, size: int) -> int:
    """Live bytes of one candidate: residual stream and the widest layer step, one chunk's logits,
    one block's attention weights (all of them with the reference backend), and keys and values of
    other devices."""
    context, tensor = sharding.ways(mesh, "context"), sharding.ways(mesh, "tensor")
    tokens = math.ceil(sample_tokens / context)
    num_heads = config.num_heads / tensor
    heads = (config.num_heads + 2 * config.num_kv_heads) / tensor
    mlp_dim = max(met for met, _ in decoder.mlp_dims(config)) / tensor
    pairs = 2 * config.experts_per_token * config.embed_dim  # rows of a token and an expert
    delta = 4 * decoder.delta_width(config) / tensor  # before and after the convolution, float32
    if context > 1:  # what is read of the state that is not known yet
        delta += 4 * config.delta_value_heads * config.delta_key_dim / tensor
    widest = max(3 * mlp_dim + pairs, 2 * heads * config.head_dim, delta)
    stream = tokens * size * (3 * config.embed_dim + widest) + tokens * 4 * 2 * config.rotary_dim
    logits = 2 * 4 * min(CHUNK, tokens) * config.vocab_size
    blocked = settings.attention != "reference"
    block = min(settings.attention_block, tokens) if blocked else tokens
    kv = 2 * size * config.num_kv_heads / tensor * config.head_dim * tokens
    others = {"all_gather": context, "ring": 2, "usp": 4, "ulysses": 4}.get(settings.attention, 0)
    moved = kv * others if context > 1 else 0
    return int(stream + logits + 3 * 4 * num_heads * block**2 + moved)


def _device_memory(mesh: AnyMesh) -> int | None:
    if isinstance(mesh, AbstractMesh):
        return None
    if mesh.devices.flat[0] not in jax.devices():  # described alone
        chip = chips.chip_of(mesh.devices.flat[0])
        return int(_SHARE * chip.usable_bytes) if chip else None
    devices = mesh.local_devices
    stats = devices[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return int(_SHARE * (stats["bytes_limit"] - stats["bytes_in_use"]))
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return physical // 2 // len(devices)  # of a CPU: the other half is the user's
