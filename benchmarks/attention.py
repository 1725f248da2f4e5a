"""Attention backends side by side: time, memory of a device, arithmetic that was not needed.

  python -m benchmarks.attention --jsonl=attention.jsonl

On 8 CPU devices: ours, and the package `ringattention` 0.1.2 in an environment of its own, all of
them on the same inputs, in turns. "times" is how many times as long as the ring it took, the median
of the rounds. "waste" is what was computed beyond the causal half, of all devices and, where they
wait for each other hop by hop, of the slowest ones. --quick: one small case.
Exit code 1: two backends disagree.
"""

import argparse
import os
import sys

from jaxrope.shell import heap

DEVICES, HEADS, HEAD_DIM = 8, 8, 64
LAYOUTS = {"MHA": 8, "GQA": 2, "MQA": 1}  # kv heads
CASES = (("GQA", 2048), ("GQA", 4096), ("GQA", 8192), ("MHA", 4096), ("MQA", 4096))
OURS = (
    ("ring", 1),
    ("all_gather", 1),
    ("ulysses", 1),
    ("usp", 2),
    ("blockwise", 1),
    ("reference", 1),
)
REFERENCE_MOST = 4096  # tokens: its weights are 0.5 GiB there, and several of them are alive
PACKAGE = "ringattention"
TOLERANCE = 1e-3  # of the sums of |out| and |dq|, relative, in float32


