"""Models with delta layers among full ones: gradients, states, keys of config.json, refusals."""

import dataclasses

import experts_test
import hf_families
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrope import decoder, generate
from jaxrope.convert import config as hf_config
from jaxrope.convert import exporting, importing, layout, pretrained
from jaxrope.convert.fields import Fields
from jaxrope.errors import InputError
from jaxrope.mesh import sharding

torch = experts_test.torch


def small(tiny_config, **changes):
    """Returns (config, parameters) of four layers, of which one attends."""
    fields = dict(num_layers=4, layers=("delta", "delta", "full", "delta"), output_gate=True)
    fields |= dict(delta_key_heads=2, delta_value_heads=4, delta_key_dim=6, delta_value_dim=4)
    config = dataclasses.replace(tiny_config, **fields | dict(delta_conv=4) | changes)
    leaves, tree = jax.tree.flatten(decoder.abstract_params(config))
    rng = np.random.default_rng(0)
    return config, tree.unflatten([0.3 * rng.normal(size=leaf.shape) for leaf in leaves])


@pytest.mark.parametrize("case, chunk", [("qwen3_next", 16), ("qwen3_5", 0)])
def test_gradients_of_a_step(torch, tmp_path, case, chunk):
    how = dict(output_router_logits=True) if case == "qwen3_next" else {}
    experts_test.assert_gradients(torch, tmp_path, case, chunk, **how)
