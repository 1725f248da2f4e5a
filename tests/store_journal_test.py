"""The journal and sealed files: what is damaged is seen, whatever the damage is."""

import os
import random

import numpy as np
import pytest

from jaxrope.errors import InputError
from jaxrope.store import sealed
from jaxrope.store.journal import Journal

ROWS = [{"i": i, "text": 'é"}', "loss": 1 / 3} for i in range(20)] + [{}]


@pytest.fixture
def path(tmp_path):
    journal = Journal(tmp_path / "journal.jsonl", "x/1", ordered=True)
    journal.begin({"seed": 1})
    for row in ROWS:
        journal.append([row])
    return journal.path


def damaged(raw, rng):
    """Returns the bytes with a bit flipped, an end cut off, or a line lost, doubled or moved."""
    lines = raw.split(b"\n")
    at, other = rng.randrange(len(lines) - 1), rng.randrange(len(lines) - 1)
    kind = rng.choice(["flip", "flip", "cut", "lose", "double", "move"])
    if kind == "flip":
        changed = bytearray(raw)
        bit = rng.randrange(8 * len(raw))
        changed[bit // 8] ^= 1 << bit % 8
        return bytes(changed)
    if kind == "cut":
        return raw[: rng.randrange(len(raw))]
    if kind == "double":
        lines.insert(at, lines[at])
    else:
        line = lines.pop(at)
        if kind == "move":
            lines.insert(other, line)
    return b"\n".join(lines)


def test_rows_come_back_and_more_can_be_appended(path):
    journal = Journal(path, "x/1", ordered=True)
    assert (journal.header, journal.rows, journal.notes) == ({"seed": 1}, ROWS, [])
    journal.append([{"more": 1}])
    assert Journal(path, "x/1", ordered=False).rows == [*ROWS, {"more": 1}]


@pytest.mark.parametrize("ordered", [True, False])
def test_no_damage_changes_a_row_without_a_word(path, ordered):
    raw, rng = path.read_bytes(), random.Random(0)
    for _ in range(120):
        path.write_bytes(damaged(raw, rng))
        try:
            journal = Journal(path, "x/1", ordered=ordered)
        except InputError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            continue
        assert all(row in ROWS for row in journal.rows)
        is_torn_end = journal.rows == ROWS[: len(journal.rows)]
        assert is_torn_end or journal.notes
        if ordered:
            assert is_torn_end
        if journal.header is not None:
            journal.append([{"more": 1}])
            again = Journal(path, "x/1", ordered=True)
            assert again.rows == journal.rows and not again.notes


def test_a_torn_last_line_is_dropped_without_a_word(path):
    path.write_bytes(path.read_bytes()[:-5])
    journal = Journal(path, "x/1", ordered=True)
    assert journal.rows == ROWS[:-1] and not journal.notes


def test_another_program(path):
    with pytest.raises(InputError, match="format must be 'y/1', got 'x/1'"):
        Journal(path, "y/1", ordered=True)


def test_a_sealed_document(tmp_path):
    path = tmp_path / "result.json"
    sealed.write_json(path, {"format": "x/1", "loss": 1.5})
    assert sealed.read_json(path, form="x/1") == {"format": "x/1", "loss": 1.5}
    text = path.read_text("utf-8")
    path.write_text(text.replace("1.5", "2.5"), encoding="utf-8")
    with pytest.raises(InputError, match="is damaged or was edited: its sha256 differs"):
        sealed.read_json(path)
    path.write_text('{"format": "x/1", "loss": 2.5}', encoding="utf-8")
    assert sealed.read_json(path, sealed=False)["loss"] == 2.5
    with pytest.raises(InputError, match="has no sha256"):
        sealed.read_json(path)
    os.mkfifo(tmp_path / "fifo.json")  # to open it would take for ever
    with pytest.raises(InputError, match="fifo.json: is not a regular file"):
        sealed.read_json(tmp_path / "fifo.json", sealed=False)
    for broken in ("", "[]", "[" * 100_000, '{"a": 1'):
        path.write_text(broken, encoding="utf-8")
        with pytest.raises(InputError, match="result.json: .* Restore it, or make it anew"):
            sealed.read_json(path, sealed=False)


def test_arrays_and_their_digest(tmp_path):
    path, nll_WT = tmp_path / "a.npz", np.arange(6.0).reshape(2, 3)
    digest = sealed.write_arrays(path, {"nll_WT": nll_WT})
    assert sealed.read_arrays(path, digest)["nll_WT"].tolist() == nll_WT.tolist()
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(bytes(raw))
    with pytest.raises(InputError, match="is damaged"):
        sealed.read_arrays(path, digest)
    with pytest.raises(InputError, match="cannot be read"):
        sealed.read_arrays(tmp_path / "none.npz", digest)
