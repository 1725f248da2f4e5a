"""Models by their name on the hub: from its cache, by a download, or one line that says why not."""

import importlib
import importlib.util
import os
import shutil
from pathlib import Path

import gguf_models
import hf_models
import pytest
import tiny_tokenizers
from hf_models import CASES

from jaxrope.convert import folders, hub, importing, pretrained
from jaxrope.errors import InputError

huggingface_hub = pytest.importorskip("huggingface_hub", reason="needs the package huggingface_hub")
errors = importlib.import_module("huggingface_hub.errors")
NAME, REVISION = "tiny-org/Tiny-Model.1", "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache, and no network."""
    constants = importlib.import_module("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "hub"


def cached(cache, folder, *, shared_blobs=False):
    """Lays a folder into the hub's cache as the hub does, and returns its snapshot."""
    place = cache / f"models--{NAME.replace('/', '--')}"
    snapshot = place / "snapshots" / REVISION
    snapshot.mkdir(parents=True)
    (place / "blobs").mkdir()
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(REVISION)
    for path in folder.iterdir():
        blob = place / "blobs" / f"hash-of-{path.name}"
        if shared_blobs:  # newer caches keep a file of several repositories once
            (cache / "blobs" / "ab").mkdir(parents=True, exist_ok=True)
            shutil.copy(path, cache / "blobs" / "ab" / path.name)
            blob.symlink_to(f"../../blobs/ab/{path.name}")
        else:
            shutil.copy(path, blob)
        (snapshot / path.name).symlink_to(f"../../blobs/{blob.name}")
    return snapshot


@pytest.mark.parametrize("shared_blobs", (False, True))
def test_a_model_in_the_cache_needs_no_network(tmp_path, cache, shared_blobs):
    hf_models.write(tmp_path / "in", CASES["llama"])
    snapshot = cached(cache, tmp_path / "in", shared_blobs=shared_blobs)
    for text in (NAME, f"hf://{NAME}", f"{NAME}@main", f"hf://{NAME}@{REVISION}"):
        assert folders.open_folder(text) == snapshot
    model = pretrained.load(NAME)
    assert model.source == NAME and model.config == pretrained.load(tmp_path / "in").config
    assert pretrained.fingerprint(NAME) == pretrained.fingerprint(tmp_path / "in")
    importing.import_folder(NAME, tmp_path / "workdir")
    assert pretrained.read_config(tmp_path / "workdir") == model.config


def test_a_tokenizer_by_its_name_on_the_hub(tmp_path, monkeypatch):
    """Its weights are not asked for."""
    names = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    asked, folder = downloads(monkeypatch, tmp_path, names)
    tiny_tokenizers.write(folder, tokenizer_config={})
    for text in (f"hf://{NAME}@v1", f"{NAME}@v1"):
        assert pretrained.open_tokenizer(text) == folder
        assert asked[-2:] == [
            (NAME, "v1"),
            ["config.json", "tokenizer.json", "tokenizer_config.json"],
        ]
    (tmp_path / NAME).mkdir(parents=True)
    assert pretrained.open_tokenizer(NAME) == Path(NAME)  # a folder of that name comes first


def test_a_folder_of_that_name_comes_first(tmp_path, monkeypatch):
    hf_models.write(tmp_path / NAME, CASES["qwen2"])
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("asked"))
    assert pretrained.read_config(NAME).family == "qwen2"


def downloads(monkeypatch, tmp_path, names):
    """Puts a hub in place that hands out files of these names; returns what it was asked."""
    asked, folder = [], tmp_path / "snapshot"

    def snapshot_download(repository, *, revision, allow_patterns, ignore_patterns):
        asked.append((repository, revision))
        wanted = importlib.import_module("huggingface_hub.utils").filter_repo_objects(
            names, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns
        )
        asked.append(sorted(wanted))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda *_, **__: names)
    return asked, folder


def test_only_what_is_needed_is_downloaded(tmp_path, monkeypatch):
    needed = ["config.json", "generation_config.json", "model-00001-of-00002.safetensors"]
    needed += ["chat_template.jinja", "merges.txt", "model.safetensors.index.json", "vocab.json"]
    needed += ["tokenizer.json", "tokenizer.model", "tokenizer_config.json"]
    others = ["pytorch_model.bin", "consolidated.00.pth", "original/params.json", "README.md"]
    others += [
        "consolidated.safetensors",
        "onnx/model.onnx",
        "training_args.bin",
        "flax_model.msgpack",
    ]
    others += ["original/model.safetensors", "modeling_x.py", "model-Q4_K_M.gguf", "optimizer.pt"]
    asked, folder = downloads(monkeypatch, tmp_path, needed + others)
    hf_models.write(folder, CASES["llama"])
    assert folders.open_folder(f"{NAME}@v1.0") == folder
    assert asked == [(NAME, "v1.0"), sorted(needed)]


