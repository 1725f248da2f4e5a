"""Training runs on meshes: from text files to checkpoints, the same losses as on one device."""

import jax
import numpy as np
import pytest
import tiny_run

from jaxrope import train
from jaxrope.errors import InputError
from jaxrope.train import plan as plan_lib


@pytest.fixture
def config(tmp_path):
    tiny_run.write_texts(tmp_path / "texts")
    config = tiny_run.make_config(tmp_path / "texts")
    config.data.mode = "pack"
    config.train.steps, config.train.eval_every, config.checkpoint.every = 4, 2, 2
    return config


def set_mesh(config, **sizes):
    for axis, size in (dict(data=1, fsdp=1, context=1, tensor=1) | sizes).items():
        config.mesh[axis] = size


def losses(workdir):
    return [row["loss"] for row in tiny_run.rows(workdir) if "loss" in row]


@pytest.mark.slow
def test_a_run_begun_on_one_mesh_goes_on_on_another(config, tmp_path):
    """The first half keeps its moments in the memory of the host."""
    config.optimizer.schedule = dict(name="constant", warmup_steps=0)
    set_mesh(config)
    assert train.train(config, tmp_path / "one", devices=jax.devices()[:1]) == 0
    set_mesh(config, context=4, fsdp=2)
    config.train.steps, config.optimizer.offload = 2, True
    assert train.train(config, tmp_path / "many") == 0
    set_mesh(config, data=2, context=2, tensor=2)
    config.train.steps, config.optimizer.offload = 4, False
    assert train.train(config, tmp_path / "many") == 0
    np.testing.assert_allclose(losses(tmp_path / "many"), losses(tmp_path / "one"), rtol=2e-5)


@pytest.mark.parametrize("parts", [1, 2])
def test_a_batch_lies_as_attention_wants_it(config, parts):
    """Every device has its rows and its two chunks of them, the first and the last for device 0."""
    set_mesh(config, data=2, context=4)
    config.train.accumulation = parts
    made = train.prepare(config)
    batch, host = made.put_batch(3), made.loader.batch(3)
    order = np.arange(32).reshape(8, 4)[[0, 7, 1, 6, 2, 5, 3, 4]].ravel()
    for name, rows in host.items():
        assert np.array_equal(batch[name], rows[:, order].reshape(parts, -1, 32)), name
    shard = batch["tokens_BT"].addressable_shards[0]
    assert shard.data.shape == (parts, 4 // parts, 8)


def test_a_process_reads_only_the_rows_of_its_devices():
    read = []

    class Loader:
        def batch(self, step, *, rows):
            read.append((step, rows))
            return {"tokens_BT": np.arange(16)[rows][:, None]}

    found = plan_lib._read(Loader(), 5, [2, 3, 4, 10, 11])
    assert read == [(5, slice(2, 5)), (5, slice(10, 12))]
    assert found["tokens_BT"][:, 0].tolist() == [2, 3, 4, 10, 11]


@pytest.mark.parametrize(
    "sizes, changes, message",
    [
        (dict(context=8), {"train.seq_len": 40}, r"multiple of 16 .*got 40\. Nearest: 32 or 48"),
        (
            dict(data=2, tensor=4),
            {},
            "mesh.tensor = 4 must divide the axis 'kv_heads'.* is 2",
        ),
        (dict(data=8), {"train.batch_size": 12}, "got 12. Nearest: 8 or 16"),
        (dict(context=8), {"forward.attention": "blockwise"}, "Use ring, all_gather, ulysses, usp"),
        (dict(context=8), {"forward.ulysses": 3, "forward.attention": "usp"}, "Legal: 1, 2, 4, 8"),
    ],
)
def test_what_does_not_divide_is_refused(config, sizes, changes, message):
    set_mesh(config, **sizes)
    config.target_len = 64
    for key, value in changes.items():
        section, name = key.split(".")
        config[section][name] = value
    with pytest.raises(InputError, match=message):
        train.prepare(config)
