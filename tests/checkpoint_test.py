"""Checkpoints: whole or refused. Flips bits, cuts files, leaves folders half written."""

import contextlib
import json
import re
import resource
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxrope.errors import InputError
from jaxrope.mesh.digest import digest
from jaxrope.store import checkpoint, steps
from jaxrope.store.lock import run_lock


def make_tree(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "embed_VD": jnp.asarray(rng.normal(size=(24, 16)), jnp.float32),
        "layers": {"q_LDNH": jnp.asarray(rng.normal(size=(2, 16, 2, 4)), jnp.bfloat16)},
    }


def make_moments():
    return {"count": jnp.int32(7), "mu": make_tree(5)}


def abstract(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def equal(a, b):
    same = jax.tree.map(lambda x, y: x.dtype == y.dtype and bool((x == y).all()), a, b)
    return all(jax.tree.leaves(same))


def save_steps(workdir, wanted, **options):
    store = checkpoint.Checkpoints(workdir, keep_last=9, **options)
    for step in wanted:
        store.save(step, make_tree(step), make_moments(), {"note": step})
    store.close()


def test_a_step_comes_back_bit_for_bit_from_a_workdir_its_folder_or_the_step(tmp_path):
    folder = checkpoint.save_params(tmp_path, 0, make_tree(), {"note": "hello"})
    for path in (tmp_path, tmp_path / "checkpoints", folder, str(folder)):
        params, meta = checkpoint.restore_params(path)
        assert equal(params, make_tree()) and meta["note"] == "hello" and meta["step"] == 0
    params, _ = checkpoint.restore_params(tmp_path, abstract(make_tree()))
    assert equal(params, make_tree())


def test_a_chosen_step_and_the_newest(tmp_path):
    save_steps(tmp_path, (1, 2))
    assert equal(checkpoint.restore_params(tmp_path, step=1)[0], make_tree(1))
    assert equal(checkpoint.restore_params(tmp_path)[0], make_tree(2))
    with pytest.raises(
        InputError, match=r"00000003 is not a whole checkpoint: .*Whole steps there: 1, 2\."
    ):
        checkpoint.restore_params(tmp_path, step=3)


def test_params_and_optimizer_state_return_to_the_sharding_asked_for(tmp_path):
    save_steps(tmp_path, (4,))
    mesh = jax.make_mesh((4,), ("fsdp",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])
    where = NamedSharding(mesh, PartitionSpec(None, "fsdp"))
    wanted = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), make_tree()
    )
    store = checkpoint.Checkpoints(tmp_path)
    params, rest, meta = store.restore(4, wanted, abstract(make_moments()))
    store.close()
    assert equal(params, make_tree(4)) and equal(rest, make_moments()) and meta["note"] == 4
    assert all(leaf.sharding == where for leaf in jax.tree.leaves(params))


def test_arrays_may_be_donated_as_soon_as_save_returns(tmp_path):
    bump = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    tree = {"w": jnp.zeros((500, 500))}
    store = checkpoint.Checkpoints(tmp_path, keep_last=None)
    for step in range(1, 5):
        store.save(step, tree, None, {})
        for _ in range(10):
            tree = bump(tree)
    store.close()
    for step in range(1, 5):
        params, _ = checkpoint.restore_params(tmp_path, step=step)
        assert (params["w"] == 10 * (step - 1)).all()


def test_retention_keeps_the_last_and_every_nth_and_empties_the_trash(tmp_path):
    store = checkpoint.Checkpoints(tmp_path, keep_last=2, keep_every=4)
    for step in range(1, 8):
        store.save(step, make_tree(step), None, {})
    store.close()
    assert steps.whole_steps(tmp_path) == [4, 6, 7]
    assert not list((tmp_path / "checkpoints" / ".trash").glob("*"))


