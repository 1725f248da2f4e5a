"""Files are whole or not there, and a journal survives a torn last line."""

import hashlib
import json
import math
import os
import stat
import time

import pytest

from jaxrope.store import files
from jaxrope.store.lock import run_lock


def test_text_is_written_whole_and_readable_by_everybody(tmp_path):
    path = tmp_path / "new" / "folder" / "a.txt"
    files.write_text_atomic(path, "n\u0302 = 8\n")
    assert path.read_bytes() == "n\u0302 = 8\n".encode()
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert os.listdir(path.parent) == ["a.txt"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_an_error_while_writing_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, call):
    path = tmp_path / "a.json"
    files.write_json_atomic(path, {"step": 1})

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match="No space"):
        files.write_json_atomic(path, {"step": 2})
    monkeypatch.undo()
    assert json.loads(path.read_text(encoding="utf-8")) == {"step": 1}
    assert os.listdir(tmp_path) == ["a.json"]


def test_an_interrupt_while_writing_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    files.write_text_atomic(path, "old")

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        files.write_text_atomic(path, "new")
    monkeypatch.undo()
    assert path.read_text(encoding="utf-8") == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_json_that_others_cannot_read_is_refused_before_the_old_file_is_touched(tmp_path, value):
    path = tmp_path / "a.json"
    files.write_json_atomic(path, {"x": 1.0})
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json_atomic(path, {"x": value})
    assert json.loads(path.read_text(encoding="utf-8")) == {"x": 1.0}


def test_floats_come_back_bit_for_bit(tmp_path):
    path = tmp_path / "journal.jsonl"
    values = [0.1 + 0.2, 1 / 3, 5e-324, 1.7976931348623157e308]
    files.append_jsonl(path, {"values": values})
    assert files.read_jsonl(path)[0]["values"] == values


@pytest.mark.parametrize("durable", [False, True])
def test_records_are_appended_in_order(tmp_path, durable):
    path = tmp_path / "journal.jsonl"
    files.append_jsonl(path, {"n": 0}, durable=durable)
    files.append_jsonl(path, [{"n": 1}, {"n": 2}], durable=durable)
    assert files.read_jsonl(path) == [{"n": 0}, {"n": 1}, {"n": 2}]


def test_no_journal_means_no_records(tmp_path):
    assert files.read_jsonl(tmp_path / "journal.jsonl") == []


def test_a_line_torn_at_any_byte_is_dropped_and_the_next_one_is_whole(tmp_path):
    path = tmp_path / "journal.jsonl"
    files.append_jsonl(path, [{"n": 0}, {"n": 1, "name": "n\u0302"}])
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for cut in range(first, len(whole)):
        path.write_bytes(whole[:cut])
        assert files.read_jsonl(path) == [{"n": 0}]
        assert path.read_bytes() == whole[:first]
        files.append_jsonl(path, {"n": 2})
        assert files.read_jsonl(path) == [{"n": 0}, {"n": 2}]


def test_without_repair_the_file_stays_as_it_is(tmp_path):
    path = tmp_path / "journal.jsonl"
    path.write_bytes(b'{"n": 0}\n{"n"')
    assert files.read_jsonl(path, repair=False) == [{"n": 0}]
    assert path.read_bytes() == b'{"n": 0}\n{"n"'


def test_zeros_after_a_power_cut_are_a_torn_last_line(tmp_path):
    path = tmp_path / "journal.jsonl"
    path.write_bytes(b'{"n": 0}\n' + b"\0" * 50)
    assert files.read_jsonl(path) == [{"n": 0}]


def test_a_broken_line_in_the_middle_is_an_error_with_its_number(tmp_path):
    path = tmp_path / "journal.jsonl"
    path.write_bytes(b'{"n": 0}\n{"n"\n{"n": 2}\n')
    with pytest.raises(ValueError, match=r"journal\.jsonl, line 2: not JSON"):
        files.read_jsonl(path)
    assert path.read_bytes() == b'{"n": 0}\n{"n"\n{"n": 2}\n'


def test_sha256_of_a_file_longer_than_a_block(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"\x07" * ((1 << 20) + 3))
    assert files.sha256_file(path) == hashlib.sha256(b"\x07" * ((1 << 20) + 3)).hexdigest()


def test_what_a_kill_left_is_swept_when_the_next_job_has_the_lock(tmp_path):
    leftovers = [tmp_path / ".rope.json.abcd_123.tmp", tmp_path / "items" / ".a.npz.00000000.tmp"]
    other = tmp_path / "stage"  # a run of its own: its job sweeps it
    kept = [tmp_path / name for name in ("rope.json", ".tmp", ".of_a_user.tmp", "a.tmp")]
    kept += [other / ".lock", other / ".rope.json.abcd_123.tmp", tmp_path / ".x.abcd_123.old"]
    for path in leftovers + kept:
        path.parent.mkdir(exist_ok=True)
        path.write_text("")
    staging = tmp_path / ".hf.abcdefgh.tmp"
    staging.mkdir()
    (staging / "model.safetensors").write_text("")
    (tmp_path / "link").symlink_to(other)
    (tmp_path / "items" / ".elsewhere.abcdefgh.tmp").symlink_to(tmp_path / "rope.json")
    with run_lock(tmp_path):
        assert not any(path.exists() for path in (*leftovers, staging))
        assert all(path.exists() for path in kept)
        assert [path.name for path in (tmp_path / "items").iterdir()] == []


def test_what_may_have_an_owner_is_swept_when_it_is_old(tmp_path):
    for name, age in ((".a.aaaaaaaa.tmp", 60), (".b.bbbbbbbb.tmp", 3600)):
        (tmp_path / name).write_text("")
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    files.sweep(tmp_path, older_than=600)
    assert os.listdir(tmp_path) == [".a.aaaaaaaa.tmp"]
