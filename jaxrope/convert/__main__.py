"""Converts models between Hugging Face folders and workdirs, and ropes between file formats.

python -m jaxrope.convert import HF_DIR OUT
python -m jaxrope.convert export WORKDIR_OR_CHECKPOINT OUT_HF_DIR --arch=phi3
python -m jaxrope.convert rope rope.json rope.gguf --format=gguf
"""

import sys
from collections.abc import Sequence

from jaxrope.shell import cli


def _import_arguments(parser) -> None:
    parser.add_argument("source", metavar="HF_DIR", help="folder with config.json and safetensors")
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


def _export_arguments(parser) -> None:
    parser.add_argument(
        "source",
        metavar="WORKDIR_OR_CHECKPOINT",
        help="a workdir, one step of it, or a Hugging Face folder",
    )
    parser.add_argument(
        "target", metavar="OUT_HF_DIR", help="folder to make; must not exist, or be empty"
    )
    parser.add_argument(
        "--dtype", help="float32, bfloat16 or float16; by default as the weights are"
    )
    parser.add_argument(
        "--arch",
        help="llama (LlamaForCausalLM: transformers, vLLM, SGLang; transformers keeps keys of the"
        " short factors when a generation crosses the original length; llama.cpp drops the factors)"
        " or phi3 (Phi3ForCausalLM, the same weights joined: transformers computes its cache anew"
        " there; llama.cpp reads the factors); by default the model's own, llama for a Llama",
    )
    parser.add_argument(
        "--rope", metavar="rope.json", help="export these factors instead of the model's own rope"
    )
    parser.add_argument(
        "--allow_lossy",
        action="store_true",
        help="export although Hugging Face cannot express all of the rope",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace a Hugging Face folder that is there"
    )


def _export(args) -> None:
    """Make a Hugging Face folder from a workdir or a checkpoint."""
    from jaxrope.convert import exporting, folders, pretrained

    folders.check_target(args.target, overwrite=args.overwrite)  # before minutes of reading
    if args.arch is not None:
        exporting.check_arch(args.arch, pretrained.read_config(args.source))
    model = pretrained.load(args.source, dtype=None)
    if args.rope is not None:
        model = pretrained.with_rope(model, args.rope)
    settings = exporting.Settings(
        dtype=args.dtype,
        allow_lossy=args.allow_lossy,
        overwrite=args.overwrite,
        arch=args.arch,
    )
    notes = exporting.export_folder(model, args.target, settings)
    _report([*model.notes, *notes], args.target)


def _rope_arguments(parser) -> None:
    from jaxrope.convert import rope_formats, rope_gguf

    parser.add_argument(
        "source",
        metavar="IN",
        help="rope.json, config.json, a GGUF or a vLLM line; or a folder with one of the first two",
    )
    parser.add_argument("target", metavar="OUT", help="file to make")
    parser.add_argument(
        "--format", required=True, help=f"what to write: {', '.join(rope_formats.FORMATS)}"
    )
    parser.add_argument(
        "--arch",
        default="phi3",
        help=f"of a GGUF: {', '.join(rope_gguf.ARCHITECTURES)}; phi3 by default",
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
        args.format, args.arch, allow_lossy=args.allow_lossy, overwrite=args.overwrite
    )
    lines = rope_formats.convert(args.source, args.target, settings)
    notes = [line.removeprefix("note: ") for line in lines if line.startswith("note: ")]
    for line in lines:
        if not line.startswith("note: "):
            print(line)
    _report(notes, args.target)


def _report(notes: list[str], target: str) -> None:
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    print(f"wrote {target}")


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line; see `cli.subcommands`."""
    cli.subcommands(
        {
            "import": (_import_arguments, _import),
            "export": (_export_arguments, _export),
            "rope": (_rope_arguments, _rope),
        },
        doc=__doc__,
        argv=argv,
    )


if __name__ == "__main__":
    main()
