"""A mixture and a hybrid to prove extensions on, pre-trained by transformers' classes and torch on
the rows of small_models.py.

  python -m benchmarks.torch_models --model=mixture --workdir=runs/mixture
  python -m benchmarks.torch_models --model=hybrid --workdir=runs/hybrid

"mixture" is a Qwen3-MoE of 8 experts, of which a token meets 2; "hybrid" a Qwen3.5 text model of
three delta layers and a full one, half of whose dims turn. Both have theta 10,000 and a window of
256. WORKDIR/hf is what transformers' save_pretrained writes, with perplexity on --held_out, pass
keys and needles at its own length in its README.md. A quarter of an hour each on one core that
multiplies in bfloat16. The same command goes on where it was stopped. --quick: to see it run.
"""

import dataclasses
import functools
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
import transformers

from benchmarks import on_books, small_models
from jaxrope import data
from jaxrope.convert import pretrained
from jaxrope.errors import InputError, choose
from jaxrope.shell import Command, Progress, cli, heap
from jaxrope.train import optimizer

_COMMON = dict(
    vocab_size=4096,
    hidden_size=192,
    num_hidden_layers=4,
    max_position_embeddings=256,
    tie_word_embeddings=True,
    bos_token_id=1,
    eos_token_id=2,
)
_ROPE = dict(rope_type="default", rope_theta=10_000.0)
# of each: transformers' name of the family, and sizes
MODELS = {
    "mixture": (
        "qwen3_moe",
        dict(num_attention_heads=4, num_key_value_heads=4, head_dim=64)
        | dict(num_experts=8, num_experts_per_tok=2, moe_intermediate_size=128)
        | dict(norm_topk_prob=True, output_router_logits=True, router_aux_loss_coef=0.01)
        | dict(rope_parameters=_ROPE),
    ),
    "hybrid": (
        "qwen3_5_text",
        dict(num_attention_heads=3, num_key_value_heads=3, head_dim=64, intermediate_size=384)
        | dict(linear_num_key_heads=3, linear_num_value_heads=3)
        | dict(linear_key_head_dim=64, linear_value_head_dim=64)
        | dict(rope_parameters=_ROPE | dict(partial_rotary_factor=0.5)),
    ),
}
_LEAST = 16  # rows and columns of a matrix that Muon is for: a router or a gate has fewer
_EXPERTS_RATE = 1e-3
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json")


def add_arguments(parser) -> None:
    small_models.add_arguments(parser)
    parser.set_defaults(model="mixture", compute_dtype="bfloat16")


def run(args) -> int:
    """Trains what is not trained yet, writes the folder, and measures it; returns the exit code.

    Raises:
      InputError: an argument is wrong, or the workdir has another training.
    """
    workdir = on_books.folder(args)
    model = make(args.model)
    tokenizer = data.load_tokenizer(args.tokenizer, vocab_size=model.config.vocab_size)
    rows = small_models.Rows(on_books.texts(args), tokenizer)
    plan = phases(model, args.quick)
    workdir.mkdir(parents=True, exist_ok=True)
    train(model, rows, workdir, plan, args.compute_dtype)
    folder = Path(args.out).absolute() if args.out else workdir / "hf"
    model.save_pretrained(folder)
    for name in _TOKENIZER:
        shutil.copy(Path(args.tokenizer) / name, folder)
    config = pretrained.read_config(folder)
    small_models.measure(config, rows, args, folder, "torch_models")
    cli.print_line(f"wrote {folder}")
    return 0


def dry_run(args) -> str:
    """Returns the phases, a line each."""
    return "\n".join(map(str, phases(make(args.model), args.quick)))


