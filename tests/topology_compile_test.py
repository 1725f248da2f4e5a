"""Compiling alone: the step of a config on devices of this machine and on slices that are not here,
what is reported, and what is said of a step that does not fit."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from jaxrope import decoder, topology
from jaxrope.errors import InputError
from jaxrope.mesh import sharding
from jaxrope.topology import compile, jobs, memory, report, roofline, schedule, slices
from tests import proof_rows, tiny_run

NOTHING = schedule.Schedule((), ())
WORK = roofline.Work(1, 1.0, 1.0, 1.0, 1.0, 1.0, least_flops=1.0)


def config(tmp_path, **mesh):
    """Returns a config without data."""
    made = tiny_run.make_config(tmp_path / "no such texts")
    made.mesh = dict(data=1, fsdp=1, context=1, tensor=1) | mesh
    return made


def test_a_step_for_this_machine(tmp_path, capsys):
    made = config(tmp_path, fsdp=2, context=4)
    topology.compile_train(made, "", tmp_path)
    out = capsys.readouterr().out
    assert "training step compiled for the devices of this machine" in out
    assert "data 1, fsdp 2, context 4, tensor 1: 8 devices of kind cpu" in out
    assert "prediction    none" in out
    (line,) = (tmp_path / compile.FILE).read_text(encoding="utf-8").splitlines()
    found = json.loads(line)
    assert found["mesh"] == made.mesh.to_dict()
    assert found["work"]["tokens"] == 8 * 32
    assert found["wire_bytes"]["all-gather"] > 0
    assert found["wire_bytes"]["collective-permute"] > 0
    assert not found["unknown_loops"]
    params = 4 * decoder.num_params(decoder.DecoderConfig(**{k: v for k, v in MODEL.items()}))
    # weights and two moments over 8 devices; the batch is small, and every device has the rope
    assert found["memory"]["arguments"] == pytest.approx(3 * params / 8, rel=0.02)
    assert sorted(p.name for p in tmp_path.iterdir()) == [compile.FILE]


MODEL = {key: value for key, value in tiny_run.MODEL.items() if key != "source"}


def test_a_mesh_of_another_size_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"mesh .*3"):
        topology.compile_train(config(tmp_path, fsdp=3), "", None)


class Refusing:
    """A program that the compiler refuses with a text of libtpu 0.0.52."""

    def lower(self):
        return self

    def compile(self):
        raise jax.errors.JaxRuntimeError(
            "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total "
            "memory required for HLO temporaries (264.38G) exceeds available HBM (95.73G). HLO "
            "module: jit_step."
        )


def footprint(**changes):
    made = memory.Footprint(
        model=decoder.SHAPES["llama2_7b"],
        sizes=dict(data=1, fsdp=8, context=8, tensor=1),
        rows=8,
        seq_len=2**18,
        accumulates=True,
        remat="save_attention",
        mlp_chunk=0,
        chunk_tokens=2048,
        offload=False,
    )
    return dataclasses.replace(made, **changes)


def test_too_large_a_step_says_what_would_help():
    mesh = sharding.make_mesh(dict(data=8, fsdp=1, context=1, tensor=1), jax.devices())
    job = jobs.Job("training step", Refusing().lower, WORK, footprint(), (), 1)
    with pytest.raises(InputError) as caught:
        compile.compile_job(job, mesh, "v5p:4x4x4")
    text = str(caught.value)
    assert "The training step needs 264.4 GiB on each device of v5p:4x4x4" in text
    assert "kept of each layer 16.0" in text
    for name in ("forward.remat='offload' (-16.0)", "optimizer.offload=True (-0.8)"):
        assert name in text
    assert "forward.remat='full' (-8.0)" in text
    assert "\n" not in text


class Unreadable(Refusing):
    """A program whose text jaxlib cannot read."""

    def __init__(self, dumps):
        self.dumps = dumps

    def compile(self, compiler_options):
        for name, text in self.dumps.items():
            (Path(compiler_options["xla_dump_to"]) / name).write_text(text, encoding="utf-8")
        return self

    def as_text(self):
        raise jax.errors.JaxRuntimeError("INTERNAL: RET_CHECK failure ... async-update")


def test_a_text_that_jaxlib_cannot_read_is_the_compilers_own():
    dumps = {"a.after_codegen.txt": "the text", "a.before.txt": "longer, but another text"}
    compiled, text = compile.with_text(Unreadable(dumps), "tpu")
    assert (text, compiled.dumps) == ("the text", dumps)
    with pytest.raises(jax.errors.JaxRuntimeError, match="async-update"):
        compile.with_text(Unreadable({}), "tpu")  # nothing was dumped: it is asked all the same


def test_other_errors_of_the_compiler_are_not_taken_for_it():
    class Broken(Refusing):
        def compile(self):
            raise jax.errors.JaxRuntimeError("INTERNAL: something else")

    mesh = sharding.make_mesh(dict(data=8, fsdp=1, context=1, tensor=1), jax.devices())
    job = jobs.Job("training step", Broken().lower, WORK, None, (), 1)
    with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
        compile.compile_job(job, mesh, "here")


# Llama-2-7B: 6.74e9 weights, 32 layers of 4,096; a device of 64 has 32k of 8 * 256k tokens.
@pytest.mark.parametrize(
    ("changes", "part", "size"),
    [
        (dict(remat="full"), "kept of each layer", 32 * 32_768 * 4096 * 2),
        (dict(remat="offload"), "kept of each layer", 0),
        (dict(), "kept of each layer", 2 * 32 * 32_768 * 4096 * 2),
        (dict(), "weights, moments and gradients", 20 * 6_738_415_616 / 64),
        (dict(accumulates=False), "weights, moments and gradients", 16 * 6_738_415_616 / 64),
        (dict(offload=True), "weights, moments and gradients", 12 * 6_738_415_616 / 64),
        (dict(), "the MLP of one layer", 4 * 32_768 * 11_008 * 2),
        (dict(mlp_chunk=2048), "the MLP of one layer", 4 * 2048 * 11_008 * 2),
        (dict(), "logits", 8 * 2048 * 32_000),
    ],
)
def test_parts_of_the_memory(changes, part, size):
    assert footprint(**changes).parts()[part] == pytest.approx(size)


def test_knobs_save_what_they_say():
    found = dict(memory.knobs(footprint()))
    assert found["train.chunk_tokens=512"] == 8 * 1536 * 32_000
    assert "mesh.context=16 with mesh.fsdp=4, and train.accumulation doubled" in found
    assert list(found.values()) == sorted(found.values(), reverse=True)
    assert not [name for name in dict(memory.knobs(footprint(remat="offload"))) if "remat" in name]
    two_rows = dict(memory.knobs(footprint(rows=16)))
    assert two_rows["train.accumulation doubled"] > footprint().bytes / 4


def test_a_report_in_words_and_as_json():
    one = schedule.Collective(
        "collective-permute", "start.1", "body", "jit/ring", 4, 2**30, 3, False
    )
    home = dataclasses.replace(one, name="start.2", brings_home=True, times=1)
    hidden = dataclasses.replace(one, name="start.3", overlapped=True)
    found = report.Report(
        what="training step",
        runs=100,
        where="v5p:2x2x1",
        versions={"libtpu": "1.2"},
        mesh=dict(data=1, fsdp=1, context=4, tensor=1),
        device_kind="TPU v5",
        remarks=("a remark",),
        seconds=2.0,
        memory=report.Memory(2**30, 2**29, 2**31, 3 * 2**30, 0, 6 * 2**30),
        work=WORK,
        schedule=schedule.Schedule((one, home, hidden), ("while.7",)),
        prediction=roofline.predict(WORK, NOTHING, topology.CHIPS["v5p"], 4),
    )
    text = found.text()
    for part in (
        "a remark",
        "peak 3.00 GiB on each device: 1.00 GiB of arguments",
        "50% of the 6.00 GiB",
        "collective-permute 7.00 GiB",
        "loops of unknown length, counted once: while.7",
        "7 permutes in 3 places: 1 hidden by computation, 1 bring dK and dV home",
        "1 exposed",
        "exposed: start.1, 3 times, 3.00 GiB (jit/ring)",
        "tokens a day",
    ):
        assert part in text
    stored = json.loads(json.dumps(found.json_dict()))
    assert stored["exposed_permutes"] == ["jit/ring"]
    assert (stored["permutes"], stored["permutes_coming_home"]) == (3, 1)
    assert stored["wire_bytes"]["collective-permute"] == 7 * 2**30
    assert stored["step_seconds"] == found.prediction.step


def test_ring_memory_is_flat_as_length_and_devices_grow_together():
    """On 8 devices of the CPU; up to 2M tokens by the TPU compiler: proof.py."""
    shape = dataclasses.replace(
        decoder.SHAPES["llama3_8b"], num_heads=4, num_kv_heads=2, head_dim=32, rotary_dim=32
    )
    used = {}
    for devices in (2, 4, 8):
        mesh = sharding.make_mesh(
            dict(data=1, fsdp=1, context=devices, tensor=1), jax.devices()[:devices]
        )
        lowered = proof_rows.lower_attention(
            shape, mesh, seq_len=1024 * devices, backend="ring", kernel="blockwise", gradient=True
        )
        found = lowered.compile().memory_analysis()
        used[devices] = found.argument_size_in_bytes + found.temp_size_in_bytes
    assert used[8] == pytest.approx(used[4], rel=0.02)
    assert used[4] < 1.02 * used[2]  # a ring of two has no loop, and its buffers are not shared


@pytest.mark.parametrize("where", ["v5p:2x2x1", "v5e:2x2"])
def test_the_tpu_compiler_hides_every_hop(libtpu, where):
    """The small part of proof.py."""
    peak, found = proof_rows.ring(where, 4, gradient=True, tokens=1024)
    assert 40 * 2**20 < peak < 553 / 4 * 2**20
    hops = proof_rows.hops(found)
    assert (hops["exposed"], hops["home"], hops["unknown_loops"]) == (0, 2, ())
    assert hops["hidden"] == hops["hops"] - 2 > 0
    # 3 hops forward with 2 arrays of 8 heads in bfloat16, twice; dk and dv follow in float32
    hop = 1024 * 8 * 128 * 2
    sent = found.wire_bytes("collective-permute") / hop
    assert 12 + 2 * 3.5 <= sent / 1 <= 12 + 16


def test_the_tpu_compiler_refuses_what_is_too_large(libtpu):
    mesh = sharding.make_mesh(
        dict(data=-1, fsdp=1, context=1, tensor=1), topology.devices("v5e:2x2")
    )
    where = sharding.replicated(mesh)
    x = jax.ShapeDtypeStruct((1 << 19, 1 << 10), jnp.float32, sharding=where)
    job = jobs.Job("product", lambda: jax.jit(lambda x: (x @ x.T) @ x).lower(x), WORK, None, (), 1)
    with pytest.raises(InputError, match=r"The product needs \d{3,}\.\d GiB .* use 15.8 GiB"):
        compile.compile_job(job, mesh, "v5e:2x2")


def test_gradients_alone_go_from_slice_to_slice_and_once_a_step(libtpu, tmp_path):
    made = config(tmp_path, data=2, fsdp=4)
    made.train.accumulation, made.train.batch_size = 2, 16
    mesh = sharding.make_mesh(made.mesh, slices.devices("2xv5e:2x2"))
    assert [{d.slice_index for d in part.flat} for part in mesh.devices] == [{0}, {1}]
    found = compile.compile_job(jobs.train_job(made, mesh), mesh, "2xv5e:2x2")
    between = [c for c in found.schedule.collectives if c.kind == schedule.BETWEEN]
    assert {(c.times, c.devices) for c in between} == {(1, 2)}
    params = decoder.num_params(decoder.DecoderConfig(**MODEL))
    sent = found.schedule.wire_bytes(schedule.BETWEEN)
    assert params <= sent < 1.3 * params  # 4 bytes of a fourth, in whole tiles; losses and counts
    assert f"{schedule.BETWEEN} {sent / 2**20:.1f} MiB" in found.text()
    with pytest.raises(InputError, match="mesh.data must be a multiple of the 2 TPU slices .* 1:"):
        sharding.make_mesh(dict(data=1, fsdp=8, context=1, tensor=1), slices.devices("2xv5e:2x2"))
