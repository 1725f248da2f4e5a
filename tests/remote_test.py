"""gs:// without a bucket: fsspec's file system in memory stands in for it."""

import importlib.util
import os

import fsspec
import pytest
from etils.epath import backend

from jaxrope import rope
from jaxrope.convert import folders
from jaxrope.data import find_files
from jaxrope.errors import InputError
from jaxrope.store import files, lock, steps
from jaxrope.train.metrics import MetricsLog


@pytest.fixture
def bucket(monkeypatch, tmp_path):
    """An empty gs://bucket."""
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]
    monkeypatch.setattr(backend.fsspec_backend, "_get_filesystem", lambda _name: _Buckets())
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: name == "gcsfs" or find_spec(name)
    )
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return files.as_path("gs://bucket")


class _Buckets:
    """gs://NAME/... as memory://NAME/..., with what epath calls."""

    def __getattr__(self, name):
        method = getattr(fsspec.filesystem("memory"), name)

        def call(path, *args, **kwargs):
            found = method(os.fspath(path).replace("gs://", "/"), *args, **kwargs)
            return [item.lstrip("/") for item in found] if name == "glob" else found

        return call


def test_without_the_package_the_text_says_what_to_do(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(InputError, match=r"gs://b/x: gs:// needs the package gcsfs. Install it"):
        files.as_path("gs://b/x")


def test_other_addresses_are_refused():
    with pytest.raises(InputError, match="s3://b/x: must be a folder of the file system or begin"):
        files.as_path("s3://b/x")


def test_a_path_of_the_file_system_stays_one(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert files.as_path("~/x") == tmp_path / "x"
    monkeypatch.chdir(tmp_path)
    assert files.absolute("x") == (tmp_path / "x").resolve()


def test_files_are_written_read_and_appended_to(bucket):
    path = bucket / "runs" / "a.json"
    assert os.fspath(files.absolute(path)) == "gs://bucket/runs/a.json"
    files.check_writable(bucket / "runs")
    files.write_json_atomic(path, {"a": 1})
    assert path.read_text() == '{\n "a": 1\n}\n' and files.size(path) == 12
    rows = bucket / "runs" / "rows.jsonl"
    assert files.read_jsonl(rows) == []
    files.append_jsonl(rows, {"step": 1})
    files.append_jsonl(rows, [{"step": 2}, {"step": 3}])
    assert [row["step"] for row in files.read_jsonl(rows)] == [1, 2, 3]
    rows.write_text(rows.read_text() + '{"ste')
    assert len(files.read_jsonl(rows)) == 3
    assert rows.read_text().endswith('{"step": 3}\n')
    files.remove_tree(bucket / "runs")
    assert not path.exists()


def test_metrics_go_on_in_a_bucket(bucket):
    log = MetricsLog(bucket, resumed_step=0, say=print)
    for step in (1, 2, 3):
        log.add({"step": step, "loss": 1.5, "tokens": 8})
    log.close()
    log = MetricsLog(bucket, resumed_step=2, say=print)
    log.add({"step": 3, "loss": 1.0, "tokens": 8})
    log.close()
    losses = [row["loss"] for row in files.read_jsonl(bucket / "metrics.jsonl")]
    assert losses == [1.5, 1.5, 1.0]


def test_a_rope_is_saved_and_loaded(bucket):
    made = rope.make("pi", head_dim=8, rotary_dim=8, theta=1e4, original_len=32, factor=4.0)
    rope.save(bucket / "rope.json", made, {"by": "test"})
    found = rope.load(bucket / "rope.json", head_dim=8, rotary_dim=8, theta=1e4)
    assert found.buckets[0].factors == made.buckets[0].factors


def test_a_step_without_a_commit_is_not_whole(bucket):
    (bucket / "checkpoints" / "00000005" / "meta").mkdir(parents=True)
    (bucket / "checkpoints" / "00000005" / "meta" / "metadata").write_text("{}")
    assert steps.whole_steps(bucket) == []
    assert steps.rejected(bucket) == {"00000005": "it was never committed (no commit_success.txt)"}


def test_texts_are_copied_and_read_again_when_they_change(bucket):
    for name in ("a.txt", "b.txt", "c.md"):
        (bucket / "books" / name).write_text(f"text of {name}")
    found = find_files(["gs://bucket/books/*.txt"], setting="data.train_files")
    assert [file.name for file in found] == ["a.txt", "b.txt"]
    again = find_files(["gs://bucket/books/*.txt"], setting="data.train_files")
    assert again == found
    (bucket / "books" / "a.txt").write_text("another text")
    changed = find_files(["gs://bucket/books/*.txt"], setting="data.train_files")
    assert changed[0].sha256 != found[0].sha256 and changed[1].sha256 == found[1].sha256
    with pytest.raises(InputError, match="no file matches 'gs://bucket/books/\\*.x'"):
        find_files(["gs://bucket/books/*.x"], setting="data.train_files")
    with pytest.raises(InputError, match="only the last part may be a pattern"):
        find_files(["gs://bucket/*/a.txt"], setting="data.train_files")


def test_a_hugging_face_folder_is_fetched_and_a_workdir_is_not(bucket):
    (bucket / "hf" / "config.json").write_text("{}")
    (bucket / "hf" / "model.safetensors").write_bytes(b"123")
    local = folders.open_folder("gs://bucket/hf")
    assert not files.is_remote(local) and (local / "model.safetensors").read_bytes() == b"123"
    (bucket / "run" / "model.json").write_text("{}")
    assert files.is_remote(folders.open_folder("gs://bucket/run"))
    with pytest.raises(InputError, match="gs://bucket/none holds no model"):
        folders.open_folder("gs://bucket/none")


def test_a_bucket_is_locked_while_its_owner_lives(bucket, monkeypatch):
    monkeypatch.setattr(lock, "_BEAT_SECONDS", 0.05)
    monkeypatch.setattr(lock, "_DEAD_SECONDS", 0.5)
    with lock.run_lock(bucket):
        with pytest.raises(InputError, match="in use by another process \\(host .*process"):
            with lock.run_lock(bucket):
                pass
    assert not (bucket / ".lock").exists()
    (bucket / ".lock").write_text("0123 7 host dead, process 1\n")  # left by a kill
    with lock.run_lock(bucket):
        assert "host dead" not in (bucket / ".lock").read_text()
