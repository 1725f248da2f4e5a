"""The model: Llama, and the families that differ from it by a bias, a window or the layout of a
file (Mistral, Qwen2, Phi-3).

Parameters are a plain nested dict of arrays; the NNX modules below say what is in it and compute
with it. Layers are stacked on their first axis and scanned.
The rope is an argument of the forward pass: a candidate is data.

Letters: B batch, T length, N heads, K kv heads, H head dim, D model dim, F mlp dim, V vocabulary, L
layers.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxrope import attention, masks, rope
from jaxrope.errors import InputError, choose

FAMILIES = ("llama", "mistral", "qwen2", "phi3")
DTYPES = {
    "float32": jnp.float32,
    "bfloat16": jnp.bfloat16,
    "float16": jnp.float16,
    "float64": jnp.float64,
}
_INIT_STDDEV = 0.02  # GPT-2's, and the default of Llama's configs


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    """The shape of a model.

    Attributes:
      family: which layout a Hugging Face folder has.
      sliding_window: tokens a query sees, its own included; None: all.
      theta, rotary_dim: of the plain rope frequencies.
      original_len: tokens the rope was trained on.
      max_len: tokens the model claims to serve.
      rope: the model's own scaling, {"method": ..., constants}; {"method": "none"} for a plain one.
    """

    vocab_size: int
    num_layers: int
    embed_dim: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_dim: int
    norm_eps: float
    theta: float
    original_len: int
    max_len: int
    rotary_dim: int
    tie_embeddings: bool
    family: str = "llama"
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    sliding_window: int | None = None
    rope: Mapping[str, Any] = dataclasses.field(default_factory=lambda: {"method": "none"})
    bos_id: int | None = None
    eos_id: int | None = None

    def __post_init__(self):
        if self.family not in FAMILIES:
            raise InputError(
                f"model.family must be one of {', '.join(FAMILIES)}, got '{self.family}'."
            )
        counts = (
            "vocab_size",
            "num_layers",
            "embed_dim",
            "num_heads",
            "num_kv_heads",
            "head_dim",
            "mlp_dim",
            "original_len",
            "max_len",
            "rotary_dim",
        )
        for name in counts + (("sliding_window",) if self.sliding_window is not None else ()):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise InputError(f"model.{name} must be a positive whole number, got {value!r}.")
        if self.num_heads % self.num_kv_heads:
            raise InputError(
                f"model.num_heads must be a multiple of model.num_kv_heads, got {self.num_heads} "
                f"and {self.num_kv_heads}."
            )
        if self.rotary_dim % 2 or self.rotary_dim > self.head_dim:
            raise InputError(
                f"model.rotary_dim must be even and at most model.head_dim {self.head_dim}, got "
                f"{self.rotary_dim}."
            )
        if not 0 < self.norm_eps < 1:
            raise InputError(f"model.norm_eps must be between 0 and 1, got {self.norm_eps}.")
        for name in ("bos_id", "eos_id"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < self.vocab_size:
                raise InputError(
                    f"model.{name} must be below model.vocab_size {self.vocab_size}, got {value}."
                )

    def __hash__(self):
        return hash(
            (type(self), repr(self))
        )  # `rope` is a dict; a config is a static argument of jit

    def to_json_dict(self) -> dict[str, Any]:
        """Returns what `LlamaConfig(**...)` takes."""
        return dataclasses.asdict(self) | {"rope": dict(self.rope)}


@dataclasses.dataclass(frozen=True)
class ForwardSettings:
    """How the model is run, not what it is.

    Attributes:
      attention: backend, a name in attention.BACKENDS.
      attention_block: tokens in a block of queries or keys.
      compute_dtype: of activations and matrix products.
      remat: "none", or "full": a layer's backward pass recomputes all but its input.
    """

    attention: str = "blockwise"
    attention_block: int = 512
    compute_dtype: str = "float32"
    remat: str = "none"

    def __post_init__(self):
        choose("forward.attention", self.attention, attention.BACKENDS)
        choose("forward.compute_dtype", self.compute_dtype, DTYPES)
        choose("forward.remat", self.remat, _REMAT)
        if self.attention_block < 1:
            raise InputError(
                "forward.attention_block must be a positive number of tokens, got "
                f"{self.attention_block}."
            )


_REMAT = {"none": lambda layer: layer, "full": jax.checkpoint}


class Layers(nnx.Module):
    """All layers: every parameter has the layers as its first axis. `nnx.split` and a scan give
    them out one at a time.
    """

    def __init__(self, config: LlamaConfig, *, rngs: nnx.Rngs, dtype):
        layers, dim, mlp = config.num_layers, config.embed_dim, config.mlp_dim
        heads, kv_heads, head = config.num_heads, config.num_kv_heads, config.head_dim

        def normal(*shape, depth=1.0):
            value = jax.random.normal(rngs.params(), (layers, *shape), jnp.float32) * (
                _INIT_STDDEV * depth
            )
            return nnx.Param(value.astype(dtype))

        def constant(value, *shape):
            return nnx.Param(jnp.full((layers, *shape), value, dtype))

        out_depth = (
            (2 * layers) ** -0.5
        )  # GPT-2: what is added to the residual stream shrinks with the number of additions
        self.attn_norm_LD = constant(1, dim)
        self.q_LDNH, self.k_LDKH, self.v_LDKH = (
            normal(dim, heads, head),
            normal(dim, kv_heads, head),
            normal(dim, kv_heads, head),
        )
        self.o_LNHD = normal(heads, head, dim, depth=out_depth)
        self.mlp_norm_LD = constant(1, dim)
        self.gate_LDF, self.up_LDF, self.down_LFD = (
            normal(dim, mlp),
            normal(dim, mlp),
            normal(mlp, dim, depth=out_depth),
        )
        if config.qkv_bias:
            self.q_bias_LNH, self.k_bias_LKH, self.v_bias_LKH = (
                constant(0, heads, head),
                constant(0, kv_heads, head),
                constant(0, kv_heads, head),
            )
        if config.out_bias:
            self.o_bias_LD = constant(0, dim)
        if config.mlp_bias:
            self.gate_bias_LF, self.up_bias_LF, self.down_bias_LD = (
                constant(0, mlp),
                constant(0, mlp),
                constant(0, dim),
            )


class Llama(nnx.Module):
    """The whole model. A tree: a tied head is the embedding's transpose by method, no reference is
    shared, so that `nnx.split`, `jax.jit` and `jax.grad` take it as it is.
    """

    def __init__(self, config: LlamaConfig, *, rngs: nnx.Rngs, dtype=jnp.float32):
        self.config = config

        def normal(*shape):
            return nnx.Param(
                (jax.random.normal(rngs.params(), shape, jnp.float32) * _INIT_STDDEV).astype(dtype)
            )

        self.embed_VD = normal(config.vocab_size, config.embed_dim)
        self.layers = Layers(config, rngs=rngs, dtype=dtype)
        self.final_norm_D = nnx.Param(jnp.ones((config.embed_dim,), dtype))
        if not config.tie_embeddings:
            self.head_DV = normal(config.embed_dim, config.vocab_size)

    def __call__(self, tokens_BT: jax.Array, r: rope.Rope, **kwargs) -> jax.Array:
        """Returns logits_BTV; see `logits`."""
        params = nnx.to_pure_dict(nnx.state(self, nnx.Param))
        return logits(self.config, params, tokens_BT, r, **kwargs)


def merge(config: LlamaConfig, params: dict) -> Llama:
    """Returns the NNX module that holds `params`; `nnx.to_pure_dict(nnx.state(m))` undoes it."""
    graph, state = nnx.split(nnx.eval_shape(lambda: Llama(config, rngs=nnx.Rngs(0))))
    nnx.replace_by_pure_dict(state, params)
    return nnx.merge(graph, state)


def init_params(config: LlamaConfig, key: jax.Array, dtype="float32") -> dict:
    """Returns random parameters: normal with deviation 0.02, projections into the residual stream
    divided by sqrt(2 L).
    """

    @jax.jit
    def draw(key):
        model = Llama(config, rngs=nnx.Rngs(params=key), dtype=DTYPES[str(dtype)])
        return nnx.to_pure_dict(nnx.state(model, nnx.Param))

    return draw(key)


def abstract_params(config: LlamaConfig, dtype="float32") -> dict:
    """Returns the shapes and dtypes of the parameters; costs nothing at any size."""
    return jax.eval_shape(functools.partial(init_params, config, dtype=dtype), jax.random.key(0))


def num_params(config: LlamaConfig) -> int:
    """Returns the number of parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(abstract_params(config)))


