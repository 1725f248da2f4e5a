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
from collections.abc import Sequence
from pathlib import Path

from jaxrope.errors import InputError
from jaxrope.shell import cli
from jaxrope.shell.experiment import load
from jaxrope.store.files import write_json_atomic

NAME = "stdlib-2m"  # of the shipped model, in jaxrope/models


def run(args) -> int:
    """Extend the shipped model eight times beyond its window."""
    from jaxrope.shell.progress import duration  # it imports jax: not for --help

    folder = _folder(args.workdir)
    search, finetune, hf = folder / "search", folder / "finetune", folder / "hf"
    rope = f"--config.rope.path={search / 'rope.json'}"
    tuned = f"--config.eval.checkpoints=(('fine-tuned', '{finetune}', 'model'),)"
    stages = [
        [*_module("search"), "--config=configs/demo_search.py", f"--workdir={search}"],
        [*_module("train"), "--config=configs/demo_finetune.py", f"--workdir={finetune}", rope],
        [*_module("evaluate"), "--config=configs/demo_eval.py", f"--workdir={folder / 'eval'}"],
        [*_module("convert"), "export", str(finetune), str(hf), "--overwrite"],
        [*_module("report"), *map(str, (search, finetune, folder / "eval"))],
    ]
    stages[2] += [rope, tuned]
    stages[4].append(f"--out={folder / 'report.html'}")
    start = time.monotonic()
    code = _run_all(stages)
    if code == 0:
        cli.print_line(f"\ndone in {duration(time.monotonic() - start)}. Look at:")
        cli.print_line(f"  {folder / 'report.html'}   the page")
        cli.print_line(f"  {hf}   the extended model, for transformers")
    return code


def pretrain(args) -> int:
    """Make the shipped model anew: tokenizer, training, export."""
    folder = _folder(args.workdir)
    config = load("configs/demo_pretrain.py")
    tokenizer = folder / "tokenizer"
    if not (tokenizer / "tokenizer.json").is_file():
        make_tokenizer(config, tokenizer)
    export_dir = folder / NAME
    train = [*_module("train"), "--config=configs/demo_pretrain.py"]
    train += [f"--workdir={folder / 'train'}", f"--config.data.tokenizer={tokenizer}"]
    export = [
        *_module("convert"),
        "export",
        str(folder / "train"),
        str(export_dir),
        "--dtype=bfloat16",
    ]
    code = _run_all([train, [*export, "--overwrite"]])
    if code == 0:
        cli.print_line(f"wrote {export_dir}; it ships as jaxrope/models/{NAME}")
    return code


def make_tokenizer(config, folder: Path) -> None:
    """Trains a byte-level BPE (digits apart) on the training files of `config` into `folder`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

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


def _folder(workdir: str) -> Path:
    if shutil.disk_usage(".").free < 200 * 2**20:
        raise InputError("The demo needs 200 MB of free disk here. Make room first.")
    return Path(workdir)


def _workdir_argument(default: str):
    def add(parser) -> None:
        parser.add_argument("--workdir", default=default, help=f"folder of results ({default})")

    return add


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line; see `cli.subcommands`."""
    commands = {
        "run": (_workdir_argument("runs/demo"), run),
        "pretrain": (_workdir_argument("runs/demo_pretrain"), pretrain),
    }
    cli.subcommands(commands, doc=__doc__, argv=argv)


if __name__ == "__main__":
    main()
