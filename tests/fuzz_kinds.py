"""What `make fuzz` damages: how each kind of input is made, mutated and read as programs do."""

import contextlib
import copy
import dataclasses
import io
import json
import os
import random
import shlex
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np

from jaxrope import data, rope, schema
from jaxrope.convert import importing, pretrained, rope_formats
from jaxrope.errors import InputError
from jaxrope.evaluate import __main__ as evaluate_program
from jaxrope.report import collect
from jaxrope.search import __main__ as search_program
from jaxrope.shell import cli, experiment
from jaxrope.store import sealed, steps
from jaxrope.train import __main__ as train_program
from tests import gguf_models, gguf_vocabularies, hf_models, rope_samples, tiny_report

ROOT = Path(__file__).resolve().parent.parent
_SCALED = ("llama longrope of v5", "llama yarn", "phi3", "llama llama3", "llama dynamic")


# What values become.
def odd_value(rng: random.Random):
    """Returns a value that a careless reader trips over."""
    return rng.choice(
        [
            *(None, True, False, 0, 1, 2, 3, -1, 0.0, -0.0, 0.5, 1.5, 1e-320, 1e300, -1e300, 1e308),
            *(2**31 - 1, 2**31, 2**53, 2**63, 2**64, 10**9, 10**39, 10**400, -(10**400), -(2**63)),
            *("", "x", "nan", "\0", "\ud800", "../../etc/passwd", "x" * 100_000, "é\n\x1b[31m"),
            *([], [[]], [None], [1], ["x"], [1e308] * 8, [0] * 100_000, {}, {"a": {}}, {"": None}),
            *({"rope_type": "yarn"}, {"method": "none"}, [{}], [[1.0] * 8] * 2, {"format": 3}),
        ]
    )


