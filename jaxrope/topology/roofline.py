"""From shapes to seconds: the arithmetic and the traffic of a step, and the time a chip needs for
them. Everything is counted from the shapes and the remat policy; nothing is measured.

Arithmetic counts multiplications and additions, the causal half of attention once. A unit of
attention is one product over all pairs that see each other, such as q k^T: num_heads * head_dim *
seq_len^2 operations a layer and row. Forward takes 2 units; the kernels' backward pass 5, since it
computes q k^T again. The "model" arithmetic has 6 in all, as PaLM's MFU has. In it the recurrence
of delta layers counts token by token, three times for a step; what is computed are chunks.

Letters: N heads, K kv heads, H head dim, D model dim, F mlp dim, V vocabulary, L layers.
"""

import dataclasses
import math
from collections.abc import Mapping

from jaxrope import decoder
from jaxrope.mesh import Chip
from jaxrope.topology.schedule import BETWEEN, KINDS, Schedule

# Shares of the peak that a kernel reaches: assumptions, of published runs. Dense: Llama-2-70B at
# 4,096 tokens, where matrix products are nearly all, trains at 65% MFU on v5p (MaxText), with the
# time for everything else in it. Attention: products of head_dim 128 with an exponential for each
# pair between them; the step of Llama-3-8B over 256k tokens at 24% MFU (MaxText, 64 v5p) bounds it
# from below, the matrix unit half idle while weights are computed is what its kernels plan with.
# Recurrence: float32, whose products are six of bfloat16 each, of 64 rows, and between them sums
# and exponentials of pairs: what the TPU compiler's own count of cycles gives for chunks of
# Qwen3-Next's heads, forward and backward (v5p, libtpu 0.0.52).
DENSE_EFFICIENCY = 0.7
ATTENTION_EFFICIENCY = 0.5
RECURRENCE_EFFICIENCY = 0.02

# Links of a device that carry a collective at one time. A hop goes one way to one neighbour; a ring
# for a gather or a sum runs both ways round one axis of the torus.
PERMUTE_LINKS = 1
RING_LINKS = 2

_FORWARD_UNITS, _BACKWARD_UNITS = 2, 5
# What the backward pass computes again, by remat policy: (the projections to queries, keys and
# values, that of what attention gave, the MLP's first two products, attention). The MLP's last
# product is never needed again.
_RECOMPUTED = {
    "none": (False, False, False, False),
    "full": (True, True, True, True),
    "minimal": (False, False, False, True),
    "save_attention": (True, True, True, False),
    "save_mlp": (True, False, False, False),
    "offload": (True, True, True, True),
}


@dataclasses.dataclass(frozen=True)
class Work:
    """The work of all devices together in one run of a program.

    Attributes:
      tokens: that go through the model.
      model_flops: of the model, without recomputation; the numerator of MFU.
      dense_flops, attention_flops, recurrence_flops: with recomputation.
      dense_bytes, attention_bytes, recurrence_bytes: memory traffic of each device meanwhile.
      update_bytes: the same for the optimizer.
      least_flops: what a device at its peak would do in the time that the arithmetic takes at the
        assumed efficiencies, nothing recomputed.
    """

    tokens: int
    model_flops: float
    dense_flops: float
    attention_flops: float
    dense_bytes: float
    attention_bytes: float
    recurrence_flops: float = 0.0
    recurrence_bytes: float = 0.0
    update_bytes: float = 0.0
    least_flops: float = 0.0

    @property
    def flops(self) -> float:
        """With recomputation."""
        return self.dense_flops + self.attention_flops + self.recurrence_flops

    def __add__(self, other: "Work") -> "Work":
        """One after the other."""
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return Work(*(mine + others for mine, others in pairs))


NOTHING = Work(0, 0.0, 0.0, 0.0, 0.0, 0.0)


def train_work(
    model: decoder.DecoderConfig,
    settings: decoder.ForwardSettings,
    sizes: Mapping[str, int],
    *,
    rows: int,
    seq_len: int,
    parts: int = 1,
) -> Work:
    """Returns the work of one optimizer step.

    Args:
      model: the shape.
      settings: of the forward pass.
      sizes: devices on each axis of the mesh.
      rows: of the batch, over all devices.
      seq_len: tokens of a row.
      parts: train.accumulation.
    """
    return _backward_work(model, settings, sizes, rows=rows, seq_len=seq_len, parts=parts)


def gradient_work(
    model: decoder.DecoderConfig,
    settings: decoder.ForwardSettings,
    sizes: Mapping[str, int],
    *,
    seq_len: int,
) -> Work:
    """Returns the work of a gradient in the rope of one row. No gradient of a weight is taken; all
    devices of `data` and `fsdp` compute the same, and the model's arithmetic counts once.
    """
    groups = sizes["data"] * sizes["fsdp"]
    work = _backward_work(model, settings, sizes, rows=groups, seq_len=seq_len, trains=False)
    return dataclasses.replace(
        work,
        tokens=work.tokens // groups,
        model_flops=work.model_flops / groups,
        least_flops=work.least_flops / groups,
    )


