"""What a plan has to know of the model and the text, and of what programs can run."""

import contextlib
import dataclasses

import numpy as np

from jaxrope import data, decoder, rope, schema, search, setup
from jaxrope.convert import exporting, gguf_export, lost_elsewhere
from jaxrope.errors import InputError
from jaxrope.extend import recipes
from jaxrope.extend.request import Request

_FORM = "monotone"  # of the factors, by default
_SHORTEST, _LEAST = 16, 5  # tokens and number of conversations that are measured
_LONGER = 1.25  # times as long may words of the training text be
_UNLEARNS = (
    "the model has a chat template, and the training reads plain text alone: it will unlearn some "
    "of how it answers. Give conversations too (--chat=FILES): a tenth of the rows are theirs"
)
_ONE_SET = {  # programs that do not choose a set for each prompt
    "vllm": "vLLM gives all prompts the one for long texts",
    "llama.cpp": "llama.cpp takes one by the size of its context (-c)",
}


def make(request: Request, problem: search.Problem) -> tuple[recipes.Facts, tuple[str, ...]]:
    """Returns what recipes need to know of the model and the text, and notes."""
    config, model = problem.config, problem.model
    length = decoder.own_base(model).length
    tokenizer, place = setup.tokenizer(
        config, problem.loaded.tokenizer_dir, problem.model.vocab_size
    )
    held_out = setup.held_out_documents(config, tokenizer, place)
    whole = held_out.lengths // request.target_len
    windows = [int(whole.clip(max=n).sum()) for n in range(1, recipes.WINDOWS_PER_DOCUMENT + 1)]
    enough, num_windows = recipes.MEASUREMENTS[0]["windows"], windows[-1]
    if not num_windows:
        raise InputError(
            f"{held_out.setting}: no text has {request.target_len:,} tokens, the longest has "
            f"{int(held_out.lengths.max()):,}. Give longer texts in --eval_text or --text."
        )
    notes = [*problem.notes, *problem.loaded.notes]
    if not request.eval_text:
        notes.append(
            f"no --eval_text: {len(held_out)} of the documents of --text, the last ones, are held "
            "out: no search and no training reads them"
        )
    source = _source(tokenizer, "evaluation")
    sizes = {n: data.needles.most_tokens(source, n, 1) for n in range(1, recipes.KEYS + 1)}
    asked_keys = max((n for n, size in sizes.items() if 2 * size <= length), default=1)
    form, two_sets, more = _sets(request, problem, length)
    chat_len, num_chats = (
        _chats(request, config, tokenizer, place, length) if request.chat else (0, 0)
    )
    if request.chat and problem.task.documents.are_chats.any():
        raise InputError("--text has conversations. Name their files in --chat alone.")
    if request.finetune != "none" and not request.chat and _speaks(place):
        notes.append(_UNLEARNS)
    facts = recipes.Facts(
        length=length,
        num_params=decoder.num_params(model),
        num_devices=problem.mesh.size,
        num_texts=int(np.count_nonzero(problem.task.documents.lengths > length)),
        num_windows=num_windows,
        windows_per_doc=1 + sum(count < min(enough, num_windows) for count in windows),
        form=form,
        two_sets=two_sets,
        taught_keys=_keys_with_room(tokenizer, request.target_len),
        asked_keys=asked_keys,
        least_asked=sizes[asked_keys],
        chat_len=chat_len,
        num_chats=num_chats,
    )
    return facts, (*notes, *more)


def _chats(request: Request, config, tokenizer, place, length: int) -> tuple[int, int]:
    """Returns at what length held-out conversations are measured, `length` or a half of it, a
    quarter, ... as they are long, and how many.

    Raises:
      InputError: there are no conversations, or too few.
    """
    config = schema.replace(config, recipes.chat_keys(request))
    held_out = setup.held_out_documents(config, tokenizer, place)
    if not held_out.are_chats.all():
        raise InputError(f"--chat: {held_out.names[0]} is no conversation. Name it in --text.")
    most = recipes.MEASUREMENTS[0]["windows"]
    while length >= _SHORTEST:
        for count in (most, _LEAST):
            with contextlib.suppress(InputError):  # too few are so long
                data.eval_windows(held_out, length=length, num_windows=count, bos_id=None)
                return length, count
        length //= 2
    raise InputError(
        f"--chat: {len(held_out)} conversations are held out, a tenth, and fewer than {_LEAST} of "
        "them have an answer near their beginning. Give more."
    )


def _speaks(place) -> bool:
    try:
        return data.chat.load_template(place) is not None
    except InputError:
        return False


def _sets(request: Request, problem: search.Problem, length: int) -> tuple[str, bool, list[str]]:
    """Returns the form of the factors, the default or what all programs asked for can run, whether
    they can have two sets, and notes.

    Raises:
      InputError: a program can run none.
    """
    model, programs = problem.model, request.programs
    yarn = rope.make("yarn", **model.geometry, factor=request.target_len / model.original_len)
    refused = _refusal(request, problem, trial(problem, request.target_len))
    if refused:
        if _refusal(request, problem, yarn):
            raise InputError(f"--for={','.join(programs)}: {refused}")
        note = "the search is for YaRN's constants, which all programs read, for there is one that "
        note += f"cannot read factors: {refused} Short lengths have the same constants"
        return "yarn", False, [note]
    refused = _refusal(request, problem, trial(problem, length, request.target_len))
    if refused:
        return _FORM, False, [f"one set of factors for all lengths: {refused}"]
    return _FORM, True, []


def of_two_sets(request: Request) -> tuple[str, ...]:
    """Returns what to know where there are factors for short lengths beside those for long ones."""
    notes = [_ONE_SET[name] for name in request.programs if name in _ONE_SET]
    return (f"of two sets of factors, {' and '.join(notes)}",) if notes else ()


def _refusal(request: Request, problem: search.Problem, rope_fn: rope.RopeFn) -> str:
    """Returns why one of the programs could not run a rope; "": all could."""
    lost = lost_elsewhere(problem.model, rope_fn)
    if lost:
        return f"no other program can express {'; '.join(lost)}."
    try:
        exported = dataclasses.replace(problem.loaded, rope_fn=rope_fn)
        if "llama.cpp" in request.programs:
            gguf_export.plan(exported, exporting.Settings(), "model")
    except InputError as error:
        return str(error)
    return ""


def trial(problem: search.Problem, *lengths: int) -> rope.RopeFn:
    """Returns a rope with a set of ascending factors for each of some lengths."""
    model = problem.model
    factors = np.linspace(1.0, lengths[-1] / model.original_len, model.rotary_dim // 2)
    bucket = dict(start_tokens=0, attention_factor=1.0)
    buckets = [
        bucket | dict(max_len=length, factors=rope.as_factors(factors * length / lengths[-1]))
        for length in lengths
    ]
    return rope.make("longrope", **model.geometry, buckets=buckets)


def _keys_with_room(tokenizer: data.Tokenizer, length: int) -> int:
    """Returns how many needles, all asked for, a row has room for; its words may be longer."""
    source = _source(tokenizer, "training")
    fitting = (
        keys
        for keys in range(recipes.KEYS, 0, -1)
        if _LONGER * data.needles.most_tokens(source, keys, keys) <= length
    )
    return next(fitting, 0)


def _source(tokenizer: data.Tokenizer, use: str) -> data.needles.Source:
    return data.needles.Source(tokenizer, data.needles.grass(tokenizer), use, "--target_len")
