"""What an evaluation reads, checked before any weights are read: rows, checkpoints, factors, text,
questions and lengths.
"""

import dataclasses
import functools
import importlib.metadata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh

from jaxrope import data, decoder, rope, schema, setup
from jaxrope.convert import Pretrained, pretrained
from jaxrope.errors import InputError
from jaxrope.evaluate import journal, rows, ruler, suites
from jaxrope.evaluate.scoring import Bench, EvalModel
from jaxrope.mesh import hosts, sharding
from jaxrope.schema import Config, Identity
from jaxrope.setup import NOTHING, Expected
from jaxrope.store import files, leaves, sealed

CONFIGURED = "configured"  # the method of the first row: what config.rope says
_OF_QUESTIONS = ("eval", "seed", "data", "model", "rope", "original_len")


@dataclasses.dataclass(frozen=True)
class Spec:
    """A row of the table: its name, the checkpoint, and a method (see rows.py) or "model"."""

    label: str
    path: str
    method: str


class Cost(NamedTuple):
    """What one row, suite and length takes, at most.

    Attributes:
      spec, suite, length: which.
      tokens: that are read and written.
      filled: tokens that are computed, and those of them that are padding.
      operations: of a token, floating point.
      steps: tokens that are written one after another.
    """

    spec: Spec
    suite: str
    length: int
    tokens: int
    filled: tuple[int, int]
    operations: float
    steps: int


