"""What is read from compiled programs: loops, bytes on the wire, and what hides them.

The program of topology_schedule.hlo is put together from pieces of real ones (libtpu 0.0.52): five
layers, each with a ring over four devices, and the forms that collectives have on a TPU.
"""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxrope.topology import hlo, schedule

PROGRAM = (Path(__file__).parent / "topology_schedule.hlo").read_text(encoding="utf-8")
KV = "bf16[1,4,2048,128]{3,2,1,0:T(8,128)(2,1)}"
KV_BYTES = 4 * 2048 * 128 * 2
HOME = 'metadata={op_name="jit(step)/transpose(jvp())/while/body/ppermute"}'


def broken(old, new, times=1):
    """Returns the program with a part of it exchanged."""
    assert PROGRAM.count(old) >= 1
    return PROGRAM.replace(old, new, times)


def moved(line_with, behind):
    """Returns the program with one of its lines moved behind another one."""
    lines = PROGRAM.splitlines()
    line = next(line for line in lines if line_with in line)
    lines.remove(line)
    place = next(i for i, other in enumerate(lines) if behind in other)
    return "\n".join([*lines[: place + 1], line, *lines[place + 1 :]])


def test_loops_turn_as_often_as_their_counters_say():
    module = hlo.parse(PROGRAM)
    times, unknown = hlo.executions(module)
    assert len(module.computations["on_another_core"].instructions) == 1
    assert not unknown
    # 5 down to 1, and in each 0, 1, 2; the zero comes in through the state of the outer loop
    assert (times["main"], times["layer"], times["hop"]) == (1, 5, 15)
    assert times["add"] == 3  # of three callers


@pytest.mark.parametrize(
    ("old", "new", "layers", "hops"),
    [
        ("constant(3)", "constant(7)", 5, 35),
        ("constant(5)", "constant(2)", 2, 6),
        ("constant(-1)", "constant(-2)", 3, 9),
        ("constant(1)", "constant(2)", 5, 10),
        ("%hops), direction=LT", "%hops), direction=LE", 5, 20),
        ("compare(%right, %left), direction=LT", "compare(%left, %right), direction=GT", 5, 15),
        ("compare(%right, %left), direction=LT", "compare(%right, %left), direction=LE", 6, 18),
        ("%nought = s32[]{:T(128)} constant(0)", "%nought = s32[]{:T(128)} constant(1)", 5, 10),
        (
            "condition=%hop_condition, body=%hop",
            'condition=%hop_condition, body=%hop, backend_config={"known_trip_count":{"n":"11"}}',
            5,
            55,
        ),
    ],
)
def test_every_constant_of_a_loop_counts(old, new, layers, hops):
    times, unknown = hlo.executions(hlo.parse(broken(old, new)))
    assert not unknown
    assert (times["layer"], times["hop"]) == (layers, hops)


def test_a_counter_may_be_subtracted_from():
    text = PROGRAM.replace("constant(-1)", "constant(2)")
    text = text.replace("add(%layer_index, %minus)", "subtract(%layer_index, %minus)")
    assert hlo.executions(hlo.parse(text))[0]["layer"] == 3


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("%hops = s32[]{:T(128)} constant(3)", "%hops = s32[]{:T(128)} negate(%step.1)"),
        ("direction=LT\n}\n\n%layer ", "direction=NE\n}\n\n%layer "),
        ("tuple(%next.1, %collective-permute-done.1, %zero", "tuple(%next.1, %kv, %next.1"),
    ],
)
def test_a_loop_of_unknown_length_is_told(old, new):
    times, unknown = hlo.executions(hlo.parse(broken(old, new)))
    assert unknown == ("while.1",)
    assert times["hop"] == times["layer"] == 5


def test_bytes_on_the_wire():
    found = schedule.read(PROGRAM)
    assert not found.unknown_loops
    # one all-gather in 5 layers: begun once in each, however many fusions go on with it
    assert found.wire_bytes("all-gather") == 5 * 7 * 128 * 8 * 2
    assert found.wire_bytes("all-gather", overlapped=True) == 5 * 7 * 128 * 8 * 2
    assert found.wire_bytes("collective-permute") == (15 + 5) * KV_BYTES
    assert found.wire_bytes("collective-permute", overlapped=False) == 5 * KV_BYTES
    assert found.wire_bytes("reduce-scatter") == 2 * 1024 * 8 * 4 * 7 / 8  # one of them fused
    assert found.wire_bytes("all-reduce") == 4  # 2 * 1/2 of a float
    assert found.wire_bytes("all-to-all") == 0


def test_groups_of_devices():
    devices = {c.name: c.devices for c in schedule.read(PROGRAM).collectives}
    assert devices["all-gather.1"] == devices["reduce-scatter.1"] == 8
    assert devices["all-reduce.1"] == 2
    assert devices["collective-permute-start"] == 4


def test_every_hop_is_hidden_but_the_one_that_goes_home():
    found = schedule.read(PROGRAM)
    assert not found.exposed()
    assert [c.name for c in found.coming_home()] == ["collective-permute-start.1"]
    assert found.coming_home()[0].times == 5


