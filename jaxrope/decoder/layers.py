"""One layer: attention, or a recurrence in its place, and the MLP with their norms, biases and
gates, as DecoderConfig says.

On a mesh heads and the MLP may be cut over `tensor`; weights are gathered over the devices that
share the model dim, in the compute dtype.

Letters: B batch, T length, N heads, K kv heads, H head dim, D model dim, F mlp dim, E experts, L
layers.
"""

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jaxrope.decoder import adapters, chunked, experts, norms
from jaxrope.decoder.settings import PRODUCT
from jaxrope.mesh import collectives


def layer(config, settings, weights, x_BTD, mix_fn):
    """Returns (the residual stream after a layer, the router's probabilities_BTE; None: its MLP is
    dense); `mix_fn` takes q, k and v, in a delta layer its weights and the normed x.
    """
    mixed = _delta if "delta_o_LNHD" in weights else _attention
    y_BTD = mixed(config, settings, weights, x_BTD, mix_fn)
    x_BTD = x_BTD + _scaled(config, y_BTD)
    y_BTD, probs_BTE = _mlp(config, settings, weights, x_BTD)
    return x_BTD + _scaled(config, y_BTD), probs_BTE


def _scaled(config, y_BTD):
    if config.residual_scale == 1:
        return y_BTD
    return y_BTD * jnp.asarray(config.residual_scale, y_BTD.dtype)


def _attention(config, settings, weights, x_BTD, attend_fn):
    """Attention of a layer; `attend_fn` takes q, k and v, rotates and attends."""
    names = [name for name in weights if name in _ATTENTION]
    weights = whole(weights, names, x_BTD.dtype, settings.mesh)
    y_BTD = norms.normed(config, weights, "attn_norm_LD", x_BTD)
    q_BTNH = adapted("BTD,DNH->BTNH", y_BTD, weights, "q_LDNH")
    k_BTKH = adapted("BTD,DKH->BTKH", y_BTD, weights, "k_LDKH")
    v_BTKH = adapted("BTD,DKH->BTKH", y_BTD, weights, "v_LDKH")
    if config.qkv_bias:
        q_BTNH, k_BTKH, v_BTKH = (
            _add_bias(x, weights[name])
            for x, name in ((q_BTNH, "q_bias_LNH"), (k_BTKH, "k_bias_LKH"), (v_BTKH, "v_bias_LKH"))
        )
    if config.output_gate:
        q_BTNH, gate_BTNH = jnp.split(q_BTNH, 2, axis=-1)
    if config.qk_norm != "none":
        letters = ("q_norm_LH", "k_norm_LH")
        if config.qk_norm == "all":
            letters = ("q_norm_LNH", "k_norm_LKH")
        heads = config.num_heads, config.num_kv_heads
        q_BTNH, k_BTKH = (
            norms.of_heads(config, x, weights[name], num, settings.mesh)
            for x, name, num in zip((q_BTNH, k_BTKH), letters, heads, strict=True)
        )
    out_BTNH = attend_fn(q_BTNH, k_BTKH, v_BTKH)
    if config.output_gate:
        out_BTNH = out_BTNH * jax.nn.sigmoid(gate_BTNH)
    out_BTD = adapted("BTNH,NHD->BTD", out_BTNH, weights, "o_LNHD")
    out_BTD = collectives.sum_over_tensor(out_BTD, settings.mesh)
    if config.out_bias:
        out_BTD = _add_bias(out_BTD, weights["o_bias_LD"])
    out_BTD = checkpoint_name(out_BTD, PRODUCT)
    return norms.normed(config, weights, "attn_out_norm_LD", out_BTD)


def _delta(config, settings, weights, x_BTD, recur_fn):
    """What is in the place of attention in a delta layer; `recur_fn` takes weights and normed x."""
    names = [name for name in weights if name in _DELTA or name in _ATTENTION]
    weights = weights | whole(weights, names, x_BTD.dtype, settings.mesh)
    out_BTNH = recur_fn(weights, norms.normed(config, weights, "attn_norm_LD", x_BTD))
    out_BTD = dot("BTNH,NHD->BTD", out_BTNH, weights["delta_o_LNHD"])
    out_BTD = checkpoint_name(collectives.sum_over_tensor(out_BTD, settings.mesh), PRODUCT)
    return norms.normed(config, weights, "attn_out_norm_LD", out_BTD)


