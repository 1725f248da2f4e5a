"""Converts models between Hugging Face folders and workdirs.

python -m jaxrope.convert import HF_DIR OUT
python -m jaxrope.convert export WORKDIR_OR_CHECKPOINT OUT_HF_DIR
"""

import sys
from collections.abc import Sequence

from jaxrope import cli, pretrained
from jaxrope.convert import exporting, folders, importing


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
    folders.check_target(args.target, overwrite=args.overwrite)  # before minutes of reading
    model = pretrained.load(args.source, dtype=None)
    if args.rope is not None:
        model = pretrained.with_rope(model, args.rope)
    settings = exporting.Settings(
        dtype=args.dtype, allow_lossy=args.allow_lossy, overwrite=args.overwrite
    )
    notes = exporting.export_folder(model, args.target, settings)
    _report([*model.notes, *notes], args.target)


def _report(notes: list[str], target: str) -> None:
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    print(f"wrote {target}")


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line; see `cli.subcommands`."""
    cli.subcommands(
        {"import": (_import_arguments, _import), "export": (_export_arguments, _export)},
        doc=__doc__,
        argv=argv,
    )


if __name__ == "__main__":
    main()
