"""Training runs on meshes: from text files to checkpoints, the same losses as on one device."""

import shutil

import jax
import numpy as np
import pytest
import tiny_run

from jaxrope import train
from jaxrope.errors import InputError
from jaxrope.mesh import sharding
from jaxrope.store import steps
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


def slices_of(size, monkeypatch):
    """Makes every device of this machine say that it is of a slice of `size`, dealt in turns."""
    monkeypatch.setattr(
        type(jax.devices()[0]),
        "slice_index",
        property(lambda device: device.id % (jax.device_count() // size)),
        raising=False,
    )
    monkeypatch.setattr(sharding, "num_slices", lambda devices: jax.device_count() // size)


def test_a_run_of_two_slices_goes_on_on_one_and_on_four(config, tmp_path, monkeypatch):
    """The step after the checkpoint is that of the run that goes on, in float64."""
    config.train.param_dtype = config.forward.compute_dtype = "float64"
    config.optimizer.schedule = dict(name="constant", warmup_steps=0)
    config.train.steps, config.train.log_every, config.train.eval_every = 3, 1, 0
    config.eval.suites = ()

    def run(name, *, size, **sizes):
        slices_of(size, monkeypatch)
        set_mesh(config, **sizes)
        with jax.enable_x64(True):
            assert train.train(config, tmp_path / name) == 0
            return losses(tmp_path / name), tiny_run.final_arrays(tmp_path / name)

    wanted_losses, wanted = run("two", size=4, data=2, fsdp=2, context=2)
    mesh = sharding.make_mesh(config.mesh)
    assert [{device.slice_index for device in part.flat} for part in mesh.devices] == [{0}, {1}]
    for other in ("one", "four"):
        shutil.copytree(tmp_path / "two", tmp_path / other)
        shutil.rmtree(steps.step_folder(tmp_path / other, 3))
    with pytest.raises(InputError, match="mesh.data must be a multiple of the 4 TPU slices"):
        run("four", size=2, data=2, fsdp=2, context=2)
    for name, size, sizes in (
        ("one", 8, dict(fsdp=2, context=4)),
        ("four", 2, dict(data=4, tensor=2)),
    ):
        found_losses, found = run(name, size=size, **sizes)
        assert len(found_losses) == 3 and found_losses[:2] == wanted_losses[:2]
        np.testing.assert_allclose(found_losses, wanted_losses, rtol=1e-10)
        for key, leaf in wanted.items():
            assert leaf.dtype == np.float64
            np.testing.assert_allclose(found[key], leaf, rtol=0, atol=1e-10, err_msg=key)


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
