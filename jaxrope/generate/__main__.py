"""Continues a text, or several, and shows them as they are made.

  python -m jaxrope.generate --checkpoint=MODEL --prompt="It was a dark night, and"
  python -m jaxrope.generate --checkpoint=MODEL --prompt_file=book.txt --rope=rope.json
  python -m jaxrope.generate --checkpoint=MODEL --chat --system="Be brief."

Several prompts are one batch: each is answered as if it were alone. A prompt is encoded as the
model's tokenizer encodes it, and a text ends at any eos of the tokenizer, config.json or
generation_config.json.
"""

from collections.abc import Sequence

from jaxrope.shell import Command, cli


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line; see `cli.arguments`."""
    command = Command(arguments=add_arguments, run=run, dry_run=dry_run)
    cli.arguments(command, doc=__doc__, argv=argv)


def add_arguments(parser) -> None:
    """Declares the arguments of the program."""
    add = parser.add_argument
    add("--checkpoint", required=True, help="Hugging Face folder, or a workdir of train.py")
    add("--prompt", action="append", default=[], help='text; "-": standard input; may be repeated')
    add("--prompt_file", action="append", default=[], help="file of UTF-8 text; may be repeated")
    add(
        "--chat",
        action="store_true",
        help="by the model's own chat template: prompts are what a user says; without any, a chat"
        " line by line on standard input, until it ends",
    )
    add("--system", default="", help="the system message of a chat")
    add("--max_new_tokens", type=int, default=128, help="tokens of each answer, at most (128)")
    add("--temperature", type=float, default=0.0, help="0: always the most probable token (0)")
    add("--top_k", type=int, default=0, help="draw from the k most probable tokens; 0: all (0)")
    add("--top_p", type=float, default=1.0, help="draw from the most probable of this share (1)")
    add("--seed", type=int, default=0, help="of what is drawn (0)")
    add("--stop", action="append", default=[], help="text that ends an answer; may be repeated")
    add("--rope", default="", help="rope.json in place of the model's own factors")
    add(
        "--policy",
        default="recompute",
        help="when a text outgrows a length bucket: recompute (read it again with the new factors;"
        " the default), fixed (those of prompt + max_new_tokens), keep (those of the prompt)",
    )
    add("--chunk", type=int, default=512, help="tokens that are read at one time (512)")
    add("--dtype", default="float32", help="of weights, cache and products (float32)")
    add("--tokenizer", default="", help='MODEL, or "bytes", for a model without one')
    add("--mesh", default="", help="all devices, such as context=4,tensor=2; else the first one")


def run(args) -> None:
    """Generates, and shows the text."""
    from jaxrope.generate import command

    command.run(args)


def dry_run(args) -> str:
    """Returns what would be read and written; the model and the prompts are checked."""
    from jaxrope.generate import command

    return command.dry_run(args)


if __name__ == "__main__":
    main()
