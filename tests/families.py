"""The matrix of docs/families.md: `make families`.

  python tests/families.py --old=PYTHON_WITH_TRANSFORMERS_4 --write

For a small random model of each case of hf_families: logits inside and beyond the original length,
greedy text through the cache and the answer to a chat prompt, against transformers 5; an export
with two sets of factors, opened in transformers 4.57 and 5; and the programs: a generation of a
search, ten steps of training of all weights and of adapters, an evaluation. Exit code 1: a cell
failed.
"""

import argparse
import contextlib
import dataclasses
import io
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from configs import base  # noqa: E402
from jaxrope import decoder, evaluate, generate, rope, search, train  # noqa: E402
from jaxrope.convert import exporting, pretrained  # noqa: E402
from jaxrope.errors import InputError  # noqa: E402
from tests import hf_families, tiny_run  # noqa: E402

PAGE = ROOT / "docs" / "families.md"
BEGIN, END = "<!-- made by `make families` -->", "<!-- end -->"
TOLERANCE = 2e-4  # of the largest logit
INSIDE, BEYOND = 24, 100  # tokens; the original length is 32
OPEN = """
import sys, numpy, torch, transformers
folder, tokens, out = sys.argv[1:]
model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
with torch.no_grad():
    logits = [model(torch.as_tensor(row)[None]).logits[0].numpy() for row in numpy.load(tokens)]
numpy.save(out, numpy.stack(logits))
"""


# What a version of transformers says of a folder that it cannot open by its own rules.
_LIMITS = {
    "does not recognize this architecture": "no class",
    "`rope_scaling` must be a dictionary with two fields": "no longrope",
}


@dataclasses.dataclass
class Case:
    """A model of a family in a folder, in transformers and here."""

    name: str
    folder: Path
    theirs: object
    ours: pretrained.Pretrained

    @property
    def config(self) -> decoder.DecoderConfig:
        return self.ours.config


def tokens_of(length: int) -> np.ndarray:
    return np.random.default_rng(7).integers(0, hf_families.VOCAB, length)


def our_logits(model: pretrained.Pretrained, length: int) -> np.ndarray:
    tokens_BT = tokens_of(length)[None].astype(np.int32)
    r = model.rope_fn(length)
    return np.asarray(decoder.logits(model.config, model.params, tokens_BT, r))[0]


def their_logits(model, tokens) -> np.ndarray:
    import torch

    with torch.no_grad():
        return model(torch.as_tensor(np.asarray(tokens))[None]).logits[0].numpy()


def difference(ours: np.ndarray, theirs: np.ndarray) -> str:
    """Returns the largest difference over the largest logit; a word more where that is too much."""
    error = float(np.abs(ours - theirs).max() / np.abs(theirs).max())
    return f"{error:.0e}" + ("" if error < TOLERANCE else " FAILED")


def logits(length: int) -> Callable[[Case], str]:
    def cell(case: Case) -> str:
        theirs = their_logits(case.theirs, tokens_of(length))
        return difference(our_logits(case.ours, length), theirs)

    return cell


def cached(case: Case) -> str:
    """Greedy text: equal wherever the first two choices differ by more than 1e-3."""
    settings = decoder.ForwardSettings()
    model = generate.Model(case.config, case.ours.params, case.ours.rope_fn, settings)
    prompt = tokens_of(60).tolist()
    options = generate.Options(max_new_tokens=40, chunk=16)
    (new,) = generate.generate(model, [prompt], options)
    theirs = their_logits(case.theirs, prompt + new)[len(prompt) - 1 : -1]
    best = np.sort(theirs, axis=-1)
    clear = best[:, -1] - best[:, -2] > 1e-3
    same = np.argmax(theirs, axis=-1) == np.array(new)
    return f"{np.sum(same & clear)} of {np.sum(clear)}" + ("" if np.all(same[clear]) else " FAILED")


def chat(case: Case) -> str:
    """The answer to a chat prompt, token by token."""
    import torch

    folder = case.folder / "chat"
    theirs = hf_families.write_speaker(torch, folder, case.name)
    ids, answer = hf_families.their_chat(torch, folder, theirs)
    prepared = hf_families.our_chat(folder)
    model = dataclasses.replace(prepared.model, params=pretrained.load(folder).params)
    (new,) = generate.generate(model, prepared.prompts, prepared.options)
    same = prepared.prompts == [ids] and new == answer
    return f"{sum(map(int.__eq__, new, answer))} of {len(answer)}" + ("" if same else " FAILED")


def extended(case: Case) -> pretrained.Pretrained:
    """Returns the model with factors up to 32 tokens, and others up to 128."""
    config = dataclasses.replace(case.config, original_len=32, rope={"method": "none"})
    shape = dict(head_dim=config.head_dim, rotary_dim=config.rotary_dim)
    shape |= dict(theta=config.theta, original_len=32)
    pairs = config.rotary_dim // 2
    rows = [
        dict(max_len=n, factors=list(f[:pairs]), start_tokens=0, attention_factor=1.2)
        for n, f in ((32, hf_families.SHORT), (128, hf_families.LONG))
    ]
    rope_fn = rope.make("longrope", **shape, buckets=rows)
    return dataclasses.replace(case.ours, config=config, rope_fn=rope_fn)


