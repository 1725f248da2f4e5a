"""Our training step and our search against transformers and torch: the same model, batch, length
and precision (float32), on the same cores (or GPU), in turns.

  python -m benchmarks.step --model=MODEL --jsonl=step.jsonl

in the environment of `make test`; MODEL is a Hugging Face folder. --quick: one small case of each.
torch runs with its eager and its sdpa attention, and the faster one counts. "times" is how many
times as long it took, the median of the rounds, with the range. Exit code 1: the two disagree.
"""

import argparse
import functools
import os
import sys

from jaxrope.shell import heap

TRAIN = ((8, 512), (2, 2048))  # rows, tokens
EVALUATE = ((8, 512), (2, 2048), (1, 4096))  # candidates at a time, tokens
QUICK = ((2, 64),)
SHIPPED = "jaxrope/models/stdlib-3m"
CHUNK = 512  # positions whose logits exist at one time, on both sides
TOLERANCE = 1e-3  # of the loss, relative: both compute in float32


def main(argv=None) -> int:
    """Runs the benchmark; returns the exit code."""
    parser = argparse.ArgumentParser(prog="benchmarks.step", description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", default=SHIPPED, help="a Hugging Face folder")
    parser.add_argument("--threads", type=int, default=0, help="cores to use; 0: all")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--block", type=int, default=512, help="our forward.attention_block")
    parser.add_argument("--jsonl", default="", help="append the results to this file")
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args(argv)
    if args.threads:  # before jax makes its threads
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])
    from benchmarks import side_by_side

    about = side_by_side.machine()
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    rounds = 2 if args.quick else args.rounds
    cases = [(training, size) for size in (QUICK if args.quick else TRAIN)]
    cases += [(evaluation, size) for size in (QUICK if args.quick else EVALUATE)]
    records = []
    for case, (rows, tokens) in cases:
        record = _run(case, args, rows, tokens, rounds, about)
        print(_line(record), flush=True)
        records.append(record)
    side_by_side.write(args.jsonl, records)
    return int(not all(record["agree"] for record in records))


def training(model, rows, tokens, block):
    """One optimizer step, AdamW with clipping; returns (unit, {name: fn -> loss})."""
    import jax
    import numpy as np

    from configs import base
    from jaxrope import decoder
    from jaxrope.schema import training
    from jaxrope.train import optimizer
    from jaxrope.train import step as step_lib

    ids_BT = _tokens(model, rows, tokens + 1)
    settings = decoder.ForwardSettings(attention_block=block, remat="none")
    section = base.optimizer().to_dict()  # AdamW as below, clipped at 1
    section |= dict(learning_rate=1e-4, schedule=dict(name="constant", warmup_steps=0))
    made = optimizer.make(training.Optimizer(**section), num_steps=1000)
    step = step_lib.make_step(model.config, settings, made, chunk_tokens=CHUNK)
    step = jax.jit(step, donate_argnums=0)
    shape = (1, rows, tokens)
    batch = {
        "tokens_BT": ids_BT[:, :-1].reshape(shape),
        "targets_BT": ids_BT[:, 1:].reshape(shape),
        "positions_BT": np.broadcast_to(np.arange(tokens, dtype=np.int32), shape),
        "segment_ids_BT": np.zeros(shape, np.int32),
        "loss_weights_BT": np.ones(shape, np.float32),
    }
    batch, rope = jax.device_put((batch, model.rope_fn(tokens)))
    # copies: leaves that share memory with each other cannot be donated
    state = jax.jit(lambda p: step_lib.init_state(p, made.transform))(model.params)

    def ours():
        nonlocal state
        state, metrics = step(state, batch, rope)
        return float(metrics["loss"])

    return "steps", {"ours": ours} | {
        name: _torch_training(model.source, ids_BT, name) for name in ("eager", "sdpa")
    }


