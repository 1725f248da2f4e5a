"""What a file holds is decided by its content, the field that is its text is found or asked for."""

import gzip
import io
import json

import pytest

from jaxrope.data import BytesTokenizer, ReadCounts, ReadSettings, find_files, read_documents
from jaxrope.data import load_documents as load
from jaxrope.data.fields import Conversation
from jaxrope.data.json_values import BrokenJson, is_json, values
from jaxrope.errors import InputError

KEY = "data.train_files"
LONG = "A text of some words, and then of some more. " * 20
ROWS = [{"text": f"{i} {LONG}", "id": i, "url": f"http://x/{i}"} for i in range(3)]
TEXTS = [row["text"] for row in ROWS]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
FORMS = {
    "lines": LINES,
    "lines with blank ones": "\n\n" + LINES.replace("\n", "\r\n\r\n"),
    "array": json.dumps(ROWS),
    "indented array": json.dumps(ROWS, indent=2),
    "indented objects": "\n".join(json.dumps(row, indent=4) for row in ROWS),
    "array of strings": json.dumps(TEXTS),
    "with a byte order mark": "\ufeff" + LINES,
}
NAMES = ["a.jsonl", "a.json", "a.ndjson", "a.txt", "a", "a.JSON", "part-00000", "a.json.gz"]


def read(path, counts=None, **settings) -> list[tuple]:
    files = find_files([str(path)], setting=KEY)
    return list(read_documents(files, ReadSettings(KEY, **settings), counts or ReadCounts()))


def refused(match, path, **settings):
    with pytest.raises(InputError, match=match) as caught:
        read(path, **settings)
    message = str(caught.value)
    assert "\n" not in message and message.startswith(KEY)


def put(folder, name, content):
    raw = content if isinstance(content, bytes) else content.encode("utf-8")
    (folder / name).write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
    return folder / name


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", NAMES)
def test_json_is_found_under_any_name(tmp_path, form, name):
    counts = ReadCounts()
    documents = read(put(tmp_path, name, FORMS[form]), counts)
    assert [text for _, text in documents] == TEXTS
    ((kind, number),) = counts.formats.items()
    assert number == 1 and kind.startswith("JSON")
    assert "'text'" in kind or form == "array of strings"


@pytest.mark.parametrize(
    "text",
    [
        "[Illustration: a house]\n\nIt was a dark night.",
        "[1] Smith, J. (1990).\n[2] Jones, K.",
        '["Come in," he said] and sat down.',
        "{ int main() { return 0; } }",
        "{% set x = 1 %}{{ x }}",
        "{} is what an empty set looks like in it.",
        '"Come here."\n"No."\n',
        "12\n13\n",
        "{\\it italic} text",
        "- item\n- {a: b}",
    ],
)
def test_prose_and_programs_stay_text(tmp_path, text):
    counts = ReadCounts()
    assert read(put(tmp_path, "a.txt", text), counts) == [("a.txt", text)]
    assert counts.formats == {"plain text": 1}


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("a.txt", "{'text': 'x'}\n{'text': 'y'}\n", "line 1: not JSON"),
        ("a.txt", '{"text": "x", "n": }\n{"text": "y"}\n', "line 1: not JSON"),
        ("a.json", "It was a dark night.", "is not whole JSON"),
        ("a.json", '[{"text": "x"}, {"text": "y"}', "is not whole JSON .an array is not closed"),
        ("a.json", '[{"text": "x"} {"text": "y"}]', "is not whole JSON"),
        ("a.json", '[{"text": "x"}] and more', "is not whole JSON .something follows"),
        ("a.json", '[{"text": "x"}, 5]', "record 2: a JSON int, not an object"),
        ("a.json", b'[{"text": "x\xe9"}]', r"not UTF-8 \(byte 0xe9\)"),
        ("a.json", "[" * 10_000, "is not whole JSON"),
        ("a.txt", "[1, 2, 3]", "record 1: a JSON int, not an object"),
        ("a.jsonl", '["x"]\n["y"]\n', "line 1: a JSON list, not an object"),
        ("a.json", '{"version": 1, "data": [{"text": "x"}]}', "version .int., data .list."),
        ("a.json", "{}", "The records have: no fields"),
    ],
)
def test_markup_is_never_taken_for_text(tmp_path, name, content, match):
    refused(match, put(tmp_path, name, content))


def test_a_text_that_looks_like_json_can_be_asked_for(tmp_path):
    path = put(tmp_path, "a.json", LINES)
    assert read(path, format="text") == [("a.json", LINES)]


def test_the_case_of_c4(shared):
    (path,) = (shared / "cases" / "11_c4_json_gz").glob("*.json.gz")
    expected = [json.loads(line)["text"] for line in gzip.open(path)]
    counts = ReadCounts()
    assert [text for _, text in read(path, counts)] == expected and len(expected) == 10
    assert counts.formats == {"JSON Lines, text in 'text'": 1}


