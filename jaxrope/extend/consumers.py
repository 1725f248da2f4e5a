"""The result in the programs that people use: exported for each, opened in those that are here.

What is compared is text that nothing was searched or trained on: the log-probability of every token
by that program, and by our own forward pass of the same file.
"""

import dataclasses
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jaxrope import data, decoder
from jaxrope.convert import Pretrained, exporting, gguf_export, pretrained
from jaxrope.shell import cli
from jaxrope.store import sealed

FORMAT = "jaxrope.extend.exports/1"
_NEAR = 1e-3  # nats: of the largest difference of a token, with weights of float32


@dataclasses.dataclass(frozen=True)
class Export:
    """What was made for a program.

    Attributes:
      program: its name.
      path: what it opens.
      how: what to type.
      package: of Python, that opens it here.
      log_probs: (path, tokens_T) -> log-probability of each token but the first; None: this program
        is not opened from here.
    """

    program: str
    path: Path
    how: str
    package: str
    log_probs: Callable[[Path, np.ndarray], np.ndarray] | None = None


def write(
    programs, source: str, rope: str, folder: Path, length: int, texts: list[np.ndarray]
) -> list[dict[str, Any]]:
    """Exports a model, and opens the exports; returns a row for each program.

    Args:
      programs: names of request.PROGRAMS.
      source: the model.
      rope: rope.json, or "": the model's own.
      folder: where to.
      length: tokens that the model is to serve.
      texts: tokens_T, to compare on.
    """
    model = pretrained.load(source, dtype=None)
    model = pretrained.with_rope(model, rope) if rope else model
    rows, exports = [], {}
    for name in programs:
        make_fn = _MAKERS[name]
        if make_fn not in exports:
            exports[make_fn] = make_fn(model, folder)
        path, notes = exports[make_fn]
        rows.append(_opened(_EXPORTS[name](path, length), texts) | {"notes": notes})
        cli.print_line(sentence(rows[-1]))
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
    return folder / "hf", exporting.export_folder(model, folder / "hf", settings)


def _gguf(model: Pretrained, folder: Path) -> tuple[Path, list[str]]:
    path, settings = folder / "model.gguf", exporting.Settings(overwrite=True)
    return path, gguf_export.export(model, path, settings)


_MAKERS = {"transformers": _hugging_face, "vllm": _hugging_face, "llama.cpp": _gguf}
_EXPORTS: dict[str, Callable[[Path, int], Export]] = {
    "transformers": lambda path, length: Export(
        "transformers",
        path,
        f'AutoModelForCausalLM.from_pretrained("{path}")',
        "transformers",
        _by_transformers,
    ),
    "vllm": lambda path, length: Export(
        "vllm", path, f"vllm serve {path} --max-model-len={length}", "vllm"
    ),
    "llama.cpp": lambda path, length: Export(
        "llama.cpp", path, f"llama-server -m {path} -c {length}", "xllamacpp"
    ),
}


def _opened(export: Export, texts: list[np.ndarray]) -> dict[str, Any]:
    row = {"program": export.program, "path": str(export.path), "how": export.how}
    row |= {"lengths": [len(tokens_T) - 1 for tokens_T in texts], "largest": None, "why": ""}
    if export.log_probs is None:
        return row | {"why": "that takes a server"}
    if importlib.util.find_spec(export.package) is None:
        return row | {"why": f"{export.package} is not installed"}
    ours = pretrained.load(str(export.path), dtype="float32")
    differences = [
        np.abs(export.log_probs(export.path, tokens_T) - _ours(ours, tokens_T)).max()
        for tokens_T in texts
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


def held_out(documents: data.TokenDocuments, bos_id: int, *lengths: int) -> list[np.ndarray]:
    """Returns the beginning of the longest text, bos first, `length` + 1 tokens each."""
    index = int(np.argmax(documents.lengths))
    return [
        np.append(bos_id, documents.tokens(index, 0, length)).astype(np.int32) for length in lengths
    ]