def logical_axes(config: LlamaConfig) -> dict:
    """Returns the tree of the parameters with a tuple of axis names for each leaf, read from the
    letters of its name.
    """
    names = {
        "L": "layers",
        "V": "vocab",
        "D": "embed",
        "N": "heads",
        "K": "kv_heads",
        "H": "head_dim",
        "F": "mlp",
    }

    def axes(path, _):
        return tuple(names[letter] for letter in path[-1].key.rsplit("_", 1)[1])

    return jax.tree_util.tree_map_with_path(axes, abstract_params(config))


def own_rope(config: LlamaConfig) -> rope.RopeFn:
    """Returns the model's own scaling: the "none" row of every table."""
    return rope.make(
        **dict(config.rope),
        head_dim=config.head_dim,
        rotary_dim=config.rotary_dim,
        theta=config.theta,
        original_len=config.original_len,
    )


def hidden(
    config: LlamaConfig,
    params: dict,
    tokens_BT: jax.Array,
    r: rope.Rope,
    *,
    positions_BT: jax.Array | None = None,
    segment_ids_BT: jax.Array | None = None,
    settings: ForwardSettings = ForwardSettings(),  # noqa: B008 (frozen)
) -> jax.Array:
    """Returns x_BTD after the final norm, in the compute dtype.

    Args:
      config, params: the model.
      tokens_BT: ids below vocab_size; JAX clamps others silently, so loaders check them.
      r: the rope; leaves with a leading batch axis choose per sequence, `per_layer` ones per layer.
      positions_BT: int32, restarting with each document; None: 0, 1, 2, ...
      segment_ids_BT: int32, the documents of a packed row; None: one document.
      settings: how it is run.
    """
    if positions_BT is None:
        positions_BT = jnp.broadcast_to(
            jnp.arange(tokens_BT.shape[1], dtype=jnp.int32), tokens_BT.shape
        )
    mask = masks.self_mask(positions_BT, segment_ids_BT, window=config.sliding_window)
    dtype = DTYPES[settings.compute_dtype]
    x_BTD = params["embed_VD"][tokens_BT].astype(dtype)
    shared = None if r.per_layer else rope.cos_sin(r, positions_BT)

    def layer(x_BTD, weights_and_rope):
        weights, own = weights_and_rope
        turn = shared if own is None else rope.cos_sin(own, positions_BT)
        x_BTD = x_BTD + _attention(config, settings, weights, x_BTD, turn, mask)
        return x_BTD + _mlp(config, weights, x_BTD), None

    scanned = (params["layers"], r if r.per_layer else None)
    x_BTD, _ = jax.lax.scan(_REMAT[settings.remat](layer), x_BTD, scanned)
    return _rms_norm(x_BTD, params["final_norm_D"], config.norm_eps)


