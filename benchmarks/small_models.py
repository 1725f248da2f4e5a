"""Small models to prove extensions on, pre-trained on novels or code and taught to retrieve.

  python -m benchmarks.small_models --model=mha --workdir=runs/mha
  python -m benchmarks.small_models --model=qwen3 --workdir=runs/qwen3
  python -m benchmarks.small_models --model=stdlib-3m --train=stdlib --held_out=stdlib --offset=0 \\
      --tokenizer=jaxrope/models/stdlib-3m --compute_dtype=bfloat16 --workdir=runs/stdlib-3m

"mha" is a Llama with as many key heads as heads, head_dim 32, theta 500,000 and a window of 1,024;
"qwen3" a Qwen3 with theta 1,000,000 and a window of 512; both have 4 M parameters. "stdlib-3m" is
the model that ships with the project, a Llama of 2.8 M parameters and a window of 256, trained on
Python's standard library. Each is trained on --train alone and written to WORKDIR/hf (--out) in
Hugging Face format, with perplexity on --held_out, pass keys and needles at its own length in its
README.md. About an hour on two cores, half of that for qwen3; 20 minutes on one core for stdlib-3m
(Python 3.12, a processor with AMX). The same command goes on where it was stopped. --quick: to see
it run.

A model copies before it answers: half of the first rows have segments that come again. Those of a
text come first: of random tokens alone nothing is copied after 350 steps, of novels after 120. Code
alone is foreseen without copying (nothing of random tokens is copied after 400 steps): there the
first rows are short, and most of them different tokens of the text in any order.
Longer rows are then pass keys, needles of several keys and text, and the learning rate falls to
zero on rows of the whole window.
"""

import dataclasses
import functools
import sys
from pathlib import Path

import jax
import numpy as np
import optax
from ml_collections import ConfigDict
from optax import contrib

from benchmarks import on_books
from configs import base
from jaxrope import data, decoder, evaluate
from jaxrope.convert import exporting, pretrained
from jaxrope.data import needles
from jaxrope.errors import InputError, choose
from jaxrope.evaluate import passkey
from jaxrope.shell import Command, Progress, cli, heap
from jaxrope.store import Checkpoints, files
from jaxrope.train import TrainState, init_state, make_step, optimizer

_COMMON = dict(
    vocab_size=4096,
    num_layers=5,
    embed_dim=256,
    mlp_dim=512,
    tie_embeddings=True,
    bos_id=1,
    eos_id=2,
)
MODELS = {
    "mha": _COMMON
    | dict(num_heads=8, num_kv_heads=8, head_dim=32, rotary_dim=32, theta=500_000.0)
    | dict(original_len=1024, max_len=1024, norm_eps=1e-5),
    "qwen3": _COMMON
    | dict(num_heads=4, num_kv_heads=2, head_dim=64, rotary_dim=64, theta=1_000_000.0)
    | dict(original_len=512, max_len=512, norm_eps=1e-6, family="qwen3", qk_norm="head"),
    "stdlib-3m": dict(
        vocab_size=2048, num_layers=4, embed_dim=192, mlp_dim=768, tie_embeddings=True
    )
    | dict(num_heads=6, num_kv_heads=6, head_dim=32, rotary_dim=32, theta=10_000.0)
    | dict(original_len=256, max_len=256, norm_eps=1e-5, bos_id=0, eos_id=1),
}
KINDS = ("text", "copies", "passkeys", "needles")
MOST_KEYS = 6
COPY, ANSWER = 2.0, 8.0  # loss weights of a copied token, of a digit of an answer; of text 1
CHUNK = 512  # positions whose logits exist at one time
# Learning rates at the peak: of the matrices of layers, of the rest; and times its usual size the
# embedding is at the start. By the window; 0: of the others.
STARTS = {256: (0.02, 4e-3, 3.0), 0: (0.01, 2e-3, 1.0)}
SAVED = 50  # steps between checkpoints
FRESH = 2**40  # steps are below it: the number of a batch that no step has
_REST = ("opt_state", "updates", "bad_in_row", "bad_total")  # of a TrainState, beside params


@dataclasses.dataclass(frozen=True)
class Phase:
    """Steps on rows of one length.

    Attributes:
      length: tokens of a row.
      rows: of a batch.
      steps: of the optimizer.
      shares: of the rows that are of each of KINDS.
    """

    length: int
    rows: int
    steps: int
    shares: tuple[float, float, float, float]


