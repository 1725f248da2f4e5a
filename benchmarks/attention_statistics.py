"""Statistics of every layer, head and query of a model at several lengths: memory, time, growth.

  python -m benchmarks.attention_statistics --model=MODEL --text=BOOK.txt \
      --lengths=8192,32768,131072 --jsonl=attention_statistics.jsonl

Reads the first tokens of a text with YaRN's rope for each length, in float32 on two cores, and
prints what was found (entropy as a share of ln n, mass of the sink), how long it took, compilation
apart, and the greatest memory the process had: each length has a process of its own. Then the
growth from length to length. The exit code is 1 if a process took more than --limit_gib, the
program's own memory grew faster than the length, or a query's probabilities do not add up to 1.

--queries=1024 measures as many queries, evenly from the whole text, instead of all: the time is
then that of the forward pass. --plan compiles only, and prints what the programs will take.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

KIB, MIB, GIB = 1024, 1024**2, 1024**3
MOST_GROWTH = 1.05  # of the program's memory, beside that of the length


def main(argv=None) -> int:
    """Runs the benchmark; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.attention_statistics", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--model", required=True, help="a folder in Hugging Face format")
    parser.add_argument("--text", default="", help="a file; none: random tokens")
    parser.add_argument("--lengths", default="8192,32768,131072", help="tokens, ascending")
    parser.add_argument("--queries", type=int, default=0, help="measured; 0: all")
    parser.add_argument("--block", type=int, default=512, help="tokens in a block")
    parser.add_argument("--cores", type=int, default=2, help="of the processor that are used")
    parser.add_argument("--limit_gib", type=float, default=24.0, help="memory of a process")
    parser.add_argument("--plan", action="store_true", help="compile only")
    parser.add_argument("--jsonl", default="", help="append the results to this file")
    args = parser.parse_args(argv)
    lengths = [int(length) for length in args.lengths.split(",")]
    if lengths != sorted(set(lengths)) or lengths[0] < 2:
        parser.error(f"--lengths must ascend from 2 on, got {args.lengths}.")
    from benchmarks import side_by_side

    if len(lengths) == 1:
        record = one(args, lengths[0], side_by_side.machine())
        print(" ".join(f"{key}={value}" for key, value in record.items()), flush=True)
        side_by_side.write(args.jsonl, [record])
        return 0
    records = []
    for length in lengths:
        if records and not args.plan:
            print(f"{length:,} tokens: about {expected(records[-1], length):,.0f} s", flush=True)
        records.append(alone(argv or sys.argv[1:], length))
        side_by_side.write(args.jsonl, records[-1:])
    return judge(records, args.limit_gib)


def alone(argv, length: int) -> dict:
    """Returns the record of a process that does nothing else."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "record.jsonl"
        command = [sys.executable, "-m", "benchmarks.attention_statistics", *argv]
        subprocess.run([*command, f"--lengths={length}", f"--jsonl={file}"], check=True)
        return json.loads(file.read_text(encoding="utf-8"))


def expected(record: dict, length: int) -> float:
    """Returns the seconds that a length should take, by those of a shorter one."""
    return record["seconds"] * (length / record["tokens"]) ** 2


def judge(records: list[dict], limit_gib: float) -> int:
    """Prints how memory and time grow; returns the exit code."""
    failed = False
    for before, after in zip(records, records[1:], strict=False):
        tokens = after["tokens"] / before["tokens"]
        own = after["program_mib"] / before["program_mib"]
        says = [f"tokens x{tokens:.2f}", f"program's memory x{own:.2f}"]
        for key, name in (("peak_rss_mib", "peak memory"), ("seconds", "time")):
            says += [f"{name} x{after[key] / before[key]:.2f}"] if key in after else []
        failed |= own > MOST_GROWTH * tokens
        print(f"{before['tokens']:,} -> {after['tokens']:,}: " + ", ".join(says))
    failed |= not all(record.get("mass_is_whole", True) for record in records)
    largest = max(record.get("peak_rss_mib", record["program_mib"]) for record in records)
    failed |= largest * MIB > limit_gib * GIB
    say = "FAILED" if failed else "ok"
    print(f"{say}: {largest * MIB / GIB:.2f} GiB at most, of {limit_gib:g} GiB", flush=True)
    return int(failed)


def one(args, length: int, about: dict) -> dict:
    """Returns the record of a length, measured in this process."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.cores])
    os.environ["JAX_PLATFORMS"] = "cpu"
    compiled, operands, queries, seconds = prepare(args, length)
    record = dict(model=Path(args.model).name, tokens=length, queries=len(queries))
    record |= dict(block=args.block, compile_seconds=seconds) | planned(compiled) | about
    record["cores"] = min(args.cores, record["cores"])
    return record if args.plan else record | run(compiled, operands, queries)