def arrow_file(table, kind: str) -> bytes:
    pyarrow = pytest.importorskip("pyarrow")
    sink = io.BytesIO()
    make = pyarrow.ipc.new_stream if kind == "stream" else pyarrow.ipc.new_file
    with make(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return sink.getvalue()


@pytest.mark.parametrize("kind", ["stream", "file"])
@pytest.mark.parametrize("name", ["data-00000-of-00001.arrow", "a.bin", "a.arrow.gz"])
def test_both_formats_of_arrow(tmp_path, kind, name):
    pyarrow = pytest.importorskip("pyarrow")
    raw = arrow_file(pyarrow.table({k: [row[k] for row in ROWS] for k in ROWS[0]}), kind)
    path, counts = put(tmp_path, name, raw), ReadCounts()
    assert read(path, counts) == [(f"{name}:{i + 1}", text) for i, text in enumerate(TEXTS)]
    assert counts.formats == {"Arrow, text in 'text'": 1}
    refused(r"has no column 'txt' .*Did you mean 'text'\?", path, text_field="txt")
    if not name.endswith(".gz"):
        refused("is not whole Arrow|cannot be read", put(tmp_path, name, raw[: len(raw) // 2]))


def test_a_damaged_arrow_file_is_refused(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    raw = bytearray(arrow_file(pyarrow.table({"text": ["eins", "zwei"]}), "stream"))
    place = raw.index(b"einszwei") - 64
    raw[place : place + 12] = b"\xff\xff\xff\x7f" * 3  # offsets that lie outside
    refused("is not whole Arrow|cannot be read", put(tmp_path, "a.arrow", bytes(raw)))


def test_parquet_under_another_name(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table({"content": pyarrow.array(TEXTS).dictionary_encode(), "n": [1, 2, 3]})
    parquet.write_table(table, tmp_path / "a.data")
    counts = ReadCounts()
    assert [text for _, text in read(tmp_path / "a.data", counts)] == TEXTS
    assert counts.formats == {"Parquet, text in 'content'": 1}
    parquet.write_table(pyarrow.table({"n": [1], "m": [2.0]}), tmp_path / "b.parquet")
    refused("has no column of text. It has: n, m", tmp_path / "b.parquet")


@pytest.mark.parametrize(
    ("row", "names"),
    [
        ({"content": "x", "meta": {"a": 1}}, ["content"]),
        ({"text": "x", "content": "y"}, ["text"]),
        ({"raw_content": LONG, "url": "u"}, ["raw_content"]),
        ({"id": "a1", "novel": LONG, "title": "T"}, ["novel"]),
        ({"novel": "x"}, ["novel"]),
        ({"messages": [{"role": "user", "content": "x"}], "id": "1"}, ["messages"]),
        ({"conversations": [{"from": "human", "value": "x"}], "id": "1"}, ["conversations"]),
        ({"instruction": LONG, "input": "", "output": "y"}, ["instruction", "output"]),
        ({"prompt": "x", "completion": "y"}, ["prompt", "completion"]),
    ],
)
def test_the_field_is_found(tmp_path, row, names):
    counts = ReadCounts()
    documents = read(put(tmp_path, "a.jsonl", json.dumps(row)), counts, chats=True)
    (kind,) = counts.formats
    assert kind.endswith(" in " + " and ".join(f"'{name}'" for name in names))
    if len(names) == 1 and isinstance(row[names[0]], str):
        assert documents == [("a.jsonl:1", row[names[0]])]


@pytest.mark.parametrize(
    ("row", "match"),
    [
        ({"a": LONG, "b": LONG}, r"no field is plainly the text. .* a \(900 characters\), b \(900"),
        ({"title": "x", "n": 3}, None),
        ({"x": "short", "y": "too", "n": 1}, r"x \(5 characters\), y \(3 characters\), n \(int\)"),
        ({"text": LONG, "messages": [{"role": "user", "content": "x"}]}, "more than one field"),
        ({"n": 3, "m": [1]}, r"The records have: n \(int\), m \(list\). Set data.text_field"),
    ],
)
def test_the_field_is_asked_for(tmp_path, row, match):
    path = put(tmp_path, "a.jsonl", json.dumps(row) + "\n")
    if match is None:  # the only field of text, however short
        assert len(read(path, chats=True)) == 1
        return
    refused(match, path, chats=True)


def test_a_field_that_is_named_is_taken_whatever_else_is_there(tmp_path):
    path = put(tmp_path, "a.jsonl", json.dumps({"text": "x", "summary": "y"}))
    assert read(path, text_field="summary") == [("a.jsonl:1", "y")]


def test_conversations_come_with_plain_roles(tmp_path):
    turns = [("system", "s"), ("human", "h"), ("gpt", "g"), ("observation", "o")]
    row = {"conversations": [{"from": who, "value": what} for who, what in turns]}
    path = put(tmp_path, "a.json", json.dumps([row]))
    ((_, found),) = read(path, chats=True)
    roles = ["system", "user", "assistant", "tool"]
    expected = [{"role": r, "content": what} for r, (_, what) in zip(roles, turns, strict=True)]
    assert found == Conversation(tuple(expected))
    refused("holds conversations .'conversations'.", path)
    row["conversations"][1]["from"] = "narrator"
    path = put(tmp_path, "a.json", json.dumps([row]))
    refused("record 1: field 'conversations' has a message of role 'narrator'", path, chats=True)


def test_messages_as_they_are_kept(tmp_path):
    """With parts of content, a system prompt and tools beside them, a call without content."""
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [{"role": "user", "content": parts}, {"role": "assistant", "tool_calls": [call]}]
    row = {"messages": messages, "system": "s", "tools": json.dumps([call])}
    ((_, found),) = read(put(tmp_path, "a.jsonl", json.dumps(row)), chats=True)
    assert [message["content"] for message in found.messages] == ["s", "ab", ""]
    assert found.messages[2]["tool_calls"] == [call] and found.variables == {"tools": [call]}
    parts[1]["type"] = "image"
    path = put(tmp_path, "b.jsonl", json.dumps(row))
    refused("a message of field 'messages' is list, not a string", path, chats=True)


def test_conversations_in_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
    table = pyarrow.table({"id": ["1"], "messages": [messages], "n": [1]})
    parquet.write_table(table, tmp_path / "a.parquet")
    for wanted in ("", "messages"):
        ((name, found),) = read(tmp_path / "a.parquet", chats=True, text_field=wanted)
        assert name == "a.parquet:1" and list(found.messages) == messages


def test_the_field_is_found_behind_broken_records(tmp_path):
    path = put(tmp_path, "a.jsonl", "{broken\n" * 20 + '{"content": "x", "n": 1}\n')
    assert read(path, skip_bad_lines=20) == [("a.jsonl:21", "x")]
    refused("line 1: not JSON", path)


def test_a_question_and_its_answer_are_a_conversation(tmp_path):
    row = {"instruction": "Add.", "input": "2, 3", "output": "5", "system": "Be brief."}
    ((_, found),) = read(put(tmp_path, "a.json", json.dumps([row])), chats=True)
    assert [(m["role"], m["content"]) for m in found.messages] == [
        ("system", "Be brief."),
        ("user", "Add.\n2, 3"),
        ("assistant", "5"),
    ]


def test_markup_that_stays_is_told(tmp_path):
    put(tmp_path, "a.txt", "<!DOCTYPE html><p>x</p>")
    put(tmp_path, "b.csv", "id,text\n1,x\n")
    put(tmp_path, "c.txt", "plain")
    documents = load([str(tmp_path / "*")], BytesTokenizer(), cache_dir=tmp_path / "cache")
    assert documents.formats == {"HTML as it stands": 1, "CSV as it stands": 1, "plain text": 1}
    assert documents.summary == (
        "data.train_files: 3 files (1 CSV as it stands; 1 HTML as it stands; 1 plain text), "
        "3 documents, 40 tokens, the longest 23 ('a.txt')"
    )


def test_a_large_array_is_read_in_parts(tmp_path):
    items = [json.dumps({"text": "é" * 1000 + str(i)}) for i in range(5000)]
    path = put(tmp_path, "a.json", "[" + ",\n".join(items) + "]")
    reads = []

    def read_text(count):
        text = stream.read(count)
        reads.append(len(text))
        return text

    with open(path, encoding="utf-8") as stream:
        texts = [value["text"] for value in values(read_text)]
    assert [json.loads(item)["text"] for item in items] == texts
    assert max(reads) <= 1 << 20 and len(read(path)) == 5000


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize(
    "value", [[], [1, 23, 456], ["a\\u00e9", "\n"], [{"a": [True, None, -1.5e3]}, "x"], [[]]]
)
def test_values_do_not_depend_on_where_a_text_is_cut(size, value, monkeypatch):
    text = io.StringIO(f" {json.dumps(value)} \n")
    assert list(values(lambda _: text.read(size))) == value
    separate = io.StringIO("\n".join(json.dumps(item) for item in value))
    if value and not isinstance(value[0], list):
        assert list(values(lambda _: separate.read(size))) == value


@pytest.mark.parametrize("text", ["[1, 2", "[1,]", "[1] x", "{", '{"a" 1}', "[1, 2}", "nul"])
def test_what_is_no_json_is_broken(text):
    stream = io.StringIO(text)
    with pytest.raises(BrokenJson):
        list(values(lambda _: stream.read(3)))
    assert not is_json(text, whole=True)
