"""How config.json says which layers have experts, and how their router chooses."""

from collections.abc import Callable
from typing import NamedTuple

from jaxrope.convert.fields import Fields
from jaxrope.decoder import DecoderConfig
from jaxrope.errors import InputError


class Experts(NamedTuple):
    """How config.json describes the experts of a family, and how its tensors are called.

    Attributes:
      read: (config, number of layers) -> fields of DecoderConfig.
      write: keys of a DecoderConfig.
      fields: of DecoderConfig, which these keys say.
      router: the router's tensor in a layer.
      tensors: those of an expert, `{}` its number -> parameters.
      shared: those of the expert that every token has -> parameters.
      stacked: tensors of all experts -> parameters, as files have them in place of `tensors`.
    """

    read: Callable[[Fields, int], dict]
    write: Callable[[DecoderConfig], dict]
    fields: tuple[str, ...]
    router: str
    tensors: dict[str, str]
    shared: dict[str, str] = {}
    stacked: dict[str, tuple[str, ...]] = {}


_FIELDS = ("num_experts", "experts_per_token", "expert_dim", "router_loss")
# transformers 5 writes the first for every family
COUNTS = ("num_local_experts", "num_experts")


def _count(config: Fields, default: int) -> int:
    return config.count(
        next((key for key in COUNTS if config.get(key) is not None), "num_experts"), default
    )


def _chosen(config: Fields, default: int) -> dict:
    return dict(
        experts_per_token=config.count("num_experts_per_tok", default),
        router_loss=config.number("router_aux_loss_coef", 0.001),
    )


def _chosen_keys(config: DecoderConfig) -> dict:
    return {
        "num_experts_per_tok": config.experts_per_token,
        "router_aux_loss_coef": config.router_loss,
        "output_router_logits": False,
    }


def _qwen(config: Fields, num_layers: int) -> dict:
    every = config.count("decoder_sparse_step", 1)
    dense = config.get("mlp_only_layers") or []
    if not isinstance(dense, list) or not all(type(i) is int and i >= 0 for i in dense):
        raise config.wrong("mlp_only_layers", "be a list of layers, from 0 on")
    has_none = sorted({i for i in dense if i < num_layers})
    if every > 1:
        has_none = [i for i in range(num_layers) if i in dense or (i + 1) % every]
    return _chosen(config, 8) | dict(
        num_experts=_count(config, 128),
        expert_dim=config.count("moe_intermediate_size", 768),
        dense_layers=tuple(has_none),
        shares_sum_to_one=config.flag("norm_topk_prob", False),
    )


def _qwen_keys(config: DecoderConfig) -> dict:
    return _chosen_keys(config) | {
        "num_experts": config.num_experts,
        "moe_intermediate_size": config.expert_dim,
        "decoder_sparse_step": 1,
        "mlp_only_layers": list(config.dense_layers),
        "norm_topk_prob": config.shares_sum_to_one,
    }


def _next(config: Fields, num_layers: int) -> dict:
    width = config.count("shared_expert_intermediate_size", 512)
    return _qwen(config, num_layers) | dict(shared_dim=width)


def _next_keys(config: DecoderConfig) -> dict:
    return _qwen_keys(config) | {"shared_expert_intermediate_size": config.shared_dim}


def _qwen3_5(config: Fields, num_layers: int) -> dict:
    fields = _next(config, num_layers)
    return {name: fields[name] for name in (*_FIELDS, "shared_dim")}  # all layers have experts


def _qwen3_5_keys(config: DecoderConfig) -> dict:
    return _chosen_keys(config) | {
        "num_experts": config.num_experts,
        "moe_intermediate_size": config.expert_dim,
        "shared_expert_intermediate_size": config.shared_dim,
    }


def _mixtral(config: Fields, num_layers: int) -> dict:
    del num_layers
    width = config.count("intermediate_size")
    return _chosen(config, 2) | dict(num_experts=_count(config, 8), expert_dim=width)


def _mixtral_keys(config: DecoderConfig) -> dict:
    if config.expert_dim != config.mlp_dim:
        raise InputError(
            f"model_type {config.family}: model.expert_dim must be model.mlp_dim {config.mlp_dim},"
            f" got {config.expert_dim}. Export it as qwen3_moe."
        )
    return _chosen_keys(config) | {"num_local_experts": config.num_experts}


QWEN = Experts(
    _qwen,
    _qwen_keys,
    (*_FIELDS, "dense_layers", "shares_sum_to_one"),
    "mlp.gate",
    {
        "mlp.experts.{}.gate_proj": "expert_gate",
        "mlp.experts.{}.up_proj": "expert_up",
        "mlp.experts.{}.down_proj": "expert_down",
    },
)
NEXT = QWEN._replace(
    read=_next,
    write=_next_keys,
    fields=(*QWEN.fields, "shared_dim"),
    shared={
        "mlp.shared_expert_gate": "shared_share",
        "mlp.shared_expert.gate_proj": "shared_gate",
        "mlp.shared_expert.up_proj": "shared_up",
        "mlp.shared_expert.down_proj": "shared_down",
    },
)
QWEN3_5 = NEXT._replace(
    read=_qwen3_5,
    write=_qwen3_5_keys,
    fields=(*_FIELDS, "shared_dim"),
    stacked={
        "mlp.experts.gate_up_proj": ("expert_gate", "expert_up"),
        "mlp.experts.down_proj": ("expert_down",),
    },
)
MIXTRAL = Experts(
    _mixtral,
    _mixtral_keys,
    _FIELDS,
    "block_sparse_moe.gate",
    {
        "block_sparse_moe.experts.{}.w1": "expert_gate",
        "block_sparse_moe.experts.{}.w3": "expert_up",
        "block_sparse_moe.experts.{}.w2": "expert_down",
    },
)
