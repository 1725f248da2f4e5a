"""Which tensor of a Hugging Face file holds which part of which parameter.

A linear layer lies there as [out, in], here as [in..., out...] with the heads apart; Phi-3 joins q,
k and v, and gate and up, along `out`, Qwen3-Next those of each key head. One rule serves every
tensor: rows of the file's tensor, transposed, reshaped to the leaf's shape of one layer.

Letters: L layers, D model dim, N heads, K kv heads, H head dim, F mlp dim, E experts, V vocabulary,
W tokens of a convolution.
"""

import dataclasses
import math

import numpy as np

from jaxrope import decoder
from jaxrope.convert.families import FAMILIES
from jaxrope.decoder import DecoderConfig
from jaxrope.errors import InputError

EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
_JOINED = {"self_attn.qkv_proj": ("q", "k", "v"), "mlp.gate_up_proj": ("gate", "up")}
_SEPARATE = {"self_attn.q_proj": ("q",), "self_attn.k_proj": ("k",), "self_attn.v_proj": ("v",)}
_SEPARATE |= {"mlp.gate_proj": ("gate",), "mlp.up_proj": ("up",)}
_LINEAR = {"self_attn.o_proj": ("o",), "mlp.down_proj": ("down",)}
# Where norms stand (DecoderConfig.norms) -> tensors of a layer.
_NORMS = {
    "before": {"input_layernorm": "attn_norm", "post_attention_layernorm": "mlp_norm"},
    "after": {
        "post_attention_layernorm": "attn_out_norm",
        "post_feedforward_layernorm": "mlp_out_norm",
    },
    "both": {
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "attn_out_norm",
        "pre_feedforward_layernorm": "mlp_norm",
        "post_feedforward_layernorm": "mlp_out_norm",
    },
}
_DELTA = {
    "linear_attn.conv1d.weight": ("delta_q_conv", "delta_k_conv", "delta_v_conv"),
    "linear_attn.dt_bias": ("delta_decay_bias",),
    "linear_attn.A_log": ("delta_scale_bias",),
    "linear_attn.norm.weight": ("delta_norm",),
    "linear_attn.out_proj.weight": ("delta_o",),
}
_HEAD_NORMS = {"self_attn.q_norm": "q_norm", "self_attn.k_norm": "k_norm"}