def prepare(args, length: int):
    """Returns (the compiled program, what it takes, places of the queries, seconds to compile)."""
    import numpy as np

    from jaxrope import decoder, rope
    from jaxrope.analysis import measuring, streaming
    from jaxrope.convert import pretrained

    model = pretrained.load(args.model)
    config = model.config
    constants = dict(factor=max(1.0, length / config.original_len), beta_fast=32.0, beta_slow=1.0)
    names = ("head_dim", "rotary_dim", "theta", "original_len")
    geometry = {name: getattr(config, name) for name in names}
    r = rope.make("yarn", **constants, **geometry)(length)
    inputs, queries = measuring.Inputs(), np.arange(length)
    if args.queries:
        queries = np.rint(np.linspace(0, length - 1, min(args.queries, length))).astype(int)
        inputs = measuring.Inputs(queries_BM=queries[None])
    settings = decoder.ForwardSettings(attention_block=args.block, mlp_chunk=8 * args.block)
    rows = measuring.lay_out(tokens_of(args, model, length)[None], inputs, config, settings)
    begin = time.perf_counter()
    compiled = measuring.of_layers.lower(
        model.params,
        r,
        rows,
        config=config,
        options=streaming.Options(block=args.block),
        settings=settings,
    ).compile()
    return compiled, (model.params, r, rows), queries, round(time.perf_counter() - begin, 2)


def tokens_of(args, model, length: int):
    """Returns the first tokens of the text, or random ones."""
    import numpy as np

    from jaxrope.data import tokenizer

    if args.plan or not args.text:
        return np.random.default_rng(0).integers(0, model.config.vocab_size, length)
    encode = tokenizer.load_tokenizer(model.tokenizer_dir).encode
    # a token has a few letters: not all of a long book
    tokens_T = np.array(encode(Path(args.text).read_text(encoding="utf-8")[: 8 * length])[:length])
    if len(tokens_T) < length:
        sys.exit(f"--text={args.text} has {len(tokens_T)} tokens, and {length} are asked for.")
    return tokens_T


def planned(compiled) -> dict[str, float]:
    """Returns what the compiled program takes beside the model, MiB."""
    found = compiled.memory_analysis()
    sizes = dict(temporary=found.temp_size_in_bytes, results=found.output_size_in_bytes)
    sizes["program"] = sum(sizes.values())
    return {f"{name}_mib": round(size / MIB, 1) for name, size in sizes.items()}


def run(compiled, operands, queries) -> dict:
    """Runs the program and returns what was found, and what it took."""
    import jax
    import numpy as np

    from jaxrope.analysis import streaming

    begin, cpu_begin = time.perf_counter(), time.process_time()
    found = jax.block_until_ready(compiled(*operands))
    seconds, cpu_seconds = time.perf_counter() - begin, time.process_time() - cpu_begin
    shares = np.asarray(streaming.normalised_entropy(found.entropy, found.visible))
    several, (layers, _, _, num_heads) = np.asarray(found.visible) > 1, shares.shape
    pairs = layers * num_heads * int(np.sum(queries + 1.0))
    return dict(
        seconds=round(seconds, 2),
        cpu_seconds=round(cpu_seconds, 2),  # of all cores: what else runs does not count
        pairs=pairs,
        pairs_per_second=round(pairs / seconds),
        peak_rss_mib=round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIB / MIB, 1),
        normalised_entropy=[round(float(shares[i][several[i]].mean()), 4) for i in range(layers)],
        sink=[round(float(np.asarray(found.sink[i]).mean()), 4) for i in range(layers)],
        mass_is_whole=bool(np.abs(np.asarray(found.bin_mass).sum(-1) - 1).max() < 1e-4),
    )


if __name__ == "__main__":
    sys.exit(main())
