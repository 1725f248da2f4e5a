"""benchmarks.attention --gpu: our backends against cuDNN (through jax) and torch's SDPA on one GPU.

bfloat16, causal, one row, forward and forward with gradients; TFLOP/s count the causal half, and
the backward pass as 2.5 times the forward one. What a GPU, or an installation, has not is said and
passed over.
"""

LENGTHS = (8192, 16_384, 32_768, 65_536, 131_072)
HEADS, KV_HEADS, HEAD_DIM = 32, 8, 128  # Llama-3-8B
BLOCK = 1024


def run(args) -> int:
    """Runs the comparison; returns the exit code."""
    import os

    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # torch needs memory too
    import jax

    from benchmarks import side_by_side

    if jax.default_backend() != "gpu":
        print(f"--gpu: jax has no GPU here, its platform is '{jax.default_backend()}'")
        return 1
    about = side_by_side.machine() | {"gpu": jax.devices()[0].device_kind, "jax": jax.__version__}
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    rounds, lengths = (2, LENGTHS[:1]) if args.quick else (args.rounds, LENGTHS)
    for length in lengths:
        fns, missing = {"forward": {}, "both": {}}, []
        for name, make in PEERS.items():
            try:
                made = make(length)
                for what, fn in made.items():
                    fn()  # compiles; and shows whether it fits
                    fns[what][name] = fn
            except (ImportError, NotImplementedError, ValueError, RuntimeError) as error:
                text = str(error).splitlines() or [type(error).__name__]
                missing.append(f"{name}: {text[0][:120]}")
                for each in fns.values():
                    each.pop(name, None)
        seconds = {what: side_by_side.seconds(fns[what], rounds) for what in fns}
        print(f"\n{length:,} tokens" + "".join(f"\n  not {line}" for line in missing))
        for name in fns["both"]:
            record = _record(name, length, {what: seconds[what][name] for what in seconds})
            print(
                "  {peer:10} forward {forward:7.1f} TFLOP/s, with gradients {both:7.1f}".format(
                    **record
                )
            )
            side_by_side.write(args.jsonl, [record | {"machine": about}])
    return 0


def _record(name, length, seconds):
    work = 2.0 * HEADS * HEAD_DIM * length**2  # of the forward pass, its causal half
    best = {what: min(runs) for what, runs in seconds.items()}
    return dict(
        peer=name,
        length=length,
        seconds=seconds,
        forward=work / best["forward"] / 1e12,
        both=3.5 * work / best["both"] / 1e12,
    )


def _jax(attend_fn):
    """Returns the two programs of a function (q, k, v) -> out."""

    def make(length):
        import jax
        import jax.numpy as jnp

        keys = jax.random.split(jax.random.key(0), 4)
        q, k, v, dout = (
            jax.random.normal(key, (1, length, heads, HEAD_DIM), jnp.bfloat16)
            for key, heads in zip(keys, (HEADS, KV_HEADS, KV_HEADS, HEADS), strict=True)
        )

        def both(q, k, v, dout):
            out, pull = jax.vjp(attend_fn, q, k, v)
            return out, *pull(dout)

        forward, whole = jax.jit(attend_fn), jax.jit(both)
        return {
            "forward": lambda: jax.block_until_ready(forward(q, k, v)),
            "both": lambda: jax.block_until_ready(whole(q, k, v, dout)),
        }

    return make


def _ours(backend):
    def attend_fn(q, k, v):
        import jax.numpy as jnp

        from jaxrope import attention
        from jaxrope.attention import masks

        places = jnp.arange(q.shape[1], dtype=jnp.int32)[None]
        kernel = "cudnn" if backend == "flash" else "blockwise"
        settings = attention.Settings(block=BLOCK, kernel=kernel)
        mask = masks.self_mask(places, natural=True)
        return attention.attend(backend, q, k, v, mask=mask, settings=settings)

    return attend_fn


def _cudnn(q, k, v):
    import jax

    return jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation="cudnn")


def _torch(length):
    import torch

    if not torch.cuda.is_available():
        raise ImportError("torch has no GPU")
    q, k, v, dout = (
        torch.randn(1, heads, length, HEAD_DIM, device="cuda", dtype=torch.bfloat16)
        for heads in (HEADS, KV_HEADS, KV_HEADS, HEADS)
    )
    for x in (q, k, v):
        x.requires_grad_()

    def attend():
        return torch.nn.functional.scaled_dot_product_attention(
            q, k, v, is_causal=True, enable_gqa=True
        )

    def forward():
        with torch.no_grad():
            attend()
        torch.cuda.synchronize()

    def both():
        torch.autograd.grad(attend(), (q, k, v), dout)
        torch.cuda.synchronize()

    return {"forward": forward, "both": both}


PEERS = {
    "flash": _jax(_ours("flash")),
    "blockwise": _jax(_ours("blockwise")),
    "cuDNN": _jax(_cudnn),
    "torch SDPA": _torch,
}
