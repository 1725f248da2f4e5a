"""The rows of `make proof`: programs that are compiled for TPU slices that are not here, and what
the compiler says of each. tests/proof.py keeps their figures and judges them.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxrope import attention as attention_lib
from jaxrope import decoder, schema, topology
from jaxrope.attention import masks
from jaxrope.mesh import sharding
from jaxrope.shell import experiment
from jaxrope.topology import compile

ROOT = Path(__file__).resolve().parent.parent
_SPEC = PartitionSpec(("data", "fsdp"), "context", "tensor", None)  # of heads
MODEL = decoder.SHAPES["llama3_8b"]
Figures = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Attention:
    """Attention of one layer over a slice.

    Attributes:
      where: the slice.
      context: devices of a ring.
      tokens: of a row.
      gradient: forward and backward.
    """

    where: str
    context: int
    tokens: int
    gradient: bool

    @property
    def name(self) -> str:
        """What it is, for people and for the file it is kept in."""
        both = "forward and backward" if self.gradient else "forward"
        return f"attention {self.tokens // 1024}k {self.where} context {self.context} {both}"

    def measure(self) -> Figures:
        """Returns the compiler's peak of a device, bytes, and what becomes of the hops."""
        peak, found = ring(
            self.where, self.context, gradient=self.gradient, tokens=self.tokens // self.context
        )
        return {"peak": peak} | hops(found)


@dataclasses.dataclass(frozen=True)
class Step:
    """A training step of a config.

    Attributes:
      config: an experiment file of configs/, with its text.
      where: the slice.
      changes: keys with their values, as on the command line.
      exposed: the share of the bytes of its hops that may be exposed.
      reaches: the share of the MFU with nothing recomputed or exposed that it must reach.
    """

    config: str
    where: str
    changes: tuple[str, ...] = ()
    exposed: float = 1e-4
    reaches: float = 0.0

    @property
    def name(self) -> str:
        """What it is, for people and for the file it is kept in."""
        return " ".join(("step", self.config, self.where, *self.changes))

    def measure(self) -> Figures:
        """Returns the compiler's figures, bytes of a device, and the roofline's."""
        assignments = [tuple(change.split("=")) for change in self.changes]
        loaded = schema.read(experiment.load(str(ROOT / "configs" / self.config)))
        config = experiment.override(loaded, assignments)
        report = compile.compile_train(config, self.where, None)
        schedule, prediction = report.schedule, report.prediction
        return {
            "rows": config.train.batch_size,
            "remat": config.forward.remat,
            "mesh": report.mesh,
            "peak": report.memory.peak,
            "usable": report.memory.usable,
            "step": prediction.step,
            "mfu": prediction.mfu,
            "ceiling": prediction.ceiling,
            "sent": sum(hop.total_bytes for hop in schedule.permutes()),
            "exposed": sum(hop.total_bytes for hop in schedule.exposed()),
            "unknown_loops": schedule.unknown_loops,
            "report": report.json_dict(),
        }


Row = Attention | Step
SAVED = "forward.remat=save_attention"
# A ring over 256k tokens on each slice; on v5e a hop that is no hop to a neighbour is not
# asynchronous, whatever the program: a ring needs an axis of the torus that closes, 16 chips.
ROWS: tuple[Row, ...] = (
    Attention("v5p:2x2x2", 8, 2**15, True),
    *(
        Attention(where, context, 2**18, gradient)
        for where, context in (("v5p:4x4x4", 64), ("v5e:16x16", 16), ("v6e:16x16", 16))
        for gradient in (False, True)
    ),
    Attention("v5p:8x8x8", 512, 2**21, True),
    Step("256k.py", "v5p:4x4x4", reaches=0.98),
    Step("256k.py", "v5p:4x4x4", (SAVED,)),
    Step("256k.py", "2xv5p:4x4x4", (SAVED, "mesh.data=2", "train.accumulation=2")),
    Step("256k.py:v5e_256", "v5e:16x16"),
    Step("2m.py", "v5p:4x8x8", reaches=0.98),
    Step("256k.py:qwen3_8b", "v5p:4x4x4", exposed=3e-4),
    # most layers slide, and nothing hides that their keys go to the neighbours
    Step("256k.py:olmo3_7b", "v5p:4x4x4", exposed=0.2),
    Step("256k.py:smollm3_3b", "v5p:4x4x4"),
    Step("256k.py:gemma3_4b", "v5p:4x4x4", exposed=0.2),
    Step("256k.py:qwen3_30b_a3b", "v5p:4x4x4", exposed=3e-4),
    Step("256k.py:qwen3_30b_a3b,v5e_256", "v5e:16x16"),
    Step("256k.py:qwen3_next_80b_a3b", "v5p:4x4x4"),
)


