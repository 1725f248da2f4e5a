"""Tests of jaxrope.data.cache and jaxrope.data.corpus."""

import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from jaxrope.data import (
    ReadSettings,
    cache,
    default_cache_dir,
    load_documents,
    load_tokenizer,
    overlap,
)
from jaxrope.errors import InputError

BYTES, KEY = load_tokenizer("bytes"), "data.train_files"


class CountingTokenizer:
    """The byte tokenizer with `vocab_size` ids, which remembers what it was asked."""

    bos_id = eos_id = None

    def __init__(self, vocab_size=258, fingerprint="count"):
        self.vocab_size, self.fingerprint, self.texts = vocab_size, fingerprint, []

    def encode_batch(self, texts):
        self.texts.extend(texts)
        return [BYTES.encode(text) for text in texts]


@pytest.fixture
def books(tmp_path):
    folder = tmp_path / "books"
    folder.mkdir()
    (folder / "b.txt").write_text("bee")
    (folder / "a.txt").write_text("ab\r\nc")
    (folder / "empty.txt").write_text(" ")
    (folder / "z.jsonl").write_text('{"text": "x"}\n{"text": ""}\nbad\n{"text": "yz"}\n')
    return folder


def load(books, tokenizer=BYTES, **settings):
    settings = {"skip_bad_lines": 1} | settings
    exclude = settings.pop("exclude", ())
    cache_dir = settings.pop("cache_dir", books.parent / "cache")
    settings = ReadSettings(KEY, **settings)
    read = dict(cache_dir=cache_dir, exclude=exclude, settings=settings)
    return load_documents([str(books / "*")], tokenizer, **read)


def only_folder(books):
    (folder,) = (books.parent / "cache").iterdir()
    return folder


def test_golden(books):
    documents = load(books)
    assert documents.names == ("a.txt", "b.txt", "z.jsonl:1", "z.jsonl:4")
    assert documents.offsets.tolist() == [0, 4, 7, 8, 10]
    assert documents.lengths.tolist() == [4, 3, 1, 2]
    assert bytes(documents.ids.tolist()) == b"ab\ncbeexyz"
    assert len(documents) == 4
    assert documents.doc(1).tolist() == list(b"bee") and documents.doc(1).dtype == np.int32
    assert bytes(documents.tokens(0, 1, 3).tolist()) == b"b\n"
    assert bytes(documents.tokens(0, 2, 99).tolist()) == b"\nc"  # not the next document's
    assert (documents.num_empty, documents.num_bad_lines) == (2, 1)
    assert [file.name for file in documents.files] == ["a.txt", "b.txt", "empty.txt", "z.jsonl"]
    assert documents.vocab_size == 258


def test_a_hit_tokenises_nothing_and_is_equal(books):
    first, second = CountingTokenizer(), CountingTokenizer()
    made, found = load(books, first), load(books, second)
    assert first.texts == ["ab\nc", "bee", "x", "yz"] and second.texts == []
    assert made.ids.tolist() == found.ids.tolist() and made.names == found.names
    assert made.fingerprint == found.fingerprint
    assert (found.num_empty, found.num_bad_lines) == (2, 1)


def test_batches_do_not_change_the_result(books, monkeypatch):
    whole = load(books)
    monkeypatch.setattr(cache, "BATCH_CHARS", 4)
    monkeypatch.setattr(cache, "BLOCK_TOKENS", 3)
    parts = load(books, cache_dir=books.parent / "other")
    assert parts.ids.tolist() == whole.ids.tolist()
    assert parts.offsets.tolist() == whole.offsets.tolist()


