"""Runs the measurements one after another and stores each in a file when it is finished: the same
command resumes after the last of them.

workdir/measured/NAME.json has {"format", "digest", "seconds", "tokens", "told"}, NAME.npz its
arrays; NAME is "texts-base", "answers-second_pi", .... The digest covers everything that a
measurement depends on, including the stages that trained its subject; a measurement whose digest
differs is repeated. record.jsonl has a line for each measurement that was run.
"""

import dataclasses
import gc
import hashlib
import json
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from jaxrope.analyse import measuring, subjects
from jaxrope.analyse.measuring import Arrays, Material, Record
from jaxrope.analyse.plan import BASE, Study, Subject
from jaxrope.evaluate import scoring
from jaxrope.shell.progress import Progress, duration
from jaxrope.store import files, sealed

FORMAT = "jaxrope.measured/1"
FOLDER = "measured"

KINDS: dict[str, Callable] = {
    "texts": measuring.read_texts,
    "answers": measuring.read_answers,
    "heads": measuring.read_heads,
}


@dataclasses.dataclass(frozen=True)
class Part:
    """One measurement.

    Attributes:
      kind: of KINDS.
      study, subject: of what.
    """

    kind: str
    study: Study
    subject: Subject

    @property
    def name(self) -> str:
        """The name of its files."""
        label = re.sub(r"[^a-z0-9]+", "-", self.subject.label.lower()).strip("-")
        return f"{self.kind}-{self.study.name}{label}"

    def tokens(self) -> int:
        """Returns the tokens that it reads, at most."""
        return COSTS[self.kind](self.study, self.subject)


def all_of(study: Study) -> list[Part]:
    """Returns the measurements of a model; of untrained settings only the texts are measured."""
    with_questions = [s for s in study.subjects if s.is_trained or s.label == BASE]
    parts = [Part("texts", study, subject) for subject in study.subjects]
    if study.config.analysis.tasks:
        parts += [Part("answers", study, subject) for subject in with_questions]
    head_lengths = measuring.head_lengths(study)
    return parts + [Part("heads", study, s) for s in with_questions if s.label in head_lengths]


def run(parts: Sequence[Part], materials: dict[str, Material], workdir: Path) -> None:
    """Runs all measurements that are not stored yet.

    Args:
      parts: in order.
      materials: by the name of the study.
      workdir: of the program; its stages are finished.
    """
    done, total = 0, sum(part.tokens() for part in parts)
    with Progress(total, unit="tokens") as progress:
        for part in parts:
            if read(part, workdir) is None:
                _make(part, materials[part.study.name], workdir, progress, done)
            else:
                progress.skip(part.tokens())
            done += part.tokens()
            progress.update(done, part=part.name)


def read(part: Part, workdir: Path) -> tuple[Record, Arrays] | None:
    """Returns a stored measurement, or None if there is none with the current digest."""
    path = workdir / FOLDER / f"{part.name}.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT or content["digest"] != digest(part, workdir):
            return None
        with np.load(path.with_suffix(".npz")) as arrays:
            return content["told"], dict(arrays)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def digest(part: Part, workdir: Path) -> str:
    """Returns a digest of what a measurement depends on."""
    config = part.study.config
    section = config.analysis.to_dict()
    analysis = {key: section[key] for key in _OF_ANALYSIS[part.kind]}
    evaluated = {key: config.eval[key] for key in _OF_EVALUATION}
    read = [config.data[key] for key in ("eval_files", "tokenizer", "text_field")]
    settings = [
        analysis,
        evaluated,
        read,
        config.seed,
        config.original_len,
        config.forward.compute_dtype,
    ]
    stages = [_origin(path, workdir) for path in (part.subject.model, part.subject.rope)]
    text = json.dumps([part.kind, part.study.title, settings, stages], sort_keys=True, default=list)
    return hashlib.sha256(text.encode()).hexdigest()


_QUESTIONS = ("tasks", "trials")
_OF_ANALYSIS = {  # what each kind of measurement depends on
    "texts": ("sequences", "patterns", "queries"),
    "answers": (*_QUESTIONS, "needles"),
    "heads": (*_QUESTIONS, "sequences", "patterns", "heads"),
}
_OF_EVALUATION = (
    "offset_tokens",
    "needle_keys",
    "needle_filler",
    "passkey_filler",
    "passkey_zero_padded",
    "bootstrap_samples",
)


def _origin(path: str, workdir: Path) -> str:
    """Returns the record of the stage that a path belongs to, or the path if it is no stage's."""
    if not path.startswith("{"):
        return path
    stage = workdir / path[1 : path.index("}")] / "stage.json"
    record = json.loads(stage.read_text(encoding="utf-8"))
    origin = {key: record[key] for key in ("kind", "config", "made_from", "finished")}
    return json.dumps(origin, sort_keys=True)


def _make(part: Part, material: Material, workdir: Path, progress: Progress, before: int) -> None:
    began, count = time.monotonic(), 0

    def tick(tokens: int) -> None:
        nonlocal count
        count += tokens
        progress.update(min(before + count, before + part.tokens()), part=part.name)

    loaded = subjects.load(part.study, part.subject, workdir)
    record, arrays = KINDS[part.kind](loaded, material, tick)
    del loaded
    gc.collect()
    seconds = round(time.monotonic() - began, 3)
    path = workdir / FOLDER / f"{part.name}.json"
    sealed.write_arrays(path.with_suffix(".npz"), arrays)
    content = {
        "format": FORMAT,
        "digest": digest(part, workdir),
        "seconds": seconds,
        "tokens": count,
    }
    files.write_json_atomic(path, content | {"told": record})
    line = {"part": part.name, "seconds": seconds, "tokens": count}
    files.append_jsonl(workdir / "record.jsonl", line, durable=True)
    progress.write(f"{part.name}: {count:,} tokens in {duration(seconds)}")


def _text_tokens(study: Study, subject: Subject) -> int:
    section = study.config.analysis
    return section.sequences * sum(study.lengths(section.patterns))


def _answer_tokens(study: Study, subject: Subject) -> int:
    """Every question is answered, and read once more."""
    section = study.config.analysis
    count = 2 * section.trials * len(section.tasks)
    return count * sum(study.lengths(section.needles))


def _head_tokens(study: Study, subject: Subject) -> int:
    section, length = study.config.analysis, measuring.head_lengths(study)[subject.label]
    masked = 1 + len(section.heads.sizes) * (1 + section.heads.draws)
    original_len = study.shape.original_len
    texts = section.sequences * (original_len + min(measuring.SINK_TOKENS, original_len))
    count = section.trials * len(section.tasks)
    rows = scoring.batch_rows(count, length, study.config.eval.batch_tokens)
    filled = -(-count // rows) * rows  # the last batch is filled up
    return texts + count * length + masked * filled * length


COSTS: dict[str, Callable[[Study, Subject], int]] = {
    "texts": _text_tokens,
    "answers": _answer_tokens,
    "heads": _head_tokens,
}