@dataclasses.dataclass(frozen=True)
class Plan:
    """A checked evaluation, before anything runs.

    Attributes:
      config: of the program.
      specs: the rows, those of a checkpoint together.
      models: path -> the checkpoint, without weights; that of config.model has the path `main`.
      tokenizer: of all rows.
      bench: what suites share.
      mesh: the devices, or a mesh that is only planned.
      expected: what is not there yet.
    """

    config: Config
    specs: tuple[Spec, ...]
    models: Mapping[str, Pretrained]
    tokenizer: data.Tokenizer
    bench: Bench
    mesh: Mesh | AbstractMesh
    expected: Expected = NOTHING

    @property
    def base(self) -> Pretrained:
        """The model of config.model."""
        return self.models[_main(self.config)]

    @property
    def longest(self) -> int:
        """Tokens of the longest text of any suite."""
        options = self.bench.options
        lengths = [*options.lengths]
        if "ruler" in options.suites:
            lengths += options.ruler.lengths
        return max(lengths, default=0)

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know before anything is paid."""
        model, longest = self.base.config, self.longest
        lines = [note for loaded in self.models.values() for note in loaded.notes]
        lines += [*self.tokenizer.notes, *setup.restated_notes(self.config, model)]
        lines += setup.window_notes(self.config, model, longest)
        unextended = [spec.label for spec in self.specs if self._is_unextended(spec)]
        served = max(decoder.own_base(model).length, model.max_len)
        if unextended and longest > served:
            lines.append(
                f"{', '.join(unextended)}: not extended; the model serves {served:,} tokens, and "
                f"is measured at up to {longest:,}"
            )
        return tuple(lines)

    def _is_unextended(self, spec: Spec) -> bool:
        """Whether a row of the main model has its own scaling at every length, in whole windows."""
        if spec.path != _main(self.config):
            return False
        row = _row(self.config, spec, self.base, self.expected)
        is_rope = isinstance(row.rope_fn, rope.RopeFn) and bool(row.rope_fn.buckets)
        return is_rope and not row.window and setup.is_own_rope(row.rope_fn, self.base.config)

    def at(self, path: str) -> Config:
        """Returns the config with another checkpoint as its model."""
        return _at(self.config, path)

    def model(self, spec: Spec, params: dict | None = None, *, stores: bool = False) -> EvalModel:
        """Returns a row as suites see it.

        Args:
          spec: of `specs`.
          params: of its checkpoint, on the mesh; None: nothing will run.
          stores: whether its answers may be stored in a journal.
        """
        loaded, config = self.models[spec.path], self.config
        row = _row(config, spec, loaded, self.expected)
        settings, _ = setup.forward_settings(config, self.mesh, loaded.config)
        return EvalModel(
            config=loaded.config,
            params=params,
            rope_fn=row.rope_fn,
            tokenizer=self.tokenizer,
            settings=settings,
            label=spec.label,
            window=row.window,
            identity=self.answerer(spec.path).digest if stores else "",
        )

    @functools.cached_property
    def costs(self) -> tuple[Cost, ...]:
        """What every row, suite and length takes."""
        parts = []
        for spec in self.specs:
            model = self.model(spec)
            for name, suite in suites.chosen(self.bench.options).items():
                bench = suites.bench_of(name, self.bench)
                for length in bench.options.lengths:
                    window = min(model.window, length) or length
                    operations = decoder.forward_operations(model.config, window) / window
                    tokens = suite.forward_tokens(model, bench, length)
                    steps = suite.steps(model, bench, length)
                    filled = suite.filled(model, bench, length)
                    parts.append(Cost(spec, name, length, tokens, filled, operations, steps))
        return tuple(parts)

    @functools.cached_property
    def weights(self) -> dict[str, str]:
        """{path: digest of the weights and the shape} of every checkpoint."""
        paths = list(self.models)
        return hosts.from_main(
            "weights", lambda: {path: setup.fingerprint(self.at(path)) for path in paths}
        )

    def answerer(self, path: str) -> Identity:
        """Returns what the answer to a question depends on beside the question and the factors."""
        content = {"weights": self.weights[path], "tokenizer": self.tokenizer.fingerprint}
        return schema.identify("evaluate", self.config, content, free=_OF_QUESTIONS)

    @functools.cached_property
    def identity(self) -> Identity:
        """What eval.json depends on: the weights and the factors of every row, and all texts."""
        content = {"tokenizer": self.tokenizer.fingerprint, **texts(self.bench)}
        for spec in self.specs:
            content[f"weights of {spec.label}"] = self.weights[spec.path]
            content[f"rope of {spec.label}"] = _rope_digest(self.model(spec), self.bench)
        return schema.identify("evaluate", self.config, content)


def prepare(config, expected: Expected = NOTHING) -> Plan:
    """Returns the plan, with everything checked that can be before weights are read.

    Args:
      config: of the program.
      expected: models and ropes that are not there yet.

    Raises:
      InputError: a setting is wrong, a file is not there, or a length exceeds the rope's last one.
    """
    config = schema.read(config)
    if not config.eval.suites:
        raise InputError("eval.suites is empty, so that an evaluation has nothing to do. Set it.")
    mesh = sharding.make_mesh(config.mesh, planned=True)
    base = setup.load_model(config, weights=False, expected=expected)
    specs = _specs(config, base, expected)
    tokenizer, place = setup.tokenizer(config, base.tokenizer_dir, base.config.vocab_size)
    models = {_main(config): base}
    for spec in specs:
        if spec.path not in models:
            other = setup.load_model(_at(config, spec.path), weights=False, expected=expected)
            _check_tokenizer(config, spec, other, tokenizer)
            models[spec.path] = other
    for loaded in models.values():
        decoder.param_shardings(loaded.config, mesh)  # refuses what does not divide
    documents = None
    if suites.needs_text(config.eval):
        documents = setup.held_out_documents(config, tokenizer, place)
    bench = Bench(config.eval, config.seed, documents, tokenizer_dir=str(place))
    plan = Plan(config, tuple(specs), models, tokenizer, bench, mesh, expected)
    for spec in specs:
        suites.check(plan.model(spec), bench)
    return plan


def load(plan: Plan, path: str) -> dict:
    """Returns the parameters of a checkpoint on the devices.

    Raises:
      InputError: one of them is NaN or infinite.
    """
    loaded = setup.load_model(plan.at(path))
    params = sharding.put(loaded.params, decoder.param_shardings(loaded.config, plan.mesh))
    for name, leaf in leaves.named(params).items():
        if not jnp.isfinite(leaf).all():
            raise InputError(
                f"{loaded.source}: {name} has values that are NaN or infinite. Use a checkpoint "
                "from before that, or import the model again."
            )
    return params


def _main(config: Config) -> str:
    """Returns what a row of config.model has as its path; a model from scratch has none."""
    return config.model.path if config.model.source == "checkpoint" else ""


def _at(config: Config, path: str) -> Config:
    if path == _main(config):
        return config
    return schema.replace(config, {"model": dict(source="checkpoint", path=path)})


def _specs(config: Config, base: Pretrained, expected: Expected) -> list[Spec]:
    """Returns the rows, those of a checkpoint together.

    Raises:
      InputError: a checkpoint does not exist, or two rows have one name.
    """
    section, main = config.eval, _main(config)
    rope_fn = setup.rope_fn(config, base.config, base.rope_fn, expected)
    is_plain = setup.is_own_rope(rope_fn, base.config)
    specs = [Spec(section.label or (rows.OWN if is_plain else rope_fn.method), main, CONFIGURED)]
    if is_plain and rows.OWN in section.methods and not section.label:
        specs = []  # the configured rope is the row "none", which is asked for anyway
    specs += [Spec(name, main, name) for name in section.methods]
    for label, path, method in section.checkpoints:
        if path not in expected.models and not files.as_path(path).exists():
            raise InputError(f"eval.checkpoints: '{path}' of row '{label}' does not exist.")
        specs.append(Spec(label, path, method))
    labels = [spec.label for spec in specs]
    for label in labels:
        if labels.count(label) > 1:
            raise InputError(f"eval: two rows are named '{label}'. Set eval.label, or rename one.")
    paths = list(dict.fromkeys(spec.path for spec in specs))
    return sorted(specs, key=lambda spec: paths.index(spec.path))


def _row(config: Config, spec: Spec, loaded: Pretrained, expected: Expected) -> rows.Row:
    section = config.eval
    if spec.method == CONFIGURED:
        rope_fn = setup.rope_fn(config, loaded.config, loaded.rope_fn, expected)
        return rows.Row(spec.label, rope_fn, section.window)
    if spec.method == "model":
        return rows.Row(spec.label, loaded.rope_fn, section.window)
    if spec.method in expected.ropes:
        return rows.Row(spec.label, expected.ropes[spec.method], section.window)
    lengths = dict(rope_len=section.rope_len, window=section.window)
    return rows.method_row(spec.method, loaded.config, **lengths)


def _check_tokenizer(config: Config, spec: Spec, loaded: Pretrained, tokenizer) -> None:
    if config.data.tokenizer or not loaded.tokenizer_dir:
        return
    if data.load_tokenizer(loaded.tokenizer_dir).fingerprint != tokenizer.fingerprint:
        raise InputError(
            f"eval.checkpoints: row '{spec.label}' has another tokenizer than "
            f"config.model: losses per token cannot be compared. Evaluate it by itself."
        )


def _rope_digest(model: EvalModel, bench: Bench) -> str:
    """Returns a digest of the factors of a row at all lengths, and of its window."""
    if isinstance(model.rope_fn, rope.RopeFn):
        return sealed.digest_of([setup.rope_digest(model.rope_fn), model.window])
    options = bench.options
    lengths = {*options.lengths, *options.ruler.lengths, options.harness.max_length or 1}
    ropes = [model.rope_fn(min(model.window, n) or n) for n in sorted(lengths)]
    return sealed.digest_of([[journal.row_digest("rope", r) for r in ropes], model.window])


def texts(bench: Bench) -> dict[str, str]:
    """Returns digests of what suites read beside the questions that they make up."""
    options, names = bench.options, suites.chosen(bench.options)
    digests = {} if bench.documents is None else {"text": bench.documents.fingerprint}
    patterns: dict[str, Sequence[str]] = {}
    if "niah" in names:
        patterns["eval.niah.haystack"] = options.niah.haystack
    for key in ruler.files_of(names):
        value = getattr(options.ruler, key)
        patterns[f"eval.ruler.{key}"] = value if isinstance(value, tuple) else (value,)
    for setting, named in patterns.items():
        if any(named):
            found = data.find_files(named, setting=setting)
            digests[setting] = sealed.digest_of([[file.name, file.sha256] for file in found])
    if "longppl" in names and options.longppl.evaluator:
        digests["evaluator"] = pretrained.fingerprint(options.longppl.evaluator)
    if "harness" in names:
        digests["harness"] = sealed.digest_of(
            [importlib.metadata.version("lm_eval"), _folder(options.harness.include_path)]
        )
    return digests


def _folder(path: str) -> list[list[str]]:
    """Returns (name, digest) of every file in a folder; "": there is none."""
    paths = sorted(Path(path).expanduser().rglob("*")) if path else []
    return [[str(file), files.sha256_file(file)] for file in paths if file.is_file()]
