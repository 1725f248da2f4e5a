"""python -m jaxrope.generate as a person meets it, text as it comes, and real models."""

import io
import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hf_models import CASES, write

from jaxrope import data, decoder, generate, rope
from jaxrope.convert import pretrained
from jaxrope.evaluate import passkey, scoring
from jaxrope.generate import Model, Options, TextStream
from jaxrope.generate.__main__ import main
from tests.benches import make_bench

SHIPPED = Path(data.__file__).parent.parent / "models" / "stdlib-3m"
BYTES = data.BytesTokenizer()


def pushed(stream, tokens):
    return [stream.push(token) for token in tokens]


def test_characters_come_whole():
    stream = TextStream(BYTES, [256])
    assert pushed(stream, "aé€😀".encode()) == ["a", "", "é", "", "", "€", "", "", "", "😀"]
    assert stream.finish() == ""


def test_broken_bytes_are_shown_at_the_end_or_when_others_follow():
    stream = TextStream(BYTES, [256])
    assert pushed(stream, [0xF0, 0x9F]) == ["", ""] and stream.finish() == "\ufffd"
    stream = TextStream(BYTES, [256])
    assert "".join(pushed(stream, [0xC3, *b"ab"])) == "\ufffdab"
    stream = TextStream(BYTES, [256])
    assert "".join(pushed(stream, [0x80] * 20)) + stream.finish() == "\ufffd" * 20


def test_a_prompt_that_ends_inside_a_character():
    stream = TextStream(BYTES, [256, *"€".encode()[:2]])
    assert pushed(stream, [*"€".encode()[2:], *b"x"])[1] == "x"


def test_text_ends_before_a_stop_text():
    stream = TextStream(BYTES, [256], ["END", "\n\n"])
    shown = pushed(stream, b"aE\nEND")
    assert "".join(shown) == "aE\n" and stream.ended and stream.finish() == ""
    assert shown[1] == ""  # it may be the beginning of END
    stream = TextStream(BYTES, [256], ["END"])
    assert "".join(pushed(stream, b"EN")) == "" and stream.finish() == "EN"


@pytest.mark.parametrize("text", ["naïve — “quoted” 😀\n\tEnde  gut", "日本語 text"])
def test_streamed_text_is_the_text_decoded_at_once(text):
    tokenizer = data.load_tokenizer(SHIPPED)
    ids = tokenizer.encode(text)
    stream = TextStream(tokenizer, [tokenizer.bos_id])
    assert "".join(pushed(stream, ids)) + stream.finish() == tokenizer.decode(ids) == text


def program(*arguments):
    argv = [f"--checkpoint={SHIPPED}", "--chunk=32", *arguments]
    main(argv)


def refused(capsys, *arguments):
    with pytest.raises(SystemExit) as caught:
        program(*arguments)
    found = capsys.readouterr()
    assert caught.value.code == 2 and found.out == "" and found.err.count("\n") == 1
    return found.err


def test_the_program(capsys, tmp_path, monkeypatch):
    """Two prompts give what each gives alone; greedy decoding is what the forward pass prefers."""
    file = tmp_path / "prompt.txt"
    file.write_text("import os\n\n\ndef main(", encoding="utf-8")
    program("--prompt=def add(self, x", f"--prompt_file={file}", "--max_new_tokens=12")
    both = capsys.readouterr().out
    program("--prompt=def add(self, x", "--max_new_tokens=12")
    first, figures = capsys.readouterr().out.rsplit("\n", 2)[:2]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(file.read_bytes())))
    program("--prompt=-", "--max_new_tokens=12")
    second = capsys.readouterr().out.rsplit("\n", 2)[0]
    assert both.startswith(f"[1] {first}\n[2] {second}\n")
    assert figures.startswith("prefill: ") and "decode: 12 tokens, " in figures
    assert re.search(r"; padding: \d+\.\d% of the 16 tokens that are computed$", figures)
    loaded = pretrained.load(SHIPPED)
    tokenizer = data.load_tokenizer(SHIPPED)
    ids = [tokenizer.bos_id, *tokenizer.encode("def add(self, x")]
    whole = jax.jit(decoder.logits, static_argnums=0)
    params = jax.tree.map(jnp.asarray, loaded.params)
    new = []
    for _ in range(12):
        row = [*ids, *new, *[0] * (40 - len(ids) - len(new))]
        logits = whole(loaded.config, params, jnp.asarray([row]), loaded.rope_fn(40))
        new.append(int(logits[0, len(ids) + len(new) - 1].argmax()))
    assert first == tokenizer.decode(new)


