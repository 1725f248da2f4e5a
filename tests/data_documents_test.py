"""Tests of jaxrope.data.sources and jaxrope.data.documents."""

import bz2
import gzip
import json
import lzma
import os
import socket
import sys
import threading
import tracemalloc

import pytest

from jaxrope.data import unpacking
from jaxrope.data.documents import ReadCounts, ReadSettings, read_documents
from jaxrope.data.sources import SourceFile, find_files
from jaxrope.errors import InputError

KEY = "data.train_files"


def read(*patterns, exclude=(), **settings) -> list[tuple[str, str]]:
    files = find_files([str(pattern) for pattern in patterns], exclude=exclude, setting=KEY)
    return list(read_documents(files, ReadSettings(KEY, **settings), ReadCounts()))


def refused(match, *patterns, **settings):
    with pytest.raises(InputError, match=match) as caught:
        read(*patterns, **settings)
    message = str(caught.value)
    assert "\n" not in message and message.startswith(KEY)


def put(folder, name, content):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return path


def test_globs_are_sorted_and_named_from_the_common_folder(tmp_path):
    for name in ("b.txt", "a/z.txt", "a/deep/er/y.md", "c.bin"):
        put(tmp_path, name, name)
    names = [name for name, _ in read(tmp_path / "**", exclude=["*.bin"])]
    assert names == ["a/deep/er/y.md", "a/z.txt", "b.txt"]
    assert [name for name, _ in read(tmp_path / "b.txt")] == ["b.txt"]
    assert [name for name, _ in read(tmp_path / "**/*.txt", tmp_path / "b.txt")] == [
        "a/z.txt",
        "b.txt",
    ]
    assert [name for name, _ in read(tmp_path / "a/z.txt", tmp_path / "a/deep/er/y.md")] == [
        "deep/er/y.md",
        "z.txt",
    ]


def test_a_path_may_look_like_a_glob(tmp_path):
    put(tmp_path, "[1] é a.txt", "x")
    put(tmp_path, "1 é a.txt", "y")
    assert read(tmp_path / "[1] é a.txt") == [("[1] é a.txt", "x")]


def test_home_and_relative_paths(tmp_path, monkeypatch):
    put(tmp_path, "x/a.txt", "x")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path / "x")
    assert read("~/x/a.txt") == read("a.txt") == read("./*.txt") == [("a.txt", "x")]


def test_a_link_and_its_target_are_one_file(tmp_path):
    put(tmp_path, "a.txt", "x")
    (tmp_path / "b.txt").symlink_to("a.txt")
    assert len(read(tmp_path / "*.txt")) == 1
    assert read(tmp_path / "b.txt") == [("b.txt", "x")]


def test_exclude(tmp_path, monkeypatch):
    for name in ("keep.txt", "drop_test.txt", "sub/keep.txt", "sub/deep/old.txt"):
        put(tmp_path, name, name)
    monkeypatch.chdir(tmp_path)

    def names(*exclude):
        return [name for name, _ in read("**/*.txt", exclude=exclude)]

    assert names("*_test.txt") == ["keep.txt", "sub/deep/old.txt", "sub/keep.txt"]
    assert names("sub/*") == ["drop_test.txt", "keep.txt"]
    assert names("**/old.txt", "drop*") == ["keep.txt", "sub/keep.txt"]
    assert names(str(tmp_path / "sub/keep.txt"), "old.txt") == ["drop_test.txt", "keep.txt"]
    assert len(names("nothing*")) == 4
    refused("all 4 files are excluded", "**/*.txt", exclude=["*.txt"])


def test_text_is_utf8_without_mark_and_with_unix_lines(tmp_path):
    put(tmp_path, "a.txt", b"\xef\xbb\xbf" + "one\r\ntwo\rthree\n\r\nnaïve".encode())
    put(tmp_path, "b.txt", "no newline at the end")
    assert [text for _, text in read(tmp_path / "*")] == [
        "one\ntwo\rthree\n\nnaïve",
        "no newline at the end",
    ]


