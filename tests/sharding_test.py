"""The mesh, the table of rules, and what is refused before anything is compiled."""

import dataclasses

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from jaxrope import decoder
from jaxrope.errors import InputError
from jaxrope.mesh import sharding


def mesh_of(**sizes):
    return sharding.make_mesh(dict(data=1, fsdp=1, context=1, tensor=1) | sizes)


def test_minus_one_takes_the_rest():
    assert mesh_of(data=-1).shape == dict(data=8, fsdp=1, context=1, tensor=1)
    assert mesh_of(data=2, fsdp=-1).shape == dict(data=2, fsdp=4, context=1, tensor=1)
    assert mesh_of(context=-1, tensor=2).shape == dict(data=1, fsdp=1, context=4, tensor=2)
    assert mesh_of(data=2, fsdp=4).axis_names == sharding.AXES


@pytest.mark.parametrize(
    "sizes, message",
    [
        (dict(data=3, fsdp=2), r"needs 6 devices, there are 8\. Nearest that fits: data=4, fsdp=2"),
        (dict(data=-1, fsdp=3), "needs a multiple of 3 devices, there are 8.*data=4, fsdp=2"),
        (dict(data=16), "needs 16 devices, there are 8. Nearest that fits: data=8, fsdp=1"),
        (dict(data=-1, fsdp=-1), "only one axis may be -1, got data and fsdp"),
        (dict(data=0), "mesh.data must be a whole number of devices from 1 to .* .or -1., got 0"),
        (dict(data=2.0), r"mesh.data must be a whole number of devices .*, got 2\.0"),
        (dict(context=3), "needs 3 devices.*: data=4, fsdp=1, context=2, tensor=1"),
        (dict(context=4, tensor=3), "needs 12 devices.*: data=1, fsdp=1, context=4, tensor=2"),
        (dict(data=3, context=-1), "needs a multiple of 3 devices.*: data=8, fsdp=1, context=1"),
        (dict(model=1), "Unknown key mesh.model. Known: context, data, fsdp, tensor"),
    ],
)
def test_a_mesh_that_does_not_fit_is_refused(sizes, message):
    with pytest.raises(InputError, match=message):
        mesh_of(**sizes)


def test_fewer_devices_may_be_chosen():
    sizes = dict(data=-1, fsdp=1, context=1, tensor=1)
    assert sharding.make_mesh(sizes, jax.devices()[:2]).size == 2


@pytest.mark.parametrize(
    "batch, parts, nearest", [(12, 1, "8 or 16"), (3, 1, "8"), (24, 2, "16 or 32")]
)
def test_a_batch_that_cannot_be_cut_names_the_nearest(batch, parts, nearest):
    with pytest.raises(InputError, match=rf"got {batch}\. Nearest: {nearest}\."):
        sharding.check_batch(mesh_of(data=4, fsdp=2), batch, parts)
    sharding.check_batch(mesh_of(data=4, fsdp=2), 32, 2)


def test_every_parameter_lies_by_the_table(tiny_config):
    mesh = mesh_of(data=2, fsdp=4)
    abstract, axes = decoder.abstract_params(tiny_config), decoder.logical_axes(tiny_config)
    specs = jax.tree.map(lambda s: s.spec, sharding.param_shardings(mesh, axes, abstract))
    fsdp = ("fsdp", "context")
    assert specs["embed_VD"] == PartitionSpec(None, fsdp)
    assert specs["head_DV"] == PartitionSpec(fsdp, None)
    assert specs["layers"]["q_LDNH"] == PartitionSpec(None, fsdp, None, None)
    assert specs["layers"]["o_LNHD"] == PartitionSpec(None, None, None, fsdp)
    assert specs["layers"]["down_LFD"] == PartitionSpec(None, None, fsdp)
    assert {
        axis
        for leaf in jax.tree.leaves(axes, is_leaf=lambda x: isinstance(x, tuple))
        for axis in leaf
    } <= set(sharding.RULES)