def _mlp(config, settings, weights, x_BTD):
    """The MLP, and its router's probabilities or None; on a mesh with tensor > 1 each device has a
    part of F, and the sums are added up.
    """
    mlp = {name: weights[name] for name in weights if name in _MLP}
    fn = functools.partial(_routed if "router_LDE" in mlp else _gated, config)
    chunk = settings.mlp_chunk // x_BTD.shape[0]
    if settings.mlp_chunk and chunk < x_BTD.shape[1]:
        down_BTD, probs_BTE = chunked.over_chunks(
            fn, x_BTD, None, mlp, chunk=max(chunk, 1), mesh=settings.mesh
        )
    else:
        down_BTD, probs_BTE = fn(x_BTD, None, collectives.gather(mlp, x_BTD.dtype, settings.mesh))
    down_BTD = collectives.sum_over_tensor(down_BTD, settings.mesh)
    names = [name for name in weights if name in _AFTER_MLP]
    after = whole(weights, names, x_BTD.dtype, settings.mesh)
    if config.mlp_bias:
        down_BTD = _add_bias(down_BTD, after["down_bias_LD"])
    return norms.normed(config, after, "mlp_out_norm_LD", down_BTD), probs_BTE


_GATES = {"silu": jax.nn.silu, "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True)}


def _gated(config, x_BTD, _, weights):
    """SwiGLU or GeGLU (arXiv 2002.05202) of the normed x, without the last bias; no router."""
    y_BTD = norms.normed(config, weights, "mlp_norm_LD", x_BTD)
    gate_BTF = adapted("BTD,DF->BTF", y_BTD, weights, "gate_LDF")
    up_BTF = adapted("BTD,DF->BTF", y_BTD, weights, "up_LDF")
    if "gate_bias_LF" in weights:
        gate_BTF = _add_bias(gate_BTF, weights["gate_bias_LF"])
        up_BTF = _add_bias(up_BTF, weights["up_bias_LF"])
    gate_BTF, up_BTF = (checkpoint_name(x, PRODUCT) for x in (gate_BTF, up_BTF))
    mixed_BTF = _GATES[config.gate](gate_BTF) * up_BTF
    return adapted("BTF,FD->BTD", mixed_BTF, weights, "down_LFD"), None


def _routed(config, x_BTD, _, weights):
    """The experts that a router chooses of the normed x, and the router's probabilities."""
    y_BTD = norms.normed(config, weights, "mlp_norm_LD", x_BTD)
    logits_BTE = dot("BTD,DE->BTE", y_BTD, weights["router_LDE"])
    probs_BTE, shares_BTK, chosen_BTK = experts.shares(config, logits_BTE)
    gate_fn = _GATES[config.gate]
    mixed_BTD = experts.mixed(shares_BTK, chosen_BTK, y_BTD, weights, gate_fn)
    if config.shared_dim:
        mixed_BTD += _shared(y_BTD, weights, gate_fn)
    return mixed_BTD, probs_BTE


def _shared(x_BTD, weights, gate_fn):
    """The expert that every token has, times the sigmoid of its gate."""
    gate_BTF = dot("BTD,DF->BTF", x_BTD, weights["shared_gate_LDF"])
    up_BTF = dot("BTD,DF->BTF", x_BTD, weights["shared_up_LDF"])
    share_BT = jax.nn.sigmoid(dot("BTD,D->BT", x_BTD, weights["shared_share_LD"]))
    y_BTD = dot("BTF,FD->BTD", gate_fn(gate_BTF) * up_BTF, weights["shared_down_LFD"])
    return share_BT[..., None] * y_BTD


_ATTENTION = (
    ("attn_norm_LD", "q_LDNH", "k_LDKH", "v_LDKH", "o_LNHD", "attn_out_norm_LD")
    + ("q_bias_LNH", "k_bias_LKH", "v_bias_LKH", "o_bias_LD")
    + ("q_norm_LH", "k_norm_LH", "q_norm_LNH", "k_norm_LKH")
    + ("attn_norm_bias_LD", "attn_out_norm_bias_LD")
    + tuple(a for name in ("q_LDNH", "k_LDKH", "v_LDKH", "o_LNHD") for a in adapters.names(name))
)
# in the compute dtype; the biases of decays are not
_DELTA = ("delta_q_LDKH", "delta_k_LDKH", "delta_v_LDNH", "delta_z_LDNH", "delta_o_LNHD")
_DELTA += ("delta_beta_LDN", "delta_decay_LDN", "delta_norm_LH")
_MLP = ("mlp_norm_LD", "gate_LDF", "up_LDF", "down_LFD", "gate_bias_LF", "up_bias_LF")
_MLP += ("mlp_norm_bias_LD",)
_MLP += tuple(a for name in ("gate_LDF", "up_LDF", "down_LFD") for a in adapters.names(name))
_MLP += ("router_LDE", "expert_gate_LEDF", "expert_up_LEDF", "expert_down_LEFD")
_MLP += ("shared_share_LD", "shared_gate_LDF", "shared_up_LDF", "shared_down_LFD")
_AFTER_MLP = ("down_bias_LD", "mlp_out_norm_LD", "mlp_out_norm_bias_LD")


def by_layers(config, weights):
    """Returns (weights that every layer has, [(which layers, weights that these alone have), ...]):
    some MLPs may be dense where others have experts, some layers recur where others attend.
    """
    first = {name: name.split("_")[0] for name in weights}
    some = []

    def divide(have, stems, other_stems):
        for having, names in ((have, stems), (tuple(not h for h in have), other_stems)):
            some.append((having, {n: w for n, w in weights.items() if first[n] in names}))

    if config.dense_layers:
        divide(config.expert_layers, ("router", "expert", "shared"), ("gate", "up", "down"))
    if config.num_delta_layers:
        divide(config.delta_layers, ("delta",), ("q", "k", "v", "o"))
    apart = {name for _, arrays in some for name in arrays}
    return {name: w for name, w in weights.items() if name not in apart}, some


def whole(weights, names, dtype, mesh):
    """Returns the weights of these names with all of their model dim, in `dtype`."""
    return collectives.gather({name: weights[name] for name in names}, dtype, mesh)


def dot(letters, x, weight):
    """Returns the product by einsum's letters, in the dtype of x."""
    return _product(letters, x, weight.astype(x.dtype))


def adapted(letters, x, weights, name):
    """Returns `dot` with a weight of adapters.in_layer."""
    a, b = (weights.get(adapter) for adapter in adapters.names(name))
    if a is None:
        return dot(letters, x, weights[name])
    return _adapted(letters, x, *(w.astype(x.dtype) for w in (weights[name], a, b)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _adapted(letters, x, weight, a, b):
    """Returns the product with the weight, which holds the product of a and b."""
    del a, b
    return _product(letters, x, weight)


def _adapted_fwd(letters, x, *weights):
    return _adapted(letters, x, *weights), (x, *weights)


def _adapted_bwd(letters, residuals, dy):
    """Of the weight there is none: two products as wide as the rank instead of a whole one."""
    x, weight, a, b = residuals
    xs, ws, ys = letters.replace("->", ",").split(",")
    inner = "".join(letter for letter in xs if letter in ws)
    outer, tokens = ws.replace(inner, ""), xs.replace(inner, "") + "U"
    dx = _product(f"{ys},{ws}->{xs}", dy, weight)
    dlow = _product(f"{ys},U{outer}->{tokens}", dy, b)
    low = _product(f"{xs},{inner}U->{tokens}", x, a)
    da = _product(f"{xs},{tokens}->{inner}U", x, dlow)
    return dx, None, da, _product(f"{tokens},{ys}->U{outer}", low, dy)


_adapted.defvjp(_adapted_fwd, _adapted_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _product(letters, x, weight):
    """Returns the product; its gradient for the weight is computed in the order that transposes the
    smaller operand: XLA's CPU backend copies it (a tenth of a training step).
    """
    # HIGHEST: the default of a TPU rounds float32 operands to bfloat16
    precision = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    return jnp.einsum(letters, x, weight, precision=precision)


def _product_fwd(letters, x, weight):
    return _product(letters, x, weight), (x, weight)


def _product_bwd(letters, residuals, dy):
    x, weight = residuals
    ins, outs = letters.split("->")
    xs, ws = ins.split(",")
    dx = _product(f"{outs},{ws}->{xs}", dy, weight)
    if x.size > dy.size:
        return dx, _product(f"{outs},{xs}->{ws}", dy, x)
    return dx, _product(f"{xs},{outs}->{ws}", x, dy)


_product.defvjp(_product_fwd, _product_bwd)


def _add_bias(x, bias):
    return x + jnp.expand_dims(bias, (0, 1)).astype(x.dtype)