def test_empty_documents_are_counted(tmp_path):
    put(tmp_path, "a.txt", "")
    put(tmp_path, "b.txt", " \n\t\r\n")
    put(tmp_path, "c.txt", b"\xef\xbb\xbf")
    put(tmp_path, "d.jsonl", '{"text": ""}\n\n{"text": "x"}\n')
    counts = ReadCounts()
    files = find_files([str(tmp_path / "*")], setting=KEY)
    assert list(read_documents(files, ReadSettings(KEY), counts)) == [("d.jsonl:3", "x")]
    assert counts.empty == 4 and counts.bad_lines == []


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"abc\x00def", "a.txt' has a NUL byte at offset 3: it is binary"),
        (b"abc\xe9def", "a.txt' is not UTF-8: byte 0xe9 at offset 3. Convert it with `iconv"),
        (b"\xef\xbb\xbfab\xff", "is not UTF-8: byte 0xff at offset 5"),
        (b"abc\xc3", "is not UTF-8: byte 0xc3 at offset 3"),
        ("text".encode("utf-16"), "is UTF-16 text. Convert it with `iconv -f UTF-16"),
        ("text".encode("utf-16-be"), "NUL byte at offset 0"),
        (b"%PDF-1.7\n", "is a PDF. Convert it to text, or exclude it"),
        (b"{\\rtf1 a}", "is RTF. Convert it to text"),
        (b"PK\x03\x04\x00\x00", "is a zip archive. Unpack it"),
        (bytes(range(256)), "NUL byte at offset 0"),
    ],
)
def test_what_is_not_text_is_named(tmp_path, content, match):
    put(tmp_path, "a.txt", content)
    refused(match, tmp_path / "*.txt")


def test_text_that_begins_like_an_archive_is_text(tmp_path):
    put(tmp_path, "a.txt", "BZhou is a name")
    assert read(tmp_path / "a.txt") == [("a.txt", "BZhou is a name")]


def test_messages_about_paths(tmp_path):
    refused("no files are given", *())
    refused(r"there is no file '.*/nothing.txt' \(looked from", tmp_path / "nothing.txt")
    refused("no file matches '.*nothing", tmp_path / "nothing*")
    (tmp_path / "sub").mkdir()
    refused(r"sub' is a folder. Name its files, such as '.*sub/\*\*/\*.txt'", tmp_path / "sub")
    (tmp_path / "broken.txt").symlink_to(tmp_path / "gone")
    refused("broken.txt' is a link to a file that is not there", tmp_path / "*")
    refused("broken.txt' is a link to a file that is not there", tmp_path / "broken.txt")


def test_a_folder_that_a_glob_matches_is_passed_over(tmp_path):
    put(tmp_path, "a.txt", "x")
    (tmp_path / "b.txt").mkdir()
    assert read(tmp_path / "*.txt") == [("a.txt", "x")]


def test_a_fifo_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "a.txt")
    errors = []

    def attempt():
        try:
            read(tmp_path / "*.txt")
        except InputError as error:
            errors.append(str(error))

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(timeout=20)
    assert errors and "a.txt' is a FIFO, not a regular file" in errors[0]


def test_sockets_and_devices_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a socket's path may have at most 107 letters
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("a.txt")
        refused("is a socket", "*.txt")
    refused("/dev/null' is a device, not a regular file", "/dev/null")
    (tmp_path / "b.txt").symlink_to("/proc/kmsg")  # regular, by its status; reading it never ends
    refused("b.txt' is a file of the kernel, not a regular file", tmp_path / "b.txt")
    refused("is a file of the kernel", "/proc/meminfo")


def pack(suffix: str, content: bytes) -> bytes:
    if suffix == "zst":
        return pytest.importorskip("zstandard").ZstdCompressor().compress(content)
    return {"gz": gzip, "bz2": bz2, "xz": lzma}[suffix].compress(content)


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
@pytest.mark.parametrize("suffix", ["gz", "bz2", "xz", "zst"])
def test_what_unpacks_without_an_end_is_refused_on_the_way(tmp_path, monkeypatch, suffix, name):
    monkeypatch.setattr(unpacking, "_ALWAYS", 1 << 16)
    path = put(tmp_path, f"{name}.{suffix}", pack(suffix, b"a" * (1 << 26)))
    tracemalloc.start()
    refused(f"has {path.stat().st_size:,} bytes and unpacks to .* and more, 64 times", path)
    assert tracemalloc.get_traced_memory()[1] < 4e7
    tracemalloc.stop()
    text = "".join(map(chr, range(97, 123))) * 9000  # repeats itself, but is short
    monkeypatch.setattr(unpacking, "_ALWAYS", len(text))
    assert read(put(tmp_path, f"b.txt.{suffix}", pack(suffix, text.encode()))) == [
        (f"b.txt.{suffix}", text)
    ]


