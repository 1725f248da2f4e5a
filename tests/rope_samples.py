"""Ropes of two buckets, for the tests of conversion."""

import dataclasses

import pytest

from jaxrope import rope
from jaxrope.convert import __main__ as program
from jaxrope.convert import gguf_writer, rope_export, rope_formats, rope_gguf

SHORT = [1.0, 1.05, 1.1, 1.3, 1.31, 1.5, 1.7, 2.05]
LONG = [1.03, 1.2, 2.06, 3.1, 4.77, 5.0, 6.3, 7.99]
GEOMETRIES = {
    "one": dict(head_dim=16, theta=1e4, original_len=32),
    "two": dict(head_dim=16, theta=5e5, original_len=64),
}


def rows(*borders, attention=(1.3, 1.3), start_tokens=0):
    """Two buckets by default: SHORT up to the first border, LONG up to the second."""
    factors = [SHORT, *([LONG] * (len(borders) - 1))] if len(borders) > 1 else [LONG]
    attention = [*attention[:1], *([attention[1]] * (len(borders) - 1))]
    return [
        dict(max_len=n, factors=f, start_tokens=start_tokens, attention_factor=a)
        for n, f, a in zip(borders, factors, attention, strict=True)
    ]


def rope_of(name="one", buckets=None, **changes):
    geometry = GEOMETRIES[name] | changes
    start = geometry["original_len"]
    return rope.make("longrope", **geometry, buckets=buckets or rows(start, 8 * start))


def saved(folder, rope_fn):
    rope.save(folder / "rope.json", rope_fn, {"generations": 40})
    return folder / "rope.json"


def needs(*forms):
    if "gguf" in forms:
        pytest.importorskip("gguf", reason="needs the package gguf (the test extra has it)")


def into_gguf(source, target, arch="llama", *, allow_lossy=False):
    """Writes the rope of a file or folder as the GGUF of a model holds it, without the model."""
    rope_source = rope_formats.read(source)
    geometry = rope_source.rope_fn.geometry
    own = {"method": rope_source.rope_fn.method, **rope_source.rope_fn.constants}
    layout = rope_export.Layout(
        arch if arch == "phi3" else "llama",
        geometry.head_dim,
        geometry.rotary_dim,
        rope_source.longest,
        rope=own if rope_source.max_len else {},
    )
    written = rope_gguf.express(layout, rope_source.rope_fn, arch, allow_lossy=allow_lossy)
    values = {f"{arch}.{key}": value for key, value in written.values.items()}
    values |= {"general.architecture": arch, f"{arch}.attention.key_length": geometry.head_dim}
    tensors = [gguf_writer.Tensor(name, row.shape, 0) for name, row in written.tensors.items()]
    gguf_writer.write(target, values, tensors, written.tensors.values())
    return written


def written(source, target, form, *, allow_lossy=False):
    """Writes a rope in a form, or as a GGUF holds it; returns what is said."""
    if form == "gguf":
        hf_rope = into_gguf(source, target, allow_lossy=allow_lossy).hf_rope
        return [f"note: lost: {loss}" for loss in hf_rope.losses]
    settings = rope_formats.Settings(form, allow_lossy=allow_lossy, overwrite=True)
    return rope_formats.convert(source, target, settings)


def same(one, two):
    assert one.geometry == two.geometry
    assert [dataclasses.astuple(b) for b in one.buckets] == [
        dataclasses.astuple(b) for b in two.buckets
    ]


def run(capsys, *arguments):
    """Runs the command line; returns (exit code, standard output, standard error)."""
    try:
        program.main([str(argument) for argument in arguments])
        code = 0
    except SystemExit as error:
        code = error.code
    return code, *capsys.readouterr()
