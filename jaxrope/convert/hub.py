"""Models of the Hugging Face Hub: downloaded into its own cache, or found there.

An address is `org/name`, `org/name@revision`, or either behind `hf://`; one GGUF file of a
repository is `org/name/FILE.gguf`. The package huggingface_hub does the work, with its own
progress bars, tokens and environment variables (HF_HUB_OFFLINE, HF_HOME, HF_TOKEN).
"""

import dataclasses
import importlib.util
import re
from pathlib import Path

from jaxrope.errors import InputError

_SCHEME = "hf://"
_WORD = r"[A-Za-z0-9][\w.-]*"
_ADDRESS = re.compile(rf"({_WORD}/{_WORD})(?:@([\w.-]+))?(?:/({_WORD}\.gguf))?")
_SNAPSHOT = re.compile(r"models--(.+?)--(.+)")
# What a model consists of: no pickles, and of two copies of the weights the one in parts.
_WEIGHTS = "*.safetensors"
_NEEDED = ("*.json", _WEIGHTS, "*.model", "*.jinja", "merges.txt", "vocab.txt")
_IGNORED = ("*/*", "consolidated*", "training_args*", "optimizer*", "scheduler*")
_PART = re.compile(r"-\d{5}-of-(\d{5}\.gguf)$")


@dataclasses.dataclass(frozen=True)
class Address:
    """A model on the hub; `file` is a GGUF of the repository, or ""."""

    repository: str
    revision: str | None
    file: str


def address(text: str) -> Address | None:
    """Returns the address that a text may be; None: it is none."""
    match = _ADDRESS.fullmatch(text.removeprefix(_SCHEME))
    return None if match is None else Address(match[1], match[2], match[3] or "")


def is_marked(text: str) -> bool:
    """Returns whether a text can be nothing but an address."""
    return text.startswith(_SCHEME)


def is_installed() -> bool:
    """Returns whether the package is there."""
    return importlib.util.find_spec("huggingface_hub") is not None


def fetch(text: str, *, weights: bool = True) -> Path:
    """Returns the folder of a repository's snapshot, or the GGUF file in it.

    Args:
      text: the address.
      weights: False: safetensors are not needed.

    Raises:
      InputError: no address, the package is missing, or the repository is not there, not open to
        this user, or out of reach and not in the cache.
    """
    place = address(text)
    if place is None:
        raise InputError(
            f"{text[:200]}: must be hf://ORG/NAME, hf://ORG/NAME@REVISION, or one of the two and"
            " /FILE.gguf."
        )
    folder = Path(_download(text, place, weights))
    if not place.file:
        if weights:
            _check_weights(text, place, folder)
        return folder
    if not (folder / place.file).exists():
        raise InputError(f"{text}: the repository holds no {place.file}.{_ggufs(place)}")
    return folder / place.file


def name(folder: Path) -> str | None:
    """Returns the repository whose snapshot a folder is; None: it is none."""
    match = _SNAPSHOT.fullmatch(folder.parent.parent.name)
    return f"{match[1]}/{match[2]}" if match and folder.parent.name == "snapshots" else None


def _download(text: str, place: Address, weights: bool) -> str:
    hub, errors = _package(text)
    part = _PART.sub(r"-*-of-\1", place.file)
    needed = [pattern for pattern in _NEEDED if weights or pattern != _WEIGHTS]
    patterns = [part] if place.file else needed
    try:
        return hub.snapshot_download(
            place.repository,
            revision=place.revision,
            allow_patterns=patterns,
            ignore_patterns=None if place.file else list(_IGNORED),
        )
    except errors.GatedRepoError:
        raise InputError(
            f"{text}: the repository is gated. Accept its terms on the model's page, then log in"
            " (hf auth login) or set HF_TOKEN."
        ) from None
    except errors.RevisionNotFoundError:
        raise InputError(
            f"{text}: there is no revision {place.revision}. Leave it out for the newest."
        ) from None
    except errors.RepositoryNotFoundError:
        raise InputError(
            f"{text}: there is no such folder here, and no such repository on the hub that you may"
            " read. Check the name; for a private one log in (hf auth login) or set HF_TOKEN."
        ) from None
    except errors.LocalEntryNotFoundError:
        raise _out_of_reach(text) from None
    except (errors.HfHubHTTPError, errors.HTTPError, OSError, ValueError) as error:
        raise InputError(f"{text}: cannot be downloaded: {str(error)[:200]}.") from None


def _out_of_reach(text: str) -> InputError:
    return InputError(
        f"{text}: there is no such folder here, it is not in the hub's cache, and the hub is out of"
        " reach. Unset HF_HUB_OFFLINE, or download it where there is a network (hf download) and"
        " copy the cache."
    )


def _check_weights(text: str, place: Address, folder: Path) -> None:
    if not any(folder.glob("*.safetensors")):
        raise InputError(
            f"{text}: holds no safetensors, and pickles are never read.{_ggufs(place)} Take a"
            " revision with safetensors, or convert it once with transformers' save_pretrained."
        )


def _ggufs(place: Address) -> str:
    """Returns a sentence on the GGUF files of a repository, "" where that cannot be told."""
    hub, errors = _package(place.repository)
    try:
        names = hub.list_repo_files(place.repository, revision=place.revision)
    except (errors.HfHubHTTPError, errors.OfflineModeIsEnabled, OSError):
        return ""
    names = sorted(name for name in names if name.endswith(".gguf") and "/" not in name)
    return f" It has GGUF files; name one: {place.repository}/{names[0]}." if names else ""


def _package(text: str):
    if not is_installed():
        raise InputError(
            f"{text}: models of the hub need the package huggingface_hub. Install it (pip install"
            " jaxrope[hub]), or give the path of a folder that is here."
        )
    import huggingface_hub
    from huggingface_hub import errors

    return huggingface_hub, errors