def _torch_training(folder, ids_BT, attention):
    torch, network, device = _network(folder, attention)
    network.train()
    fused = torch.optim.AdamW(
        network.parameters(), lr=1e-4, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, fused=True
    )
    ids = torch.as_tensor(ids_BT, dtype=torch.long, device=device)
    inputs, targets = ids[:, :-1].contiguous(), ids[:, 1:].reshape(-1)

    def run():
        fused.zero_grad(set_to_none=True)
        logits = network(input_ids=inputs, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        fused.step()
        return loss.item()

    return run


def evaluation(model, rows, tokens, block):
    """The loss of `rows` candidates on one text; returns (unit, {name: fn -> mean loss})."""
    import jax
    import numpy as np

    from jaxrope import decoder, rope
    from jaxrope.mesh import sharding
    from jaxrope.search import evaluator, objective

    ids_T = _tokens(model, 1, tokens + 1)[0]
    mesh = sharding.make_mesh(dict(data=1, fsdp=1, context=1, tensor=1), jax.devices()[:1])
    config, settings = model.config, decoder.ForwardSettings(attention_block=block, mesh=mesh)
    factors_PR = np.linspace(1.0, np.linspace(2.0, 8.0, rows), config.rotary_dim // 2, axis=-1)
    ropes = [rope.build(f, theta=config.theta, attention_factor=1.1) for f in factors_PR]
    judge = objective.Objective(
        loss_fn=objective.mean_nll(config, settings),
        samples=ids_T[None],
        lay_out=functools.partial(decoder.lay_out, settings),
        fitness_fn=np.exp,
        unit="perplexity",
        sample_tokens=tokens,
        scored_tokens=tokens,
    )
    made = evaluator.make(judge, config, model.params, per_device=rows, mesh=mesh)

    def ours():
        return float(evaluator.evaluate(made, ropes).mean())

    return "candidates", {"ours": ours} | {
        name: _torch_evaluation(model.source, ids_T, factors_PR, config, name)
        for name in ("eager", "sdpa")
    }


def _torch_evaluation(folder, ids_T, factors_PR, config, attention):
    from jaxrope import rope

    torch, network, device = _network(folder, attention)
    network.eval()
    ids = torch.as_tensor(ids_T, dtype=torch.long, device=device)
    plain_R = rope.base_inv_freq(config.theta, config.rotary_dim)
    candidates = [torch.as_tensor(plain_R / f, dtype=torch.float32) for f in factors_PR]

    @torch.inference_mode()
    def run():
        rotary, total = network.model.rotary_emb, 0.0
        rotary.attention_scaling = 1.1
        for inv_freq in candidates:
            rotary.inv_freq = inv_freq.to(device)
            x = network.model(input_ids=ids[None, :-1], use_cache=False).last_hidden_state[0]
            parts = zip(x.split(CHUNK), ids[1:].split(CHUNK), strict=True)
            nll = sum(
                torch.nn.functional.cross_entropy(network.lm_head(part), goal, reduction="sum")
                for part, goal in parts
            )
            total += nll.item() / len(x)
        return total / len(candidates)

    return run


def _run(case, args, rows, tokens, rounds, about) -> dict:
    from benchmarks import side_by_side
    from jaxrope.convert import pretrained

    model = pretrained.load(args.model)
    unit, fns = case(model, rows, tokens, args.block)
    losses = {name: fn() for name, fn in fns.items()}  # also compiles
    agree = all(abs(loss / losses["ours"] - 1) < TOLERANCE for loss in losses.values())
    first = side_by_side.seconds(fns, 1)
    slow = [n for n in fns if n != "ours" and first[n][0] > 2 * min(first["eager"] + first["sdpa"])]
    fns = {name: fn for name, fn in fns.items() if name not in slow}  # it cannot be the faster one
    found = side_by_side.seconds(fns, rounds)
    peers = {n: side_by_side.ratio(found["ours"], found[n]) for n in found if n != "ours"}
    best = min(peers, key=lambda name: peers[name]["median"])
    return dict(
        case=case.__name__,
        rows=rows,
        tokens=tokens,
        unit=unit,
        model=os.path.basename(args.model.rstrip("/")),
        seconds=found,
        peers=peers,
        best=best,
        losses=losses,
        agree=agree,
        per_second=rows / min(found["ours"]) if unit == "candidates" else 1 / min(found["ours"]),
        machine=about,
        versions=_versions(),
    )


def _line(record) -> str:
    found, best = record["peers"][record["best"]], record["best"]
    times = f"{found['median']:.2f} times ({found['low']:.2f} to {found['high']:.2f}), {best}"
    medians = {name: sorted(runs)[len(runs) // 2] for name, runs in record["seconds"].items()}
    each = ", ".join(f"{name} {value:.3f} s" for name, value in medians.items())
    size = f"{record['rows']} x {record['tokens']}"
    verdict = "" if record["agree"] else f"  THE LOSSES DIFFER: {record['losses']}"
    return f"{record['case']:10} {size:>9}  {times:36}  {each}{verdict}"


def _tokens(model, rows, length):
    import numpy as np

    ids = np.random.default_rng(0).integers(0, model.config.vocab_size, (rows, length))
    return ids.astype(np.int32)


def _network(folder, attention):
    """Returns (torch, the model in transformers with this attention, its device)."""
    import jax
    import torch
    import transformers

    on_gpu = jax.default_backend() == "gpu" and torch.cuda.is_available()
    device = "cuda" if on_gpu else "cpu"
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    transformers.logging.disable_progress_bar()
    network = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation=attention
    )
    return torch, network.to(device), device


def _versions() -> dict:
    import jax
    import torch
    import transformers

    return {
        "jax": jax.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


if __name__ == "__main__":
    heap.keep()  # for both sides, as our programs do
    sys.exit(main())
