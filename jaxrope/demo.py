"""The main job on the small model that ships with the project: from 256 tokens to 2,048.

  python -m jaxrope.demo run --workdir=runs/demo
  python -m jaxrope.demo pretrain --workdir=runs/demo_pretrain

`run` starts the project's own programs one after another and prints each command as one would type
it: search, fine-tune, evaluate, export, report. What is done already is not done again. `pretrain`
makes that small model from scratch (about half an hour on 2 cores). Both work in any folder.
"""

import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from jaxrope.errors import InputError
from jaxrope.shell import Command, cli, load
from jaxrope.store import write_json_atomic

NAME = "stdlib-2m"  # of the shipped model, in jaxrope/models


def run(args) -> int:
    """Extend the shipped model eight times beyond its window."""
    from jaxrope.shell import duration

    start = time.monotonic()
    code = _run_all(_commands(args))
    if code == 0:
        folder = Path(args.workdir)
        cli.print_line(f"\ndone in {duration(time.monotonic() - start)}. Look at:")
        cli.print_line(f"  {folder / 'report.html'}   the page")
        cli.print_line(f"  {folder / 'hf'}   the extended model, for transformers")
        cli.print_line(f"wrote {folder}")
    return code


def pretrain(args) -> int:
    """Make the shipped model anew: tokenizer, training, export."""
    _check_room()
    tokenizer = Path(args.workdir) / "tokenizer"
    if not (tokenizer / "tokenizer.json").is_file():
        make_tokenizer(load("configs/demo_pretrain.py"), tokenizer)
    code = _run_all(_pretrain_commands(args))
    if code == 0:
        cli.print_line(f"wrote {Path(args.workdir) / NAME}; it ships as jaxrope/models/{NAME}")
    return code


def _commands(args) -> list[list[str]]:
    """Returns the arguments of Python of each command of `run`."""
    _check_room()
    folder = Path(args.workdir)
    search, finetune, hf = folder / "search", folder / "finetune", folder / "hf"
    rope = f"--config.rope.path={search / 'rope.json'}"
    tuned = f"--config.eval.checkpoints=(('fine-tuned', '{finetune}', 'model'),)"
    measured = ["--config=configs/demo_eval.py", f"--workdir={folder / 'eval'}", rope, tuned]
    page = f"--out={folder / 'report.html'}"
    return [
        [*_module("search"), "--config=configs/demo_search.py", f"--workdir={search}"],
        [*_module("train"), "--config=configs/demo_finetune.py", f"--workdir={finetune}", rope],
        [*_module("evaluate"), *measured],
        [*_module("convert"), "export", str(finetune), str(hf), "--overwrite"],
        [*_module("report"), *map(str, (search, finetune, folder / "eval")), page],
    ]


def _pretrain_commands(args) -> list[list[str]]:
    """Returns the arguments of Python of each command of `pretrain`."""
    folder = Path(args.workdir)
    train = [*_module("train"), "--config=configs/demo_pretrain.py"]
    train += [f"--workdir={folder / 'train'}", f"--config.data.tokenizer={folder / 'tokenizer'}"]
    places = [str(folder / "train"), str(folder / NAME)]
    return [train, [*_module("convert"), "export", *places, "--dtype=bfloat16", "--overwrite"]]


def make_tokenizer(config, folder: Path) -> None:
    """Trains a byte-level BPE (digits apart) on the training files of `config` into `folder`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    from jaxrope import data

    train_files = data.find_files(
        config.data.train_files, exclude=config.data.exclude, setting="data.train_files"
    )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.model.vocab_size,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train([str(file.path) for file in train_files], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    folder.mkdir(parents=True, exist_ok=True)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "model_max_length": config.model.max_len,
    }
    write_json_atomic(folder / "tokenizer_config.json", settings)
    tokenizer.save(str(folder / "tokenizer.json"))


def _run_all(stages: list[list[str]]) -> int:
    """Runs the programs in turn until one fails; returns the exit code of the last."""
    for number, arguments in enumerate(stages, start=1):
        cli.print_line(f"\n[{number}/{len(stages)}] python {shlex.join(arguments)}")
        code = subprocess.call([sys.executable, *arguments])
        if code:
            return code
    return 0


def _module(name: str) -> list[str]:
    return ["-m", f"jaxrope.{name}"]


def _check_room() -> None:
    if shutil.disk_usage(".").free < 200 * 2**20:
        raise InputError("The demo needs 200 MB of free disk here. Make room first.")


def _listed(commands_fn: Callable) -> Callable:
    def dry_run(args) -> str:
        return "\n".join(f"python {shlex.join(command)}" for command in commands_fn(args))

    return dry_run


def _workdir_argument(default: str):
    def add(parser) -> None:
        parser.add_argument("--workdir", default=default, help=f"folder of results ({default})")

    return add


COMMANDS = {
    "run": Command(arguments=_workdir_argument("runs/demo"), run=run, dry_run=_listed(_commands)),
    "pretrain": Command(
        arguments=_workdir_argument("runs/demo_pretrain"),
        run=pretrain,
        dry_run=_listed(_pretrain_commands),
    ),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line; see `cli.subcommands`."""
    cli.subcommands(COMMANDS, doc=__doc__, argv=argv)


if __name__ == "__main__":
    main()
