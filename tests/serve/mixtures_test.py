"""Mixtures and hybrids, small and random, in vLLM on a CPU: `make serve` runs this."""

import dataclasses
import json
import shlex

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxrope import rope
from jaxrope.convert import exporting, pretrained, rope_formats
from tests import gguf_routes, hf_families
from tests.serve import folders_test
from tests.serve.comparing import MEDIAN, MOST, own

ORIGINAL, LONGEST, LENGTHS = 32, 128, (24, 100)
# vLLM's attention on a CPU takes heads of 32 dims and more, its recurrence bfloat16 alone
SIZES = dict(hidden_size=64, head_dim=64)
DELTA = dict(linear_key_head_dim=64, linear_value_head_dim=64, linear_conv_kernel_dim=4)
BFLOAT16, BFLOAT16_MEDIAN = dict(dtype="bfloat16"), 0.2  # nats
CASES = ("qwen3_moe, some MLPs are dense", "mixtral", "qwen3_next", "qwen3_5", "qwen3_5_moe")
HYBRIDS = ("qwen3_next", "qwen3_5", "qwen3_5_moe")
KINDS = ("plain", "yarn", "two sets")
TOKENS = np.random.default_rng(7).integers(9, hf_families.VOCAB, LENGTHS[-1])
_YARN = dict(method="yarn", factor=4.0, beta_fast=4.0, beta_slow=0.5)


def extended(folder, kind: str) -> pretrained.Pretrained:
    """Returns the model of a folder with a rope of KINDS."""
    model = pretrained.load(folder)
    shape = dataclasses.asdict(model.rope_fn.geometry) | dict(original_len=ORIGINAL)
    factors = np.geomspace(1, 4, model.config.rotary_dim // 2).tolist()
    rows = [
        dict(max_len=n, factors=f, start_tokens=0, attention_factor=1.1)
        for n, f in ((ORIGINAL, [1.0] * len(factors)), (LONGEST, factors))
    ]
    constants = dict(plain=dict(method="none"), yarn=_YARN)
    constants["two sets"] = dict(method="longrope", buckets=rows)
    return dataclasses.replace(model, rope_fn=rope.make(**constants[kind], **shape))


def write_near(folder) -> None:
    """Takes 1 off the norms of a hybrid, which hf_families draws around 1 and the model adds 1 to:
    rounding to bfloat16 then moves the logits less.
    """
    path = folder / "model.safetensors"
    tensors = load_file(path)
    for name, values in tensors.items():
        if "norm" in name and "linear_attn" not in name and "visual" not in name:
            values -= 1
    save_file(tensors, path, {"format": "pt"})


def rounded(model: pretrained.Pretrained) -> pretrained.Pretrained:
    """Returns a model with weights as bfloat16 has them."""
    as_bfloat16 = jax.tree.map(lambda x: x.astype(ml_dtypes.bfloat16), model.params)
    params = jax.tree.map(lambda x: x.astype(np.float32), as_bfloat16)
    return dataclasses.replace(model, params=params)


def check(answer: dict, model, other, *, exact: bool) -> dict:
    """Compares prompts with our forward pass, which has the factors for LONGEST tokens, and sees
    that it is not another rope's; returns the cells of the table. Not exact: in bfloat16.
    """
    assert "error" not in answer, answer["error"]
    model, other = (m if exact else rounded(m) for m in (model, other))
    cells = {}
    for length, text in zip(LENGTHS, answer["logprobs"], strict=True):
        ids = TOKENS[:length]
        mine, others = (own(gguf_routes.logits(m, ids, LONGEST), ids) for m in (model, other))
        off = np.abs(mine - text)
        if exact:
            assert np.median(off) < MEDIAN and off.max() < MOST
        else:
            assert np.median(off) < BFLOAT16_MEDIAN
        if length > ORIGINAL:  # how much of the way to the other rope it goes
            apart = others - mine
            assert abs((text - mine) @ apart) < 0.5 * apart @ apart
        cells["inside" if length <= ORIGINAL else "beyond"] = (np.median(off), off.max())
    return cells


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason="needs torch (Python 3.11)")


@pytest.mark.parametrize("case", CASES)
def test_exports(tmp_path, record, torch, case):
    is_hybrid = case in HYBRIDS
    hf_families.write(torch, tmp_path / "in", case, **SIZES | (DELTA if is_hybrid else {}))
    hf_families.write_tokenizer(tmp_path / "in")
    if is_hybrid:
        write_near(tmp_path / "in")
    models, requests = [extended(tmp_path / "in", kind) for kind in KINDS], []
    for kind, model in zip(KINDS, models, strict=True):
        exporting.export_folder(model, tmp_path / kind)
        more = folders_test.line_to_paste(exporting.applied(model, exporting.Settings()))
        more |= BFLOAT16 if is_hybrid else {}
        requests.append(folders_test.request(tmp_path / kind, TOKENS, LENGTHS, **more))
    found = folders_test.ask("vllm", tmp_path, requests)
    others = (models[1], models[0], models[0])
    for kind, answer, model, other in zip(KINDS, found["answers"], models, others, strict=True):
        cells = check(answer, model, other, exact=not is_hybrid)
        record(f"{case}, {kind}", f"vllm {found['version']}", **cells)


@pytest.mark.parametrize("case", ["qwen3_5", "qwen3_5_moe"])
def test_a_model_with_a_vision_part(tmp_path, record, torch, case):
    """As it was, with the line of `convert rope --format=vllm --model`, which names text_config."""
    hf_families.write_seeing(torch, tmp_path / "in", case, **SIZES, **DELTA)
    hf_families.write_tokenizer(tmp_path / "in")
    write_near(tmp_path / "in")
    model, plain = (extended(tmp_path / "in", kind) for kind in ("yarn", "plain"))
    rope.save(tmp_path / "rope.json", model.rope_fn, {}, max_len=LONGEST)
    settings = rope_formats.Settings("vllm", model=tmp_path / "in")
    rope_formats.convert(tmp_path / "rope.json", tmp_path / "line", settings)
    flag, overrides, length = shlex.split((tmp_path / "line").read_text())
    assert flag == "--hf-overrides" and length == f"--max-model-len={LONGEST}"
    more = dict(hf_overrides=json.loads(overrides), max_model_len=LONGEST, **BFLOAT16)
    more |= dict(language_model_only=True)
    request = folders_test.request(tmp_path / "in", TOKENS, LENGTHS, **more)
    found = folders_test.ask("vllm", tmp_path, [request])
    cells = check(found["answers"][0], model, plain, exact=False)
    record(f"{case} with vision, yarn, --format=vllm", f"vllm {found['version']}", **cells)
