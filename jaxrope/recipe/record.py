"""stage.json, the record of a stage in its folder: begun, or finished and with what result.

{"format": "jaxrope.stage/2", "name", "kind", "identities": {program: identity}, "settings": digest,
 "made_from": {stage: digest}, "finished", "seconds", "columns": {...}}

"identities" (schema.Identity) has a stage's program, and the evaluation of what that made: settings
and content, so that a workdir can be moved. "settings" is a digest of the settings of the stage
and of all that it is made from, "made_from" has that digest of each input: they can be compared
before the inputs are there. The file is replaced in one piece, after everything else is written.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxrope.errors import InputError
from jaxrope.recipe.kinds import Part
from jaxrope.recipe.stages import Stage
from jaxrope.schema import Identity
from jaxrope.store import files, sealed

FORMAT = "jaxrope.stage/2"
FILE = "stage.json"
_MEASURES = "evaluate"


def digests(
    stages: Sequence[Stage], parts: Mapping[str, Sequence[Part]], records: Mapping[str, dict | None]
) -> dict[str, str]:
    """Returns a digest by name of each stage's settings, evaluation excepted, and of those of its
    inputs.

    Args:
      stages: in order.
      parts: of each.
      records: stage.json by name; where there is one, its digest is taken.
    """
    digest_of: dict[str, str] = {}
    for stage in stages:
        content = records.get(stage.name)
        if content is not None:
            digest_of[stage.name] = content["settings"]
            continue
        programs = [part for part in parts[stage.name] if part.name != _MEASURES]
        settings = {part.name: part.settings() for part in programs}
        inputs = {name: digest_of[name] for name in stage.uses}
        digest_of[stage.name] = sealed.digest_of([stage.kind, settings, inputs])
    return digest_of


def read(folder: Path) -> dict | None:
    """Returns what stage.json has; None if there is none.

    Raises:
      InputError: it is damaged, or of another version.
    """
    path = folder / FILE
    if not path.exists():
        return None
    try:
        return sealed.read_json(path, form=FORMAT)
    except InputError as error:
        raise InputError(f"{error} Or delete {folder}, or give another --workdir.") from None


def write(stage: Stage, folder: Path, **more: Any) -> dict:
    """Writes stage.json and returns it.

    Args:
      stage: the one that was begun or finished.
      folder: its folder.
      more: the other keys.
    """
    content = {"format": FORMAT, "name": stage.name, "kind": stage.kind} | more
    files.as_path(folder).mkdir(parents=True, exist_ok=True)
    sealed.write_json(folder / FILE, content)
    return content


def check_settings(
    stage: Stage, parts: Sequence[Part], content: dict, digest_of: Mapping[str, str], later: list
) -> None:
    """Refuses a folder whose stage was run with other settings, or from stages with others.

    Args:
      stage: as it is now.
      parts: what it runs.
      content: what its stage.json says.
      digest_of: of `digests`.
      later: names of the stages that are made from it, for the message.

    Raises:
      InputError: what differs, before and now.
    """
    folder = parts[0].folder
    if content["kind"] != stage.kind:
        change = f"kind ({content['kind']}, now {stage.kind})"
        raise _refusal(stage, folder, [change], later)
    if content["finished"]:
        now = {}
        for part in parts:
            before = content["identities"].get(part.name, {"content": {}})
            now[part.name] = Identity(part.name, part.settings(), before["content"])
        check_identities(stage, folder, content, now, later)
    for name, digest in content["made_from"].items():
        if digest_of.get(name) != digest:
            raise InputError(
                f"{stage.what()}: it was made from a '{name}' with other settings than now. Set "
                f"them back, give another --workdir, or delete "
                f"{_listed(folder, [stage.name, *later])}."
            )


def check_identities(
    stage: Stage, folder: Path, content: dict, now: Mapping[str, Identity], later: list
) -> None:
    """Refuses a finished stage that would be another one now.

    Args:
      stage: as it is now.
      folder: its folder.
      content: what its stage.json says.
      now: the identity of each program that it runs.
      later: names of the stages that are made from it, for the message.

    Raises:
      InputError: what differs, before and now.
    """
    for name, identity in now.items():
        if name not in content["identities"]:
            raise _refusal(stage, folder, ["eval.suites (none, now some)"], later, measured=True)
        before = Identity.from_json(content["identities"][name])
        if changes := before.changes(identity):
            measured = name == _MEASURES and stage.kind != "evaluate"
            raise _refusal(stage, folder, changes, later, measured=measured)


def _refusal(
    stage: Stage, folder: Path, changes: list[str], later: list, *, measured: bool = False
) -> InputError:
    remedy = (
        f"delete {folder / FILE}: then only its evaluation is done anew"
        if measured
        else f"delete {_listed(folder, [stage.name, *later])}"
    )
    more = f" and {len(changes) - 3} more" if len(changes) > 3 else ""
    return InputError(
        f"{stage.what()}: it was finished with another {', '.join(changes[:3])}{more}. Set it "
        f"back, give another --workdir, or {remedy}."
    )


def _listed(folder: Path, names: list[str]) -> str:
    return ", ".join(str(folder.parent / name) for name in names)
