"""PEFT's folders, read and written: judged by numpy, and by the peft package where it is."""

import json
import shutil

import ml_dtypes
import numpy as np
import pytest
from hf_models import CASES, random_tensors, write
from safetensors.numpy import load_file, save_file
from tiny_instruct import IDS, train_on, write_base

from jaxrope.convert import exporting, importing, peft, pretrained
from jaxrope.convert.__main__ import main
from jaxrope.errors import InputError

LLAMA = CASES["llama"]
Q, HEAD, NORM = "model.layers.0.self_attn.q_proj", "lm_head", "model.layers.1.input_layernorm"


def write_adapter(folder, base, *, dtype=np.float32, infix="", **settings):
    """Writes adapters of q in layer 0 and of the embedding, and a norm that was trained."""
    rng = np.random.default_rng(3)
    shapes = {f"{Q}.lora_A{infix}.weight": (2, 32), f"{Q}.lora_B{infix}.weight": (64, 2)}
    shapes |= {f"model.embed_tokens.lora_embedding_A{infix}": (2, 96)}
    shapes |= {f"model.embed_tokens.lora_embedding_B{infix}": (32, 2), f"{NORM}.weight": (32,)}
    tensors = {
        f"base_model.model.{name}": rng.normal(size=shape).astype(dtype)
        for name, shape in shapes.items()
    }
    folder.mkdir()
    save_file(tensors, folder / peft.WEIGHTS)
    config = dict(peft_type="LORA", task_type="CAUSAL_LM", base_model_name_or_path=str(base), r=2)
    config |= dict(lora_alpha=6, target_modules=["q_proj", "embed_tokens"], inference_mode=True)
    config |= dict(modules_to_save=["input_layernorm"]) | settings
    (folder / peft.CONFIG).write_text(json.dumps(config))
    return {name.removeprefix("base_model.model."): v for name, v in tensors.items()}


def expected_tensors(added, *, scale=3.0, infix="", more=None):
    tensors = random_tensors(LLAMA)
    sides = [added[f"{Q}.lora_{side}{infix}.weight"] for side in "AB"]
    tensors[f"{Q}.weight"] = tensors[f"{Q}.weight"] + scale * sides[1] @ sides[0]
    sides = [added[f"model.embed_tokens.lora_embedding_{side}{infix}"] for side in "AB"]
    tensors["model.embed_tokens.weight"] += scale * (sides[1] @ sides[0]).T
    return tensors | {f"{NORM}.weight": added[f"{NORM}.weight"]}


def assert_params(loaded, tensors, folder, **close):
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(LLAMA))
    expected = pretrained.load(folder).params
    for name, leaf in expected["layers"].items():
        np.testing.assert_allclose(loaded.params["layers"][name], leaf, **close)
    np.testing.assert_allclose(loaded.params["embed_VD"], expected["embed_VD"], **close)


@pytest.mark.parametrize(
    "infix, settings, scale",
    [
        ("", {}, 3.0),
        (".default", {}, 3.0),
        ("", {"use_rslora": True}, 6 / 2**0.5),
        ("", {"alpha_pattern": {"q_proj": 1, "embed_tokens": 1}}, 0.5),
    ],
)
def test_an_adapter_is_added_to_its_base(tmp_path, infix, settings, scale):
    write(tmp_path / "base", LLAMA)
    added = write_adapter(tmp_path / "adapter", tmp_path / "base", infix=infix, **settings)
    loaded = pretrained.load(tmp_path / "adapter")
    expected = expected_tensors(added, scale=scale, infix=infix)
    (tmp_path / "expected").mkdir()
    assert_params(loaded, expected, tmp_path / "expected", atol=1e-5)
    assert any("the PEFT adapter of 2 weights is added to its base" in n for n in loaded.notes)


def test_an_adapter_is_found_beside_its_base_and_imported(tmp_path):
    write(tmp_path / "base", LLAMA | dict(vocab_size=96), dtype=ml_dtypes.bfloat16)
    (tmp_path / "base" / "chat_template.jinja").write_text("{{ messages }}")
    write_adapter(tmp_path / "adapter", "../base")
    (tmp_path / "adapter" / "generation_config.json").write_text('{"eos_token_id": [2, 7]}')
    importing.import_folder(tmp_path / "adapter", tmp_path / "work")
    work = pretrained.load(tmp_path / "work", dtype=None)
    assert work.params["embed_VD"].dtype == ml_dtypes.bfloat16
    np.testing.assert_equal(work.params, pretrained.load(tmp_path / "adapter", dtype=None).params)
    assert (tmp_path / "work" / "chat_template.jinja").is_file()
    assert (tmp_path / "work" / "generation_config.json").is_file()
    first = pretrained.fingerprint(tmp_path / "adapter")
    shutil.rmtree(tmp_path / "adapter")
    write_adapter(tmp_path / "adapter", "../base", lora_alpha=7)
    assert pretrained.fingerprint(tmp_path / "adapter") != first


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"base_model_name_or_path": "org/model-7b"}, "adapter of 'org/model-7b' .* is not found"),
        ({"base_model_name_or_path": None}, "base_model_name_or_path is missing"),
        (
            {"peft_type": "IA3"},
            "peft_type must be 'LORA', got \"IA3\". Merge the adapter with PEFT",
        ),
        ({"use_dora": True}, "use_dora must be False, got true. Merge"),
        ({"lora_alpha": "x"}, 'lora_alpha must be a number, got "x"'),
    ],
)
def test_adapters_that_are_refused(tmp_path, settings, message):
    write(tmp_path / "base", LLAMA)
    write_adapter(tmp_path / "adapter", tmp_path / "base", **settings)
    with pytest.raises(InputError, match=message) as caught:
        pretrained.load(tmp_path / "adapter")
    assert "\n" not in str(caught.value)


