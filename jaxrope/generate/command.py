"""What `python -m jaxrope.generate` does: prompts or a chat, a model, a screen for the texts."""

import dataclasses
import functools
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp

from jaxrope import data, decoder
from jaxrope.convert import pretrained
from jaxrope.errors import InputError, choose
from jaxrope.generate.options import Model, Options, check
from jaxrope.generate.run import Timing, stream, warm_up
from jaxrope.generate.text import TextStream
from jaxrope.mesh import sharding
from jaxrope.shell import cli
from jaxrope.store import files


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What is generated, checked before any weights are read.

    Attributes:
      loaded: what was read, without its weights.
      model: how it is run.
      tokenizer: of the prompts and the answers.
      prompts: tokens of each; of a chat, the first turn of one whose user says hello.
      options: see Options.
      notes: what was assumed in reading the model and its tokenizer.
      template: of a chat on standard input; None: the prompts are answered.
    """

    loaded: pretrained.Pretrained
    model: Model
    tokenizer: data.Tokenizer
    prompts: list[list[int]]
    options: Options
    notes: tuple[str, ...]
    template: data.chat.ChatTemplate | None = None


def prepare(args) -> Prepared:
    """Returns what the arguments ask for.

    Raises:
      InputError: there is no such model, or a prompt or an option does not suit it.
    """
    choose("--dtype", args.dtype, decoder.DTYPES)
    loaded = pretrained.load(args.checkpoint, dtype=args.dtype, weights=False)
    if args.rope:
        loaded = pretrained.with_rope(loaded, args.rope)
    place = _tokenizer_place(args.tokenizer, loaded)
    tokenizer = data.load_tokenizer(place, vocab_size=loaded.config.vocab_size)
    template = _template(args, place)
    talks = args.chat and not (args.prompt or args.prompt_file)
    prompts = [_encoded(args, tokenizer, template, text) for text in _texts(args, talks)]
    options = _options(args, {*tokenizer.eos_ids, *loaded.config.eos_ids})
    settings = decoder.ForwardSettings(compute_dtype=args.dtype, mesh=_mesh(args.mesh))
    model = Model(loaded.config, {}, loaded.rope_fn, settings)
    check(model, prompts, options)
    _check_max_len(loaded, prompts, options)
    notes = (*loaded.notes, *tokenizer.notes, *_reach_notes(loaded, prompts, options))
    return Prepared(loaded, model, tokenizer, prompts, options, notes, template if talks else None)


def dry_run(args) -> str:
    """Returns what would be read and written."""
    prepared = prepare(args)
    shape, count = prepared.model.config, prepared.options.max_new_tokens
    longest = max(map(len, prepared.prompts)) + count
    sizes = dict(batch=len(prepared.prompts), slots=longest, chunk=prepared.options.chunk)
    empty = functools.partial(decoder.empty_caches, shape, prepared.model.settings, **sizes)
    cache = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(jax.eval_shape(empty)))
    lines = [
        f"{len(prepared.prompts)} prompts of {sum(map(len, prepared.prompts)):,} tokens; at most "
        f"{count:,} more each",
        f"weights: {decoder.num_params(shape):,} parameters in {args.dtype}; cache: "
        f"{cache / 2**20:,.1f} MiB",
        f"rope: {prepared.model.rope_fn.method}, for texts of up to {longest:,} tokens",
    ]
    return "\n".join([*lines, *(f"note: {note}" for note in prepared.notes)])


def run(args) -> None:
    """Generates, and shows the text."""
    prepared = prepare(args)
    for note in prepared.notes:
        print(f"note: {note}", file=sys.stderr)  # standard output has the texts alone
    params = pretrained.load(args.checkpoint, dtype=args.dtype).params
    model = dataclasses.replace(prepared.model, params=_placed(prepared.model, params))
    if prepared.template is not None:
        _talk(args, dataclasses.replace(prepared, model=model))
        return
    cli.print_line(_answer(model, prepared, args.stop)[1])


def _talk(args, prepared: Prepared) -> None:
    """Answers a user line by line; what was said before is read again at each turn, as the template
    may write it otherwise then.
    """
    messages = _opening(args.system)
    while (line := _next_line()) is not None:
        messages.append({"role": "user", "content": line})
        chat = data.chat.render(prepared.template, messages, add_generation_prompt=True)
        turn = dataclasses.replace(prepared, prompts=[_raw(prepared.tokenizer, chat.text)])
        _check_max_len(prepared.loaded, turn.prompts, turn.options)
        [answer], _ = _answer(prepared.model, turn, args.stop)
        messages.append({"role": "assistant", "content": answer})


def _next_line() -> str | None:
    """Returns what the user says next; None: nothing any more."""
    is_terminal = sys.stdin.isatty()
    while True:
        if is_terminal:
            print("> ", end="", flush=True)
        line = sys.stdin.readline()
        if not line or line.strip():
            return line.strip() or None


def _answer(model: Model, prepared: Prepared, stops: list[str]) -> tuple[list[str], str]:
    """Shows the continuations of the prompts; returns (them, a line on the time it took)."""
    prompts, options = prepared.prompts, prepared.options
    start = time.perf_counter()
    warm_up(model, prompts, options)
    compiled = time.perf_counter() - start
    timing = Timing()
    texts = [TextStream(prepared.tokenizer, prompt, stops) for prompt in prompts]
    answers = _show(model, prompts, options, texts, timing)
    return answers, _summary(timing, compiled)


def _options(args, stop: set[int]) -> Options:
    names = ("max_new_tokens", "temperature", "top_k", "top_p", "policy", "chunk", "seed")
    return Options(**{name: getattr(args, name) for name in names}, stop=tuple(sorted(stop)))


def _template(args, place: Path | str) -> data.chat.ChatTemplate | None:
    """Returns the template of a chat; None: none is asked for."""
    if not args.chat:
        if args.system:
            raise InputError("--system is the first message of a chat: pass --chat with it.")
        return None
    template = data.chat.load_template(place)
    if template is None:
        raise InputError(
            f"--chat needs a chat template, {place} has none (chat_template.jinja, or chat_template"
            " in tokenizer_config.json). Leave --chat out, or name the tokenizer of the instruct"
            " model: --tokenizer=FOLDER."
        )
    return template


def _encoded(args, tokenizer, template: data.chat.ChatTemplate | None, text: str) -> list[int]:
    """Returns the tokens of a prompt, or of a chat in which the user says it."""
    if template is None:
        return tokenizer.prompt(text).tolist()
    messages = [*_opening(args.system), {"role": "user", "content": text}]
    return _raw(tokenizer, data.chat.render(template, messages, add_generation_prompt=True).text)


def _raw(tokenizer, text: str) -> list[int]:
    """Returns the tokens of a text that a template wrote, its bos and all."""
    return tokenizer.encode(text).tolist()


def _opening(system: str) -> list[dict]:
    return [{"role": "system", "content": system}] if system else []


def _texts(args, talks: bool) -> list[str]:
    if talks:
        return ["Hello"]  # refuses a template or a system message before any weights are read
    if not args.prompt and not args.prompt_file:
        raise InputError("--prompt=TEXT is missing, or --prompt_file=FILE, or --prompt=- (stdin).")
    if (args.prompt + args.prompt_file).count("-") > 1:
        raise InputError("Standard input, -, can be read once: name it for one prompt.")
    prompts = [_read("-") if text == "-" else text for text in args.prompt]
    return prompts + [_read(name) for name in args.prompt_file]


def _read(name: str) -> str:
    try:
        raw = sys.stdin.buffer.read() if name == "-" else files.as_path(name).read_bytes()
        return raw.decode("utf-8")
    except OSError as error:
        raise InputError(f"--prompt_file={name} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        where = "standard input" if name == "-" else f"--prompt_file={name}"
        raise InputError(f"{where} is not UTF-8 text: byte {error.start} is wrong.") from None


def _tokenizer_place(place: str, loaded: pretrained.Pretrained) -> Path | str:
    if not place and loaded.tokenizer_dir is None:
        raise InputError(
            f"{loaded.source} has no tokenizer.json. Name the model's own: --tokenizer=FOLDER, or "
            "--tokenizer=bytes."
        )
    return pretrained.open_tokenizer(place or loaded.tokenizer_dir)


def _mesh(text: str):
    """Returns the mesh that a text such as "context=4,tensor=2" means; None: one device."""
    if not text:
        return None
    sizes = {axis: 1 for axis in sharding.AXES} | {"data": -1}
    for part in text.split(","):
        axis, _, size = part.partition("=")
        if axis not in sizes or not size.lstrip("-").isdigit():
            raise InputError(
                f"--mesh is a list such as context=4,tensor=2 over the axes "
                f"{', '.join(sharding.AXES)}, got '{part}'."
            )
        sizes[axis] = int(size)
    mesh = sharding.make_mesh(sizes)
    return mesh if mesh.size > 1 else None


def _check_max_len(loaded: pretrained.Pretrained, prompts, options) -> None:
    """Refuses texts that are longer than the model says it reads, where its factors do not end.

    A formula in the length has no end either, but it is made to go beyond.
    """
    longest = max(map(len, prompts)) + options.max_new_tokens
    unlimited = loaded.rope_fn.buckets and loaded.rope_fn.max_len is None
    if unlimited and longest > loaded.config.max_len:
        raise InputError(
            f"The text would have {longest} tokens, {loaded.source} reads {loaded.config.max_len}. "
            "Give factors for longer texts, --rope=rope.json, or a shorter prompt or "
            "--max_new_tokens."
        )


def _reach_notes(loaded: pretrained.Pretrained, prompts, options) -> list[str]:
    """Returns that a formula without an end is asked for more than it was made for."""
    longest, rope_fn = max(map(len, prompts)) + options.max_new_tokens, loaded.rope_fn
    if rope_fn.buckets or longest <= rope_fn.constants["factor"] * rope_fn.original_len:
        return []
    factor = rope_fn.constants["factor"]
    return [
        f"texts of up to {longest:,} tokens, far beyond the {rope_fn.original_len:,} that the "
        f"model was trained on and {factor:g} times as many, which its {rope_fn.method} is for"
    ]


def _placed(model: Model, params: dict) -> dict:
    mesh = model.settings.mesh
    if mesh is None:
        return jax.tree.map(jnp.asarray, params)
    return sharding.put(params, decoder.param_shardings(model.config, mesh))


def _show(model, prompts, options, texts: list[TextStream], timing) -> list[str]:
    """Shows the texts as they come, and returns them; what ends one is no part of it."""
    screen, running = _Screen(len(texts)), set(range(len(texts)))

    def take(row: int, token: int) -> bool:
        screen.add(row, texts[row].push(token))
        return texts[row].ended

    for new in stream(model, prompts, options, stop_fn=take, timing=timing):
        still = {row for row, _ in new}
        for row in sorted(running - still):
            screen.end(row, texts[row].finish())
        running = still
    for row in sorted(running):
        screen.end(row, texts[row].finish())
    return screen.texts


class _Screen:
    """Several texts that grow at the same time, one after another: the first that has not ended is
    written as it comes, those behind it wait.
    """

    def __init__(self, count: int):
        self.texts = [""] * count
        self._waiting, self._ended = [""] * count, [False] * count
        self._front = 0
        self._begin()

    def add(self, row: int, text: str) -> None:
        """Takes what is new of a row."""
        self._take(row, text)
        self._write()

    def end(self, row: int, text: str) -> None:
        """Takes the last of a row."""
        self._take(row, text)
        self._ended[row] = True
        self._write()

    def _take(self, row: int, text: str) -> None:
        self.texts[row] += text
        self._waiting[row] += text

    def _write(self) -> None:
        while self._front < len(self._waiting):
            sys.stdout.write(self._waiting[self._front])
            self._waiting[self._front] = ""
            if not self._ended[self._front]:
                break
            sys.stdout.write("\n")
            self._front += 1
            self._begin()
        sys.stdout.flush()

    def _begin(self) -> None:
        if 1 < len(self._waiting) > self._front:
            sys.stdout.write(f"[{self._front + 1}] ")


def _summary(timing: Timing, compiled: float) -> str:
    prefill = timing.prefill_tokens / timing.prefill_seconds
    decode = timing.decode_tokens / timing.decode_seconds
    computed = timing.prefill_tokens + timing.padding_tokens
    times = (
        f"prefill: {timing.prefill_tokens:,} tokens, {prefill:,.0f} tokens/s; decode: "
        f"{timing.decode_tokens:,} tokens, {decode:,.0f} tokens/s; compiled in {compiled:.1f} s"
    )
    return "; ".join([times, *decoder.lengths.describe(computed, timing.padding_tokens)])
