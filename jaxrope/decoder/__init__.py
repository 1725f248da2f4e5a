"""The model: Llama, and the decoders that differ from it by what DecoderConfig says.

Parameters are a plain nested dict of arrays; the NNX modules of `params` describe it. Layers
are stacked on their first axis and scanned. The rope is an argument of the forward pass: a
candidate is data.
"""

from jaxrope.decoder import adapters, delta, lengths, losses
from jaxrope.decoder.config import (
    DIFFERENCES,
    KINDS,
    DecoderConfig,
    own_base,
    own_rope,
    sliding_rope,
)
from jaxrope.decoder.forward import (
    Cache,
    Seen,
    check_probe,
    empty_caches,
    head_DV,
    hidden,
    hidden_and_imbalance,
    hidden_cached,
    logits,
    next_logits,
    probe,
)
from jaxrope.decoder.layout import lay_out, legal_length, natural_order, token_order
from jaxrope.decoder.params import (
    Decoder,
    abstract_params,
    active_params,
    axes_by_name,
    delta_operations,
    delta_width,
    forward_operations,
    init_params,
    keys_per_query,
    logical_axes,
    merge,
    mlp_dims,
    num_params,
    param_shardings,
)
from jaxrope.decoder.settings import DTYPES, REMAT, ForwardSettings
from jaxrope.decoder.shapes import SHAPES

__all__ = [
    "Cache",
    "DIFFERENCES",
    "DTYPES",
    "ForwardSettings",
    "KINDS",
    "Decoder",
    "DecoderConfig",
    "LlamaConfig",
    "REMAT",
    "SHAPES",
    "Seen",
    "abstract_params",
    "active_params",
    "adapters",
    "axes_by_name",
    "check_probe",
    "delta",
    "delta_operations",
    "delta_width",
    "empty_caches",
    "forward_operations",
    "head_DV",
    "hidden",
    "hidden_and_imbalance",
    "hidden_cached",
    "init_params",
    "keys_per_query",
    "lay_out",
    "legal_length",
    "lengths",
    "logical_axes",
    "logits",
    "losses",
    "merge",
    "mlp_dims",
    "natural_order",
    "next_logits",
    "num_params",
    "own_base",
    "own_rope",
    "param_shardings",
    "probe",
    "sliding_rope",
    "token_order",
]