def test_saving_a_step_below_the_newest_really_happens(tmp_path):
    save_steps(tmp_path, (1, 2, 3))
    shutil.rmtree(steps.step_folder(tmp_path, 3))
    store = checkpoint.Checkpoints(tmp_path, keep_last=9)
    assert store.latest() == 2
    store.save(3, make_tree(30), None, {})
    store.wait()
    assert store.durable_step == 3
    store.close()
    assert equal(checkpoint.restore_params(tmp_path, step=3)[0], make_tree(30))


@pytest.mark.parametrize("position", (0.1, 0.5, 0.9))
def test_a_flipped_bit_is_never_restored_as_numbers(tmp_path, position):
    save_steps(tmp_path, (1, 2))
    folder = steps.step_folder(tmp_path, 2)
    refused = 0
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        good = path.read_bytes()
        bad = bytearray(good)
        bad[int(len(bad) * position)] ^= 0x10
        path.write_bytes(bad)
        try:
            assert equal(checkpoint.restore_params(tmp_path, step=2)[0], make_tree(2)), path
        except InputError as error:
            refused += 1
            assert "00000002" in str(error) and "\n" not in str(error) and len(str(error)) < 700
        path.write_bytes(good)
    assert refused >= 2  # the data and the meta at least; what the rest says is not used
    assert equal(checkpoint.restore_params(tmp_path)[0], make_tree(2))


def test_damaged_data_names_the_step_the_leaf_and_the_step_before(tmp_path):
    save_steps(tmp_path, (1, 2))
    meta_file = steps.step_folder(tmp_path, 2) / "meta" / "metadata"
    meta = json.loads(meta_file.read_text())
    meta["leaves"]["params"]["layers/q_LDNH"]["digest"] = "0" * 16
    meta["sha256"] = steps.seal(meta)
    meta_file.write_text(json.dumps(meta))
    wanted = r"00000002, leaf params/layers/q_LDNH: the data is damaged .*go on from step 1\."
    with pytest.raises(InputError, match=wanted):
        checkpoint.restore_params(tmp_path)


def test_a_bit_that_flips_in_any_file_gives_one_line_or_the_same_numbers(tmp_path):
    store = checkpoint.Checkpoints(tmp_path, asynchronous=False)
    tree, moments = make_tree(), {"count": jnp.int32(3)}
    store.save(1, tree, moments, {})
    rng, told = np.random.default_rng(0), set()
    for path in sorted(store.root.rglob("*")):
        raw = path.read_bytes() if path.is_file() else b""
        for place in rng.integers(len(raw), size=3) if raw else ():
            flipped = bytearray(raw)
            flipped[place] ^= 1 << rng.integers(8)
            path.write_bytes(flipped)
            try:
                params, rest, _ = store.restore(1, abstract(tree), abstract(moments))
                assert equal(params, tree) and int(rest["count"]) == 3, path
            except InputError as error:
                assert re.search("damaged|not a whole", str(error)) and "\n" not in str(error), path
                told.add(path.relative_to(store.root).parts[1])
            path.write_bytes(raw)
    store.close()
    assert told == {"params", "opt_state", "meta"}


