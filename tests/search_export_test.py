"""The result of a search in transformers: exported without training, the same logits."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from jaxrope import decoder, rope, search
from jaxrope.convert import __main__ as convert
from jaxrope.convert import pretrained
from tests.search_config import changed, tiny_default

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


@pytest.mark.parametrize("form", ["yarn", "monotone", "ntk"])
def test_a_result_has_the_same_logits_in_transformers(tmp_path, form):
    """Whatever won: YaRN's form is searched, and written as its constants, which all read."""
    config = changed(tiny_default(tmp_path), search__form=form)
    result = search.search(config, tmp_path / "run").content["verdict"]["result"]
    path = tmp_path / "run" / "rope.json"
    rope_fn = rope.load(path)
    convert.main(["export", config.model.path, str(tmp_path / "hf"), f"--rope={path}"])
    written = json.loads((tmp_path / "hf" / "config.json").read_text())
    parameters = written.get("rope_parameters") or written["rope_scaling"]
    is_yarn = form == "yarn" and result.startswith(("yarn", "ramp"))
    assert parameters["rope_type"] == ("yarn" if is_yarn else "longrope")
    ours = pretrained.load(str(tmp_path / "hf"))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "hf", dtype=torch.float32
    ).eval()
    for length in (12, 17, 64):  # inside the original window of 16 and beyond
        tokens = np.random.default_rng(length).integers(0, 256, (1, length)).astype(np.int32)
        with torch.no_grad():
            wanted = theirs(torch.tensor(tokens)).logits.numpy()
        for model_rope in (ours.rope_fn, rope_fn):
            r = model_rope(64)
            x_BTD = decoder.hidden(ours.config, ours.params, jnp.asarray(tokens), r)
            head_DV = decoder.head_DV(ours.config, ours.params)
            np.testing.assert_allclose(np.asarray(x_BTD @ head_DV), wanted, atol=2e-4, rtol=2e-4)
