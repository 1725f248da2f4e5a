"""The parameters: a plain nested dict of arrays, described by NNX modules. Layers are stacked on
their first axis.

Letters: N heads, K kv heads, H head dim, D model dim, F mlp dim, E experts, V vocabulary, W tokens
of a convolution, L layers, of what not all of them have those that do.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from jaxrope import rope
from jaxrope.decoder.config import DecoderConfig
from jaxrope.decoder.forward import logits
from jaxrope.decoder.settings import DTYPES
from jaxrope.mesh import sharding

_INIT_STDDEV = 0.02  # GPT-2's, and the default of Llama's configs


class Layers(nnx.Module):
    """All layers: every parameter has the layers as its first axis. `nnx.split` and a scan give
    them out one at a time.
    """

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs, dtype):
        # GPT-2: what is added to the residual stream shrinks with the number of additions
        added = (2 * config.num_layers) ** -0.5

        def normal(layers, *shape, is_added=False):
            value = jax.random.normal(rngs.params(), (layers, *shape), jnp.float32) * (
                _INIT_STDDEV * (added if is_added else 1.0)
            )
            return nnx.Param(value.astype(dtype))

        def constant(value, layers, *shape):
            return nnx.Param(jnp.full((layers, *shape), value, dtype))

        self._norms(config, constant)
        self._attention(config, normal, constant)
        if config.num_delta_layers:
            self._delta(config, normal, constant)
            shape = config.num_delta_layers, config.delta_value_heads
            decay = jax.random.uniform(rngs.params(), shape, minval=0.01, maxval=16)
            self.delta_scale_bias_LN = nnx.Param(jnp.log(decay).astype(dtype))  # transformers'
        self._mlp(config, normal, constant)
        if config.num_expert_layers:
            self._experts(config, normal)

    def _norms(self, config: DecoderConfig, constant: Callable) -> None:
        """Norms of the residual stream, and of what is added to it."""
        of = config.num_layers, config.embed_dim
        scale, has_bias = 1 - config.norm_offset, config.norm_type == "layer"  # it multiplies by 1
        if config.norms != "after":
            self.attn_norm_LD, self.mlp_norm_LD = constant(scale, *of), constant(scale, *of)
            if has_bias:
                self.attn_norm_bias_LD, self.mlp_norm_bias_LD = constant(0, *of), constant(0, *of)
        if config.norms != "before":
            self.attn_out_norm_LD, self.mlp_out_norm_LD = constant(scale, *of), constant(scale, *of)
            if has_bias:
                self.attn_out_norm_bias_LD = constant(0, *of)
                self.mlp_out_norm_bias_LD = constant(0, *of)

    def _attention(self, config: DecoderConfig, normal: Callable, constant: Callable) -> None:
        """Of the layers that attend."""
        of, dim = config.num_attention_layers, config.embed_dim
        heads, kv_heads, head = config.num_heads, config.num_kv_heads, config.head_dim
        scale, q_head = 1 - config.norm_offset, head * (1 + config.output_gate)
        if config.qk_norm == "head":
            self.q_norm_LH, self.k_norm_LH = constant(scale, of, head), constant(scale, of, head)
        if config.qk_norm == "all":
            self.q_norm_LNH = constant(scale, of, heads, head)
            self.k_norm_LKH = constant(scale, of, kv_heads, head)
        self.q_LDNH = normal(of, dim, heads, q_head)
        self.k_LDKH, self.v_LDKH = (normal(of, dim, kv_heads, head) for _ in range(2))
        self.o_LNHD = normal(of, heads, head, dim, is_added=True)
        if config.qkv_bias:
            self.q_bias_LNH = constant(0, of, heads, q_head)
            self.k_bias_LKH, self.v_bias_LKH = (constant(0, of, kv_heads, head) for _ in range(2))
        if config.out_bias:
            self.o_bias_LD = constant(0, of, dim)

    def _delta(self, config: DecoderConfig, normal: Callable, constant: Callable) -> None:
        """Of delta layers (delta.py)."""
        of, dim, width = config.num_delta_layers, config.embed_dim, config.delta_conv
        key = config.delta_key_heads, config.delta_key_dim
        value = config.delta_value_heads, config.delta_value_dim
        self.delta_q_LDKH, self.delta_k_LDKH = (normal(of, dim, *key) for _ in range(2))
        self.delta_v_LDNH, self.delta_z_LDNH = (normal(of, dim, *value) for _ in range(2))
        self.delta_beta_LDN, self.delta_decay_LDN = (normal(of, dim, value[0]) for _ in range(2))
        self.delta_q_conv_LWKH, self.delta_k_conv_LWKH = (normal(of, width, *key) for _ in range(2))
        self.delta_v_conv_LWNH = normal(of, width, *value)
        self.delta_decay_bias_LN = constant(1, of, value[0])
        self.delta_norm_LH = constant(1, of, value[1])
        self.delta_o_LNHD = normal(of, *value, dim, is_added=True)

    def _mlp(self, config: DecoderConfig, normal: Callable, constant: Callable) -> None:
        """Of the layers whose MLP is dense."""
        of, dim, mlp = (
            config.num_layers - config.num_expert_layers,
            config.embed_dim,
            config.mlp_dim,
        )
        if of:
            self.gate_LDF, self.up_LDF = (normal(of, dim, mlp) for _ in range(2))
            self.down_LFD = normal(of, mlp, dim, is_added=True)
        if config.mlp_bias:
            self.gate_bias_LF, self.up_bias_LF = (constant(0, of, mlp) for _ in range(2))
            self.down_bias_LD = constant(0, of, dim)

    def _experts(self, config: DecoderConfig, normal: Callable) -> None:
        """Of the layers that have experts."""
        of, dim = config.num_expert_layers, config.embed_dim
        experts, width, shared = config.num_experts, config.expert_dim, config.shared_dim
        self.router_LDE = normal(of, dim, experts)
        self.expert_gate_LEDF, self.expert_up_LEDF = (
            normal(of, experts, dim, width) for _ in range(2)
        )
        self.expert_down_LEFD = normal(of, experts, width, dim, is_added=True)
        if shared:
            self.shared_share_LD = normal(of, dim)
            self.shared_gate_LDF, self.shared_up_LDF = (normal(of, dim, shared) for _ in range(2))
            self.shared_down_LFD = normal(of, shared, dim, is_added=True)


class Decoder(nnx.Module):
    """The whole model. A tree: a tied head is the embedding's transpose by method, no reference is
    shared, so that `nnx.split`, `jax.jit` and `jax.grad` take it as it is.
    """

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs, dtype=jnp.float32):
        self.config = config

        def normal(*shape):
            return nnx.Param(
                (jax.random.normal(rngs.params(), shape, jnp.float32) * _INIT_STDDEV).astype(dtype)
            )

        self.embed_VD = normal(config.vocab_size, config.embed_dim)
        self.layers = Layers(config, rngs=rngs, dtype=dtype)
        self.final_norm_D = nnx.Param(jnp.full((config.embed_dim,), 1 - config.norm_offset, dtype))
        if config.norm_type == "layer":
            self.final_norm_bias_D = nnx.Param(jnp.zeros((config.embed_dim,), dtype))
        if not config.tie_embeddings:
            self.head_DV = normal(config.embed_dim, config.vocab_size)

    def __call__(self, tokens_BT: jax.Array, r: rope.Rope, **kwargs) -> jax.Array:
        """Returns logits_BTV; see `logits`."""
        params = nnx.to_pure_dict(nnx.state(self, nnx.Param))
        return logits(self.config, params, tokens_BT, r, **kwargs)


def merge(config: DecoderConfig, params: dict) -> Decoder:
    """Returns the NNX module that holds `params`; `nnx.to_pure_dict(nnx.state(m))` undoes it."""
    graph, state = nnx.split(nnx.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0))))
    nnx.replace_by_pure_dict(state, params)
    return nnx.merge(graph, state)


def init_params(config: DecoderConfig, key: jax.Array, dtype="float32") -> dict:
    """Returns random parameters: normal with deviation 0.02, projections into the residual stream
    divided by sqrt(2 L).
    """

    @jax.jit
    def draw(key):
        model = Decoder(config, rngs=nnx.Rngs(params=key), dtype=DTYPES[str(dtype)])
        return nnx.to_pure_dict(nnx.state(model, nnx.Param))

    return draw(key)


def abstract_params(config: DecoderConfig, dtype="float32") -> dict:
    """Returns the shapes and dtypes of the parameters; costs nothing at any size."""
    return jax.eval_shape(functools.partial(init_params, config, dtype=dtype), jax.random.key(0))


def forward_operations(config: DecoderConfig, tokens: int) -> float:
    """Returns the floating-point operations of one forward pass over `tokens`, causal attention."""
    table = 0 if config.tie_embeddings else config.vocab_size * config.embed_dim  # a look-up
    attention = 4 * config.num_heads * config.head_dim * keys_per_query(config, tokens)
    delta = config.num_delta_layers * delta_operations(config)
    return tokens * (2.0 * (active_params(config) - table) + attention + delta)


def keys_per_query(config: DecoderConfig, tokens: int) -> float:
    """Returns the keys that a query of a row of `tokens` meets on average, summed over layers."""
    windows = (config.window(kind) or math.inf for kind in config.kinds if kind != "delta")
    return sum(min(tokens / 2, window) for window in windows)


def delta_operations(config: DecoderConfig) -> int:
    """Returns the floating-point operations of a delta layer's recurrence for one token: what the
    state gives for its key, what is added to it, what its query reads.
    """
    heads = config.delta_value_heads
    return 6 * heads * config.delta_key_dim * config.delta_value_dim


def delta_width(config: DecoderConfig) -> int:
    """Returns the width of what a delta layer projects to: queries, keys, values, gates, rates."""
    keys = config.delta_key_heads * config.delta_key_dim
    return 2 * keys + 2 * config.delta_value_heads * (config.delta_value_dim + 1)


def num_params(config: DecoderConfig) -> int:
    """Returns the number of parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(abstract_params(config)))