def test_seven_billion_parameters_are_cut_evenly():
    config = decoder.DecoderConfig(
        vocab_size=32_003,
        num_layers=32,
        embed_dim=4096,
        num_heads=32,
        num_kv_heads=32,
        head_dim=128,
        mlp_dim=11_008,
        norm_eps=1e-5,
        theta=10_000.0,
        original_len=4096,
        max_len=4096,
        rotary_dim=128,
        tie_embeddings=False,
    )
    abstract = decoder.abstract_params(config)
    found = sharding.param_shardings(mesh_of(fsdp=8), decoder.logical_axes(config), abstract)
    for leaf, where in zip(jax.tree.leaves(abstract), jax.tree.leaves(found), strict=True):
        shard = where.shard_shape(leaf.shape)
        assert 8 * jax.ShapeDtypeStruct(shard, leaf.dtype).size == leaf.size


def test_an_axis_that_does_not_divide_is_refused_with_its_leaf(tiny_config):
    odd = dataclasses.replace(tiny_config, embed_dim=36)
    with pytest.raises(
        InputError,
        match=r"mesh.fsdp \* mesh.context = 8 must divide the axis 'embed' of .*, which is 36. "
        r"Nearest that do: 4, 6, 9\.",
    ):
        sharding.param_shardings(
            mesh_of(fsdp=8), decoder.logical_axes(odd), decoder.abstract_params(odd)
        )


def test_words_that_do_not_divide_are_replicated(tiny_config):
    mesh = mesh_of(tensor=8)
    odd = dataclasses.replace(tiny_config, vocab_size=259, num_heads=8, num_kv_heads=8)
    found = sharding.param_shardings(mesh, decoder.logical_axes(odd), decoder.abstract_params(odd))
    assert found["embed_VD"].spec == PartitionSpec(None, None)
    assert found["layers"]["q_LDNH"].spec == PartitionSpec(None, None, ("tensor",), None)


def test_rows_go_over_data_and_fsdp_and_tokens_over_context():
    mesh = mesh_of(data=2, fsdp=2, context=2)
    assert sharding.batch_sharding(mesh).shard_shape((3, 16, 6)) == (3, 4, 3)
    assert sharding.row_sharding(mesh).shard_shape((16, 6)) == (4, 3)
    assert sharding.ways(mesh, "data", "context") == 4 and sharding.ways(None, "data") == 1


def test_the_model_dim_goes_over_fsdp_and_context_and_heads_over_tensor(tiny_config):
    mesh = mesh_of(fsdp=2, context=2, tensor=2)
    abstract, axes = decoder.abstract_params(tiny_config), decoder.logical_axes(tiny_config)
    found = sharding.param_shardings(mesh, axes, abstract)
    layer, both = found["layers"], ("fsdp", "context")
    assert layer["k_LDKH"].spec == PartitionSpec(None, both, ("tensor",), None)
    assert layer["down_LFD"].spec == PartitionSpec(None, ("tensor",), both)
    assert found["embed_VD"].spec == PartitionSpec(("tensor",), both)
    assert sharding.unnamed_axes(layer["attn_norm_LD"]) == ("tensor",)
    assert sharding.unnamed_axes(layer["k_LDKH"]) == ()


def test_heads_that_do_not_divide_are_refused(tiny_config):
    with pytest.raises(
        InputError, match=r"mesh.tensor = 4 must divide the axis 'kv_heads' of .*, which is 2\. "
    ):
        sharding.param_shardings(
            mesh_of(data=2, tensor=4),
            decoder.logical_axes(tiny_config),
            decoder.abstract_params(tiny_config),
        )


def test_put_hands_each_device_its_part():
    mesh, host = mesh_of(data=2, context=4), np.arange(32.0).reshape(4, 8)
    found = sharding.put({"a": host}, {"a": sharding.row_sharding(mesh)})["a"]
    assert np.array_equal(found, host)
    assert {shard.data.shape for shard in found.addressable_shards} == {(2, 2)}
    assert sharding.put([host], sharding.replicated(mesh))[0].is_fully_replicated