def lower_attention(
    model: decoder.DecoderConfig,
    mesh: Mesh,
    *,
    seq_len: int,
    backend: str,
    kernel: str,
    gradient: bool,
) -> jax.stages.Lowered:
    """Returns the attention of one layer over one row for each device of (data, fsdp), lowered: its
    output, or the gradients of q, k and v from that of the output. bfloat16, one document.

    Args:
      model: for num_heads, num_kv_heads and head_dim.
      mesh: of sharding.make_mesh.
      seq_len: tokens.
      backend, kernel: names; see attention.attend.
      gradient: forward and backward.
    """

    settings = attention_lib.Settings(kernel=kernel, mesh=mesh)

    def attend(positions_BT, q_BTNH, k_BTKH, v_BTKH):
        mask = masks.self_mask(positions_BT)
        return attention_lib.attend(backend, q_BTNH, k_BTKH, v_BTKH, mask=mask, settings=settings)

    def gradients(positions_BT, q_BTNH, k_BTKH, v_BTKH, dout_BTNH):
        _, transpose = jax.vjp(lambda *qkv: attend(positions_BT, *qkv), q_BTNH, k_BTKH, v_BTKH)
        return transpose(dout_BTNH)

    rows = mesh.shape["data"] * mesh.shape["fsdp"]

    def abstract(shape, dtype, spec):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))

    def heads(number):
        return abstract((rows, seq_len, number, model.head_dim), jnp.bfloat16, _SPEC)

    where = PartitionSpec(*_SPEC[:2])
    arguments = [abstract((rows, seq_len), jnp.int32, where), heads(model.num_heads)]
    arguments += [heads(model.num_kv_heads)] * 2 + [heads(model.num_heads)] * gradient
    fn = jax.shard_map(
        gradients if gradient else attend,
        mesh=mesh,
        in_specs=tuple(leaf.sharding.spec for leaf in arguments),
        out_specs=(_SPEC,) * 3 if gradient else _SPEC,
        check_vma=False,  # kernels do not declare over which axes their results vary
    )
    return jax.jit(fn).lower(*arguments)


def ring(where: str, context: int, *, gradient: bool, tokens: int):
    """Returns (peak bytes of a device, schedule) of attention over a whole slice, `tokens` on each
    device of a ring.
    """
    sizes = dict(data=1, fsdp=-1, context=context, tensor=1)
    mesh = sharding.make_mesh(sizes, topology.devices(where))
    lowered = lower_attention(
        MODEL,
        mesh,
        seq_len=tokens * context,
        backend="ring",
        kernel="flash",
        gradient=gradient,
    )
    compiled, text = compile.with_text(lowered, "tpu")
    peak = compiled.memory_analysis().peak_memory_in_bytes
    return peak, topology.read_schedule(text)


def hops(found: topology.Schedule) -> Figures:
    """Returns what a schedule says of the hops of one ring: how many, how many are hidden, how many
    bring dK and dV home, in how many places one is exposed.
    """
    home, exposed = found.coming_home(), found.exposed()
    turns = sum(hop.times for hop in found.permutes())
    return {
        "hops": turns,
        "hidden": turns - sum(hop.times for hop in (*home, *exposed)),
        "home": sum(hop.times for hop in home),
        "exposed": len(exposed),
        "unknown_loops": found.unknown_loops,
    }
