"""What rows are made of: whole novels, sections that are joined, a mix by length.

  python -m benchmarks.data_modes --workdir=runs/data_modes

Fine-tunings of --model at 8x with the same YaRN factors on equal tokens of the same novels: rows
cut from whole novels (data.mode chunk); from sections of some 500 tokens that are joined in a
random order, attending across (concat); and a mix by length, six rows in ten of whole novels, the
others of sections of other novels, packed and masked apart (data.long_share). Scored on held-out
novels by perplexity at the original and the target length. The stages are those of a recipe: the
same command goes on where it was stopped. Prints a table with a sentence and writes data_modes.md
and data_modes.json. Planned for 10 minutes on 2 idle cores. --quick: to see it run,
without use for its numbers.
"""

import json
import sys
from pathlib import Path

from ml_collections import ConfigDict

from benchmarks import on_books, verdict
from benchmarks.paper_stages import measure, write_known
from benchmarks.verdict import Pair, Table, grid, judge, sentence
from configs import base
from jaxrope import data, recipe, setup
from jaxrope.shell import Command, cli, heap
from jaxrope.store import files

FACTOR, LONG_SHARE = 8, 0.6
SECTION = 2000 / 512  # characters of a section for each token of the original length, at least
BUDGETS = {
    "whole": dict(windows=16, steps=30, rows=2),
    "quick": dict(windows=2, steps=2, rows=2),
}
MODES = ("chunk", "concat", "mix")


def planned(args) -> tuple[ConfigDict, dict, int]:
    """Returns (the recipe, what it may spend, the base's length); writes the sections.

    Raises:
      InputError: an argument is wrong.
    """
    spent, workdir = BUDGETS["quick" if args.quick else "whole"], on_books.folder(args)
    config = _config(args, spent)
    base_len = setup.model_config(config).original_len
    texts = _texts(args, workdir, int(SECTION * base_len))
    fixed = write_known(config, ("yarn",), workdir / "ropes", FACTOR * base_len)
    rows = [(label, config.model.path, path) for label, path in fixed]
    rows += [(mode, f"{{{mode}}}", "model") for mode in MODES]
    lengths = base_len, FACTOR * base_len
    config.recipe = (
        *(_training(mode, texts[mode], spent, base_len) for mode in MODES),
        measure("scores", rows, lengths),
    )
    return config, spent, base_len


def run(args) -> int:
    """Runs the stages that are not finished, and prints the table; returns the exit code.

    Raises:
      InputError: an argument is wrong, or of a stage.
    """
    (config, spent, base_len), workdir = planned(args), on_books.folder(args)
    code = recipe.run(config, workdir)
    if code:
        return code
    tokens = spent["steps"] * spent["rows"] * FACTOR * base_len
    about = {
        "title": "What rows are made of",
        "what": (
            f"Perplexity of {spent['windows']} windows at each length, each of another held-out "
            f"novel, after {tokens:,} tokens with the same YaRN factors; the columns are tokens. "
            "Differences have 95% intervals, paired over windows."
        ),
        "budget": spent,
    }
    verdict.report([modes(workdir, base_len)], about, workdir, "data_modes")
    return 0


def modes(workdir: Path, base_len: int) -> Table:
    """Returns the table: whole novels are said to be better at the target length."""
    pool = verdict.read_pool([workdir / "scores"])
    lengths = base_len, FACTOR * base_len
    cells = grid(pool, ["yarn", *MODES], lengths)
    pairs = [Pair("chunk", "concat", lengths[1]), Pair("chunk", "mix", lengths[1])]
    pairs += [Pair("mix", "concat", lengths[1]), Pair("mix", "chunk", lengths[0])]
    judged = judge(pool, pairs)
    ordering = (
        f"at {lengths[1]:,} tokens whole novels teach more than a mix, and a mix more than joined "
        f"sections; at {lengths[0]:,} a mix teaches more than whole novels"
    )
    title = f"what rows are made of, fine-tuned at {FACTOR}x on equal tokens"
    line = sentence(ordering, judged, whose="The usual ordering")
    return Table("Modes", title, cells, line, judged)


def _texts(args, workdir: Path, size: int) -> dict[str, tuple[str, ...]]:
    """Returns the files of each training; the sections of every novel are a file of JSON Lines.

    Args:
      args: of the command line.
      workdir: where they are written.
      size: of a section, characters.
    """
    novels = data.find_files([args.train], setting="--train")
    sections = workdir / "sections"
    sections.mkdir(parents=True, exist_ok=True)
    places = []
    for novel in novels:
        place = sections / f"{Path(novel.name).stem}.jsonl"
        lines = [json.dumps({"text": text}) for text in _sections(novel.path, size)]
        if not place.exists():
            files.write_text_atomic(place, "\n".join(lines))
        places.append(str(place))
    whole, cut = [str(novel.path) for novel in novels[::2]], places[1::2]
    return {
        "chunk": (args.train,),
        "concat": tuple(places),
        "mix": (*whole, *cut),
    }


def _sections(novel: Path, size: int) -> list[str]:
    """Returns a novel in parts of whole paragraphs, `size` characters or more each."""
    parts = [""]
    for paragraph in novel.read_text(encoding="utf-8-sig").split("\n\n"):
        if len(parts[-1]) >= size:
            parts.append("")
        parts[-1] += paragraph + "\n\n"
    return [part for part in parts if part.strip()]


def _config(args, spent: dict) -> ConfigDict:
    config = base.get_config()
    config.model = base.checkpoint_model(str(files.absolute(args.model)))
    config.data.eval_files = (args.held_out,)
    config.data.tokenizer = args.tokenizer
    config.forward.remat = "none"
    config.eval.suites = ()
    config.eval.num_windows, config.eval.windows_per_doc = spent["windows"], 1
    config.eval.offset_tokens = args.offset
    config.optimizer.learning_rate, config.optimizer.b2 = 5e-4, 0.95
    warmup = min(5, spent["steps"] // 4)
    config.optimizer.schedule = dict(name="linear", warmup_steps=warmup, final_fraction=0.0)
    config.checkpoint.keep_last, config.checkpoint.every = 1, 10
    return config


def _training(mode: str, texts: tuple[str, ...], spent: dict, base_len: int) -> tuple:
    """Returns the stage of a mode; a mix packs, and has its share of long rows."""
    length = FACTOR * base_len
    changes = (
        ("rope", dict(method="yarn", factor=float(FACTOR))),
        ("target_len", length),
        ("train.seq_len", length),
        ("train.batch_size", spent["rows"]),
        ("train.steps", spent["steps"]),
        ("train.log_every", max(1, spent["steps"] // 4)),
        ("data.train_files", texts),
        ("data.mode", "pack" if mode == "mix" else mode),
        ("data.long_share", LONG_SHARE if mode == "mix" else 0.0),
    )
    return mode, "train", changes


if __name__ == "__main__":
    heap.keep()
    cli.arguments(
        Command(arguments=on_books.add_arguments, run=run, dry_run=on_books.dry_run(planned)),
        doc=__doc__,
        argv=sys.argv[1:],
    )
