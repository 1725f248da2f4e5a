"""Converts models between Hugging Face folders, GGUF files and workdirs, and ropes between file
formats.

python -m jaxrope.convert import HF_DIR OUT
python -m jaxrope.convert import model.gguf OUT
python -m jaxrope.convert export WORKDIR_OR_CHECKPOINT OUT_HF_DIR --arch=phi3
python -m jaxrope.convert export WORKDIR OUT_PEFT_DIR --adapter
python -m jaxrope.convert export MODEL OUT.gguf --to=gguf --rope=rope.json
python -m jaxrope.convert gguf MODEL.gguf OUT.gguf --rope=rope.json
python -m jaxrope.convert serve MODEL OUT --rope=rope.json
python -m jaxrope.convert route OUT --servers=http://localhost:8001,http://localhost:8002
python -m jaxrope.convert rope rope.json config.json --format=hf-phi3
"""

import os
import sys
import tempfile
from collections.abc import Sequence

from jaxrope.errors import InputError
from jaxrope.shell import Command, cli

FORMATS = ("jaxrope", "hf-llama", "hf-phi3", "vllm")  # of rope_formats, for --help
_TARGETS = dict.fromkeys(("hf", "gguf"))
_SOURCES = "config.json and safetensors, a GGUF file, or a model of the hub (ORG/NAME)"


def _import_arguments(parser) -> None:
    parser.add_argument("source", metavar="HF_DIR", help=f"folder with {_SOURCES}")
    parser.add_argument(
        "target", metavar="OUT", help="workdir to make; must not exist, or be empty"
    )
    parser.add_argument(
        "--dtype", help="float32, bfloat16 or float16; by default as the weights are"
    )


def _import(args) -> None:
    """Make a workdir from a Hugging Face folder."""
    from jaxrope.convert import importing  # jax: only once the command line is known to be right

    _report(importing.import_folder(args.source, args.target, dtype=args.dtype), args.target)


def _import_dry_run(args) -> str:
    from jaxrope import decoder
    from jaxrope.convert import folders, pretrained

    folders.check_target(args.target)
    model = pretrained.load(args.source, dtype=args.dtype, weights=False)
    lines = [
        f"{args.source}: {model.config.family}, {decoder.num_params(model.config):,} parameters"
    ]
    return _would_write([*lines, *(f"note: {note}" for note in model.notes)], args.target)


def _model_arguments(parser) -> None:
    parser.add_argument(
        "source",
        metavar="WORKDIR_OR_CHECKPOINT",
        help=f"a workdir, one step of it, or a folder with {_SOURCES}",
    )
    parser.add_argument(
        "--rope", metavar="rope.json", help="export these factors instead of the model's own rope"
    )
    parser.add_argument(
        "--allow_lossy",
        action="store_true",
        help="export although Hugging Face cannot express all of the rope",
    )


def _export_arguments(parser) -> None:
    _model_arguments(parser)
    parser.add_argument(
        "target",
        metavar="OUT",
        help="folder to make; must not exist, or be empty. With --to=gguf the file to make",
    )
    parser.add_argument(
        "--to",
        default="hf",
        help="hf (a Hugging Face folder) or gguf (a file that runs in llama.cpp, with the"
        " tokenizer); hf by default",
    )
    parser.add_argument(
        "--dtype",
        help="float32, bfloat16 or float16, with --to=gguf q8_0 too (also f32, bf16, f16); by"
        " default as the weights are",
    )
    parser.add_argument(
        "--arch",
        help="llama (LlamaForCausalLM: transformers, vLLM, SGLang; transformers keeps keys of the"
        " short factors when a generation crosses the original length; llama.cpp drops the factors)"
        " or phi3 (Phi3ForCausalLM, the same weights joined: transformers computes its cache anew"
        " there; llama.cpp reads the factors); by default the model's own, llama for a Llama",
    )
    parser.add_argument(
        "--adapter",
        action="store_true",
        help="export a LoRA training as a PEFT folder: the adapters, and what was trained beside"
        " them, without the base",
    )
    parser.add_argument(
        "--base",
        default="",
        metavar="HF_DIR",
        help="what the PEFT folder names as its base; by default the Hugging Face folder that the"
        " training began with",
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace a Hugging Face folder or file that is there",
    )


def _model(args, **how):
    """Returns the model of a command line, with the rope that it names; how: of pretrained.load."""
    from jaxrope.convert import pretrained

    model = pretrained.load(args.source, dtype=None, **how)
    return model if args.rope is None else pretrained.with_rope(model, args.rope)


def _export_adapter(args) -> None:
    from jaxrope.convert import exporting, pretrained

    model = _model(args, merge=False)
    settings = exporting.Settings(
        dtype=args.dtype, allow_lossy=args.allow_lossy, overwrite=args.overwrite
    )
    base = args.base or pretrained.trained_from(args.source)
    notes = exporting.export_adapter(model, args.target, settings, base=base)
    _report([*model.notes, *notes], args.target)


