"""How a model is run, not what it is: backends, precision, what the backward pass recomputes."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxrope import attention
from jaxrope.attention import Settings as AttentionSettings
from jaxrope.errors import choose
from jaxrope.schema.model import Forward
from jaxrope.schema.rules import rules

DTYPES = {
    "float32": jnp.float32,
    "bfloat16": jnp.bfloat16,
    "float16": jnp.float16,
    "float64": jnp.float64,
}
LAYER_INPUT = "layer_input"  # name of what remat "offload" keeps in the host's memory
PRODUCT = "product"  # name of the products with weights that remat "save_mlp" keeps
_checkpoint = functools.partial(jax.checkpoint, prevent_cse=False)  # a scan has no twin to merge
_policies = jax.checkpoint_policies

# What the forward pass of a layer keeps for its backward pass.
REMAT: dict[str, Callable[[Callable], Callable]] = {
    "none": lambda layer: layer,
    "full": _checkpoint,
    "minimal": functools.partial(_checkpoint, policy=_policies.dots_with_no_batch_dims_saveable),
    "save_attention": functools.partial(
        _checkpoint, policy=_policies.save_only_these_names("attention_out", "attention_lse")
    ),
    "save_mlp": functools.partial(
        _checkpoint,
        policy=_policies.save_only_these_names("attention_out", "attention_lse", PRODUCT),
    ),
    "offload": functools.partial(
        _checkpoint,
        policy=_policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[],
            names_which_can_be_offloaded=[LAYER_INPUT],
            offload_src="device",
            offload_dst="pinned_host",
        ),
    ),
}


@dataclasses.dataclass(frozen=True)
class ForwardSettings:
    """How the model is run, not what it is.

    Attributes:
      attention: backend, a name in attention.BACKENDS.
      attention_block: tokens in a block of queries or keys.
      compute_dtype: of activations and matrix products.
      remat: what a layer keeps for its backward pass, which computes the rest again. "none": keeps
        all; "full": its input; "minimal": that and the products with weights; "save_attention":
        its input and what attention gave; "save_mlp": that, projected too, and the first two
        products of a dense MLP; "offload": its input, in the host's memory.
      attention_kernel: what computes one device's part in the backends that share a sequence.
      ulysses: devices of axis `context` that exchange heads, in backend "usp".
      mlp_chunk: tokens of a device whose MLP activations exist at one time; 0: all.
      mesh: the caller is inside a shard_map over all its axes, parameters and tokens are this
        device's; None: they are whole.
    """

    attention: str = "blockwise"
    attention_block: int = 512
    compute_dtype: str = "float32"
    remat: str = "none"
    attention_kernel: str = "blockwise"
    ulysses: int = 1
    mlp_chunk: int = 0
    mesh: Mesh | None = None

    def __post_init__(self):
        for name, rule in rules(Forward).items():
            rule.read(getattr(self, name), f"forward.{name}")
        choose("forward.attention", self.attention, attention.BACKENDS)  # "auto" is no backend

    @property
    def of_attention(self) -> AttentionSettings:
        """How its attention is computed."""
        return AttentionSettings(
            block=self.attention_block,
            kernel=self.attention_kernel,
            mesh=self.mesh,
            ulysses=self.ulysses,
        )