def head_DV(config: LlamaConfig, params: dict) -> jax.Array:
    """Returns the matrix that makes logits of the hidden states."""
    return params["embed_VD"].T if config.tie_embeddings else params["head_DV"]


def logits(
    config: LlamaConfig, params: dict, tokens_BT: jax.Array, r: rope.Rope, **kwargs
) -> jax.Array:
    """Returns logits_BTV, float32 or wider, of the whole sequence; see `hidden`. For long sequences
    take `losses.token_nll`.
    """
    x_BTD = hidden(config, params, tokens_BT, r, **kwargs)
    return _dot("BTD,DV->BTV", x_BTD, head_DV(config, params)).astype(
        jnp.promote_types(x_BTD.dtype, jnp.float32)
    )


def _attention(config, settings, weights, x_BTD, turn, mask):
    y_BTD = _rms_norm(x_BTD, weights["attn_norm_LD"], config.norm_eps)
    q_BTNH = _dot("BTD,DNH->BTNH", y_BTD, weights["q_LDNH"])
    k_BTKH = _dot("BTD,DKH->BTKH", y_BTD, weights["k_LDKH"])
    v_BTKH = _dot("BTD,DKH->BTKH", y_BTD, weights["v_LDKH"])
    if config.qkv_bias:
        q_BTNH, k_BTKH, v_BTKH = (
            _add_bias(x, weights[name])
            for x, name in ((q_BTNH, "q_bias_LNH"), (k_BTKH, "k_bias_LKH"), (v_BTKH, "v_bias_LKH"))
        )
    out_BTNH = attention.attend(
        settings.attention,
        rope.rotate(q_BTNH, *turn),
        rope.rotate(k_BTKH, *turn),
        v_BTKH,
        mask=mask,
        block=settings.attention_block,
    )
    out_BTD = _dot("BTNH,NHD->BTD", out_BTNH, weights["o_LNHD"])
    return _add_bias(out_BTD, weights["o_bias_LD"]) if config.out_bias else out_BTD


def _mlp(config, weights, x_BTD):
    y_BTD = _rms_norm(x_BTD, weights["mlp_norm_LD"], config.norm_eps)
    gate_BTF, up_BTF = (
        _dot("BTD,DF->BTF", y_BTD, weights["gate_LDF"]),
        _dot("BTD,DF->BTF", y_BTD, weights["up_LDF"]),
    )
    if config.mlp_bias:
        gate_BTF, up_BTF = (
            _add_bias(gate_BTF, weights["gate_bias_LF"]),
            _add_bias(up_BTF, weights["up_bias_LF"]),
        )
    down_BTD = _dot("BTF,FD->BTD", jax.nn.silu(gate_BTF) * up_BTF, weights["down_LFD"])
    return _add_bias(down_BTD, weights["down_bias_LD"]) if config.mlp_bias else down_BTD


def _rms_norm(x_BTD, scale_D, eps):
    """RMSNorm (arXiv 1910.07467), in float32 or wider."""
    wide = x_BTD.astype(jnp.promote_types(x_BTD.dtype, jnp.float32))
    wide = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + eps)
    return wide.astype(x_BTD.dtype) * scale_D.astype(x_BTD.dtype)[None, None]


def _dot(letters, x, weight):
    # HIGHEST: the default of a TPU rounds float32 operands to bfloat16
    precision = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    return jnp.einsum(letters, x, weight.astype(x.dtype), precision=precision)


def _add_bias(x, bias):
    return x + jnp.expand_dims(bias, (0, 1)).astype(x.dtype)
