"""One GPU in eight minutes: does our attention compute what it should there, and how fast is what
is built on it.

  python -m benchmarks.gpu --jsonl=gpu.jsonl

needs jax for GPUs and what `jaxrope.train` needs, no file and no network; torch where it is
installed. Four parts, each a process of its own within its seconds, so that one which fails or
takes too long takes nothing from the next:

  conformance  values and gradients against the definition, also of the hops of a ring, one device
               taking the place of all
  attention    forward, and with gradients, against cuDNN through jax and torch's SDPA
  training     a step of Llama-3-8B's shape with adapters and remat
  search       a batch of candidates on Llama-3.2-1B's shape

bfloat16, random weights. TFLOP/s count the pairs of tokens that see each other, the backward pass
2.5 times the forward one (3.5 with it), and shares are of --peak, what large products of matrices
reach on an H200. --quick: tiny shapes, on any device. Exit code 1: a part failed, or results
disagree.
"""

import argparse
import functools
import os
import subprocess
import sys
import tempfile
import time

SIZES = 32, 8, 128  # heads, kv heads, head dim of Llama-3-8B
LENGTHS = (32_768, 8192, 131_072)  # what counts most first
LONGEST_BLOCKS = 8192  # tokens that attention in blocks is timed with
LENGTH, DOCUMENTS, WINDOW = 32_768, 8, 4096
CANDIDATES = (1, 4)
REMAT = "save_attention"
AT_LEAST = 0.2  # seconds that a program is repeated for in a round
ONE = dict(data=1, fsdp=1, context=1, tensor=1)


def main(argv=None) -> int:
    """Runs the parts; returns the exit code."""
    parser = argparse.ArgumentParser(prog="benchmarks.gpu", description=__doc__.split("\n\n")[0])
    parser.add_argument("--part", choices=PARTS, help="this one alone, in this process")
    parser.add_argument("--seconds", type=float, default=480.0, help="for all parts together")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--peak", type=float, default=790.0, help="TFLOP/s")
    parser.add_argument("--jsonl", default="", help="append the results to this file")
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args(argv)
    if args.part:
        return _alone(args)
    end, failed = time.monotonic() + args.seconds, False
    for name, (_, seconds) in PARTS.items():
        limit = max(1.0, min(seconds, end - time.monotonic()))
        why = _failure(_command(argv or sys.argv[1:], name), limit)
        failed |= why is not None
        if why is not None:
            print(f"{name}: {why}", flush=True)
    return int(failed)


def _command(argv: list[str], name: str) -> list[str]:
    return [sys.executable, "-m", "benchmarks.gpu", *argv, f"--part={name}"]


def _failure(command: list[str], limit: float) -> str | None:
    """Runs a part; returns why it failed, in a line."""
    with tempfile.TemporaryFile("w+") as errors:
        try:
            code = subprocess.run(command, stderr=errors, timeout=limit).returncode
        except subprocess.TimeoutExpired:
            return f"not finished within {limit:.0f} s"
        errors.seek(0)
        said = [line for line in errors.read().splitlines() if line.strip()]
    if code:
        return f"failed (exit code {code}): {said[-1][:300] if said else 'see above'}"
    return None


def _alone(args) -> int:
    # torch takes memory of its own, and a step nearly all of it
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.95")
    import jax

    from benchmarks import side_by_side

    device = jax.devices()[0]
    about = side_by_side.machine() | {"device": device.device_kind, "jax": jax.__version__}
    print(f"\n{args.part}: {device.device_kind}, jax {jax.__version__}", flush=True)
    agree = True
    for record in PARTS[args.part][0](args):
        if memory := (device.memory_stats() or {}).get("peak_bytes_in_use"):
            record["peak_gib"] = memory / 2**30
        agree &= record.get("agrees", True)
        print("  " + _line(record), flush=True)
        side_by_side.write(args.jsonl, [{"part": args.part} | record | {"machine": about}])
    if not agree:
        print("results disagree", file=sys.stderr)
    return int(not agree)


def _line(record) -> str:
    """Returns a record as a line: numbers with three digits."""

    def text(value):
        if isinstance(value, dict):
            return " ".join(f"{key} {text(x)}" for key, x in value.items())
        return f"{value:.3g}" if isinstance(value, float) else f"{value}"

    return ", ".join(f"{key} {text(value)}" for key, value in record.items())


def _kernel(head_dim: int) -> tuple[str, str]:
    """Returns what `auto` is here in bfloat16, without the trial of a program: it would hide what
    is measured here.
    """
    import jax

    from jaxrope import attention
    from jaxrope.attention import cudnn
    from jaxrope.mesh import sharding

    mesh = sharding.make_mesh(ONE, jax.devices()[:1])
    platform, lack = sharding.platform(mesh), None
    if platform == "gpu":
        how = dict(capped=False, capability=sharding.capability(mesh))
        lack = cudnn.lacks("bfloat16", head_dim, **how)
    return attention.resolve("auto", "auto", mesh, platform=platform, lack=lack)


