"""Runs the package `ringattention` for benchmarks.attention, in an environment of its own.

Reads a JSON object a line, answers with one: {"case": {...}} makes and compiles a case, {"run":
"forward" or "both"} runs it once and says how long that took.
"""

import functools
import json
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.shard_map import shard_map
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ringattention import ringattention_jax


def make(case):
    """Returns ({name: compiled}, operands); the gradients are for one given dout."""
    block = min(case["block"], case["length"] // len(jax.devices()))
    how = dict(causal_block_size=1, deterministic=True, dropout_rng=None, attn_pdrop=0.0)
    how |= dict(query_chunk_size=block, key_chunk_size=block, dtype=jnp.float32, precision=None)
    how |= dict(policy=jax.checkpoint_policies.nothing_saveable, prevent_cse=False)

    def local(q, k, v):
        return ringattention_jax(q, k, v, None, None, None, "sp", True, how)

    mesh = Mesh(np.asarray(jax.devices()), ("sp",))
    spec = PartitionSpec(None, "sp")
    part = functools.partial(shard_map, mesh=mesh, in_specs=spec, out_specs=spec, check_rep=False)
    attend = part(local)

    def both(q, k, v, dout):
        out, pull = jax.vjp(attend, q, k, v)
        return out, *pull(dout)

    rng = np.random.default_rng(0)
    shape = (1, case["length"], case["heads"], case["head_dim"])
    q, k, v, dout = (
        rng.standard_normal((*shape[:2], heads, shape[3]), np.float32)
        for heads in (case["heads"], case["kv_heads"], case["kv_heads"], case["heads"])
    )
    repeats = case["heads"] // case["kv_heads"]  # it knows no groups of heads
    k, v = (np.repeat(x, repeats, axis=2) for x in (k, v))
    operands = [jax.device_put(x, NamedSharding(mesh, spec)) for x in (q, k, v, dout)]
    compiled = {
        "forward": jax.jit(attend).lower(*operands[:3]).compile(),
        "both": jax.jit(both).lower(*operands).compile(),
    }
    return compiled, operands


def sizes(compiled):
    """Returns the bytes on a device: arguments, results and temporaries."""
    found = compiled.memory_analysis()
    return found.argument_size_in_bytes + found.output_size_in_bytes + found.temp_size_in_bytes


def run(compiled, operands, name):
    """Returns (seconds, results)."""
    begin = time.perf_counter()
    results = jax.block_until_ready(compiled[name](*operands[: 3 if name == "forward" else 4]))
    return time.perf_counter() - begin, results


def answer(request, state):
    """Returns the answer to a request, and the state after it."""
    if "case" in request:
        compiled, operands = state = make(request["case"])
        out, dq, *_ = run(compiled, operands, "both")[1]
        sums = [float(jnp.abs(x).sum()) for x in (out, dq)]
        return {"bytes": {n: sizes(c) for n, c in compiled.items()}, "sums": sums}, state
    return {"seconds": run(*state, request["run"])[0]}, state


def main():
    """Serves until its input ends."""
    state = None
    for line in sys.stdin:
        found, state = answer(json.loads(line), state)
        print(json.dumps(found), flush=True)


main()