@dataclasses.dataclass(frozen=True)
class Part:
    """A run of rows of a tensor: the whole of one layer of a parameter, or of an expert.

    Attributes:
      leaf: the parameter's path, ("embed_VD",) or ("layers", "q_LDNH").
      index: into its first axes: a layer, of an expert that and the expert; (): it has no layers.
      shape: of what lies there.
      rows: of the tensor; of each of its groups, if it has several.
      groups: of rows, each of which has some of every part.
    """

    leaf: tuple[str, ...]
    index: tuple[int, ...]
    shape: tuple[int, ...]
    rows: slice
    groups: int = 1


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor of a Hugging Face file, its shape and what it is made of."""

    name: str
    shape: tuple[int, ...]
    parts: tuple[Part, ...]

    @property
    def size(self) -> int:
        return math.prod(self.shape)


def tensors(config: DecoderConfig, *, stacked: bool = True) -> list[Tensor]:
    """Returns every tensor of the model's file, in the order in which transformers writes them.

    Args:
      config: the model's.
      stacked: experts lie in one tensor, where the family's files have such; False: in one each, as
        transformers 5 writes them.
    """
    leaves = _leaf_shapes(config)
    file_tensors = [_tensor(EMBED, [("embed_VD",)], (), leaves)]
    joined = _JOINED if FAMILIES[config.family].joined else _SEPARATE
    norms = _NORMS[config.norms] | (_HEAD_NORMS if config.qk_norm != "none" else {})
    for layer, has_experts in enumerate(config.expert_layers):
        prefix = f"model.layers.{layer}."
        in_kind = config.expert_layers[:layer].count(has_experts)  # among layers of such MLPs
        recurs = config.delta_layers[layer]
        in_mixing = config.delta_layers[:layer].count(recurs)
        if recurs:
            file_tensors += _of_delta(config, prefix, in_mixing, leaves)
        for name, stems in (joined | _LINEAR).items():
            of_mlp = name.startswith("mlp.")
            if has_experts if of_mlp else recurs:
                continue
            index = (in_kind if of_mlp else in_mixing,)
            file_tensors.append(
                _tensor(f"{prefix}{name}.weight", _find(leaves, stems), index, leaves)
            )
            biases = _find(leaves, [f"{stem}_bias" for stem in stems])
            if biases:
                file_tensors.append(_tensor(f"{prefix}{name}.bias", biases, index, leaves))
        if has_experts:
            file_tensors += _of_experts(config, prefix, in_kind, leaves, stacked)
        for name, stem in norms.items():
            of_heads = name in _HEAD_NORMS
            if of_heads and recurs:
                continue
            index = (in_mixing if of_heads else layer,)
            file_tensors.append(
                _tensor(f"{prefix}{name}.weight", _find(leaves, [stem]), index, leaves)
            )
            bias = _find(leaves, [f"{stem}_bias"])
            if bias:
                file_tensors.append(_tensor(f"{prefix}{name}.bias", bias, (layer,), leaves))
    file_tensors.append(_tensor("model.norm.weight", [("final_norm_D",)], (), leaves))
    if ("final_norm_bias_D",) in leaves:
        file_tensors.append(_tensor("model.norm.bias", [("final_norm_bias_D",)], (), leaves))
    if not config.tie_embeddings:
        file_tensors.append(_tensor(HEAD, [("head_DV",)], (), leaves))
    return file_tensors


def _of_delta(config: DecoderConfig, prefix: str, layer: int, leaves: dict) -> list[Tensor]:
    joined = FAMILIES[config.family].delta
    if not joined:
        having = ", ".join(name for name, row in FAMILIES.items() if row.delta)
        raise InputError(
            f"model.family must be one that has delta layers ({having}), got {config.family}."
        )
    groups = config.delta_key_heads if FAMILIES[config.family].delta_grouped else 1
    return [
        _tensor(f"{prefix}{name}", _find(leaves, stems), (layer,), leaves, groups=n)
        for names, n in ((joined, groups), (_DELTA, 1))
        for name, stems in names.items()
    ]


def _of_experts(
    config: DecoderConfig, prefix: str, layer: int, leaves: dict, stacked: bool
) -> list[Tensor]:
    names = FAMILIES[config.family].experts
    if names is None:
        having = ", ".join(name for name, row in FAMILIES.items() if row.experts)
        raise InputError(
            f"model.family must be one that has experts ({having}), got {config.family}."
        )
    router = _tensor(f"{prefix}{names.router}.weight", _find(leaves, ["router"]), (layer,), leaves)
    paths = {name: _find(leaves, [stem]) for name, stem in names.tensors.items()}
    shared = names.shared if config.shared_dim else {}
    others = [
        _tensor(f"{prefix}{name}.weight", _find(leaves, [stem]), (layer,), leaves)
        for name, stem in shared.items()
    ]
    if names.stacked and stacked:
        every = [(layer, number) for number in range(config.num_experts)]
        return [router, *others] + [
            _stacked([_tensor(f"{prefix}{name}", _find(leaves, stems), i, leaves) for i in every])
            for name, stems in names.stacked.items()
        ]
    return [router, *others] + [
        _tensor(f"{prefix}{name.format(number)}.weight", path, (layer, number), leaves)
        for number in range(config.num_experts)
        for name, path in paths.items()
    ]


def _stacked(of_each: list[Tensor]) -> Tensor:
    """Returns the tensor in which those of all experts, of one name, follow one another."""
    name, shape = of_each[0].name, of_each[0].shape
    parts = [
        dataclasses.replace(part, rows=slice(part.rows.start + start, part.rows.stop + start))
        for start, tensor in zip(range(0, len(of_each) * shape[0], shape[0]), of_each, strict=True)
        for part in tensor.parts
    ]
    return Tensor(name, (len(of_each), *shape), tuple(parts))


def read_part(part: Part, tensor: np.ndarray) -> np.ndarray:
    """Returns a view of `tensor` in the layout of the parameter."""
    if tensor.ndim == 3:  # of experts, or of a convolution
        tensor = tensor.reshape(-1, tensor.shape[-1])
    rows = tensor[part.rows]
    if part.groups > 1:
        in_groups = tensor.reshape(part.groups, -1, *tensor.shape[1:])
        rows = in_groups[:, part.rows].reshape(-1, *tensor.shape[1:])
    return (rows if part.leaf == ("embed_VD",) else rows.T).reshape(part.shape)


def write_tensor(tensor: Tensor, params: dict) -> np.ndarray:
    """Returns a tensor of the file, contiguous, from the parameters.

    safetensors silently writes the bytes of a transposed view in the wrong order.
    """
    rows = []
    for part in tensor.parts:
        leaf = find_leaf(part, params)
        values = np.asarray(leaf[part.index])
        num_rows = (part.rows.stop - part.rows.start) * part.groups
        if part.leaf != ("embed_VD",):
            values = values.reshape(-1, num_rows).T
        rows.append(values.reshape(part.groups, -1, values.shape[-1]))
    whole = rows[0] if len(rows) == 1 else np.concatenate(rows, axis=1)
    return np.ascontiguousarray(whole.reshape(tensor.shape))


def find_leaf(part: Part, params: dict) -> np.ndarray:
    """Returns the whole parameter that `part` is a layer of."""
    leaf = params
    for key in part.leaf:
        leaf = leaf[key]
    return leaf


def _leaf_shapes(config: DecoderConfig) -> dict[tuple[str, ...], tuple[int, ...]]:
    shapes = decoder.abstract_params(config)
    layers = {("layers", name): leaf.shape for name, leaf in shapes["layers"].items()}
    return {(name,): leaf.shape for name, leaf in shapes.items() if name != "layers"} | layers


def _find(leaves: dict, stems) -> list[tuple[str, ...]]:
    """Returns the paths of the layers' parameters with these names, less their letters."""
    by_stem = {path[1].rsplit("_", 1)[0]: path for path in leaves if path[0] == "layers"}
    return [by_stem[stem] for stem in stems if stem in by_stem]