def test_an_adapter_of_another_base(tmp_path):
    write(tmp_path / "base", LLAMA | dict(hidden_size=48))
    write_adapter(tmp_path / "adapter", tmp_path / "base")
    with pytest.raises(
        InputError, match=r"the adapter of model.* is for .* 32\], the base has .* 48\]"
    ):
        pretrained.load(tmp_path / "adapter")
    write(tmp_path / "base", LLAMA)
    tensors = load_file(tmp_path / "adapter" / peft.WEIGHTS)
    save_file(tensors | {"x.y.weight": np.ones(3, np.float32)}, tmp_path / "adapter" / peft.WEIGHTS)
    with pytest.raises(InputError, match=r"adapter's x.y.weight is no tensor of its base, which"):
        pretrained.load(tmp_path / "adapter")
    (tmp_path / "adapter" / peft.WEIGHTS).rename(tmp_path / "adapter" / "adapter_model.bin")
    with pytest.raises(InputError, match="has no adapter_model.safetensors; a pickle"):
        pretrained.load(tmp_path / "adapter")


@pytest.mark.parametrize("ties", [False, True])
def test_an_adapter_of_a_tied_embedding(tmp_path, ties):
    """The head stays as it was, as in PEFT, unless it is told to tie them."""
    tied = {k: v for k, v in CASES["llama tied with biases"].items() if "bias" not in k}
    write(tmp_path / "base", tied)
    write_adapter(tmp_path / "adapter", tmp_path / "base", ensure_weight_tying=ties)
    loaded, base = pretrained.load(tmp_path / "adapter"), pretrained.load(tmp_path / "base")
    assert loaded.config.tie_embeddings == ties
    assert not np.allclose(loaded.params["embed_VD"], base.params["embed_VD"])
    if not ties:
        np.testing.assert_array_equal(loaded.params["head_DV"].T, base.params["embed_VD"])


def trained(place, case, **lora):
    """Trains adapters on a tiny model in a Hugging Face folder; returns (its folder, workdir)."""
    base = write_base(place / "base", case, ids=IDS | dict(pad_token_id=3))
    lora = dict(rank=2, alpha=4.0, targets=("q", "v", "down")) | lora
    target_len = 0 if case == "phi3 partial" else 512
    return base, train_on(base, place / "work", target_len=target_len, **lora)


LORAS = {
    "llama": dict(),
    "llama tied with biases": dict(targets=("q", "k", "v", "o")),
    "phi3 partial": dict(targets=("q", "v", "gate", "down"), train_embeddings=False),
    "qwen2": dict(targets=("k", "up", "head"), train_norms=False, train_embeddings=False),
}


@pytest.mark.parametrize("name", LORAS)
def test_a_training_is_written_as_adapters(tmp_path, name):
    """Read again it is the merged training; peft and transformers compute what that computes."""
    base, work = trained(tmp_path, name, **LORAS[name])
    main(["export", str(work), str(tmp_path / "adapter"), "--adapter"])
    main(["export", str(work), str(tmp_path / "merged")])
    content = json.loads((tmp_path / "adapter" / peft.CONFIG).read_text())
    assert content["base_model_name_or_path"] == str(base)
    ours, merged = pretrained.load(tmp_path / "adapter"), pretrained.load(tmp_path / "merged")
    assert ours.config.rope == merged.config.rope and ours.config.max_len == merged.config.max_len
    for leaf, expected in zip(_leaves(ours.params), _leaves(merged.params), strict=True):
        np.testing.assert_allclose(leaf, expected, atol=2e-6)
    _compare_with_peft(tmp_path, base)


def _leaves(params):
    import jax

    return jax.tree.leaves(params)


def _compare_with_peft(place, base):
    library = pytest.importorskip("peft", reason="needs peft")
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    config = transformers.AutoConfig.from_pretrained(place / "adapter")
    model = transformers.AutoModelForCausalLM
    plain = model.from_pretrained(base, config=config, dtype=torch.float32)
    adapted = library.PeftModel.from_pretrained(plain, place / "adapter").eval()
    merged = model.from_pretrained(place / "merged", dtype=torch.float32).eval()
    ids = torch.as_tensor(np.random.default_rng(0).integers(0, 320, (1, 100)))
    with torch.no_grad():
        ours, theirs = adapted(ids).logits, merged(ids).logits
        before = model.from_pretrained(base, config=config, dtype=torch.float32).eval()(ids).logits
    assert (ours - theirs).abs().max() < 1e-4 * theirs.abs().max()
    assert (before - theirs).abs().max() > 1e-3 * theirs.abs().max()


def test_adapters_that_cannot_be_written(tmp_path, capsys):
    write(tmp_path / "base", LLAMA)
    importing.import_folder(tmp_path / "base", tmp_path / "work")

    def refused(*arguments):
        with pytest.raises(SystemExit) as caught:
            main(["export", str(tmp_path / "work"), str(tmp_path / "out"), *arguments])
        assert caught.value.code == 2 and not (tmp_path / "out").exists()
        return capsys.readouterr().err

    assert "has no adapters (lora.rank was 0)" in refused("--adapter")
    assert "--base is of a PEFT folder" in refused("--base=x")
    assert "leave --arch out" in refused("--adapter", "--arch=phi3")
    model = pretrained.load(tmp_path / "work", dtype=None, merge=False)
    model.params["layers"]["adapter_scale_L"] = np.ones(2)
    with pytest.raises(InputError, match="Name the one that the adapters are for: --base=FOLDER"):
        exporting.export_adapter(model, tmp_path / "out")
