"""What is asked for: the arguments of `python -m jaxrope.extend`, checked without jax."""

import dataclasses
import re

from jaxrope.errors import InputError, choose
from jaxrope.store import files

FINETUNES = ("none", "lora", "full")
PROGRAMS = ("transformers", "llama.cpp", "vllm")
_UNITS = {"h": 3600, "m": 60, "s": 1}


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked for.

    Attributes:
      model: a folder, a GGUF file, a model of the hub or a workdir.
      target_len: tokens.
      text: files or globs that are searched and trained on.
      eval_text: held-out files or globs; (): the last tenth of `text`.
      chat: files or globs of conversations; (): none.
      exclude: globs of files to leave out of `text`.
      budget: seconds for everything; 0: as long as it takes.
      finetune: one of FINETUNES.
      control: whether the model is also trained on at its own length, to compare.
      programs: of PROGRAMS; what the result is exported for.
    """

    model: str
    target_len: int
    text: tuple[str, ...]
    eval_text: tuple[str, ...]
    chat: tuple[str, ...]
    exclude: tuple[str, ...]
    budget: int
    finetune: str
    control: bool
    programs: tuple[str, ...]


def of(args) -> Request:
    """Returns the request of the command line's arguments.

    Raises:
      InputError: an argument is wrong.
    """
    if args.target_len < 1:
        raise InputError(f"--target_len must be 1 token or more, got {args.target_len}.")
    choose("--finetune", args.finetune, dict.fromkeys(FINETUNES))
    if args.control and args.finetune == "none":
        raise InputError(
            "--control is for --finetune=lora or full. Give one of them, or leave it out."
        )
    programs = listed(args.programs)
    for name in programs:
        choose("--for", name, dict.fromkeys(PROGRAMS))
    text = listed(args.text)
    if not text:
        raise InputError("--text names no file. Give the text to search on, such as 'books/*.txt'.")
    return Request(
        model=located(args.model) if files.as_path(args.model).exists() else args.model,
        target_len=args.target_len,
        text=tuple(map(located, text)),
        eval_text=tuple(map(located, listed(args.eval_text))),
        chat=tuple(map(located, listed(args.chat))),
        exclude=listed(args.exclude),
        budget=seconds(args.budget) if args.budget else 0,
        finetune=args.finetune,
        control=args.control,
        programs=programs,
    )


def listed(text: str) -> tuple[str, ...]:
    """Returns the names of a list with commas."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def located(name: str) -> str:
    """Returns a path or a glob that is the same in every folder."""
    return str(files.absolute(name))


def seconds(text: str) -> int:
    """Returns the seconds of a time such as 45m, 90s or 1h30m.

    Raises:
      InputError: it is none.
    """
    match = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", text.strip().lower())
    parts = [int(number or 0) for number in match.groups()] if match else []
    total = sum(n * unit for n, unit in zip(parts, _UNITS.values(), strict=False))
    if not total:
        raise InputError(f"--budget must be a time such as 45m, 2h or 1h30m, got '{text}'.")
    return total