def main(argv=None) -> int:
    """Runs the benchmark; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.attention", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--block", type=int, default=512, help="tokens in a block, of everybody")
    parser.add_argument("--package_env", default="", help="where ringattention is, or is to be put")
    parser.add_argument("--no_package", action="store_true")
    parser.add_argument("--jsonl", default="", help="append the results to this file")
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args(argv)
    os.environ["JAX_PLATFORMS"] = "cpu"
    import jax

    from benchmarks import side_by_side

    jax.config.update("jax_num_cpu_devices", DEVICES)
    about = side_by_side.machine() | {"jax": jax.__version__}
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    records = []
    with _package(args) as package:
        for layout, length in (("GQA", 512),) if args.quick else CASES:
            for record in _case(layout, length, args, package):
                records.append(record | {"machine": about})
    side_by_side.write(args.jsonl, records)
    return int(not all(record["agrees"] for record in records))


def _package(args):
    """Returns the running package, or a context of None with a line that says why."""
    import contextlib

    from benchmarks import ring_package

    if args.no_package:
        return contextlib.nullcontext()
    place, why = ring_package.install(args.package_env)
    if place is None:
        print(f"{PACKAGE} is not there: {why}")
        return contextlib.nullcontext()
    return ring_package.Package(place, DEVICES)


def _case(layout, length, args, package):
    """Yields a record for each backend, after printing its line."""
    from benchmarks import side_by_side, waste

    kv_heads = LAYOUTS[layout]
    case = dict(length=length, heads=HEADS, kv_heads=kv_heads, head_dim=HEAD_DIM, block=args.block)
    sums, sizes, fns = {}, {}, {"forward": {}, "both": {}}
    for backend, ulysses in OURS:
        if backend == "reference" and length > REFERENCE_MOST:
            continue
        compiled, operands = _compile(backend, ulysses, case)
        sizes[backend] = {name: _bytes(fn) for name, fn in compiled.items()}
        sums[backend] = _sums(compiled["both"](*operands))
        for name in fns:
            fns[name][backend] = _runner(compiled[name], operands[: 3 if name == "forward" else 4])
    if package:
        found = package.start(case)
        sizes[PACKAGE], sums[PACKAGE] = found["bytes"], found["sums"]
        for name in fns:
            fns[name][PACKAGE] = package.runner(name)
            fns[name][PACKAGE]()
    rounds = 2 if args.quick else args.rounds
    seconds = {name: side_by_side.seconds(fns[name], rounds) for name in fns}
    print(f"\n{layout} ({HEADS} heads, {kv_heads} kv heads of {HEAD_DIM}), {length:,} tokens")
    print(f"{'':14} {'forward':>9} {'times':>6} {'with grad':>10} {'times':>6}", end="")
    print(f" {'MiB':>7} {'with grad':>10} {'waste':>7} {'slowest':>8}")
    for backend in sums:
        record = dict(case, layout=layout, backend=backend, bytes=sizes[backend])
        record["seconds"] = {name: seconds[name][backend] for name in seconds}
        record["times"] = {
            name: side_by_side.ratio(seconds[name]["ring"], seconds[name][backend])
            for name in seconds
        }
        record["devices"] = 1 if backend in ("blockwise", "reference") else DEVICES
        record["waste"] = waste.of(backend, case, DEVICES, dict(OURS).get(backend, 1))
        pairs = zip(sums[backend], sums["blockwise"], strict=True)
        record["agrees"] = all(abs(a / b - 1) < TOLERANCE for a, b in pairs)
        print(_line(record), flush=True)
        yield record


def _line(record) -> str:
    middle = {name: sorted(runs)[len(runs) // 2] for name, runs in record["seconds"].items()}
    line = f"{record['backend']:14}"
    for name, width in (("forward", 8), ("both", 9)):
        line += f" {middle[name]:{width}.3f}s {record['times'][name]['median']:6.2f}"
    line += f" {record['bytes']['forward'] / 2**20:7.1f} {record['bytes']['both'] / 2**20:10.1f}"
    total, slowest = record["waste"]
    line += f" {total:6.0%} {slowest:8.0%}"
    line += "  on one device" if record["devices"] == 1 else ""
    return line + ("" if record["agrees"] else "  DISAGREES")


def _compile(backend, ulysses, case):
    """Returns ({"forward", "both": compiled}, operands on the devices, in the backend's order)."""
    import functools

    import jax
    import numpy as np
    from jax.sharding import NamedSharding, PartitionSpec

    from jaxrope import attention
    from jaxrope.attention import masks
    from jaxrope.mesh import sharding

    spread = backend in attention.SPREAD
    num = DEVICES if spread else 1
    mesh = sharding.make_mesh(dict(data=1, fsdp=1, context=num, tensor=1), jax.devices()[:num])
    spec = PartitionSpec(None, "context")
    length, heads, kv_heads = case["length"], case["heads"], case["kv_heads"]

    settings = attention.Settings(block=case["block"], mesh=mesh, ulysses=ulysses)

    def local(positions_BT, q, k, v):
        mask = masks.self_mask(positions_BT)
        return attention.attend(backend, q, k, v, mask=mask, settings=settings)

    whole = jax.shard_map(local, mesh=mesh, in_specs=(spec,) * 4, out_specs=spec, check_vma=False)
    order = attention.order(backend, length, num, ulysses)
    order = np.arange(length) if order is None else order
    rng = np.random.default_rng(0)
    operands = [
        rng.standard_normal((1, length, n, case["head_dim"]), np.float32)[:, order]
        for n in (heads, kv_heads, kv_heads, heads)
    ]
    where = NamedSharding(mesh, spec)
    operands = [jax.device_put(x, where) for x in operands]
    attend = functools.partial(whole, jax.device_put(order.astype(np.int32)[None], where))

    def both(q, k, v, dout):
        out, pull = jax.vjp(attend, q, k, v)
        return out, *pull(dout)

    compiled = {
        "forward": jax.jit(attend).lower(*operands[:3]).compile(),
        "both": jax.jit(both).lower(*operands).compile(),
    }
    return compiled, operands


def _runner(compiled, operands):
    import jax

    return lambda: jax.block_until_ready(compiled(*operands))


def _sums(results):
    import numpy as np

    return [float(np.abs(np.asarray(x, np.float64)).sum()) for x in results[:2]]


def _bytes(compiled) -> int:
    """Bytes on a device: arguments, results and temporaries."""
    found = compiled.memory_analysis()
    return found.argument_size_in_bytes + found.output_size_in_bytes + found.temp_size_in_bytes


if __name__ == "__main__":
    heap.keep()  # for both sides, as our programs do
    sys.exit(main())