def active_params(config: DecoderConfig) -> int:
    """Returns the number of parameters that a token meets: of the experts, those chosen for it."""
    idle = config.num_experts - config.experts_per_token
    per_layer = 3 * idle * config.embed_dim * config.expert_dim
    return num_params(config) - config.num_expert_layers * per_layer


def mlp_dims(config: DecoderConfig) -> list[tuple[int, int]]:
    """Returns (dims of the MLP that a token meets, dims that there are) of each layer."""
    width = config.expert_dim
    experts = config.experts_per_token, config.num_experts
    routed = tuple(number * width + config.shared_dim for number in experts)
    return [routed if has else (config.mlp_dim, config.mlp_dim) for has in config.expert_layers]


def logical_axes(config: DecoderConfig) -> dict:
    """Returns the tree of the parameters with a tuple of axis names for each leaf."""
    return axes_by_name(abstract_params(config))


def axes_by_name(tree: dict) -> dict:
    """Returns a tree of parameters, or of some of them, or of their adapters, with a tuple of axis
    names for each leaf, read from the letters of its name.
    """
    names = {
        "L": "layers",
        "V": "vocab",
        "D": "embed",
        "N": "heads",
        "K": "kv_heads",
        "H": "head_dim",
        "F": "mlp",
        "E": "experts",
        "W": "convolution",
        "U": "rank",
    }

    def axes(path, _):
        return tuple(names[letter] for letter in path[-1].key.rsplit("_", 1)[1])

    return jax.tree_util.tree_map_with_path(axes, tree)


def param_shardings(config: DecoderConfig, mesh: Mesh) -> dict:
    """Returns where the parameters lie, NamedShardings in their tree; see sharding.RULES."""
    return sharding.param_shardings(mesh, logical_axes(config), abstract_params(config))