def test_what_the_fingerprint_follows(books, tmp_path):
    first = load(books).fingerprint
    assert load(books, skip_bad_lines=7).fingerprint == first
    moved = tmp_path / "elsewhere"
    books.rename(moved)
    assert load(moved).fingerprint == first
    assert load(moved, CountingTokenizer()).fingerprint != first
    assert load(moved, exclude=["b.txt"]).fingerprint != first
    (moved / "b.txt").rename(moved / "c.txt")
    assert load(moved).fingerprint != first
    (moved / "c.txt").rename(moved / "b.txt")
    (moved / "b.txt").write_text("Bee")
    assert load(moved).fingerprint != first
    (moved / "b.txt").write_text("bee")
    assert load(moved).fingerprint == first
    (moved / "z.jsonl").write_text('{"text": "x", "body": "y"}\n')
    assert load(moved).fingerprint != load(moved, text_field="body").fingerprint


def test_tokens_of_a_stricter_run_are_not_taken_for_its_own(books):
    load(books, skip_bad_lines=1)
    with pytest.raises(InputError, match="z.jsonl', line 3: not JSON"):
        load(books, skip_bad_lines=0)


@pytest.mark.parametrize(
    ("vocab_size", "dtype"), [(65_536, "uint16"), (65_537, "uint32"), (1 << 20, "uint32")]
)
def test_dtype_holds_the_vocabulary(books, vocab_size, dtype):
    documents = load(books, CountingTokenizer(vocab_size))
    assert documents.ids.dtype == dtype
    assert np.load(only_folder(books) / "tokens.npy").tolist() == documents.ids.tolist()


def edit_index(folder, **changes):
    index = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps(index | changes))


def cut(path, count):
    path.write_bytes(path.read_bytes()[:-count])


def lengthen(path):
    path.write_bytes(path.read_bytes() + b"x")


def poke(path, value):
    """Changes the last two bytes of a file."""
    path.write_bytes(path.read_bytes()[:-2] + value.to_bytes(2, "little"))


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (lambda f: cut(f / "tokens.npy", 1), "tokens.npy has 147 bytes instead of 148"),
        (lambda f: lengthen(f / "tokens.npy"), "tokens.npy has 149 bytes instead of 148"),
        (lambda f: cut(f / "tokens.npy", 100), "tokens.npy is no .npy file"),
        (lambda f: (f / "tokens.npy").write_bytes(b""), "tokens.npy is no .npy file"),
        (lambda f: (f / "tokens.npy").unlink(), "tokens.npy is no .npy file"),
        (lambda f: np.save(f / "tokens.npy", np.zeros(10, np.int64)), r"tokens.npy is int64 \(10,"),
        (lambda f: np.save(f / "tokens.npy", np.zeros(9, np.uint16)), r"is uint16 \(9,\), index"),
        (lambda f: poke(f / "tokens.npy", 258), "token 9 is 258, the tokenizer's ids end at 257"),
        (lambda f: poke(f / "tokens.npy", 65_535), "token 9 is 65535"),  # -1 of int16
        (lambda f: poke(f / "tokens.npy", 257), r"not what was written \(its SHA-256 differs\)"),
        (lambda f: poke(f / "offsets.npy", 1), "offsets.npy is not what was written"),
        (lambda f: cut(f / "offsets.npy", 8), "offsets.npy has 160 bytes instead of 168"),
        (lambda f: (f / "index.json").write_text("{"), "index.json: is not JSON"),
        (lambda f: (f / "index.json").write_text("[]"), "index.json: must hold a JSON object"),
        (lambda f: (f / "index.json").unlink(), "index.json: there is no such file"),
        (lambda f: (f / "index.json").write_text("{}"), "index.json has no sha256"),
        (lambda f: edit_index(f, format="jaxrope.tokens/9"), "index.json is damaged or was edited"),
        (lambda f: edit_index(f, num_empty=3), "index.json is damaged or was edited"),
        (lambda f: poke(f / "names.json", 1), "names.json is not what was written"),
        (lambda f: (f / "names.json").unlink(), "names.json"),
    ],
)
def test_what_is_damaged_is_made_anew_and_told(books, damage, match, capfd):
    whole = load(books)
    ids, names, offsets = whole.ids.tolist(), whole.names, whole.offsets.tolist()
    damage(only_folder(books))
    again = load(books)
    assert (again.ids.tolist(), again.names, again.offsets.tolist()) == (ids, names, offsets)
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("data.cache_dir: ") and line.endswith("They are made anew")
    assert re.search(match, line)
    load(books)
    assert capfd.readouterr().err == "" and only_folder(books)