HOP = "collective-permute-start ="


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(moved(HOP, behind="%kernel ="), id="start after the kernel"),
        pytest.param(
            moved("%collective-permute-done =", behind=HOP), id="end right after the start"
        ),
        pytest.param(broken("tpu_custom_call", "Sharding"), id="no kernel between them"),
        pytest.param(
            broken("collective-permute-start(%k)", "collective-permute(%k)"), id="synchronous"
        ),
        pytest.param(
            broken("collective-permute-done(%collective-permute-start)", "negate(%k)"),
            id="no end in this computation",
        ),
    ],
)
def test_a_hop_that_nothing_hides_is_found(text):
    assert [c.computation for c in schedule.read(text).exposed()] == ["hop"]


def test_only_what_the_loop_has_made_may_go_home_unhidden():
    fresh = broken("collective-permute-start(%dk.1)", "collective-permute-start(%kv)")
    forward = broken(HOME, HOME.replace("transpose(jvp())", "jvp()"), times=2)
    for text in (fresh, forward):
        found = schedule.read(text)
        assert [c.name for c in found.exposed()] == ["collective-permute-start.1"]
        assert not found.coming_home()


def test_a_hop_home_without_a_name_has_that_of_what_it_sends():
    """So it is in programs for several slices."""
    sent = "get-tuple-element(%while.1), index=2"
    named = broken(sent, f"{sent}, {HOME}").replace(f"7,4}}}}, {HOME}", "7,4}}")
    assert schedule.read(named).coming_home() and not schedule.read(named).exposed()


def test_a_fusion_or_a_loop_with_a_product_hides_a_hop_and_a_sum_does_not():
    kernel = 'custom-call(%k, %dk), custom_call_target="tpu_custom_call"'
    assert not schedule.read(broken(kernel, "fusion(%k, %dk), calls=%product")).exposed()
    assert schedule.read(broken(kernel, "fusion(%k, %dk), calls=%add")).exposed()
    branches = "conditional(%k, %dk), branch_computations={%product, %%s}"
    assert not schedule.read(broken(kernel, branches.replace("%%s", "%product"))).exposed()
    assert schedule.read(broken(kernel, branches.replace("%%s", "%add"))).exposed()


def test_the_short_forms_of_newer_dumps_say_the_same():
    """libtpu under jax 0.12 writes x#1 for an element of a tuple, and names the axes of a mesh."""
    short = PROGRAM
    for line in PROGRAM.splitlines():
        found = re.fullmatch(r"  %(\S+) = .* get-tuple-element\(%(\S+)\), index=(\d+)", line)
        if found:
            short = short.replace(line + "\n", "")
            short = re.sub(rf"%{re.escape(found[1])}(?![\w.\-])", f"%{found[2]}#{found[3]}", short)
    short = short.replace(
        "={{0,1,2,3,4,5,6,7}}", "=mesh['data'=2,'fsdp'=4,'context'=2] {'fsdp','context'}"
    )
    assert "get-tuple-element" not in short and "#2" in short
    module = hlo.parse(short)
    assert module.computations["hop"].by_name["state#2"].shape == f"{KV}"
    assert hlo.executions(module) == hlo.executions(hlo.parse(PROGRAM))
    long, found = schedule.read(PROGRAM), schedule.read(short)
    for kind in schedule.KINDS:
        assert found.wire_bytes(kind) == long.wire_bytes(kind)
    assert [c.devices for c in found.collectives] == [c.devices for c in long.collectives]
    assert (found.exposed(), found.coming_home()) == (long.exposed(), long.coming_home())


def test_an_unscheduled_program_is_refused():
    with pytest.raises(ValueError, match="not scheduled"):
        schedule.read(broken(", is_scheduled=true", ""))


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ("bf16[8,128]{1,0:T(8,128)(2,1)}", 2048),
        ("(f32[3]{0}, pred[5]{0}, u32[]{:S(2)}, /*index=3*/s4[2,4])", 12 + 5 + 4 + 4),
        ("token[]", 0),
        ("f32[<=8,2]", 64),
        ("f32[0]", 0),
    ],
)
def test_bytes_of_a_type(shape, size):
    assert hlo.num_bytes(shape) == size


def test_a_program_of_this_machine_is_read_as_well():
    """Independent of the texts above: four devices, a scan, known bytes."""
    mesh = jax.make_mesh((4,), ("x",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])

    def part(w, x):
        def layer(x, w):
            full = jax.lax.all_gather(w, "x", tiled=True)
            x = jax.lax.ppermute(x @ full, "x", [(i, (i + 1) % 4) for i in range(4)])
            return x, jax.lax.psum_scatter(full * 2.0, "x", tiled=True)

        return jax.lax.scan(layer, x, w)

    spec = PartitionSpec(None, "x")
    fn = jax.shard_map(part, mesh=mesh, in_specs=(spec, spec), out_specs=(spec, spec))
    w = jax.ShapeDtypeStruct((6, 64, 64), jnp.float32, sharding=NamedSharding(mesh, spec))
    x = jax.ShapeDtypeStruct((8, 256), jnp.float32, sharding=NamedSharding(mesh, spec))
    found = schedule.read(jax.jit(fn).lower(w, x).compile().as_text())
    assert not found.unknown_loops
    assert found.wire_bytes("all-gather") == 6 * 3 * 16 * 64 * 4
    assert found.wire_bytes("reduce-scatter") == 6 * 3 * 16 * 64 * 4
    assert found.wire_bytes("collective-permute") == 6 * 8 * 64 * 4
    assert len(found.exposed()) == 1  # a CPU does one thing at a time