@pytest.mark.parametrize("damage", ("cut", "empty", "gone"))
def test_data_that_is_cut_or_gone_is_one_line(tmp_path, damage):
    checkpoint.save_params(tmp_path, 1, make_tree(), {})
    files = [path for path in (tmp_path / "checkpoints").rglob("d/*") if path.is_file()]
    assert files
    for path in files:
        raw = path.read_bytes()
        if damage == "gone":
            path.unlink()
        else:
            path.write_bytes(raw[: len(raw) // 2] if damage == "cut" else b"")
    with pytest.raises(InputError, match="damaged.*There is no earlier step") as caught:
        checkpoint.restore_params(tmp_path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 700


def break_commit(folder):
    (folder / "commit_success.txt").unlink()


def break_meta(folder):
    (folder / "meta" / "metadata").write_text('{"format": "jaxr')


def break_meta_value(folder):
    path = folder / "meta" / "metadata"
    path.write_text(path.read_text().replace('"note": 3', '"note": 4'))


def break_item(folder):
    shutil.rmtree(folder / "params")


def break_all(folder):
    shutil.rmtree(folder)
    folder.mkdir()


def break_into_file(folder):
    shutil.rmtree(folder)
    folder.write_text("not a folder")


BREAKS = {
    "never committed": break_commit,
    "meta is missing or not readable": break_meta,
    "meta is damaged": break_meta_value,
    "item params is missing": break_item,
    "it was never committed": break_all,
    "it is not a folder": break_into_file,
}


@pytest.mark.parametrize("reason", BREAKS)
def test_what_is_not_whole_is_never_offered_and_is_put_aside(tmp_path, reason):
    save_steps(tmp_path, (2, 3))
    folder = steps.step_folder(tmp_path, 3)
    BREAKS[reason](folder)
    (folder.parent / "notes.txt").write_text("stray")
    (folder.parent / "00000009.orbax-checkpoint-tmp").mkdir()
    assert steps.whole_steps(tmp_path) == [2]
    assert reason in steps.rejected(tmp_path)["00000003"]
    assert equal(checkpoint.restore_params(tmp_path)[0], make_tree(2))
    (line,) = steps.passed_over(tmp_path)
    assert reason in line and line.endswith("step 2 is read")
    store = checkpoint.Checkpoints(tmp_path, keep_last=2)
    assert len(store.rejected) == 1 and reason in store.rejected[0]
    store.save(3, make_tree(33), None, {})
    store.close()
    assert steps.whole_steps(tmp_path) == [2, 3]
    assert equal(checkpoint.restore_params(tmp_path)[0], make_tree(33))
    assert (folder.parent / "notes.txt").exists()
    assert not (folder.parent / "00000009.orbax-checkpoint-tmp").exists()


def test_a_newer_format_is_refused_with_its_text(tmp_path):
    folder = checkpoint.save_params(tmp_path, 1, make_tree(), {})
    path = folder / "meta" / "metadata"
    path.write_text(path.read_text().replace("jaxrope.checkpoint/1", "jaxrope.checkpoint/2"))
    with pytest.raises(InputError, match="has format 'jaxrope.checkpoint/2'; this version reads"):
        checkpoint.restore_params(tmp_path)


def test_a_folder_without_a_step_says_what_it_needs(tmp_path):
    with pytest.raises(
        InputError, match="holds no whole checkpoint .*no folder with a step's name"
    ):
        checkpoint.restore_params(tmp_path)


def test_what_differs_from_the_target_is_named_with_both_values(tmp_path):
    checkpoint.save_params(tmp_path, 1, make_tree(), {})
    wanted = abstract(make_tree())
    wanted["embed_VD"] = jax.ShapeDtypeStruct((24, 17), jnp.float32)
    with pytest.raises(
        InputError, match=r"embed_VD \[24, 16\] in the checkpoint, \[24, 17\] in the config"
    ):
        checkpoint.restore_params(tmp_path, wanted)
    for dtype in (jnp.bfloat16, jnp.int8):
        wanted["embed_VD"] = jax.ShapeDtypeStruct((24, 16), dtype)
        name = jnp.dtype(dtype).name
        with pytest.raises(
            InputError, match=f"dtype differs: embed_VD float32 in the checkpoint, {name} in"
        ):
            checkpoint.restore_params(tmp_path, wanted)
    wanted = abstract(make_tree()) | {"head_DV": jax.ShapeDtypeStruct((2,), jnp.float32)}
    del wanted["embed_VD"]
    with pytest.raises(InputError, match="has embed_VD that .* lacks head_DV"):
        checkpoint.restore_params(tmp_path, wanted)


def test_a_model_without_an_optimizer_is_not_a_run(tmp_path):
    checkpoint.save_params(tmp_path, 1, make_tree(), {})
    store = checkpoint.Checkpoints(tmp_path)
    with pytest.raises(InputError, match="has no item 'opt_state'"):
        store.restore(1, abstract(make_tree()), abstract(make_moments()))
    store.close()


@contextlib.contextmanager
def full_disk(limit):
    """Lets no file grow beyond `limit` bytes: writing fails as it does on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("asynchronous", (True, False))
def test_a_disk_that_is_full_surfaces_as_one_line_and_keeps_the_step_before(tmp_path, asynchronous):
    big = {"w": jnp.asarray(np.random.default_rng(0).normal(size=(300, 300)), jnp.float32)}
    store = checkpoint.Checkpoints(tmp_path, asynchronous=asynchronous)
    store.save(1, big, None, {})
    store.wait()
    with pytest.raises(checkpoint.CheckpointError, match="Newest durable step: 1") as caught:
        with full_disk(100_000):
            store.save(2, big, None, {})
            store.wait()
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    assert steps.whole_steps(tmp_path) == [1]
    store.save(3, big, None, {})
    store.wait()
    assert store.durable_step == 3
    store.close()


def test_a_folder_that_is_lost_surfaces_at_once(tmp_path):
    store = checkpoint.Checkpoints(tmp_path)
    shutil.rmtree(tmp_path / "checkpoints")
    with pytest.raises(checkpoint.CheckpointError, match="is gone: step 1 was not saved"):
        store.save(1, make_tree(), None, {})
    store.close()


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written to: Not a directory. Give a --workdir"):
        checkpoint.Checkpoints(tmp_path / "file" / "run")


def test_a_second_process_is_refused_with_the_first_ones_number(tmp_path):
    with run_lock(tmp_path):
        with pytest.raises(InputError, match=r"in use by another process \(host .*, process \d+\)"):
            with run_lock(tmp_path):
                pass
    with run_lock(tmp_path):
        pass


def numpy_digest(x):
    """The digest, written again with numpy's wrapping integers."""
    words = np.frombuffer(np.ascontiguousarray(x).tobytes(), f"u{min(x.dtype.itemsize, 4)}")

    def mix(v):
        v = (v ^ (v >> np.uint32(16))) * np.uint32(0x85EBCA6B)
        v = (v ^ (v >> np.uint32(13))) * np.uint32(0xC2B2AE35)
        return v ^ (v >> np.uint32(16))

    index = np.arange(words.size, dtype=np.uint32)
    sums = [
        mix(words.astype(np.uint32) ^ mix(index + np.uint32(seed))).sum(dtype=np.uint32)
        for seed in (0x9E3779B9, 0x7F4A7C15)
    ]
    return f"{sums[1]:08x}{sums[0]:08x}"


@pytest.mark.parametrize("dtype", ("float32", "bfloat16", "int32", "uint8", "float64"))
def test_the_digest_is_that_of_the_bytes_in_order(dtype):
    x = np.random.default_rng(1).normal(size=(3, 8, 5)) * 100
    x = x.astype(np.uint8) if dtype == "uint8" else x.astype(jnp.dtype(dtype))
    assert digest(x) == numpy_digest(x)
    assert digest(x) != digest(np.swapaxes(x, 0, 2).copy().reshape(x.shape))
    if dtype != "float64":
        mesh = jax.make_mesh((8,), ("d",), axis_types=(AxisType.Auto,))
        spread = jax.device_put(jnp.asarray(x), NamedSharding(mesh, PartitionSpec(None, "d")))
        assert digest(spread) == numpy_digest(x)


def test_every_single_bit_counts_for_the_digest():
    x = np.random.default_rng(2).normal(size=(4,)).astype(np.float32)
    seen = {digest(x)}
    for bit in range(x.nbytes * 8):
        raw = bytearray(x.tobytes())
        raw[bit // 8] ^= 1 << bit % 8
        seen.add(digest(np.frombuffer(bytes(raw), np.float32)))
    assert len(seen) == x.nbytes * 8 + 1