def conformance(args):
    """Yields the errors of each mask; see gpu_conformance."""
    from benchmarks import gpu_conformance

    length = 96 if args.quick else 2048
    sizes = ((4, 2, 16),) if args.quick else ((32, 8, 128), (8, 8, 64), (4, 1, 256))
    for size in sizes:
        backend, kernel = _kernel(size[-1])
        for case in gpu_conformance.cases(length):
            if size == sizes[0] or case.name == "packed":
                yield gpu_conformance.compared(case, backend, kernel, size)


def attention(args):
    """Yields TFLOP/s of each peer at each length; see gpu_attention."""
    from benchmarks import gpu_attention

    sizes = (4, 2, 16) if args.quick else SIZES
    for length in (128,) if args.quick else LENGTHS:
        peers = gpu_attention.peers(*_kernel(sizes[-1]), length, DOCUMENTS, WINDOW)
        if length > LONGEST_BLOCKS:
            peers.pop("blocks")
        yield from _timed_peers(peers, length, sizes, args)


def _timed_peers(peers: dict, length: int, sizes, args):
    import jax

    fns = {"forward": {}, "both": {}}
    for name, peer in peers.items():
        try:
            made = peer.make(length, sizes)
            for fn, wait in made.values():
                wait(fn())  # compiles; and shows whether it fits
        except Exception as error:  # of any library: the others go on
            text = (str(error).splitlines() or [""])[0][:160]
            print(f"  {length:,} tokens, not {name}: {type(error).__name__} {text}", flush=True)
            continue
        for what, program in made.items():
            fns[what][name] = program
    seconds = {what: _seconds(fns[what], args) for what in fns}
    for name in fns["both"]:
        work = 4.0 * sizes[0] * sizes[2] * peers[name].pairs / 1e12
        rates = dict(
            forward=work / seconds["forward"][name], both=3.5 * work / seconds["both"][name]
        )
        yield dict(
            tokens=length,
            peer=name,
            tflops=rates,
            share={what: rate / args.peak for what, rate in rates.items()},
            seconds={what: seconds[what][name] for what in rates},
        )
    jax.clear_caches()


def _seconds(fns: dict, args) -> dict[str, float]:
    """Returns {name: seconds of a run}, the least of the rounds; taken in turns."""
    counts, found = {}, dict.fromkeys(fns, float("inf"))
    for turn in range(args.rounds + 1):
        for name, (fn, wait) in fns.items():
            count = counts.get(name, 1)
            begin = time.perf_counter()
            for _ in range(count):
                last = fn()
            wait(last)
            took = (time.perf_counter() - begin) / count
            if turn:
                found[name] = min(found[name], took)
            counts[name] = 1 if args.quick else max(1, min(1000, int(AT_LEAST / took)))
    return found


def training(args):
    """Yields the MFU of a step, of one document a row and of several."""
    import jax
    import numpy as np
    import optax

    from jaxrope import decoder
    from jaxrope.train import lora as lora_lib
    from jaxrope.train import optimizer as optimizers
    from jaxrope.train import step as step_lib

    model, length = _shape("llama3_8b", args)
    settings = _settings(model, remat=REMAT)
    lora = lora_lib.Lora(16, 16.0, ("q", "k", "v", "o"), True, True, "float32", "bfloat16")

    def begin(key):
        drawn = decoder.init_params(model, key, dtype="bfloat16")
        params = lora_lib.begin(drawn, model, lora, key)
        trained, frozen = lora_lib.split(params, lora)
        trained = jax.tree.map(lambda x: x.astype("float32"), trained)
        return step_lib.init_state(lora_lib.join(trained, frozen), optimizer.transform, lora)

    schedule = optax.constant_schedule(1e-4)
    transform = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule))
    optimizer = optimizers.Optimizer(transform, schedule)
    rng, shape = np.random.default_rng(0), (1, 1, length)
    tokens = rng.integers(0, model.vocab_size, (2, *shape), np.int32)
    rope = jax.device_put(decoder.own_rope(model)(length))
    for documents in (1, DOCUMENTS):
        places = np.arange(length, dtype=np.int32).reshape(shape)
        each = length // documents
        batch = dict(tokens_BT=tokens[0], targets_BT=tokens[1], positions_BT=places % each)
        batch["segment_ids_BT"] = places // each + 1
        batch["loss_weights_BT"] = np.ones(shape, np.float32)
        batch = jax.device_put(batch)
        how = dict(chunk_tokens=512, packed=documents > 1, lora=lora)
        step = step_lib.make_step(model, settings, optimizer, **how)
        state = jax.jit(begin)(jax.random.key(0))
        first = time.perf_counter()
        compiled = jax.jit(step, donate_argnums=0).lower(state, batch, rope).compile()
        compiling, seconds = time.perf_counter() - first, []
        for _ in range(1 + args.rounds):
            first = time.perf_counter()
            state, metrics = compiled(state, batch, rope)
            loss = float(metrics["loss"])
            seconds.append(time.perf_counter() - first)
        flops = step_lib.flops_per_token(model, each, lora) * length
        yield dict(
            tokens=length,
            documents=documents,
            kernel=settings.attention_kernel,
            remat=REMAT,
            seconds=min(seconds[1:]),
            mfu=flops / min(seconds[1:]) / args.peak / 1e12,
            compile_seconds=compiling,
            planned_gib=_gib(compiled),
            loss=loss,
            agrees=bool(np.isfinite(loss)),
        )
        del state