def test_parquet_that_repeats_itself_without_an_end_is_refused(tmp_path, monkeypatch):
    pyarrow = pytest.importorskip("pyarrow")
    monkeypatch.setattr(unpacking, "_ALWAYS", 1 << 16)
    table = pyarrow.table({"text": ["a" * 100_000] * 1000})
    pytest.importorskip("pyarrow.parquet").write_table(table, tmp_path / "a.parquet")
    refused("a.parquet' has .* and unpacks to", tmp_path / "a.parquet")


def test_binary_data_is_read_to_its_first_nul_alone(tmp_path):
    path = put(tmp_path, "a.txt", b"x" * 5)
    os.truncate(path, 1 << 32)  # 4 GiB of NUL, none of them on the disk
    file = SourceFile(path, "a.txt", 1 << 32, "", path.stat().st_mtime_ns)
    with pytest.raises(InputError, match="a.txt' has a NUL byte at offset 5: it is binary"):
        list(read_documents([file], ReadSettings(KEY), ReadCounts()))
    put(tmp_path, "b.txt", b"x" * (1 << 20) + b"yy\0z")
    refused(f"b.txt' has a NUL byte at offset {(1 << 20) + 2}", tmp_path / "b.txt")


def test_an_unreadable_file_is_named(tmp_path, monkeypatch):
    path = put(tmp_path, "a.txt", "x")

    def forbid(path):  # a test that runs as root may read everything
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("jaxrope.data.sources.sha256_file", forbid)
    refused(r"a.txt' cannot be read \(Permission denied\)", path)


def test_a_file_that_changes_while_it_is_read(tmp_path):
    path = put(tmp_path, "a.txt", "x")
    files = find_files([str(path)], setting=KEY)
    path.write_text("longer")
    with pytest.raises(InputError, match="a.txt' changed while it was read"):
        list(read_documents(files, ReadSettings(KEY), ReadCounts()))
    path.unlink()
    with pytest.raises(InputError, match="a.txt' cannot be read .No such file"):
        list(read_documents(files, ReadSettings(KEY), ReadCounts()))


def test_one_large_line(tmp_path):
    line = "0123456789abcdef" * (1 << 20)  # 16 MiB
    put(tmp_path, "a.txt", line)
    put(tmp_path, "b.jsonl", json.dumps({"text": line}))
    assert [text for _, text in read(tmp_path / "*")] == [line, line]


@pytest.mark.parametrize(
    ("suffix", "pack"), [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)]
)
def test_packed_files(tmp_path, suffix, pack):
    put(tmp_path, f"a.txt{suffix}", pack(b"eins\r\n") + pack(b"zwei"))
    put(tmp_path, f"b.jsonl{suffix}", pack(b'{"text": "x"}\n{"text": "y"}'))
    assert read(tmp_path / "*") == [
        (f"a.txt{suffix}", "eins\nzwei"),
        (f"b.jsonl{suffix}:1", "x"),
        (f"b.jsonl{suffix}:2", "y"),
    ]
    put(tmp_path, f"a.txt{suffix}", pack(b"text " * 10_000)[:-12])
    refused(rf"a.txt{suffix}' cannot be read \(", tmp_path / f"a.txt{suffix}")
    place = put(tmp_path, f"a.txt{suffix}", b"plain text, unpacked by who fetched it")
    assert read(place) == [(place.name, "plain text, unpacked by who fetched it")]
    place = put(tmp_path, "packed.txt", pack(b"eins"))
    assert read(place) == [("packed.txt", "eins")]


def test_zstandard(tmp_path):
    zstandard = pytest.importorskip("zstandard")
    frame = zstandard.ZstdCompressor().compress
    text = os.urandom(300_000).hex()
    put(tmp_path, "a.txt.zst", frame(text.encode()) + frame(b" second frame"))
    put(tmp_path, "b.jsonl.zst", frame(b'{"text": "x"}\n{"text": "y"}'))
    assert read(tmp_path / "*") == [
        ("a.txt.zst", text + " second frame"),
        ("b.jsonl.zst:1", "x"),
        ("b.jsonl.zst:2", "y"),
    ]
    put(tmp_path, "a.txt.zst", frame(text.encode())[:-1000])
    refused("a.txt.zst' cannot be read .the Zstandard data is cut off", tmp_path / "a.txt.zst")
    put(tmp_path, "a.txt.zst", frame(text.encode())[:4] + b"plain text")
    refused("a.txt.zst' cannot be read", tmp_path / "a.txt.zst")


