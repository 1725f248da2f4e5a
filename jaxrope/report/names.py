"""One name for each row of a page: a rope or a model is called what an evaluation calls it."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from jaxrope.errors import InputError
from jaxrope.report import figures, panels
from jaxrope.store import sealed


@dataclasses.dataclass(frozen=True)
class Names:
    """The names of what searches and trainings made.

    Attributes:
      stated: (path of a rope.json or of a model, its label), of the configs of evaluations.
      searches, trainings: how many there are; of several, one without a label is named after its
        folder.
    """

    stated: Sequence[tuple[str, str]] = ()
    searches: int = 1
    trainings: int = 1

    def of_search(self, folder: Path) -> str:
        """Returns the name of a search's result; `folder` is resolved, as below."""
        return self._name(folder / "rope.json", folder, figures.SEARCHED, self.searches)

    def of_training(self, folder: Path) -> str:
        """Returns the name of what a training made."""
        return self._name(folder, folder, panels.TRAINING, self.trainings)

    def _name(self, path: Path, folder: Path, default: str, count: int) -> str:
        labels = [label for stated, label in self.stated if _is_same(stated, path)]
        ends = 1 + (path.suffix == ".json")  # of a run whose folder was moved since
        moved = path.parts[-ends:]
        labels += [label for s, label in self.stated if Path(s).parts[-ends:] == moved]
        place = f", {'/'.join(folder.parts[-2:])}" if count > 1 else ""
        return labels[0] if labels else default + place


def read(workdirs: Sequence[Path]) -> Names:
    """Returns the names for a page of `workdirs`; what is broken there is told by `collect`."""
    folders = [f for w in workdirs if w.is_dir() for f in (w, *sorted(w.iterdir())) if f.is_dir()]
    stated: list[tuple[str, str]] = []
    for path in (folder / "eval.json" for folder in folders):
        if path.is_file():
            try:
                content = sealed.read_json(path, sealed=False)
                stated += _stated(content["config"], content["rows"][0]["label"])
            except (InputError, KeyError, TypeError, IndexError, ValueError, AttributeError):
                continue
    of_search = ("journal.jsonl", "result.json")  # of one that is not finished, the first alone
    searches = sum(any((f / name).is_file() for name in of_search) for f in folders)
    return Names(stated, searches, sum((f / "metrics.jsonl").is_file() for f in folders))


def _stated(settings, first: str) -> list[tuple[str, str]]:
    """Returns (path, label) of the rope and the models that an evaluation was given; `first` is the
    label of its first row."""
    checkpoints = settings.get("eval", {}).get("checkpoints", ())
    paths = [(path, label) for label, path, method in checkpoints if method == "model"]
    paths += [(method, label) for label, _, method in checkpoints if method.endswith(".json")]
    sections = (settings.get(name, {}) for name in ("rope", "model"))
    return paths + [(section["path"], first) for section in sections if section.get("path")]


def _is_same(stated: str, path: Path) -> bool:
    """Returns whether a path of a config, which may be relative to any folder, means `path`; a file
    without any folder may be that of every run.
    """
    parts = tuple(part for part in Path(stated).parts if part not in ("..", "/"))
    return len(parts) > bool(path.suffix) and path.parts[-len(parts) :] == parts