def _backward_work(
    model, settings, sizes, *, rows: int, seq_len: int, parts: int = 1, trains: bool = True
) -> Work:
    """Work forward and backward; `trains`: gradients of weights too, and an update."""
    projected, out, mlp, attention = _RECOMPUTED[settings.remat]
    weights = _weights(model)
    again = projected * weights["in"] + out * weights["out"]
    again += (mlp or bool(settings.mlp_chunk)) * (weights["gate_up"] + weights["router"])
    units = _FORWARD_UNITS * (1 + attention) + _BACKWARD_UNITS
    tokens, num_devices = rows * seq_len, math.prod(sizes.values())
    unit = rows * _attention_unit(model, seq_len)
    operations = 4.0 + 2.0 * trains  # of a token with a weight
    passes = 2 + trains + (projected or mlp)
    times = 4 + (settings.remat != "none")  # a chunk is computed again when its gradient is
    recurrence = model.num_delta_layers * decoder.delta_operations(model)
    recurrence_flops = float(tokens * _recurrence_flops(model, sizes))
    dense_flops = operations * _all_weights(model) * tokens
    units_at_least = (_FORWARD_UNITS + _BACKWARD_UNITS) * unit
    # 4 arrays in, 3 out, float32
    update_bytes = 28.0 * decoder.num_params(model) / num_devices if trains else 0.0
    return Work(
        tokens=tokens,
        model_flops=dense_flops + 3 * recurrence * tokens + 6 * unit,
        dense_flops=dense_flops + 2.0 * again * tokens,
        attention_flops=units * unit,
        dense_bytes=_dense_bytes(model, sizes, tokens, parts=parts, passes=passes, trains=trains),
        attention_bytes=_attention_bytes(model, sizes, tokens, (1 + attention, 1)),
        recurrence_flops=times * recurrence_flops,
        recurrence_bytes=times * _recurrence_bytes(model, sizes, tokens),
        update_bytes=update_bytes,
        least_flops=_at_peak(dense_flops, units_at_least, 4 * recurrence_flops),
    )


def _at_peak(dense_flops: float, attention_flops: float, recurrence_flops: float) -> float:
    """Returns the operations that a device at its peak would do in the time that these take."""
    seconds = dense_flops / DENSE_EFFICIENCY + attention_flops / ATTENTION_EFFICIENCY
    return seconds + recurrence_flops / RECURRENCE_EFFICIENCY


def forward_work(
    model: decoder.DecoderConfig,
    sizes: Mapping[str, int],
    *,
    rows: int,
    seq_len: int,
    parts: int = 1,
) -> Work:
    """Returns the work of `rows` forward passes with a loss, in `parts` runs one after another."""
    tokens, unit = rows * seq_len, rows * _attention_unit(model, seq_len)
    dense, attention = 2.0 * _all_weights(model) * tokens, float(_FORWARD_UNITS * unit)
    recurrence = model.num_delta_layers * decoder.delta_operations(model)
    recurrence_flops = float(tokens * _recurrence_flops(model, sizes))
    return Work(
        tokens=tokens,
        model_flops=dense + attention + recurrence * tokens,
        dense_flops=dense,
        attention_flops=attention,
        dense_bytes=_dense_bytes(model, sizes, tokens, parts=parts, passes=1, trains=False),
        attention_bytes=_attention_bytes(model, sizes, tokens, (1, 0)),
        recurrence_flops=recurrence_flops,
        recurrence_bytes=_recurrence_bytes(model, sizes, tokens),
        least_flops=_at_peak(dense, attention, recurrence_flops),
    )


def _weights(model: decoder.DecoderConfig) -> dict[str, int]:
    """Returns the weights of the matrix products that a token meets, of all layers."""
    dim, head = model.embed_dim, model.head_dim
    attention = head * ((1 + model.output_gate) * model.num_heads + 2 * model.num_kv_heads)
    num_attention, num_delta = model.num_attention_layers, model.num_delta_layers
    delta_out = model.delta_value_heads * model.delta_value_dim
    width = sum(met for met, _ in decoder.mlp_dims(model))
    return {
        "in": dim * (num_attention * attention + num_delta * decoder.delta_width(model)),
        "out": dim * (num_attention * head * model.num_heads + num_delta * delta_out),
        "gate_up": 2 * dim * width,
        "down": dim * width,
        "router": model.num_expert_layers * dim * model.num_experts,
        "head": dim * model.vocab_size,
    }


def _all_weights(model: decoder.DecoderConfig) -> int:
    return sum(_weights(model).values())


def _attention_unit(model: decoder.DecoderConfig, seq_len: int) -> float:
    """Returns the operations of one product over the pairs of a row, all layers."""
    keys = decoder.keys_per_query(model, seq_len)
    return 2.0 * model.num_heads * model.head_dim * seq_len * keys