def search(args):
    """Yields candidates a second."""
    import jax
    import numpy as np

    from jaxrope import decoder, rope
    from jaxrope.mesh import sharding
    from jaxrope.search import evaluator, objective
    from jaxrope.topology import roofline

    model, length = _shape("llama3_1b", args)
    mesh = sharding.make_mesh(ONE, jax.devices()[:1])
    settings = _settings(model, mesh=mesh)
    params = jax.jit(functools.partial(decoder.init_params, model, dtype="bfloat16"))
    params = params(jax.random.key(0))
    rng = np.random.default_rng(0)
    row = rng.integers(0, model.vocab_size, (1, length + 1), np.int32)
    judge = objective.Objective(
        loss_fn=objective.mean_nll(model, settings),
        samples=row,
        lay_out=functools.partial(decoder.lay_out, settings),
        fitness_fn=np.exp,
        unit="perplexity",
        sample_tokens=length,
        scored_tokens=length,
    )
    (sample,), plain = judge.laid(), rope.build([1.0] * (model.rotary_dim // 2), theta=model.theta)
    for count in CANDIDATES:
        how = dict(dtype="bfloat16", kind=0, per_device=count)
        compiled = evaluator.lower(judge, model, mesh, plain, **how).compile()
        ends = np.linspace(2.0, 8.0, count)
        factors_PR = np.linspace(1.0, ends, model.rotary_dim // 2, axis=-1)
        ropes = rope.stack([rope.build(f, theta=model.theta) for f in factors_PR])
        operands = params, *jax.tree.map(jax.numpy.asarray, (ropes, sample))
        operands = jax.device_put(operands, compiled.input_shardings[0])
        program = functools.partial(compiled, *operands), jax.block_until_ready
        seconds = _seconds({"batch": program}, args)["batch"]
        work = roofline.forward_work(model, ONE, rows=count, seq_len=length)
        losses = np.asarray(compiled(*operands))
        yield dict(
            tokens=length,
            candidates=count,
            kernel=settings.attention_kernel,
            seconds=seconds,
            per_second=count / seconds,
            mfu=work.model_flops / seconds / args.peak / 1e12,
            planned_gib=_gib(compiled),
            agrees=bool(np.isfinite(losses).all()),
        )


def _shape(name: str, args):
    """Returns (the shape, tokens of a row)."""
    import dataclasses

    from jaxrope import decoder

    model = decoder.SHAPES["llama3_8b"]
    if name == "llama3_1b":  # of meta-llama/Llama-3.2-1B's config.json
        small = dict(num_layers=16, embed_dim=2048, head_dim=64, rotary_dim=64, mlp_dim=8192)
        model = dataclasses.replace(model, **small, tie_embeddings=True)
    if args.quick:
        tiny = dict(num_layers=2, embed_dim=64, num_heads=4, num_kv_heads=2, mlp_dim=128)
        tiny |= dict(head_dim=16, rotary_dim=16, vocab_size=256)
        return dataclasses.replace(model, **tiny, bos_id=1, eos_id=2), 128
    return model, LENGTH


def _settings(model, **how):
    from jaxrope import decoder

    backend, kernel = _kernel(model.head_dim)
    how |= dict(attention=backend, attention_kernel=kernel, compute_dtype="bfloat16")
    return decoder.ForwardSettings(**how)


def _gib(compiled) -> float:
    """Returns what the program takes by the compiler's account."""
    found = compiled.memory_analysis()
    taken = found.argument_size_in_bytes + found.output_size_in_bytes + found.temp_size_in_bytes
    return (taken - found.alias_size_in_bytes) / 2**30


PARTS = {  # seconds: of the part, with all that it compiles
    "conformance": (conformance, 130.0),
    "attention": (attention, 140.0),
    "training": (training, 130.0),
    "search": (search, 80.0),
}

if __name__ == "__main__":
    sys.exit(main())
