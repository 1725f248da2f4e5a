"""AdamW, its schedules and their numbers, against formulas written again here."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrope.schema import training
from jaxrope.train import optimizer

SECTION = dict(
    learning_rate=1e-3,
    schedule=dict(name="constant", warmup_steps=0),
    b1=0.9,
    b2=0.999,
    eps=1e-8,
    weight_decay=0.0,
    clip_norm=0.0,
    offload=False,
)


def make(num_steps=10, **changes):
    return optimizer.make(training.Optimizer(**SECTION | changes), num_steps=num_steps)


@pytest.mark.parametrize("peak", (1e-3, 2e-5))
@pytest.mark.parametrize("warmup", (0, 1, 4))
@pytest.mark.parametrize("final", (0.0, 0.25))
@pytest.mark.parametrize("name", ("linear", "cosine", "constant"))
def test_schedules_equal_their_formulas(name, peak, warmup, final):
    constants = {} if name == "constant" else {"final_fraction": final}
    schedule = dict(name=name, warmup_steps=warmup, **constants)
    made = make(20, learning_rate=peak, schedule=schedule).schedule
    for updates in range(20):
        share = (updates - warmup) / (20 - warmup)
        wanted = {
            "constant": 1.0,
            "linear": 1 - (1 - final) * share,
            "cosine": final + (1 - final) * (1 + math.cos(math.pi * share)) / 2,
        }[name]
        if updates < warmup:
            wanted = (updates + 1) / warmup
        np.testing.assert_allclose(made(jnp.int32(updates)), peak * wanted, rtol=2e-5)


@pytest.mark.parametrize("b1, b2", [(0.9, 0.999), (0.5, 0.8)])
@pytest.mark.parametrize("decay, clip, eps", [(0.0, 0.0, 1e-8), (0.1, 0.5, 1e-2), (0.3, 2.0, 1e-8)])
def test_updates_equal_adamw_written_by_hand(b1, b2, decay, clip, eps):
    made = make(b1=b1, b2=b2, weight_decay=decay, clip_norm=clip, eps=eps).transform
    rng = np.random.default_rng(0)
    params = {"q_LDNH": rng.normal(size=(2, 3)), "attn_norm_LD": rng.normal(size=4)}
    params |= {"q_bias_LNH": rng.normal(size=2)}
    ours = jax.tree.map(jnp.asarray, params)
    state = made.init(ours)
    first = {name: np.zeros_like(value) for name, value in params.items()}
    second = {name: np.zeros_like(value) for name, value in params.items()}
    for count in (1, 2, 3):
        grads = {name: rng.normal(size=value.shape) for name, value in params.items()}
        changes, state = made.update(jax.tree.map(jnp.asarray, grads), state, ours)
        ours = jax.tree.map(jnp.add, ours, changes)
        norm = math.sqrt(sum(float((g**2).sum()) for g in grads.values()))
        for name, grad in grads.items():
            grad = grad * min(1.0, clip / norm) if clip else grad
            first[name] = b1 * first[name] + (1 - b1) * grad
            second[name] = b2 * second[name] + (1 - b2) * grad**2
            step = (first[name] / (1 - b1**count)) / (np.sqrt(second[name] / (1 - b2**count)) + eps)
            step += decay * params[name] if name == "q_LDNH" else 0.0
            params[name] = params[name] - 1e-3 * step
    for name in params:
        np.testing.assert_allclose(ours[name], params[name], rtol=2e-6, atol=2e-7)
