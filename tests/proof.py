"""What the TPU compiler proves of this code, on slices that are not here: `make proof`.

  python tests/proof.py [--only=attention,overlap,flat,steps]

Every figure is the compiler's own, for the heads of Llama-3-8B and the steps of configs/. A figure
beyond its limit is told with its name; exit code 0 if there is none. docs/performance.md has the
table. It takes a quarter of an hour on two cores, and needs libtpu (`make aot`).
"""

import argparse
import dataclasses
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
from jax.sharding import Mesh, NamedSharding, PartitionSpec  # noqa: E402

from jaxrope import attention as attention_lib  # noqa: E402
from jaxrope import decoder, topology  # noqa: E402
from jaxrope.attention import masks  # noqa: E402
from jaxrope.mesh import sharding  # noqa: E402
from jaxrope.shell import experiment  # noqa: E402
from jaxrope.topology import compile, jobs  # noqa: E402

_MIB, _GIB = 2**20, 2**30
_SPEC = PartitionSpec(("data", "fsdp"), "context", "tensor", None)  # of heads
MODEL = decoder.SHAPES["llama3_8b"]
TOKENS = 4096  # of a device; 256k over 64 devices
# The compiler's peak of MaxText's ring by the same measure is 323 MiB forward and 553 MiB with the
# backward pass (its kernels of August 2026, libtpu 0.0.52).
FORWARD_LIMIT, GRADIENT_LIMIT = 245 * _MIB, 553 * _MIB
FLAT = 0.01  # as length and devices grow together
# (slice, devices of a ring over 256k tokens). On v5e a hop that is no hop to a neighbour is not
# asynchronous, whatever the program: a ring needs an axis of the torus that closes, 16 chips.
RINGS = (("v5p:4x4x4", 64), ("v5e:16x16", 16), ("v6e:16x16", 16))
# (config, slice); the config's mesh is for that slice
STEPS = (
    ("configs/256k.py", "v5p:4x4x4"),
    ("configs/256k.py:v5e_256", "v5e:16x16"),
    ("configs/2m.py", "v5p:4x8x8"),
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


@dataclasses.dataclass(frozen=True)
class Finding:
    """A figure and what it must be."""

    what: str
    where: str
    figure: str
    limit: str
    holds: bool

    def row(self) -> str:
        """Returns it as a row of a table in Markdown."""
        verdict = "yes" if self.holds else "**no**"
        return f"| {self.what} | {self.where} | {self.figure} | {self.limit} | {verdict} |"


def ring(where: str, context: int, *, gradient: bool, tokens: int = TOKENS):
    """Returns (peak bytes of a device, schedule) of attention over a whole slice."""
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


def attention() -> Iterator[Finding]:
    """Memory of one layer's attention over 256k tokens."""
    for gradient, limit in ((False, FORWARD_LIMIT), (True, GRADIENT_LIMIT)):
        peak, _ = ring("v5p:4x4x4", 64, gradient=gradient)
        what = "attention, 256k tokens, " + ("forward and backward" if gradient else "forward")
        yield Finding(
            what,
            "v5p:4x4x4",
            f"{peak / _MIB:.0f} MiB",
            f"{'<' if gradient else '<='} {limit / _MIB:.0f} MiB",
            peak < limit + (not gradient),
        )


def overlap() -> Iterator[Finding]:
    """Every hop behind arithmetic but the last one, which takes dK and dV home."""
    for where, context in RINGS:
        for gradient in (False, True):
            _, found = ring(where, context, gradient=gradient, tokens=2**18 // context)
            yield hops(found, where, gradient=gradient)


def hops(found: topology.Schedule, where: str, *, gradient: bool) -> Finding:
    """Returns what a schedule says of the hops of one ring."""
    home, exposed = found.coming_home(), found.exposed()
    turns = sum(hop.times for hop in found.permutes())
    hidden = turns - sum(hop.times for hop in (*home, *exposed))
    size = max(hop.devices for hop in found.permutes())
    what = f"hops of a ring of {size}, " + ("forward and backward" if gradient else "forward")
    once = sum(hop.times for hop in home) <= 2 * gradient  # dK and dV
    return Finding(
        what,
        where,
        f"{hidden} of {turns} hidden, {len(home)} bring dK and dV home, {len(exposed)} exposed",
        "none exposed",
        not exposed and once and not found.unknown_loops and hidden > 0,
    )


def flat() -> Iterator[Finding]:
    """Memory as length and devices grow together."""
    peaks = {}
    for where, context in (("v5p:2x2x2", 8), ("v5p:4x4x4", 64), ("v5p:8x8x8", 512)):
        peaks[context], _ = ring(where, context, gradient=True)
        least = min(peaks.values())
        yield Finding(
            f"attention, {TOKENS * context // 1024}k tokens, forward and backward",
            where,
            f"{peaks[context] / _MIB:.1f} MiB",
            f"within {FLAT:.0%} of the others",
            peaks[context] <= least * (1 + FLAT) and peaks[8] <= least * (1 + FLAT),
        )


def steps() -> Iterator[Finding]:
    """The training steps of configs/ fit, and what they take by the roofline."""
    for config, where in STEPS:
        report = compile.compile_config(
            jobs.train_job, experiment.load(str(ROOT / config)), where, None
        )
        memory, prediction = report.memory, report.prediction
        sent = sum(hop.total_bytes for hop in report.schedule.permutes())
        exposed = sum(hop.total_bytes for hop in report.schedule.exposed())
        yield Finding(
            f"training step of {config}",
            where,
            f"{memory.peak / _GIB:.1f} GiB; by the roofline {prediction.step:.0f} s, "
            f"{prediction.mfu:.0%} MFU",
            f"{memory.usable / _GIB:.2f} GiB",
            memory.peak <= memory.usable,
        )
        yield Finding(
            f"hops of its ring, {config}",
            where,
            f"{exposed / _MIB:.2f} of {sent / _MIB:,.0f} MiB exposed",
            "a thousandth",
            exposed <= sent / 1000 and not report.schedule.unknown_loops,
        )


CHECKS: dict[str, Callable[[], Iterator[Finding]]] = {
    "attention": attention,
    "overlap": overlap,
    "flat": flat,
    "steps": steps,
}


def main() -> int:
    """Runs the checks; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default=",".join(CHECKS))
    found = []
    print("| what | slice | the compiler's figure | limit | holds |\n|---|---|---|---|---|")
    for name in parser.parse_args().only.split(","):
        for finding in CHECKS[name]():
            found.append(finding)
            print(finding.row(), flush=True)
    print(f"libtpu {topology.libtpu_version()}")
    failed = [finding for finding in found if not finding.holds]
    for finding in failed:
        print(f"FAILED: {finding.what}, {finding.where}: {finding.figure}, not {finding.limit}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
