"""The memory of a training step on each device, part by part, and settings that reduce it.

An estimate from the shapes, for a step that the compiler has refused; where a step compiles, the
compiler reports the exact size.

Letters: N heads, K kv heads, H head dim, D model dim, F mlp dim, V vocabulary, L layers.
"""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

from jaxrope import decoder

_MLP_ARRAYS = 4  # as wide as F: gate, up, their product, a gradient


@dataclasses.dataclass(frozen=True)
class Footprint:
    """The settings that memory depends on.

    Attributes:
      model: the shape.
      sizes: devices on each axis of the mesh.
      rows: of one part of a batch, over all devices.
      seq_len: tokens of a row.
      accumulates: a batch has more than one part.
      remat, mlp_chunk: of `forward`.
      chunk_tokens: of `train`.
      offload: of `optimizer`.
    """

    model: decoder.DecoderConfig
    sizes: Mapping[str, int]
    rows: int
    seq_len: int
    accumulates: bool
    remat: str
    mlp_chunk: int
    chunk_tokens: int
    offload: bool

    @property
    def tokens(self) -> int:
        """Tokens of a device in one part of a batch."""
        return self.rows * self.seq_len * self.sizes["tensor"] // math.prod(self.sizes.values())

    def parts(self) -> dict[str, float]:
        """Returns the bytes on each device by what they are for; compute dtype bfloat16."""
        model, tensor = self.model, self.sizes["tensor"]
        width, kv_width = (
            n * model.head_dim / tensor for n in (model.num_heads, model.num_kv_heads)
        )
        mlp_dim, all_dims = np.max(decoder.mlp_dims(model), axis=0).tolist()
        mlp_dim, all_dims = mlp_dim / tensor, all_dims / tensor
        tokens = self.tokens
        share = decoder.num_params(model) / math.prod(self.sizes.values())
        bytes_per_token = 0 if self.remat == "offload" else 2 * model.embed_dim
        products = 2 * (2 * width + 2 * kv_width + 3 * mlp_dim)
        bytes_per_token += {
            "none": 2 * products,
            "minimal": products,
            "save_attention": 2 * width,
            "save_mlp": 2 * (width + model.embed_dim + 2 * mlp_dim),
        }.get(self.remat, 0)
        chunk = min(self.mlp_chunk or tokens, tokens)
        rows = self.rows // (self.sizes["data"] * self.sizes["fsdp"])
        logits = rows * min(self.chunk_tokens, self.seq_len // self.sizes["context"])
        delta = 2 * decoder.delta_width(model) / tensor
        more = model.delta_key_dim if self.sizes["context"] > 1 else 0
        states = model.delta_key_dim * (model.delta_value_dim + more) / decoder.delta.CHUNK
        of_delta = 8.0 * delta + 4.0 * model.delta_value_heads * (states + 2 * more) / tensor
        layer = model.embed_dim * (max(2 * width + 2 * kv_width, delta) + 3 * all_dims)
        # rows of pairs of a token and an expert: as they go in, as they come out, two gradients
        pairs = 4 * model.experts_per_token * model.embed_dim
        return {
            "weights, moments and gradients": share
            * (4 + 4 + 4 * self.accumulates + (0 if self.offload else 8)),
            "kept of each layer": model.num_layers * tokens * bytes_per_token,
            "the MLP of one layer": 2.0 * chunk * (mlp_dim * _MLP_ARRAYS + pairs),
            # q, its output and both gradients in 2 and 4 bytes; keys, values, two buffers each
            # of delta layers, what is projected to in 2 bytes, convolved and with gradients in 4,
            # and the state of each chunk; over `context` what is read of states to come
            "attention of one layer": tokens * max(12 * width + 32 * kv_width, of_delta),
            "logits": 8.0 * logits * model.vocab_size / tensor,
            "gathered weights of one layer": 2 * 2.0 * layer,
        }

    @property
    def bytes(self) -> float:
        """Estimated bytes on each device."""
        return sum(self.parts().values())


def knobs(now: Footprint) -> list[tuple[str, float]]:
    """Returns (settings, bytes saved on each device), the largest saving first."""
    halved = dict(now.sizes) | {"context": 2 * now.sizes["context"]}
    tokens, rows_of_device = now.tokens, now.rows // (now.sizes["data"] * now.sizes["fsdp"])
    options = {
        "optimizer.offload=True": dict(offload=True),
        "forward.remat='full'": dict(remat="full"),
        "forward.remat='offload'": dict(remat="offload"),
        f"forward.mlp_chunk={max(tokens // 8, 512)}": dict(mlp_chunk=max(tokens // 8, 512)),
        f"train.chunk_tokens={max(now.chunk_tokens // 4, 1)}": dict(
            chunk_tokens=max(now.chunk_tokens // 4, 1)
        ),
        f"a slice of twice the devices with mesh.context={halved['context']}": dict(sizes=halved),
    }
    if rows_of_device > 1:
        options["train.accumulation doubled"] = dict(rows=now.rows // 2, accumulates=True)
    elif now.sizes["fsdp"] % 2 == 0:
        moved = halved | {"fsdp": now.sizes["fsdp"] // 2}
        options[
            f"mesh.context={moved['context']} with mesh.fsdp={moved['fsdp']}, and "
            "train.accumulation doubled"
        ] = dict(sizes=moved, rows=now.rows // 2, accumulates=True)
    saved = {
        text: now.bytes - dataclasses.replace(now, **changes).bytes
        for text, changes in options.items()
    }
    worth = [(text, num_bytes) for text, num_bytes in saved.items() if num_bytes > 0]
    return sorted(worth, key=lambda item: -item[1])
