"""Runs the measurements one after another and stores each in files when it is finished: the same
command resumes after the last of them.

workdir/measured/NAME.json has {"format", "identity", "arrays", "seconds", "tokens", "record"},
NAME.npz its arrays, "arrays" being their digest; NAME is "texts-base", "answers-second_pi", ....
A measurement whose identity is another one now (schema.Identity: the settings that it reads, the
subject's weights and factors, texts and questions), or whose files are damaged, is told and
repeated. record.jsonl has a line for each measurement that was run.
"""

import dataclasses
import gc
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from jaxrope import schema, setup
from jaxrope.analyse import measuring, subjects
from jaxrope.analyse.measuring import Arrays, Material, Record
from jaxrope.analyse.plan import BASE, Study, Subject
from jaxrope.errors import InputError
from jaxrope.evaluate import scoring
from jaxrope.schema import Identity
from jaxrope.shell import Progress, duration
from jaxrope.store import Journal, sealed

FORMAT = "jaxrope.measured/2"
RECORD_FORMAT = "jaxrope.measurements/1"
FOLDER = "measured"
# Of the configuration, what no measurement reads: it makes subjects, texts and questions, which are
# content.
_CONTENT = ("data", "rope", "analysis.settings", "analysis.untrained")
_CONTENT += ("analysis.factor", "analysis.theta_times", "analysis.perplexity", "analysis.haystack")
_CONTENT += ("analysis.twin_steps", "analysis.longer", "analysis.longer_setting")
_CONTENT += ("analysis.needles", "analysis.tasks", "analysis.trials", "analysis.depths")
# kind -> what else it does not read
_UNREAD = {
    "texts": ("eval", "analysis.heads"),
    "answers": ("eval", "analysis.heads", "analysis.patterns", "analysis.queries"),
    "heads": ("analysis.patterns", "analysis.queries"),
}

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


class Store:
    """The measurements in a workdir.

    Args:
      workdir: of the program; its stages are finished.
      materials: by the name of the study.
      say: takes lines for the user.
    """

    def __init__(self, workdir: Path, materials: dict[str, Material], say: Callable[[str], None]):
        self._workdir, self._materials, self._say = workdir, materials, say
        self._subjects: dict[tuple[str, str], dict[str, str]] = {}  # digests, read once

    def identity(self, part: Part) -> Identity:
        """Returns what a measurement depends on."""
        study, material = part.study, self._materials[part.study.name]
        content = self._content(study, part.subject)
        content |= {"items": material.digest(part.kind), "kind": part.kind}
        free = (*_CONTENT, *_UNREAD[part.kind])
        return schema.identify("analyse", study.config, content, free=free)

    def read(self, part: Part) -> tuple[Record, Arrays] | None:
        """Returns a stored measurement; None, with a line that says why, if there is none that is
        whole and of this identity."""
        path = self._workdir / FOLDER / f"{part.name}.json"
        if not path.exists():
            return None
        try:
            content = sealed.read_json(path, form=FORMAT)
            arrays = sealed.read_arrays(path.with_suffix(".npz"), content["arrays"])
        except InputError as error:
            self._say(f"{part.name} is measured again: {error}")
            return None
        changes = Identity.from_json(content["identity"]).changes(self.identity(part))
        if changes:
            self._say(f"{part.name} is measured again, with another {', '.join(changes[:3])}")
            return None
        return content["record"], arrays

    def write(self, part: Part, record: Record, arrays: Arrays, **cost: float) -> None:
        """Writes a measurement; `cost` is its seconds and tokens."""
        path = self._workdir / FOLDER / f"{part.name}.json"
        content = {"format": FORMAT, "identity": self.identity(part).to_json()}
        content |= {"arrays": sealed.write_arrays(path.with_suffix(".npz"), arrays)}
        sealed.write_json(path, content | cost | {"record": record})

    def _content(self, study: Study, subject: Subject) -> dict[str, str]:
        key = study.name, subject.label
        if key not in self._subjects:
            config = subjects.config_of(study, subject, self._workdir)
            model = setup.load_model(config, weights=False)
            rope_fn = subjects.rope_of(subject, model, self._workdir)
            digests = {"weights": setup.fingerprint(config), "rope": setup.rope_digest(rope_fn)}
            self._subjects[key] = digests
        return dict(self._subjects[key])


def run(parts: Sequence[Part], materials: dict[str, Material], workdir: Path) -> None:
    """Runs all measurements that are not stored yet.

    Args:
      parts: in order.
      materials: by the name of the study.
      workdir: of the program; its stages are finished.
    """
    done, total = 0, sum(part.tokens() for part in parts)
    with Progress(total, unit="tokens") as progress:
        store = Store(workdir, materials, progress.write)
        journal = Journal(workdir / "record.jsonl", RECORD_FORMAT, ordered=False)
        for note in journal.notes:
            progress.write(note)
        if journal.header is None:
            journal.begin({})
        for part in parts:
            if store.read(part) is None:
                journal.append([_make(part, store, materials, workdir, progress, done)])
            else:
                progress.skip(part.tokens())
            done += part.tokens()
            progress.update(done, part=part.name)


def _make(part: Part, store: Store, materials, workdir: Path, progress: Progress, before: int):
    """Measures, and stores the result; returns the line of record.jsonl."""
    began, count = time.monotonic(), 0

    def tick(tokens: int) -> None:
        nonlocal count
        count += tokens
        progress.update(min(before + count, before + part.tokens()), part=part.name)

    loaded = subjects.load(part.study, part.subject, workdir)
    record, arrays = KINDS[part.kind](loaded, materials[part.study.name], tick)
    del loaded
    gc.collect()
    seconds = round(time.monotonic() - began, 3)
    store.write(part, record, arrays, seconds=seconds, tokens=count)
    progress.write(f"{part.name}: {count:,} tokens in {duration(seconds)}")
    return {"part": part.name, "seconds": seconds, "tokens": count}


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
    trained_len = study.trained_len
    texts = section.sequences * (trained_len + min(measuring.SINK_TOKENS, trained_len))
    count = section.trials * len(section.tasks)
    rows = scoring.batch_rows(count, length, study.config.eval.batch_tokens)
    filled = -(-count // rows) * rows  # the last batch is filled up
    return texts + count * length + masked * filled * length


COSTS: dict[str, Callable[[Study, Subject], int]] = {
    "texts": _text_tokens,
    "answers": _answer_tokens,
    "heads": _head_tokens,
}