def test_one_gguf_of_a_repository(tmp_path, monkeypatch):
    pytest.importorskip("gguf", reason="needs the package gguf (the test extra has it)")
    parts = [f"m-{i:05d}-of-00002.gguf" for i in (1, 2)]
    asked, folder = downloads(monkeypatch, tmp_path, ["x.gguf", *parts, "config.json"])
    folder.mkdir()
    config = CASES["llama"]
    tensors = hf_models.write(tmp_path / "in", config)
    gguf_models.write(folder / "x.gguf", config, tensors)
    assert pretrained.load(f"hf://{NAME}/x.gguf").config.num_layers == 2
    assert asked == [(NAME, None), ["x.gguf"]]
    with pytest.raises(InputError, match="holds no m-00001-of-00002.gguf. It has GGUF files; name"):
        folders.open_folder(f"{NAME}@v2/{parts[0]}")
    assert asked[2:] == [(NAME, "v2"), parts]


def test_a_repository_of_gguf_alone_says_so(tmp_path, monkeypatch):
    _, folder = downloads(monkeypatch, tmp_path, ["y.gguf", "x.gguf"])
    folder.mkdir()
    with pytest.raises(InputError, match=f"holds no safetensors.*name one: {NAME}/x.gguf"):
        folders.open_folder(NAME)


def response(code):
    httpx = pytest.importorskip(errors.HTTPError.__module__.partition(".")[0])
    return httpx.Response(code, request=httpx.Request("GET", "https://example.org"))


REFUSALS = {
    "gated": (lambda: errors.GatedRepoError("x", response=response(403)), "is gated. Accept its"),
    "missing": (
        lambda: errors.RepositoryNotFoundError("x", response=response(404)),
        "no such folder here, and no such repository on the hub that you may read. Check the name",
    ),
    "no revision": (
        lambda: errors.RevisionNotFoundError("x", response=response(404)),
        "there is no revision v9. Leave it out for the newest",
    ),
    "hub down": (
        lambda: errors.HfHubHTTPError("503 busy", response=response(503)),
        "cannot be downloaded: 503 busy",
    ),
    "disk full": (lambda: OSError(28, "No space left on device"), "No space left on device"),
    "proxy": (lambda: response(407).raise_for_status(), "cannot be downloaded"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_repository_that_is_not_handed_out_is_one_line(monkeypatch, name):
    make, message = REFUSALS[name]

    def snapshot_download(*_, **__):
        raise make()

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(InputError, match=message) as caught:
        folders.open_folder(f"{NAME}@v9")
    assert str(caught.value).startswith(f"{NAME}@v9: ") and "\n" not in str(caught.value)


def test_offline_and_not_in_the_cache_is_one_line():
    with pytest.raises(InputError, match="not in the hub's cache, and the hub is out of reach."):
        folders.open_folder(NAME)


def test_without_the_package_the_line_stays(monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if "hub" in name else find_spec(name)
    )
    with pytest.raises(InputError, match="there is no such folder. Nothing is downloaded: give"):
        folders.open_folder(NAME)
    with pytest.raises(InputError, match=r"need the package huggingface_hub. Install it \(pip"):
        folders.open_folder(f"hf://{NAME}")


@pytest.mark.parametrize(
    "text", ("model", "./a/b", "/a/b", "a/b/c", "../a", "~x/y", "a/b.txt/c", "a b/c", "-a/b", "a/")
)
def test_a_path_is_no_address(text):
    assert hub.address(text) is None


@pytest.mark.parametrize("text", ("hf://model", "hf://a/b/c", "hf://", "hf://a/b@", "hf://../b"))
def test_an_address_that_is_none_is_one_line(text):
    with pytest.raises(InputError, match="must be hf://ORG/NAME, hf://ORG/NAME@REVISION, or one"):
        folders.open_folder(text)


def test_a_link_out_of_a_snapshot_is_refused(tmp_path, cache):
    hf_models.write(tmp_path / "in", CASES["llama"])
    snapshot = cached(cache, tmp_path / "in")
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").symlink_to(os.path.abspath(tmp_path / "in" / "config.json"))
    with pytest.raises(InputError, match="config.json is a link that leaves the folder"):
        pretrained.load(NAME)