def mutated(value, rng: random.Random):
    """Returns a JSON value with one to three places changed."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        containers = list(_containers(value))
        inside = rng.choice(containers) if containers else None
        if not inside:
            return odd_value(rng)
        key = rng.choice(list(inside)) if isinstance(inside, dict) else rng.randrange(len(inside))
        kind = rng.choice(["set", "set", "set", "scale", "delete", "rename", "wrap", "swap"])
        if kind == "delete":
            del inside[key]
        elif kind == "rename" and isinstance(inside, dict):
            inside[rng.choice(["", "x", f"{key}s", "__metadata__", "sha256"])] = inside.pop(key)
        elif kind == "wrap":
            for _ in range(rng.choice([1, 3, 70, 150])):
                inside[key] = [inside[key]]
        elif kind == "swap":
            inside[key] = copy.deepcopy(rng.choice(containers))
        elif kind == "scale" and type(inside[key]) in (int, float):
            inside[key] *= rng.choice([-1, 0, 2, 0.5, 1000, 10**9, 1e30])
        else:
            inside[key] = odd_value(rng)
    return value


def _containers(value):
    if isinstance(value, dict | list):
        yield value
        for item in value.values() if isinstance(value, dict) else value:
            yield from _containers(item)


def as_json(value, rng: random.Random) -> bytes:
    """Returns JSON of the value, one time in five damaged as text."""
    try:
        raw = json.dumps(value).encode("utf-8", "surrogatepass")
    except RecursionError:
        raw = b'{"a":' + b"[" * 2000 + b"]" * 2000 + b"}"
    kind = rng.choice(["whole"] * 12 + ["twice", "encoding", "bytes"])
    if kind == "twice" and raw.startswith(b'{"'):
        name = raw[1 : raw.index(b'"', 2) + 1]
        return b"{" + name + b": 1, " + raw[1:]
    if kind == "encoding":
        text = raw.decode("utf-8", "replace")
        return rng.choice(
            [text.encode("utf-16"), b"\xef\xbb\xbf" + raw, raw + b"\0", b"\xff" + raw]
        )
    return damaged(raw, rng) if kind == "bytes" else raw


def damaged(raw: bytes, rng: random.Random) -> bytes:
    """Returns bytes with a few of them changed, lost or put in."""
    content = bytearray(raw)
    for _ in range(rng.choice([1, 1, 2, 8])):
        at = rng.randrange(len(content) + 1)
        kind = rng.choice(["flip", "flip", "cut", "lose", "number", "zeros", "text"])
        if kind == "flip" and at < len(content):
            content[at] ^= 1 << rng.randrange(8)
        elif kind == "cut":
            del content[at:]
        elif kind == "lose":
            del content[at : at + rng.randrange(1, 20)]
        elif kind == "number":
            number = rng.choice([0, 1, 2**31, 2**32 - 1, 2**60, 2**63, 2**64 - 1])
            content[at : at + 8] = struct.pack("<Q", number)
        elif kind == "zeros":
            content[at:at] = bytes(rng.randrange(1, 100))
        else:
            content[at:at] = rng.choice([b'"', b"{", b"[" * 500, b"NaN", b"\xff", b"-1", b"1e999"])
    return bytes(content)


# What is read.
@dataclasses.dataclass(frozen=True)
class Kind:
    """One way in.

    Attributes:
      prepare: folder -> whatever its cases share.
      case: (folder, shared, rng) reads a mutation of it.
      share: of all cases.
    """

    prepare: Callable
    case: Callable
    share: int = 4


def _models(folder: Path):
    for name in ("llama", "llama tied with biases", "qwen2", "mistral", *_SCALED):
        hf_models.write(folder / name, hf_models.CASES[name])
    return {path: json.loads((path / "config.json").read_text()) for path in folder.iterdir()}


def _config(folder, models, rng):
    path = rng.choice(list(models))
    values = models[path]
    section = next((k for k in ("rope_parameters", "rope_scaling") if values.get(k)), None)
    if section and rng.random() < 0.5:
        values = values | {section: mutated(values[section], rng)}
    else:
        values = mutated(values, rng)
    (path / "config.json").write_bytes(as_json(values, rng))
    (rope_formats.read if rng.random() < 0.3 else pretrained.load)(path)


def _weights(folder: Path):
    hf_models.write(folder / "m", hf_models.CASES["llama"])
    raw = (folder / "m" / "model.safetensors").read_bytes()
    size = struct.unpack_from("<Q", raw)[0]
    return raw, json.loads(raw[8 : 8 + size]), raw[8 + size :]


def _header(folder, weights, rng):
    raw, header, body = weights
    if rng.random() < 0.7:
        text = as_json(mutated(header, rng), rng)
        raw = struct.pack("<Q", len(text)) + text + body
    else:
        raw = damaged(raw, rng)
    (folder / "m" / "model.safetensors").write_bytes(raw)
    pretrained.load(folder / "m")


def _index(folder: Path):
    hf_models.write(folder / "m", hf_models.CASES["llama"])
    names = list(hf_models.random_tensors(hf_models.CASES["llama"]))
    single, shard = "model.safetensors", "model-00001-of-00001.safetensors"
    (folder / "m" / single).rename(folder / "m" / shard)
    return {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(names, shard)}


def _read_index(folder, index, rng):
    path = folder / "m" / "model.safetensors.index.json"
    path.write_bytes(as_json(mutated(index, rng), rng))
    pretrained.load(folder / "m")


def _workdir(folder: Path):
    hf_models.write(folder / "in", hf_models.CASES["llama yarn"])
    importing.import_folder(folder / "in", folder / "m")
    meta = folder / "m" / "checkpoints" / "00000000" / "meta" / "metadata"
    return sealed.read_json(folder / "m" / "model.json"), meta, json.loads(meta.read_text())


def _model_json(folder, shared, rng):
    values, meta, described = shared
    if rng.random() < 0.6:
        values = mutated(values, rng)
    else:
        described = mutated(described, rng)
    for path, content in ((folder / "m" / "model.json", values), (meta, described)):
        if isinstance(content, dict) and rng.random() < 0.9:
            with contextlib.suppress(RecursionError, UnicodeEncodeError):
                seal = steps.seal if path == meta else sealed.digest_of
                body = {k: v for k, v in content.items() if k != "sha256"}
                content = {**body, "sha256": seal(body)}
        path.write_bytes(as_json(content, rng))
    pretrained.load(folder / "m")


def _ropes(folder: Path):
    path = rope_samples.saved(folder, rope_samples.rope_of())
    pi = rope.make("pi", head_dim=16, theta=1e4, original_len=32, factor=4.0)
    rope.save(folder / "pi.json", pi, {})
    return [sealed.read_json(p) for p in (path, folder / "pi.json")]


def _rope(folder, documents, rng):
    (folder / "rope.json").write_bytes(as_json(mutated(rng.choice(documents), rng), rng))
    rope_formats.read(folder / "rope.json")


def _forms(folder: Path):
    path = rope_samples.saved(folder, rope_samples.rope_of())
    for form in ("gguf", "vllm"):
        rope_samples.written(path, folder / form, form)
    line = shlex.split((folder / "vllm").read_text())
    return (folder / "gguf").read_bytes(), json.loads(line[1])


def _gguf(folder, shared, rng):
    (folder / "x").write_bytes(damaged(shared[0], rng))
    rope_formats.read(folder / "x")


def _gguf_models(folder: Path):
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    values = (gguf_vocabularies.byte_level("qwen2"), gguf_vocabularies.sentencepiece())
    files = [gguf_vocabularies.write(folder / f"{i}.gguf", value) for i, value in enumerate(values)]
    config = hf_models.CASES["llama longrope of v5"]
    tensors = hf_models.random_tensors(config, 0, np.float32)
    files.append(gguf_models.write(folder / "3.gguf", config, tensors))
    return [file.read_bytes() for file in files]


def _gguf_model(folder, models, rng):
    raw = rng.choice(models)
    end = rng.choice([2000, 20_000, len(raw)])  # the first are the metadata
    (folder / "x.gguf").write_bytes(damaged(raw[:end], rng) + raw[end:])
    pretrained.load(folder / "x.gguf")


def _vllm(folder, shared, rng):
    text = as_json(mutated(shared[1], rng), rng)
    quoted = b"'" + text + b"'" if rng.random() < 0.9 else text
    (folder / "x").write_bytes(b"--hf-overrides" + rng.choice([b" ", b"=", b""]) + quoted)
    rope_formats.read(folder / "x")


def _tokenizers(folder: Path):
    added = [{"id": 3, "content": "<s>", "special": True, "single_word": False, "lstrip": False}]
    added[0] |= {"rstrip": False, "normalized": False}
    common = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added}
    common |= {"normalizer": {"type": "NFC"}, "pre_tokenizer": {"type": "Whitespace"}}
    common |= {"post_processor": None, "decoder": {"type": "Fuse"}}
    vocab = {"a": 0, "b": 1, "ab": 2}
    models = [
        {"type": "BPE", "vocab": vocab, "merges": ["a b"], "unk_token": None, "dropout": None},
        {"type": "WordLevel", "vocab": vocab, "unk_token": "a"},
        {"type": "Unigram", "vocab": [["a", -1.0], ["b", -2.0], ["ab", -3.0]], "unk_id": 0},
        {"type": "WordPiece", "vocab": vocab, "unk_token": "a", "max_input_chars_per_word": 9}
        | {"continuing_subword_prefix": "##"},
    ]
    settings = {"bos_token": "<s>", "eos_token": {"content": "a"}, "model_max_length": 64}
    return [common | {"model": model} for model in models], settings


def _tokenizer(folder, shared, rng):
    specs, settings = shared
    spec = rng.choice(specs)
    if rng.random() < 0.8:
        spec = mutated(spec, rng)
    else:
        settings = mutated(settings, rng)
    (folder / "tokenizer.json").write_bytes(as_json(spec, rng))
    name = rng.choice(["tokenizer_config.json", "generation_config.json", "config.json"])
    (folder / name).write_bytes(as_json(settings, rng))
    try:
        data.load_tokenizer(folder).encode("a b ab")
        importing.check_tokenizer(folder, rng.choice(SHAPES))
    finally:
        (folder / name).unlink()


SHAPES: list = []


def _results(folder: Path):
    workdirs = tiny_report.write_workdirs(folder)
    return [path for workdir in workdirs for path in sorted(workdir.glob("*.json*"))]


def _result(folder, paths, rng):
    path = rng.choice(paths)
    raw = path.read_bytes()
    try:
        if path.suffix == ".jsonl":
            lines = raw.splitlines()
            at = rng.randrange(len(lines))
            lines[at] = as_json(mutated(json.loads(lines[at]), rng), rng)
            path.write_bytes(b"\n".join(lines) + b"\n")
        else:
            path.write_bytes(as_json(mutated(json.loads(raw), rng), rng))
        collect.collect(path.parent)
    finally:
        path.write_bytes(raw)


PROGRAMS = (search_program, train_program, evaluate_program)
TEXTS = (
    *("", "x", "None", "True", "no", "0", "1", "-1", "2", "7.5", "1e300", "1e400", "nan", "-inf"),
    *("9" * 400, "9" * 5000, "0x10", "1_000", "1j", "(", "()", "(1,)", "(1,2", "1,2", "a,b", "[]"),
    *("{}", "{'a': 1}", "{'method': 'yarn'}", "{'name': 'x'}", "{'method': 'yarn', 'factor': 0}"),
    *("{'method': 'pi', 'factor': 1e300}", "{'source': 'scratch'}", "{1: 2}", "{'method': []}"),
    *("__import__('os')", "(" * 300, "[" * 100 + "]" * 100, "'", '"', "\\", "\n", "\0", "\ud800"),
    *("\x1b[31m", "é" * 9, "~nobody/x", "gs://x", "/dev/zero", "*" * 50, "b'x'", "f'{1}'", "..."),
    *("{'source': 'checkpoint', 'path': '/nowhere', 'shape': ''}", "(('seed', (1, 2)),)"),
    *("(('a', 'search', ()),)", "(('a', 'train', (('seed', 'x'),)),)", "1 if True else 2"),
)


def _keys(folder: Path):
    config = experiment.read(str(ROOT / "configs" / "base.py"), [])
    leaves = [key for key, _ in schema.leaves(config)]
    return [*leaves, *{key.rpartition(".")[0] for key in leaves if "." in key}]


def _command_line(folder, keys, rng):
    argv = [f"--config={ROOT / 'configs' / 'base.py'}"]
    for _ in range(rng.choice([1, 1, 2, 4])):
        key = rng.choice(keys)
        key = rng.choice([key] * 12 + [key + "x", "", ".", f"{key}.x", key[:-1], "a b", "\0"])
        prefix = rng.choice(["--config."] * 12 + ["--noconfig.", "-config.", "--config", "--"])
        join = rng.choice(["="] * 12 + [" ", ""])
        argv.append(f"{prefix}{key}{join}{rng.choice(TEXTS)}")
    argv.append(rng.choice(["--print_config"] * 3 + [f"--workdir={rng.choice(TEXTS)}"]))
    if argv[-1] != "--print_config":
        argv.append("--topology=x")  # refused after all else: nothing runs
    program = rng.choice(PROGRAMS).PROGRAM
    out, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        try:
            cli.main(program, argv=argv)
        except SystemExit as error:
            lines = errors.getvalue().splitlines()
            if error.code != 2 or len(lines) != 1 or not lines[0].startswith("error: "):
                raise AssertionError(f"exit with {error.code} after {lines[-1:]}") from None
            raise InputError(lines[0]) from None


KINDS = {
    "config.json": Kind(_models, _config, 8),
    "safetensors": Kind(_weights, _header, 5),
    "index": Kind(_index, _read_index, 2),
    "workdir": Kind(_workdir, _model_json, 4),
    "rope.json": Kind(_ropes, _rope, 5),
    "gguf": Kind(_forms, _gguf, 5),
    "gguf model": Kind(_gguf_models, _gguf_model, 4),
    "vllm line": Kind(_forms, _vllm, 3),
    "tokenizer": Kind(_tokenizers, _tokenizer, 6),
    "report": Kind(_results, _result, 2),
    "command line": Kind(_keys, _command_line, 10),
}