def test_a_bit_that_flips_anywhere_is_seen(books, capfd):
    expected = load(books).ids.tolist()
    for name in ("index.json", "names.json", "offsets.npy", "tokens.npy"):
        path = only_folder(books) / name
        for place in range(0, path.stat().st_size, 37):
            raw = bytearray(path.read_bytes())
            raw[place] ^= 1 << place % 8
            path.write_bytes(raw)
            found = load(books)
            assert found.ids.tolist() == expected and found.names[2] == "z.jsonl:1"
            told = capfd.readouterr().err
            harmless = name.endswith(".npy") and place < 118  # the padding of a header
            assert told.count("made anew") == 1 or harmless, (name, place)


def test_tokens_that_a_disk_damages_at_once_are_not_used(books, monkeypatch):
    def damage(folder, *_):
        real(folder, *_)
        poke(folder / "tokens.npy", 1)

    real = cache._write_files
    monkeypatch.setattr(cache, "_write_files", damage)
    with pytest.raises(InputError, match="are damaged: .* have just been written: set data.cache"):
        load(books)


def test_16_bits_do_not_hold_a_large_vocabulary(books):
    load(books, CountingTokenizer(65_536))
    with pytest.raises(cache.Damaged, match="uint16 cannot be right for a vocabulary of 65,537"):
        cache.read_cache(only_folder(books), vocab_size=65_537)


def test_a_run_that_fails_leaves_nothing(books):
    with pytest.raises(InputError, match="not JSON"):
        load(books, skip_bad_lines=0)
    assert list((books.parent / "cache").iterdir()) == []


def test_what_a_kill_left_is_removed_after_a_day(books):
    parent = books.parent / "cache"
    for name, age in (("old_", 2 * 24 * 3600), ("new_", 60)):
        folder = parent / f".{'0' * 32}.abcd{name}.tmp"
        folder.mkdir(parents=True)
        (folder / "tokens.npy").write_text("x")
        for path in (folder / "tokens.npy", folder):
            os.utime(path, (path.stat().st_mtime - age,) * 2)
    load(books)
    assert [path.name[-8:] for path in parent.glob(".*")] == ["new_.tmp"]


def test_no_text_at_all(tmp_path):
    (tmp_path / "a.txt").write_text(" \n")
    (tmp_path / "b.txt").write_text("")
    with pytest.raises(InputError, match="none of 2 documents has any text") as caught:
        load_documents(
            [str(tmp_path / "*.txt")], BYTES, cache_dir=tmp_path, settings=ReadSettings("data.x")
        )
    assert str(caught.value).startswith("data.x: ")


def test_a_text_without_tokens_is_skipped(books):
    class Nothing(CountingTokenizer):
        def encode_batch(self, texts):
            return [BYTES.encode(text.replace("bee", "")) for text in texts]

    documents = load(books, Nothing())
    assert documents.names == ("a.txt", "z.jsonl:1", "z.jsonl:4") and documents.num_empty == 3