def phases(model, quick: bool) -> list[small_models.Phase]:
    """Returns those of small_models with half as many rows.

    A mixture has more of the first ones, since it copies later, and fewer of the last.
    """
    plan = small_models.phases(model.config.max_position_embeddings, quick)
    half = [dataclasses.replace(phase, rows=phase.rows // 2) for phase in plan]
    if quick or not hasattr(model.config, "num_experts"):
        return half
    first, last = dataclasses.replace(plan[0], steps=650), dataclasses.replace(half[-1], steps=500)
    return [first, plan[1], *half[2:-1], last]


def make(name: str):
    """Returns transformers' network of a name in MODELS, with random weights.

    Raises:
      InputError: there is no such model.
    """
    family, sizes = choose("--model", name, MODELS)
    config = transformers.AutoConfig.for_model(family, **_COMMON, **sizes)
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config)


def train(model, rows: small_models.Rows, workdir: Path, plan: list, compute_dtype: str) -> None:
    """Trains `model` by all phases; goes on from the checkpoint in `workdir`.

    Raises:
      InputError: the checkpoint is of another training, or there is no such type.
    """
    schedule = [phase for phase in plan for _ in range(phase.steps)]
    optimizers, rates = _optimizers(model, len(schedule))
    path, identity = workdir / "checkpoint.pt", f"{model.config} {plan} {compute_dtype}"
    done = _restored(path, identity, model, optimizers)
    dtype = choose("--compute_dtype", compute_dtype, _DTYPES)
    forward = functools.partial(_forward, model, dtype)
    with Progress(len(schedule), start=done) as progress:
        for step, phase in enumerate(schedule[done:], start=done):
            batch = _part(rows.batch(phase, step))
            nll_BT, _, router_loss = forward(batch)
            weights_BT = batch["loss_weights_BT"]
            loss = (nll_BT * weights_BT).sum() / weights_BT.sum()
            (loss + router_loss).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for each, rate in zip(optimizers, rates, strict=True):
                each.param_groups[0]["lr"] = float(rate(step))
                each.step()
                each.zero_grad()
            progress.update(step + 1, length=phase.length, loss=loss.item())
            if (step + 1) % small_models.SAVED == 0 or step + 1 == len(schedule):
                _save(path, step + 1, identity, model, optimizers)
                score_fn = functools.partial(_score, forward)
                fresh = small_models.fresh_scores(score_fn, rows, phase)
                small_models.note_fresh(workdir, fresh, step + 1, phase, loss.item())


def _forward(model, dtype, batch) -> tuple:
    """Returns (nll_BT in nats, logits_BTV, the router's loss times its coefficient)."""
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        out = model(input_ids=batch["tokens_BT"], use_cache=False)
    logits_BTV, targets_BT = out.logits.float(), batch["targets_BT"]
    nll_N = torch.nn.functional.cross_entropy(
        logits_BTV.flatten(0, 1), targets_BT.flatten(), reduction="none"
    )
    aux_loss = getattr(out, "aux_loss", None)
    router_loss = 0.0 if aux_loss is None else model.config.router_aux_loss_coef * aux_loss
    return nll_N.view_as(targets_BT), logits_BTV, router_loss


@torch.no_grad()
def _score(forward, batch) -> tuple:
    """Returns (nll_BT, hits_BT) of a batch with one part."""
    batch = _part(batch)
    nll_BT, logits_BTV, _ = forward(batch)
    return nll_BT.numpy(), (logits_BTV.argmax(-1) == batch["targets_BT"]).numpy()


def _part(batch: dict) -> dict:
    """Returns the one part of a batch as tensors."""
    part = {name: torch.from_numpy(np.ascontiguousarray(value[0])) for name, value in batch.items()}
    return part | {name: part[name].long() for name in ("tokens_BT", "targets_BT")}


def _optimizers(model, num_steps: int) -> tuple:
    """Returns (Muon for matrices of layers and AdamW for the rest, their learning rates by step),
    with the constants of small_models.

    torch's Muon takes no stacked matrices: those of experts have AdamW, at a rate of their own.
    """
    muon_rate, others_rate, times = small_models.STARTS[model.config.max_position_embeddings]
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(times)
    matrices, experts, others = [], [], []
    for name, weights in model.named_parameters():
        is_matrix = ".layers." in name and weights.ndim == 2 and min(weights.shape) >= _LEAST
        kind = matrices if is_matrix else experts if ".experts." in name else others
        kind.append(weights)
    adam = functools.partial(torch.optim.AdamW, betas=(0.9, 0.95), weight_decay=0.0)
    muon = functools.partial(torch.optim.Muon, weight_decay=0.1)
    kinds = [(muon, matrices, muon_rate), (adam, experts, _EXPERTS_RATE)]
    kinds = [kind for kind in (*kinds, (adam, others, others_rate)) if kind[1]]
    warmup = min(50, num_steps // 2)
    rates = [optimizer.cosine(rate, num_steps, warmup, 0.0) for *_, rate in kinds]
    return [make_fn(weights) for make_fn, weights, _ in kinds], rates


def _save(path: Path, step: int, identity: str, model, optimizers) -> None:
    states = [each.state_dict() for each in (model, *optimizers)]
    new = path.with_suffix(".new")
    torch.save({"step": step, "identity": identity, "states": states}, new)
    os.replace(new, path)


def _restored(path: Path, identity: str, model, optimizers) -> int:
    """Returns how many steps were done, and puts the states of then into the arguments."""
    if not path.exists():
        return 0
    saved = torch.load(path)
    if saved["identity"] != identity:
        raise InputError(f"{path} is of another training. Give another --workdir.")
    for each, state in zip((model, *optimizers), saved["states"], strict=True):
        each.load_state_dict(state)
    return saved["step"]


if __name__ == "__main__":
    heap.keep()
    cli.arguments(
        Command(arguments=add_arguments, run=run, dry_run=dry_run),
        doc=__doc__,
        argv=sys.argv[1:],
    )