def test_stop_text(capsys):
    program("--prompt=def add(self, x", "--max_new_tokens=12")
    text = capsys.readouterr().out.rsplit("\n", 2)[0]
    stop = text[3:5]
    program("--prompt=def add(self, x", "--max_new_tokens=12", f"--stop={stop}")
    assert capsys.readouterr().out.rsplit("\n", 2)[0] == text[: text.index(stop)]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "--prompt=TEXT is missing, or --prompt_file=FILE"),
        (["--prompt=-", "--prompt_file=-"], "Standard input, -, can be read once"),
        (["--prompt_file=none.txt"], "--prompt_file=none.txt cannot be read: No such file"),
        (["--prompt=a", "--rope=none.json"], "none.json: there is no such file"),
        (["--prompt=a", "--top_p=2"], "generate.top_p must be a number above 0 and at most 1"),
        (["--prompt=a", "--top_k=many"], "argument --top_k: invalid int value: 'many'. See --help"),
        (["--prompt=a", "--policy=rotate"], "Unknown generate.policy 'rotate'"),
        (["--prompt=a", "--dtype=fp8"], "Unknown --dtype 'fp8'"),
        (["--prompt=a", "--temprature=1"], "Unknown flag '--temprature'. Did you mean '--temp"),
        (["--prompt=a", "--chunk=40"], "generate.chunk must be a multiple of 16"),
        (["--prompt=a", "--mesh=rows=2"], "--mesh is a list such as context=4,tensor=2"),
        (["--prompt=a", "--mesh=context=3"], "mesh .* needs a multiple of 3 devices"),
        (["--prompt=a", "--max_new_tokens=255"], "would have 257 tokens, .* reads 256. Give"),
        (["--prompt=a", "--checkpoint=none"], "error: none"),
        (["--prompt=a", "--tokenizer=none"], "data.tokenizer: 'none' does not exist"),
    ],
)
def test_messages(capsys, arguments, message):
    assert re.search(message, refused(capsys, *arguments))


def test_a_prompt_that_is_no_text(capsys, tmp_path):
    (tmp_path / "a.txt").write_bytes(b"ab\xff")
    message = refused(capsys, f"--prompt_file={tmp_path / 'a.txt'}")
    assert "is not UTF-8 text: byte 2 is wrong" in message


def loaded_model(folder, rope_fn=None):
    loaded = pretrained.load(folder)
    params = jax.tree.map(jnp.asarray, loaded.params)
    settings = decoder.ForwardSettings()
    return Model(loaded.config, params, rope_fn or loaded.rope_fn, settings)


@pytest.mark.parametrize("name", ("phi3", "llama"))
def test_torch_generates_the_same(tmp_path, name):
    """transformers switches the factors of Phi-3 at the border and reads all again; it does not for
    a Llama, which stays plain here.
    """
    torch = pytest.importorskip("torch", reason="needs torch (Python 3.11)")
    transformers = pytest.importorskip("transformers", reason="needs transformers (Python 3.11)")
    write(tmp_path, CASES[name])
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    model, how = loaded_model(tmp_path), dict(max_new_tokens=14, do_sample=False, eos_token_id=None)
    prompts = [np.random.default_rng(n).integers(3, 96, n).tolist() for n in (24, 32, 33, 60)]
    new = generate.generate(model, prompts, Options(max_new_tokens=14, chunk=16))
    for tokens, ours in zip(prompts, new, strict=True):
        with torch.no_grad():
            found = theirs.eval().generate(torch.as_tensor([tokens]), pad_token_id=0, **how)
        assert found[0, len(tokens) :].tolist() == ours
    assert len({tuple(tokens) for tokens in new}) == 4


def two_buckets():
    """512 tokens as trained; 2,048 with YaRN's factors, written as LongRoPE's."""
    shape = dict(head_dim=64, theta=10_000.0, original_len=512)
    yarn = rope.make("yarn", **shape, factor=4.0, beta_fast=32, beta_slow=1).bucket(2048)
    rows = [
        dict(max_len=512, factors=[1.0] * 32, start_tokens=0, attention_factor=1.0),
        dict(
            max_len=2048,
            factors=yarn.factors,
            start_tokens=0,
            attention_factor=yarn.attention_factor,
        ),
    ]
    return rope.make("longrope", **shape, buckets=rows)


def key_prompts(tokenizer, lengths):
    """Returns (prompts that ask for a pass key, the keys): prompt and key have these lengths."""
    bench = make_bench(passkey_trials=1)
    fields = dict(config=None, params=None, rope_fn=None, settings=None, label="")
    asked = scoring.EvalModel(tokenizer=tokenizer, **fields)
    trials = [passkey.make_trials(asked, bench, length)[0] for length in lengths]
    prompts = [trial.tokens[: trial.digits[0]].tolist() for trial in trials]
    return prompts, [trial.about["key"] for trial in trials]


def test_a_pass_key_is_found_when_decoding_crosses_a_border(books_6m):
    """The border lies before, on each of, and behind the digits that are generated."""
    tokenizer = data.load_tokenizer(books_6m)
    model = loaded_model(books_6m, two_buckets())
    lengths = (512, 513, 514, 515, 516, 517, 518, 700)
    prompts, keys = key_prompts(tokenizer, lengths)
    assert sum(len(prompt) <= 512 < len(prompt) + 5 for prompt in prompts) >= 4
    timing = generate.Timing()
    new = generate.generate(model, prompts, Options(max_new_tokens=5), timing=timing)
    assert timing.prefill_tokens > sum(map(len, prompts)) + 4 * 512
    assert [tokenizer.decode(tokens).strip() for tokens in new] == keys