def test_two_processes_at_once(books):
    """Both are between looking for the folder and renaming theirs; one has to lose gracefully."""
    barrier = threading.Barrier(2, timeout=30)

    class Meeting(CountingTokenizer):
        def encode_batch(self, texts):
            barrier.wait()
            return super().encode_batch(texts)

    results = []
    threads = [
        threading.Thread(target=lambda: results.append(load(books, Meeting()))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert len(results) == 2 and results[0].ids.tolist() == results[1].ids.tolist()
    assert only_folder(books)  # and no staging folder


def test_names_that_are_not_utf8(tmp_path):
    path = os.fsencode(tmp_path) + b"/caf\xe9.txt"
    with open(path, "wb") as file:
        file.write(b"text")
    settings = {"cache_dir": tmp_path / "cache"}
    for _ in range(2):
        documents = load_documents([str(tmp_path / "*.txt")], BYTES, **settings)
    assert os.fsencode(documents.names[0]) == b"caf\xe9.txt"


def test_where_tokens_are_kept(tmp_path, monkeypatch):
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert default_cache_dir() == tmp_path / "home" / ".cache" / "jaxrope" / "tokens"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert default_cache_dir() == tmp_path / "home" / ".cache" / "jaxrope" / "tokens"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_cache_dir() == tmp_path / "xdg" / "jaxrope" / "tokens"
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    fallback = default_cache_dir()
    assert fallback.parent.parent == temporary
    assert fallback.parent.stat().st_mode & 0o777 == 0o700
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME")
    assert default_cache_dir() == fallback


def test_the_default_folder_is_used(books, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    load(books, cache_dir="")
    assert len(list((tmp_path / "xdg/jaxrope/tokens").iterdir())) == 1


def test_a_folder_of_somebody_else_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("HOME", raising=False)
    default_cache_dir()
    owner = os.getuid()
    (tmp_path / f"jaxrope-{owner}").rename(tmp_path / f"jaxrope-{owner + 1}")
    monkeypatch.setattr("os.getuid", lambda: owner + 1)
    with pytest.raises(InputError, match="belongs to another user. Set data.cache_dir"):
        default_cache_dir()


def test_a_folder_that_cannot_be_written(books, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="tokens cannot be written to '.*file/x' .Not a directory"):
        load(books, cache_dir=tmp_path / "file" / "x")


def test_a_full_disk(books, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache, "_sync", full)
    with pytest.raises(InputError, match="cannot be written .*No space left on device"):
        load(books)
    assert list((books.parent / "cache").iterdir()) == []


def test_overlap_is_by_content(books, tmp_path):
    train = load(books)
    held_out = tmp_path / "held_out"
    held_out.mkdir()
    (held_out / "new.txt").write_text("something new")
    (held_out / "copy_of_b.txt").write_text("bee")
    evaluated = load(held_out)
    assert overlap(train, evaluated) == ["copy_of_b.txt"]
    assert overlap(evaluated, train) == ["b.txt"]
    (held_out / "copy_of_b.txt").write_text("bees")
    assert overlap(train, load(held_out)) == []
    (books / "zero.txt").write_text("")
    (held_out / "zero.txt").write_text("")
    assert overlap(load(books), load(held_out)) == []


def test_works_in_a_bare_environment(books):
    """No HOME, no UTF-8 locale, the whole path through a fresh process."""
    program = (
        "import sys; from jaxrope import data\n"
        "d = data.load_documents([sys.argv[1]], data.load_tokenizer('bytes'))\n"
        "print(len(d), len(d.ids))"
    )
    (books / "ü.txt").write_text("ü", encoding="utf-8")
    root = Path(__file__).parent.parent
    environment = {"LC_ALL": "C", "PYTHONPATH": str(root), "TMPDIR": str(books.parent)}
    environment["PYTHONUTF8"] = "0"
    done = subprocess.run(
        [sys.executable, "-c", program, str(books / "*.txt")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.split() == ["3", "9"], done.stderr


def test_real_tokenizer_on_real_text(books_6m, shared, tmp_path):
    """One novel: the count of the model's own data, cut nowhere."""
    tokenizer = load_tokenizer(books_6m)
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id) == (4096, 1, 2)
    novel = shared / "books/val/erskine_childers_the_riddle_of_the_sands.txt"
    documents = load_documents([str(novel)], tokenizer, cache_dir=tmp_path)
    assert documents.ids.dtype == np.uint16
    assert tokenizer.decode(documents.doc(0)) == novel.read_text(encoding="utf-8")