def _check_adapter_arguments(args) -> None:
    from jaxrope.errors import choose

    choose("--to", args.to, _TARGETS)
    if args.adapter and args.to != "hf":
        raise InputError("--adapter is a PEFT folder: leave --to out.")
    if args.base and not args.adapter:
        raise InputError("--base is of a PEFT folder: pass --adapter with it.")
    if args.adapter and args.arch is not None:
        raise InputError("--adapter has the layout of its base: leave --arch out.")


def _check_target(args) -> None:
    from jaxrope.convert import folders, gguf_export

    if args.to == "gguf":
        gguf_export.check_target(args.target, args.overwrite)
    else:
        folders.check_target(args.target, overwrite=args.overwrite)


def _export(args) -> None:
    """Make a Hugging Face folder or a GGUF file from a workdir, a checkpoint or another model."""
    from jaxrope.convert import exporting, gguf_export, pretrained

    _check_adapter_arguments(args)
    _check_target(args)  # before minutes of reading
    if args.adapter:
        _export_adapter(args)
        return
    if args.arch is not None:
        exporting.check_arch(args.arch, pretrained.read_config(args.source))
    model = _model(args)
    settings = exporting.Settings(
        dtype=args.dtype,
        allow_lossy=args.allow_lossy,
        overwrite=args.overwrite,
        arch=args.arch,
    )
    if args.to == "gguf":
        lines = gguf_export.export(model, args.target, settings)
    else:
        lines = [f"note: {note}" for note in exporting.export_folder(model, args.target, settings)]
        lines += exporting.applied(model, settings)
    _report_lines([*(f"note: {note}" for note in model.notes), *lines], args.target)


def _export_dry_run(args) -> str:
    from jaxrope import decoder
    from jaxrope.convert import exporting, gguf_export, rope_export

    _check_adapter_arguments(args)
    _check_target(args)
    model = _model(args, weights=False)
    if args.to == "gguf":
        settings = exporting.Settings(
            dtype=args.dtype, allow_lossy=args.allow_lossy, arch=args.arch
        )
        content = gguf_export.plan(model, settings, "model")
        lines = [f"{args.source}: {content.values['general.architecture']} of llama.cpp"]
        notes = [*model.notes, *content.notes]
        return _would_write([*lines, *(f"note: {note}" for note in notes)], args.target)
    config = exporting.check_arch(args.arch or model.config.family, model.config)
    hf_rope = rope_export.express(config, model.rope_fn)
    rope_export.check(hf_rope, allow_lossy=args.allow_lossy)
    lines = [f"{args.source}: {config.family}, {decoder.num_params(config):,} parameters"]
    lines += [f"note: {note}" for note in model.notes]
    return _would_write([*lines, *(f"note: lost: {loss}" for loss in hf_rope.losses)], args.target)


