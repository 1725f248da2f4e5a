"""Our GGUF files in llama.cpp itself: `make serve` runs this."""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from jaxrope.convert import exporting, gguf_export
from tests import gguf_routes

_PYTHON = os.environ.get("SERVE_PYTHON", "")
_SCRIPT = Path(__file__).with_name("llama_cpp.py")
pytestmark = pytest.mark.skipif(not _PYTHON, reason="needs llama.cpp; `make serve` has it")


def run(folder: Path, requests: list[dict]) -> dict[str, np.ndarray]:
    """What llama.cpp answers, see llama_cpp.py."""
    (folder / "requests.json").write_text(json.dumps(requests))
    files = [str(folder / name) for name in ("requests.json", "answers.npz")]
    done = subprocess.run([_PYTHON, _SCRIPT, *files], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return dict(np.load(folder / "answers.npz"))


def log_probs(logits: np.ndarray) -> np.ndarray:
    logits = np.float64(logits) - logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


@pytest.mark.parametrize("name", gguf_routes.ROUTES)
def test_every_rope_on_both_sides_of_the_switch(tmp_path, name):
    """Inside the original length and twice beyond it, and a short text in a long context."""
    model = gguf_routes.model(tmp_path, name)
    notes = gguf_export.export(model, tmp_path / "m.gguf", exporting.Settings(dtype="f32"))
    ids = np.random.default_rng(1).integers(3, 300, 1000)
    sizes = ((200, 256), (400, 512), (1000, 1024), (200, 1024))
    requests = [
        dict(model=str(tmp_path / "m.gguf"), ids=ids[:n].tolist(), context=context)
        for n, context in sizes
    ]
    answers = run(tmp_path, requests)
    for number, (length, context) in enumerate(sizes):
        ours = log_probs(gguf_routes.logits(model, ids[:length], min(context, 1000)))
        theirs = log_probs(answers[f"{number}_logits"])
        off = np.abs(ours - theirs)[np.arange(length - 1), ids[1:length]]
        print(name, length, context, np.median(off), off.max(), notes)
        assert np.median(off) < 1e-4 and off.max() < 1e-3
