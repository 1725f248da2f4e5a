"""The result in the programs that people use: exported for each, and opened in transformers.

What is compared is text that nothing was searched or trained on: the log-probability of every token
by that program, and by our own forward pass of the same file.
"""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np

from jaxrope import data, decoder
from jaxrope.convert import Pretrained, exporting, gguf_export, pretrained
from jaxrope.shell import cli
from jaxrope.store import sealed

FORMAT = "jaxrope.extend.exports/1"
# what transformers and torch raise on files that they did not expect
_FAILURES = (ArithmeticError, AssertionError, AttributeError, ImportError, LookupError)
_FAILURES += (OSError, RuntimeError, TypeError, ValueError)
_NEAR = 1e-3  # nats: of the largest difference of a token, with weights of float32


def write(
    programs, source: str, rope: Path, folder: Path, length: int, texts: list[np.ndarray]
) -> list[dict[str, Any]]:
    """Exports a model, and opens the export in transformers; returns a row for each program.

    Args:
      programs: names of request.PROGRAMS.
      source: the model.
      rope: rope.json.
      folder: where to.
      length: tokens that the model is to serve.
      texts: tokens_T, to compare on.
    """
    model = pretrained.with_rope(pretrained.load(source, dtype=None), str(rope))
    rows, exports, printed = [], {}, set()
    for name in programs:
        make_fn = _MAKERS[name]
        if make_fn not in exports:
            exports[make_fn] = make_fn(model, folder)
        path, lines = exports[make_fn]
        others = tuple(other for other in _OTHERS if other != name)
        lines = [line for line in lines if not line.lower().startswith(others)]
        row = {"program": name, "path": str(path), "how": _HOW[name].format(path, length)}
        rows.append(row | _opened(name, path, texts) | {"notes": lines})
        new = [f"  {line}" for line in lines if line not in printed]
        printed.update(lines)
        cli.print_line("\n".join([sentence(rows[-1]), *new]))
    sealed.write_json(folder / "exports.json", {"format": FORMAT, "exports": rows})
    return rows


def sentence(row: dict[str, Any]) -> str:
    """Returns the row of an export in words."""
    line = f"{row['program']}: {row['how']}"
    if row["largest"] is None:
        return f"{line} (not opened: {row['why']})"
    lengths = " and ".join(f"{n:,}" for n in row["lengths"])
    verdict = "the same" if row["largest"] <= _NEAR else "NOT THE SAME"
    return (
        f"{line} (opened: log-probabilities at {lengths} tokens are {verdict}, the largest "
        f"difference is {row['largest']:.1g} nats)"
    )


def _hugging_face(model: Pretrained, folder: Path) -> tuple[Path, list[str]]:
    settings = exporting.Settings(overwrite=True)
    lines = exporting.export_folder(model, folder / "hf", settings)
    return folder / "hf", [*lines, *exporting.applied(model, settings)]


def _gguf(model: Pretrained, folder: Path) -> tuple[Path, list[str]]:
    path, settings = folder / "model.gguf", exporting.Settings(overwrite=True)
    return path, gguf_export.export(model, path, settings)


_OTHERS = ("transformers", "vllm", "sglang", "llama.cpp")  # a line begins with whom it is about
_MAKERS = {"transformers": _hugging_face, "vllm": _hugging_face, "llama.cpp": _gguf}
_HOW = {  # what to type; of the path and the length
    "transformers": 'AutoModelForCausalLM.from_pretrained("{}")',
    "vllm": "vllm serve {} --max-model-len={}",
    "llama.cpp": "llama-server -m {} -c {}",
}


def _opened(program: str, path: Path, texts: list[np.ndarray]) -> dict[str, Any]:
    row = {"lengths": [len(tokens_T) - 1 for tokens_T in texts], "largest": None, "why": ""}
    if program != "transformers":
        return row | {"why": "that takes a server"}
    if importlib.util.find_spec("transformers") is None:
        return row | {"why": "transformers is not installed"}
    ours = pretrained.load(str(path), dtype="float32")
    try:
        theirs = [_by_transformers(path, tokens_T) for tokens_T in texts]
    except _FAILURES as error:  # it does not open there, and that is the result
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        return row | {"why": f"IT DOES NOT OPEN: {reason}"}
    differences = [
        np.abs(logprobs_T - _ours(ours, tokens_T)).max()
        for logprobs_T, tokens_T in zip(theirs, texts, strict=True)
    ]
    return row | {"largest": float(max(differences))}


def _ours(model: Pretrained, tokens_T: np.ndarray) -> np.ndarray:
    settings = decoder.ForwardSettings()
    rope = model.rope_fn(len(tokens_T) - 1)
    x_BTD = decoder.hidden(model.config, model.params, tokens_T[None, :-1], rope, settings=settings)
    head_DV = decoder.head_DV(model.config, model.params)
    nll_BT, _ = decoder.losses.nll_and_hits(x_BTD, head_DV, tokens_T[None, 1:], chunk=512)
    return -np.asarray(nll_BT[0])


def _by_transformers(path: Path, tokens_T: np.ndarray) -> np.ndarray:
    import torch
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    tokens = torch.tensor(tokens_T[None].astype(np.int64))
    with torch.no_grad():
        logits = network(tokens[:, :-1]).logits.float().log_softmax(-1)
    return logits.gather(-1, tokens[:, 1:, None])[0, :, 0].numpy()


def held_out(documents: data.TokenDocuments, bos_id: int | None, *lengths: int) -> list[np.ndarray]:
    """Returns the beginning of the longest text, `length` + 1 tokens each, bos first if the model
    has one."""
    windows = (
        data.eval_windows(documents, length=length, num_windows=1, bos_id=bos_id)
        for length in lengths
    )
    return [window.tokens_WT[0].astype(np.int32) for window in windows]