def test_without_the_packages(tmp_path, monkeypatch):
    for name in ("zstandard", "pyarrow"):
        monkeypatch.setitem(sys.modules, name, None)
    put(tmp_path, "a.txt.zst", b"\x28\xb5\x2f\xfd")
    refused("a.txt.zst': the package `zstandard` is needed to unpack it", tmp_path / "a.txt.zst")
    put(tmp_path, "a.parquet", "x")
    refused("a.parquet': the package `pyarrow` is needed to read Parquet", tmp_path / "a.parquet")


def test_jsonl(tmp_path):
    put(tmp_path, "a.jsonl", b'\xef\xbb\xbf{"text": "eins"}\r\n{"text": "zw\\r\\nei", "n": NaN}')
    assert read(tmp_path / "a.jsonl") == [("a.jsonl:1", "eins"), ("a.jsonl:2", "zw\nei")]
    put(tmp_path, "a.jsonl", '{"body": "b", "text": 3}')
    assert read(tmp_path / "a.jsonl", text_field="body") == [("a.jsonl:1", "b")]


@pytest.mark.parametrize(
    ("line", "match"),
    [
        (b'{"text": "x"', r"line 2: not JSON \("),
        (b"[" * 100_000, r"line 2: not JSON \("),
        (b'["x"]', "line 2: a JSON list, not an object"),
        (b'{"txt": "x"}', r"line 2: no field 'text' \(data.text_field\). Did you mean 'txt'\?"),
        (b'{"text": 5}', "line 2: field 'text' is int, not a string"),
        (b'{"text": null}', "line 2: field 'text' is NoneType, not a string"),
        (b'{"text": "\\u0000"}', "line 2: field 'text' has a NUL character"),
        (b'{"text": "\\ud800"}', "line 2: field 'text' has half a surrogate pair"),
        (b'{"text": "\xe9"}', r"line 2: not UTF-8 \(byte 0xe9\)"),
    ],
)
def test_bad_lines(tmp_path, line, match):
    path = put(tmp_path, "a.jsonl", b'{"text": "one"}\n' + line + b'\n{"text": "three"}\n')
    refused(f"a.jsonl', {match}.*allow more bad lines than data.skip_bad_lines=0", path)
    assert [name for name, _ in read(path, skip_bad_lines=1)] == ["a.jsonl:1", "a.jsonl:3"]


def test_bad_lines_are_counted_over_all_files(tmp_path):
    put(tmp_path, "a.jsonl", 'x\n{"text": "x"}\n')
    put(tmp_path, "b.jsonl", "\ny\n")
    assert len(read(tmp_path / "*", skip_bad_lines=2)) == 1
    refused("b.jsonl', line 2: not JSON", tmp_path / "*", skip_bad_lines=1)


def test_jsonl_that_is_something_else(tmp_path):
    path = put(tmp_path, "a.jsonl", b"%PDF-1.7\n")
    refused("a.jsonl' is a PDF", path, skip_bad_lines=100)
    path = put(tmp_path, "a.jsonl", '{"text": "x"}'.encode("utf-16"))
    refused("a.jsonl' is UTF-16 text", path, skip_bad_lines=100)


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table({"text": ["eins", None, "", "vier\r\n"], "n": [1, 2, 3, 4]})
    parquet.write_table(table, tmp_path / "a.parquet")
    path = tmp_path / "a.parquet"
    refused("a.parquet', row 2: field 'text' is NoneType, not a string", path)
    assert read(path, skip_bad_lines=1) == [("a.parquet:1", "eins"), ("a.parquet:4", "vier\n")]
    refused(r"has no column 'txet' .*Did you mean 'text'\?", path, text_field="txet")
    refused("row 1: field 'n' is int, not a string", path, text_field="n")
    path.write_bytes(path.read_bytes()[:-20])
    refused("a.parquet' is not whole Parquet", path)
    put(tmp_path, "b.parquet", "plain")
    refused("b.parquet' is not whole Parquet", tmp_path / "b.parquet")