def _rope_arguments(parser) -> None:
    parser.add_argument(
        "source",
        metavar="IN",
        help="rope.json, config.json, a GGUF or a vLLM line; or a folder with one of the first"
        " three",
    )
    parser.add_argument("target", metavar="OUT", help="file to make")
    formats = f"what to write: {', '.join(FORMATS)}; hf, the config.json of --model with it"
    parser.add_argument("--format", required=True, help=formats)
    parser.add_argument(
        "--model",
        metavar="HF_DIR",
        help="folder of the model that the rope is for, with --format=hf or vllm: a vision part"
        " stays as it is, and the rope is put where the text part has its own",
    )
    parser.add_argument(
        "--allow_lossy",
        action="store_true",
        help="write although the format cannot express all of the rope",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a file that is there")


def _rope(args) -> None:
    """Write a rope in another program's format, and report how each program applies it."""
    from jaxrope.convert import rope_formats

    settings = rope_formats.Settings(
        args.format, allow_lossy=args.allow_lossy, overwrite=args.overwrite, model=args.model
    )
    _report_lines(rope_formats.convert(args.source, args.target, settings), args.target)


def _rope_dry_run(args) -> str:
    """Writes into a folder that goes again: what is written is small, and is read back."""
    from jaxrope.convert import rope_formats

    rope_formats.check_target(args.target, args.overwrite)
    how = dict(allow_lossy=args.allow_lossy, model=args.model)
    settings = rope_formats.Settings(args.format, **how)
    with tempfile.TemporaryDirectory() as folder:
        target = os.path.join(folder, os.path.basename(args.target))
        lines = rope_formats.convert(args.source, target, settings)
    return _would_write(lines, args.target)


def _gguf_arguments(parser) -> None:
    parser.add_argument("source", metavar="MODEL.gguf", help="a GGUF file, quantised or not")
    parser.add_argument("target", metavar="OUT.gguf", help="file to make")
    parser.add_argument(
        "--rope", metavar="rope.json", required=True, help="the factors to put into it"
    )
    parser.add_argument(
        "--allow_lossy",
        action="store_true",
        help="write although llama.cpp cannot express all of the rope",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a file that is there")


def _gguf(args) -> None:
    """Put factors into a GGUF file of others' making: its tensors are copied as they are."""
    from jaxrope.convert import gguf_patch

    how = dict(allow_lossy=args.allow_lossy, overwrite=args.overwrite)
    _report_lines(gguf_patch.patch(args.source, args.target, args.rope, **how), args.target)


def _gguf_dry_run(args) -> str:
    from jaxrope.convert import gguf_export, gguf_patch

    gguf_export.check_target(args.target, args.overwrite)
    _, lines = gguf_patch.plan(args.source, args.rope, allow_lossy=args.allow_lossy)
    return _would_write(lines, args.target)


def _serve_arguments(parser) -> None:
    _model_arguments(parser)
    parser.add_argument("target", metavar="OUT", help="folder to make; must not exist, or be empty")
    parser.add_argument("--dtype", help="float32, bfloat16 or float16; by default as stored")
    parser.add_argument("--arch", help="llama or phi3; by default the model's own")


def _serve(args) -> None:
    """Make a folder for each length bucket, for servers that know one set of factors (vLLM)."""
    from jaxrope.convert import exporting, folders, profile

    folders.check_target(args.target)
    settings = exporting.Settings(dtype=args.dtype, arch=args.arch, allow_lossy=args.allow_lossy)
    lines = profile.write(_model(args), args.target, settings)
    _report_lines(lines, args.target)


def _serve_dry_run(args) -> str:
    from jaxrope.convert import folders, profile, rope_export

    folders.check_target(args.target)
    parts = profile.of_buckets(_model(args, weights=False))
    for part in parts:
        hf_rope = rope_export.express(part.config, part.rope_fn)
        rope_export.check(hf_rope, allow_lossy=args.allow_lossy)
    lengths = ", ".join(str(part.config.max_len) for part in parts)
    return _would_write([f"{args.source}: folders for up to {lengths} tokens"], args.target)


def _route_arguments(parser) -> None:
    parser.add_argument("folder", metavar="OUT", help="folder that serve made")
    parser.add_argument(
        "--servers", required=True, help="addresses of the servers, by ascending length"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; %(default)s")
    parser.add_argument("--port", type=int, default=8000, help="%(default)s by default")
    parser.add_argument(
        "--answer_tokens",
        type=int,
        default=1024,
        help="room for the answer to a chat that names no max_tokens; %(default)s by default",
    )


def _router(args):
    try:
        from jaxrope.convert import router
    except ImportError as error:
        raise InputError(
            f"The router needs the package `{error.name}`, which is not installed. Install it: "
            "pip install 'jaxrope[router]'."
        ) from None
    return router.Router(args.folder, args.servers.split(","), args.answer_tokens)


def _route(args) -> None:
    """Send each request to the shortest server that its prompt and its answer fit in."""
    app = _router(args).app()
    from aiohttp import web  # behind what says that it is missing

    web.run_app(app, host=args.host, port=args.port, handler_cancellation=True)


def _route_dry_run(args) -> str:
    rows = _router(args).servers.items()
    return "\n".join(f"up to {length} tokens: {server}" for length, server in rows)


def _would_write(lines: list[str], target: str) -> str:
    return "\n".join([*lines, f"would write {target}"])


def _report_lines(lines: list[str], target: str) -> None:
    """Prints what is said of the result, and notes as notes."""
    for line in lines:
        if not line.startswith("note: "):
            print(line)
    _report([line.removeprefix("note: ") for line in lines if line.startswith("note: ")], target)


def _report(notes: list[str], target: str) -> None:
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    print(f"wrote {target}")


COMMANDS = {
    "import": Command(arguments=_import_arguments, run=_import, dry_run=_import_dry_run),
    "export": Command(arguments=_export_arguments, run=_export, dry_run=_export_dry_run),
    "gguf": Command(arguments=_gguf_arguments, run=_gguf, dry_run=_gguf_dry_run),
    "rope": Command(arguments=_rope_arguments, run=_rope, dry_run=_rope_dry_run),
    "serve": Command(arguments=_serve_arguments, run=_serve, dry_run=_serve_dry_run),
    "route": Command(arguments=_route_arguments, run=_route, dry_run=_route_dry_run),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line; see `cli.subcommands`."""
    cli.subcommands(COMMANDS, doc=__doc__, argv=argv)


if __name__ == "__main__":
    main()