def _tensor(
    name: str, paths: list[tuple[str, ...]], index: tuple[int, ...], leaves: dict, groups: int = 1
) -> Tensor:
    parts, start = [], 0
    for path in paths:
        shape = leaves[path][len(index) :]
        num_in = _num_in(path, shape)
        num_rows = shape[0] if path == ("embed_VD",) else math.prod(shape) // num_in
        rows = slice(start // groups, (start + num_rows) // groups)
        parts.append(Part(path, index, shape, rows, groups))
        start += num_rows
    stem = path[-1].rsplit("_", 1)[0]
    columns = () if stem in _VECTORS else (math.prod(shape) // num_rows,)
    columns = (1, *columns) if stem.endswith("_conv") else columns  # inputs of a channel
    return Tensor(name, (start, *columns), tuple(parts))


_STREAM_NORMS = ("attn_norm", "attn_out_norm", "mlp_norm", "mlp_out_norm", "final_norm")
_WITH_BIAS = ("q", "k", "v", "o", "gate", "up", "down", *_STREAM_NORMS)
_WITH_BIAS += ("delta_decay", "delta_scale")
_VECTORS = ("q_norm", "k_norm", "delta_norm", *_STREAM_NORMS)
_VECTORS += tuple(f"{stem}_bias" for stem in _WITH_BIAS)


def _num_in(path: tuple[str, ...], shape: tuple[int, ...]) -> int:
    """Returns how many inputs a projection has (out of heads, all their dims); 1 for a vector."""
    stem = path[-1].rsplit("_", 1)[0]
    if stem in _VECTORS:
        return 1
    return math.prod(shape[:-1]) if stem in ("o", "delta_o") else shape[0]