def phases(window: int, quick: bool) -> list[Phase]:
    """Returns the phases of a model with this window, in their order."""
    copies, retrieval, text = (0.5, 0.5, 0, 0), (0.4, 0.2, 0.15, 0.25), (0.7, 0.05, 0.05, 0.2)
    if quick:
        return [Phase(64, 2, 1, copies), Phase(256, 2, 1, retrieval)]
    if window == 256:
        return [
            Phase(32, 64, 300, (0.2, 0.8, 0, 0)),
            Phase(128, 20, 150, (0.3, 0.7, 0, 0)),
            Phase(192, 14, 350, retrieval),
            Phase(256, 12, 750, text),
        ]
    quarter, half, whole = (400, 1000, 500) if window > 512 else (200, 300, 200)
    return [
        Phase(128, 32, 400, copies),
        Phase(64, 64, 200, (0.1, 0.9, 0, 0)),
        Phase(128, 32, 200, retrieval),
        Phase(256, 16, quarter, retrieval),
        Phase(512, 8, half, text),
        Phase(window, 8192 // window, whole, text),
    ]


class Rows:
    """Rows of every kind: (tokens_T, weights_T), what each token counts as a target."""

    def __init__(self, texts: ConfigDict, tokenizer: data.Tokenizer):
        self.tokenizer = tokenizer
        documents = data.load_documents(
            texts.train_files,
            tokenizer,
            exclude=texts.exclude,
            settings=data.ReadSettings("--train"),
        )
        self.text, self.grass = needles.text(documents), needles.grass(tokenizer)
        words = needles.training_words(documents, tokenizer)
        self.source = needles.Source(tokenizer, self.text, "training", "a row", words)

    def batch(self, phase: Phase, step: int) -> dict[str, np.ndarray]:
        """Returns the batch of a step, a function of its number."""
        kinds = np.random.default_rng([step, 0]).choice(KINDS, phase.rows, p=phase.shares)
        return self.of_kinds(kinds, phase.length, step)

    def of_kinds(self, kinds, length: int, step: int) -> dict[str, np.ndarray]:
        """Returns a batch of one part, as train's step takes it, whose rows are of these kinds."""
        rows = [
            getattr(self, f"_{kind}")(np.random.default_rng([step, i + 1]), length)
            for i, kind in enumerate(kinds)
        ]
        tokens_BT, weights_BT = map(np.stack, zip(*rows, strict=True))
        weights_BT[:, 0] = 0  # it is no target
        return dict(
            tokens_BT=tokens_BT[None],
            targets_BT=np.roll(tokens_BT, -1, axis=1)[None],
            loss_weights_BT=np.roll(weights_BT, -1, axis=1)[None],
        )

    def _text(self, rng, length: int) -> tuple:
        text_T = self.text(length - 1, _word(rng))
        tokens_T = np.insert(text_T, 0, self.tokenizer.bos_id).astype(np.int32)
        return tokens_T, np.ones(length, np.float32)

    def _copies(self, rng, length: int) -> tuple:
        """A segment, of a text or of random tokens, comes again at some place, and from there to
        the end of the row. What nobody can foresee does not count.
        """
        tokens_T, weights_T = self._text(rng, length)
        size = int(rng.integers(min(8, length // 8), min(31, length // 2 - 1)))
        first = int(rng.integers(1, length - 2 * size))
        second = int(rng.integers(first + size, length - size))
        if rng.random() < 0.5:  # the whole row
            first, second = 1, 1 + size
        segment = self.text(size, _word(rng))
        if rng.random() < 0.5:
            segment = rng.integers(3, self.tokenizer.vocab_size, size)
            if length < 64:
                several = np.unique(self.text(3 * size, _word(rng)))
                segment = np.resize(rng.permutation(several), size)
        tokens_T[first : first + size] = segment
        tokens_T[second:] = np.resize(segment, length - second)
        weights_T[first : first + size + 1] = weights_T[second] = 0
        weights_T[second + 1 :] = COPY
        return tokens_T, weights_T

    def _passkeys(self, rng, length: int) -> tuple:
        haystack, word = self.grass if rng.random() < 0.5 else self.text, _word(rng)
        trial = passkey.make_trial(
            self.tokenizer,
            lambda depth, *parts: [haystack(count, word) for count in parts],
            key=str(rng.integers(10**4, 10**5)),
            depth=rng.random(),
            length=length,
        )
        return trial.tokens, _weights(length, trial.digits)

    def _needles(self, rng, length: int) -> tuple:
        keys, asked = rng.choice(self.numbers_of_keys(length)).tolist()
        document = needles.make_document(
            self.source,
            length=length,
            num_keys=keys,
            num_asked=asked,
            seed=_word(rng),
            index=0,
            depth=rng.random(),
        )
        return document.tokens, _weights(length, sum(document.answers, ()))

    @functools.cache  # noqa: B019 (there is one)
    def numbers_of_keys(self, length: int) -> list[tuple[int, int]]:
        """Returns (keys, keys that are asked for) of all documents that always fit."""
        pairs = [(keys, asked) for keys in range(1, MOST_KEYS + 1) for asked in range(1, keys + 1)]
        fitting = [pair for pair in pairs if needles.most_tokens(self.source, *pair) <= length]
        return fitting or pairs[:1]


def _word(rng) -> int:
    return int(rng.integers(2**63))


def _weights(length: int, digits) -> np.ndarray:
    """Returns weights_T of a row with an answer whose digits are at these places."""
    weights_T = np.ones(length, np.float32)
    weights_T[list(digits)] = ANSWER
    return weights_T


def add_arguments(parser) -> None:
    """Those of the benchmarks on books; the tokenizer is that of a model of theirs."""
    on_books.add_arguments(parser)
    parser.set_defaults(model="mha", tokenizer="../shared/models/books-6m")
    parser.add_argument("--compute_dtype", default="float32", help="or bfloat16")
    parser.add_argument("--out", default="", help='the Hugging Face folder; "": WORKDIR/hf')


def run(args) -> int:
    """Trains what is not trained yet, writes the folder, and measures it; returns the exit code.

    Raises:
      InputError: an argument is wrong, or the workdir has another training.
    """
    workdir = on_books.folder(args)
    config = decoder.DecoderConfig(**choose("--model", args.model, MODELS))
    tokenizer = data.load_tokenizer(args.tokenizer, vocab_size=config.vocab_size)
    rows = Rows(on_books.texts(args), tokenizer)
    settings = decoder.ForwardSettings(remat="none", compute_dtype=args.compute_dtype)
    params = train(config, settings, rows, workdir, args.quick)
    folder = Path(args.out).absolute() if args.out else workdir / "hf"
    rope_fn = decoder.own_rope(config)
    model = pretrained.Pretrained(config, params, Path(args.tokenizer), rope_fn, args.model)
    settings = exporting.Settings(dtype=args.compute_dtype, overwrite=True)
    exporting.export_folder(model, folder, settings)
    measure(config, rows, args, folder, "small_models")
    cli.print_line(f"wrote {folder}")
    return 0


def dry_run(args) -> str:
    """Returns the phases, a line each."""
    window = choose("--model", args.model, MODELS)["max_len"]
    return "\n".join(map(str, phases(window, args.quick)))


def train(config: decoder.DecoderConfig, settings, rows: Rows, workdir: Path, quick: bool) -> dict:
    """Returns the parameters after all phases; goes on from the newest checkpoint.

    Raises:
      InputError: the checkpoints are of another training.
    """
    plan = phases(config.max_len, quick)
    schedule = [phase for phase in plan for _ in range(phase.steps)]
    step_fn, state = _begin(config, settings, len(schedule))
    store, identity = Checkpoints(workdir, asynchronous=False), {"plan": f"{config} {plan}"}
    done = store.latest() or 0
    if done:
        state = _restored(store, done, state, identity)
    score_fn, rope_fn = jax.jit(functools.partial(_score, config)), decoder.own_rope(config)
    with Progress(len(schedule), start=done) as progress:
        for step, phase in enumerate(schedule[done:], start=done):
            rope = rope_fn(phase.length)
            state, metrics = step_fn(state, rows.batch(phase, step), rope)
            loss = float(metrics["loss"])
            progress.update(step + 1, length=phase.length, loss=loss)
            if (step + 1) % SAVED == 0 or step + 1 == len(schedule):
                rest = {name: getattr(state, name) for name in _REST}
                store.save(step + 1, state.params, rest, identity)
                score = functools.partial(score_fn, state.params, rope)
                note_fresh(workdir, fresh_scores(score, rows, phase), step + 1, phase, loss)
    store.close()
    return jax.device_get(state.params)


def _begin(config, settings, num_steps: int) -> tuple:
    """Returns (the jitted step, the state before the first)."""
    *rates, times = STARTS.get(config.max_len, STARTS[0])
    muon = _optimizer(num_steps, rates)
    step_fn = make_step(config, settings, muon, chunk_tokens=CHUNK, packed=False)
    params = decoder.init_params(config, jax.random.key(0))
    params["embed_VD"] *= times
    # jitted: leaves that share memory with each other cannot be donated
    state = jax.jit(lambda params: init_state(params, muon.transform))(params)
    return jax.jit(step_fn, donate_argnums=0), state


def _optimizer(num_steps: int, rates) -> optimizer.Optimizer:
    """Returns Muon for the matrices of layers, AdamW for the rest: copies are learned in two thirds
    of the steps of AdamW alone.
    """
    warmup = min(50, num_steps // 2)
    matrices, others = (optimizer.cosine(rate, num_steps, warmup, 0.0) for rate in rates)
    muon = contrib.muon(
        matrices,
        weight_decay=0.1,
        adam_learning_rate=others,
        adam_b2=0.95,
        muon_weight_dimension_numbers=_inputs_and_outputs,
    )
    return optimizer.Optimizer(optax.chain(optax.clip_by_global_norm(1.0), muon), others)


def _inputs_and_outputs(params) -> dict:
    """Returns which axes of a matrix its products sum over and which they give, read from the
    letters of its name; None for what is no matrix of a layer.
    """

    def axes(path, _):
        name, letters = path[-1].key.rsplit("_", 1)
        if letters[0] != "L" or "norm" in name:
            return None
        dim, others = letters.index("D"), [i for i in range(1, len(letters)) if letters[i] != "D"]
        pair = ([dim], others) if dim == 1 else (others, [dim])
        return contrib.MuonDimensionNumbers(*map(tuple, pair))

    return jax.tree_util.tree_map_with_path(axes, params)


def _restored(store: Checkpoints, step: int, state: TrainState, identity: dict) -> TrainState:
    abstract = jax.eval_shape(lambda: state)
    rest = {name: getattr(abstract, name) for name in _REST}
    params, rest, meta = store.restore(step, abstract.params, rest)
    if meta["plan"] != identity["plan"]:
        raise InputError(f"{store.root} is of another training. Give another --workdir.")
    return TrainState(params=params, **rest)


def _score(config, params, rope, batch) -> tuple:
    """Returns (nll_BT, hits_BT) of a batch with one part."""
    part = {name: value[0] for name, value in batch.items()}
    x_BTD = decoder.hidden(config, params, part["tokens_BT"], rope)
    head_DV = decoder.head_DV(config, params)
    return decoder.losses.nll_and_hits(x_BTD, head_DV, part["targets_BT"], chunk=CHUNK)


def fresh_scores(score_fn, rows: Rows, phase: Phase) -> dict[str, float]:
    """Returns nats per token of text; of the other kinds in a phase the share of tokens that count
    most that are the first choice.

    Args:
      score_fn: of a batch of `rows`; returns (nll_BT, hits_BT).
    """
    scores = {}
    for kind in np.array(KINDS)[np.array(phase.shares) > 0].tolist():
        batch = rows.of_kinds([kind] * 8, phase.length, FRESH)
        nll_BT, hits_BT = map(np.asarray, score_fn(batch))
        weights_BT = batch["loss_weights_BT"][0]
        values_BT = nll_BT if kind == "text" else hits_BT
        scores[kind] = round(float(values_BT[weights_BT == weights_BT.max()].mean()), 3)
    return scores


def note_fresh(workdir: Path, scores: dict, step: int, phase: Phase, loss: float) -> None:
    """Prints `fresh_scores`, and appends them to fresh.jsonl."""
    row = scores | {"step": step, "length": phase.length, "loss": round(loss, 3)}
    files.append_jsonl(workdir / "fresh.jsonl", row)
    cli.print_line(str(row))


def measure(config, rows: Rows, args, folder: Path, program: str) -> None:
    """Measures the folder at its own length, and writes its README.md."""
    scored = base.get_config()
    scored.model = base.checkpoint_model(str(folder))
    scored.data.eval_files = on_books.texts(args).eval_files
    scored.eval.suites = ("perplexity", "passkey", "needle")
    scored.eval.lengths = (config.max_len,)
    most = max(keys for keys, _ in rows.numbers_of_keys(config.max_len))
    scored.eval.needle_keys = tuple(sorted({1, most}))
    scored.eval.num_windows, scored.eval.windows_per_doc = (2 if args.quick else 16), 1
    scored.eval.passkey_trials = scored.eval.needle_trials = 2 if args.quick else 24
    scored.eval.offset_tokens = args.offset
    columns = evaluate.evaluate(scored, on_books.folder(args) / "scores")
    lines = [
        f"# {args.model}",
        f"{decoder.num_params(config):,} parameters, window {config.max_len:,}, trained from "
        f"scratch by benchmarks/{program}.py. Always put `<s>` first.",
        "\n".join(f"- {name}: {value:.4g}" for name, value in columns.items()),
    ]
    files.write_text_atomic(folder / "README.md", "\n\n".join(lines) + "\n")


if __name__ == "__main__":
    heap.keep()
    cli.arguments(
        Command(arguments=add_arguments, run=run, dry_run=dry_run),
        doc=__doc__,
        argv=sys.argv[1:],
    )
