"""Statistics of every head, layer and query of a model at a length: memory and time.

  python -m benchmarks.attention_statistics --model=MODEL --text=BOOK.txt --tokens=131072 \
      --jsonl=attention_statistics.jsonl

Reads the first tokens of a text with YaRN's rope for that length, in float32 on the CPU, and prints
what was found (entropy as a share of ln n, mass of the sink), how long it took, compilation apart,
and the greatest memory the process had. --queries=64 measures the last 64 queries alone.
--plan=8192,16384,32768 compiles only, and prints what the compiled programs will take.
"""

import argparse
import os
import resource
import sys
import time
from pathlib import Path

KIB, MIB = 1024, 1024**2


def main(argv=None) -> int:
    """Runs the benchmark; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.attention_statistics", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--model", required=True, help="a folder in Hugging Face format")
    parser.add_argument("--text", default="", help="a file; none: random tokens")
    parser.add_argument("--tokens", type=int, default=131_072)
    parser.add_argument("--queries", type=int, default=0, help="only as many, the last; 0: all")
    parser.add_argument("--block", type=int, default=512, help="tokens in a block")
    parser.add_argument("--plan", default="", help="lengths that are compiled, and not run")
    parser.add_argument("--jsonl", default="", help="append the results to this file")
    args = parser.parse_args(argv)
    os.environ["JAX_PLATFORMS"] = "cpu"
    from benchmarks import side_by_side
    from jaxrope import pretrained

    model = pretrained.load(args.model)
    about = side_by_side.machine()
    lengths = [int(length) for length in args.plan.split(",")] if args.plan else [args.tokens]
    for length in lengths:
        compiled, operands, seconds = prepare(model, args, length)
        record = dict(model=Path(args.model).name, tokens=length, queries=args.queries)
        record |= dict(block=args.block, compile_seconds=seconds) | planned(compiled) | about
        if not args.plan:
            record |= run(compiled, operands, length, args.queries)
        print(" ".join(f"{key}={value}" for key, value in record.items()), flush=True)
        side_by_side.write(args.jsonl, [record])
    return 0


def prepare(model, args, length):
    """Returns (the compiled program, what it takes, seconds to compile)."""
    import numpy as np

    from jaxrope import llama, rope
    from jaxrope.analysis import measuring, streaming
    from jaxrope.data import tokenizer

    config = model.config
    constants = dict(factor=max(1.0, length / config.original_len), beta_fast=32.0, beta_slow=1.0)
    names = ("head_dim", "rotary_dim", "theta", "original_len")
    geometry = {name: getattr(config, name) for name in names}
    r = rope.make("yarn", **constants, **geometry)(length)
    tokens_T = np.random.default_rng(0).integers(0, config.vocab_size, length)
    if args.text and not args.plan:
        encode = tokenizer.load_tokenizer(model.tokenizer_dir).encode
        # a token has a few letters: not all of a long book
        tokens_T = encode(Path(args.text).read_text(encoding="utf-8")[: 8 * length])[:length]
        if len(tokens_T) < length:
            sys.exit(f"{args.text} has {len(tokens_T)} tokens, fewer than --tokens={length}.")
    given = measuring.Given()
    if args.queries:
        given = measuring.Given(queries_BM=np.arange(length - args.queries, length)[None])
    settings = llama.ForwardSettings(attention_block=args.block, mlp_chunk=8 * args.block)
    rows = measuring.lay_out(tokens_T[None], given, config, settings)
    begin = time.perf_counter()
    compiled = measuring.of_layers.lower(
        model.params,
        r,
        rows,
        config=config,
        options=streaming.Options(block=args.block),
        settings=settings,
    ).compile()
    return compiled, (model.params, r, rows), round(time.perf_counter() - begin, 2)


def planned(compiled) -> dict[str, float]:
    """Returns what the compiled program takes, MiB."""
    found = compiled.memory_analysis()
    sizes = dict(arguments=found.argument_size_in_bytes, temporary=found.temp_size_in_bytes)
    sizes["results"] = found.output_size_in_bytes
    return {f"{name}_mib": round(size / MIB, 1) for name, size in sizes.items()}


def run(compiled, operands, length: int, queries: int) -> dict[str, float]:
    """Runs the program and returns what was found, and what it took."""
    import jax
    import numpy as np

    from jaxrope.analysis import streaming

    begin = time.perf_counter()
    found = jax.block_until_ready(compiled(*operands))
    seconds = time.perf_counter() - begin
    shares = streaming.normalised_entropy(found.entropy, found.visible)
    several = np.asarray(found.visible) > 1
    layers = len(shares)
    return dict(
        seconds=round(seconds, 2),
        pairs_per_second=round(layers * shares.shape[-1] * pairs(length, queries) / seconds),
        peak_rss_mib=round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIB / MIB, 1),
        normalised_entropy=[
            round(float(np.asarray(shares[i])[several[i]].mean()), 4) for i in range(layers)
        ],
        sink=[round(float(np.asarray(found.sink[i]).mean()), 4) for i in range(layers)],
        mass_is_whole=bool(np.abs(np.asarray(found.bin_mass).sum(-1) - 1).max() < 1e-4),
    )


def pairs(length: int, queries: int) -> int:
    """Returns the pairs of a head of a layer that are looked at."""
    first = length - queries if queries else 0
    return (length * (length + 1) - first * (first + 1)) // 2


if __name__ == "__main__":
    sys.exit(main())