def _dense_bytes(model, sizes, tokens: int, *, parts: int, passes: int, trains: bool) -> float:
    """Returns a device's memory traffic, in bytes, for weights, activations and logits.

    Each pass writes and reads the gathered weights in 2 bytes, and every activation; the backward
    pass counts two, and writes and reads the gradients of the weights in 4 bytes.
    """
    tensor = sizes["tensor"]
    here = tokens / math.prod(sizes.values())
    idle = sum(all_dims - met for met, all_dims in decoder.mlp_dims(model))
    weights = (_all_weights(model) + 3 * model.embed_dim * idle) / tensor * parts
    heads = model.num_heads + model.num_kv_heads
    layer = 6 * model.embed_dim + 2 * heads * model.head_dim / tensor
    layer += 3 * sum(met for met, _ in decoder.mlp_dims(model)) / model.num_layers / tensor
    # a row for each pair of a token and an expert, as it goes in and as it comes out
    layer += 2 * model.experts_per_token * model.embed_dim
    activations = 4.0 * here * model.num_layers * layer
    logits = 8.0 * here * model.vocab_size
    return passes * (4.0 * weights + activations + logits) + trains * 8.0 * weights


def _attention_bytes(model, sizes, tokens: int, passes: tuple[int, int]) -> float:
    """Returns the bytes of the float32 sums that a kernel reads and writes at each hop: the output
    going forward; dq, dk and dv going back."""
    forward, backward = passes
    here = tokens / math.prod(sizes.values())
    width, kv_width = (heads * model.head_dim for heads in (model.num_heads, model.num_kv_heads))
    hop = 8.0 * here * (forward * width + backward * (width + 2 * kv_width))
    return hop * model.num_attention_layers * sizes["context"]


def _recurrence_flops(model, sizes) -> int:
    """Returns the operations of delta.rule for one token, all layers: products with the state,
    which is as wide as values, and keys too where tokens are spread, and those within a chunk.
    """
    keys, values, chunk = model.delta_key_dim, model.delta_value_dim, decoder.delta.CHUNK
    more = keys if sizes["context"] > 1 else 0
    of_state = 6 * keys * (values + more) + 2 * more * values
    of_chunk = 4 * keys + 2 * (values + more) + keys + values  # the last two by the system
    return model.num_delta_layers * model.delta_value_heads * (of_state + chunk * of_chunk)


def _recurrence_bytes(model, sizes, tokens: int) -> float:
    """Returns a device's memory traffic, in bytes, of one pass: the state of each chunk, float32,
    in and out, and what each token has of queries, keys, values and results.
    """
    here = tokens / math.prod(sizes.values())
    keys, values = model.delta_key_dim, model.delta_value_dim
    wide = values + (keys if sizes["context"] > 1 else 0)
    token = 2 * keys * wide / decoder.delta.CHUNK + 2 * keys + values + wide
    return 4.0 * here * model.num_delta_layers * model.delta_value_heads * token


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Seconds of one run of a program on a slice, with MFU and throughput.

    Attributes:
      dense, attention, recurrence: of computing, at the assumed efficiency or the memory's speed.
      hops, gathers: on the wire during computation; the longer of the two counts.
      exposed: on the wire without computation.
      update: of the optimizer.
      mfu: of model_flops, in 0..1.
      ceiling: the MFU with nothing recomputed and nothing exposed on the wire.
      tokens_per_day: at this speed, without a pause.
    """

    dense: float
    attention: float
    recurrence: float
    hops: float
    gathers: float
    exposed: float
    update: float
    mfu: float
    ceiling: float
    tokens_per_day: float

    @property
    def step(self) -> float:
        """Of the whole step."""
        computing = max(self.attention, self.hops) + max(self.dense, self.gathers)
        return computing + self.recurrence + self.exposed + self.update


def predict(work: Work, schedule: Schedule, chip: Chip, num_devices: int) -> Prediction:
    """Returns the predicted times of a program.

    Args:
      work: of one run.
      schedule: of the compiled program.
      chip: of each device.
      num_devices: of the mesh.
    """
    rate = chip.peak_flops * num_devices

    def computing(flops, efficiency, num_bytes):
        return max(flops / (rate * efficiency), num_bytes / chip.memory_bandwidth)

    def wire(kinds, overlapped):
        ring = RING_LINKS * chip.link_bandwidth
        rates = {"collective-permute": PERMUTE_LINKS * chip.link_bandwidth}
        rates[BETWEEN] = chip.network_bandwidth
        return sum(
            schedule.wire_bytes(kind, overlapped=overlapped) / rates.get(kind, ring)
            for kind in kinds
        )

    others = tuple(kind for kind in KINDS if kind != "collective-permute")
    prediction = Prediction(
        dense=computing(work.dense_flops, DENSE_EFFICIENCY, work.dense_bytes),
        attention=computing(work.attention_flops, ATTENTION_EFFICIENCY, work.attention_bytes),
        recurrence=computing(work.recurrence_flops, RECURRENCE_EFFICIENCY, work.recurrence_bytes),
        hops=wire(("collective-permute",), True),
        gathers=wire(others, True),
        exposed=wire((*others, "collective-permute"), False),
        update=work.update_bytes / chip.memory_bandwidth,
        mfu=0.0,
        ceiling=work.model_flops / work.least_flops,
        tokens_per_day=0.0,
    )
    return dataclasses.replace(
        prediction,
        mfu=work.model_flops / (rate * prediction.step),
        tokens_per_day=work.tokens * 86_400 / prediction.step,
    )