def export(python: str | None) -> Callable[[Case], str]:
    """Returns the cell of an export that `python` opens."""

    def cell(case: Case) -> str:
        if python is None:
            return "not tried"
        model, folder = extended(case), case.folder / "exported"
        if not folder.exists():
            try:
                exporting.export_folder(model, folder)
            except InputError as error:
                return "refused" if "would be rescaled too" in str(error) else f"FAILED {error}"
        files = case.folder / "tokens.npy", case.folder / "logits.npy"
        tokens = np.stack([tokens_of(BEYOND), np.roll(tokens_of(BEYOND), 3)])
        np.save(files[0], tokens)
        command = [python, "-c", OPEN, str(folder), *map(str, files)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            last = done.stderr.strip().splitlines()[-1]
            known = next((word for text, word in _LIMITS.items() if text in done.stderr), None)
            return known or f"FAILED {last[:60]}"
        found = [our_row(model, row) for row in tokens]
        return difference(np.stack(found), np.load(files[1]))

    return cell


def our_row(model, tokens) -> np.ndarray:
    r = model.rope_fn(len(tokens))
    return np.asarray(decoder.logits(model.config, model.params, tokens[None].astype(np.int32), r))[
        0
    ]


def config_of(case: Case):
    """Returns a config of programs: bytes of few words, a model of 96 words."""
    texts = case.folder / "texts"
    if not texts.exists():
        tiny_run.write_texts(texts)
    config = base.get_config()
    config.unlock()
    config.model = base.checkpoint_model(str(case.folder / "model"))
    config.original_len, config.target_len = 32, 128
    config.data.train_files = (f"{texts}/train-*.txt",)
    config.data.eval_files = (f"{texts}/held-out.txt",)
    config.data.tokenizer, config.data.cache_dir = str(case.folder / "model"), str(texts / "cache")
    config.forward.attention_block = 32
    return config


def search_cell(case: Case) -> str:
    config = config_of(case)
    config.search.objective = dict(name="perplexity", num_samples=2, offset_tokens=0)
    config.search.method, config.search.judge.num_samples = "evolution", 0
    config.search.algorithm.update(population=6, mutations=2, crossovers=2, parents=3, iterations=1)
    result = search.search(config, case.folder / "search")
    return f"{result.content['generations'][-1]['best']:.2f}"


def train_cell(rank: int) -> Callable[[Case], str]:
    def cell(case: Case) -> str:
        config, workdir = config_of(case), case.folder / f"train{rank}"
        config.train.seq_len, config.train.batch_size, config.train.steps = 64, 8, 10
        config.train.log_every, config.eval.suites = 1, ()
        config.optimizer.learning_rate = 3e-3 if rank == 0 else 3e-2
        config.optimizer.schedule = dict(name="constant", warmup_steps=0)
        config.lora.rank = rank
        assert train.train(config, workdir) == 0
        rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
        losses = [row["loss"] for row in rows if "loss" in row]
        fell = np.mean(losses[-3:]) < np.mean(losses[:3])
        return f"{losses[0]:.2f} → {losses[-1]:.2f}" + ("" if fell else " FAILED")

    return cell


def evaluate_cell(case: Case) -> str:
    config = config_of(case)
    config.eval.suites, config.eval.lengths, config.eval.num_windows = ("perplexity",), (64, 128), 2
    evaluate.evaluate(config, case.folder / "evaluate")
    rows = json.loads((case.folder / "evaluate" / "eval.json").read_text())["rows"]
    values = [row["metrics"]["perplexity"] for row in rows[:2]]
    finite = np.all(np.isfinite(values))
    return " ".join(f"{value:.0f}" for value in values) + ("" if finite else " FAILED")


def columns(old: str | None) -> dict[str, Callable[[Case], str]]:
    return {
        f"logits, {INSIDE} tokens": logits(INSIDE),
        f"{BEYOND} tokens": logits(BEYOND),
        "greedy": cached,
        "chat": chat,
        "export, 4.57": export(old),
        "export, 5": export(sys.executable),
        "search": search_cell,
        "train": train_cell(0),
        "LoRA": train_cell(4),
        "evaluate": evaluate_cell,
    }


def run(cell: Callable[[Case], str], case: Case) -> str:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            return cell(case)
        except Exception as error:  # a cell of the table says so, and the others are tried
            return f"FAILED {type(error).__name__} {str(error)[:80]}"


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--old", help="a Python that has transformers 4.57")
    parser.add_argument("--only", help="cases whose name begins so")
    parser.add_argument("--write", action="store_true", help=f"into {PAGE.relative_to(ROOT)}")
    args = parser.parse_args()
    import torch

    torch.set_num_threads(2)
    cells = columns(args.old)
    table = [f"| | {' | '.join(cells)} |", "|---" * (len(cells) + 1) + "|"]
    for name in hf_families.CASES:
        if args.only and not name.startswith(args.only):
            continue
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            theirs = hf_families.write(torch, folder / "model", name)
            hf_families.write_tokenizer(folder / "model")
            case = Case(name, folder, theirs, pretrained.load(folder / "model"))
            table.append(f"| {name} | {' | '.join(run(cell, case) for cell in cells.values())} |")
        print(table[-1], flush=True)
    if args.write:
        before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
        after = rest.partition(END)[2]
        lines = "\n".join(table)
        PAGE.write_text(f"{before}{BEGIN}\n{lines}\n{END}{after}", encoding="utf-8")
    return int(any("FAILED" in row for row in table))


if __name__ == "__main__":
    sys.exit(main())
