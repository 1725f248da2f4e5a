"""What is said before anything is paid: factors that are not final, and those that only jaxrope can
run."""

import pytest

from jaxrope import rope, search, setup
from jaxrope.convert import exporting, pretrained, rope_export
from jaxrope.convert.rope_formats import FORMATS, Settings, convert
from jaxrope.errors import InputError
from jaxrope.search import cost
from jaxrope.train import plan as training
from tests.rope_samples import needs, rope_of, rows, run, saved
from tests.search_config import tiny

GEOMETRY = dict(head_dim=8, theta=1e4, original_len=16)  # of the model of search_config
ELSEWHERE = "only jaxrope can run this rope; what Hugging Face, llama.cpp and vLLM cannot express: "
UNFINISHED = {"unfinished": "the best so far of a search that has not ended"}


def bucket(max_len=64, factors=(1.0, 1.5, 2.0, 4.0), start_tokens=0, attention_factor=1.0):
    return dict(
        max_len=max_len,
        factors=list(factors),
        start_tokens=start_tokens,
        attention_factor=attention_factor,
    )


def of(*buckets):
    return rope.make("longrope", **GEOMETRY, buckets=list(buckets))


def trained_with(folder, rope_fn, provenance):
    """The remarks of a training with a rope.json."""
    config = tiny(folder)
    path = folder / "rope.json"
    rope.save(path, rope_fn, provenance)
    config.rope = dict(method="file", path=str(path))
    config.train.seq_len, config.eval.suites = 64, ()
    return training.prepare(config).remarks


SAMPLES = {
    "one set": (of(bucket()), None),
    "two sets": (of(bucket(16, [1.0] * 4), bucket(64)), None),
    "two attention factors": (of(bucket(16, attention_factor=1.1), bucket(64)), None),
    "start tokens": (of(bucket(start_tokens=3)), "start_tokens 3: "),
    "three sets": (of(bucket(16), bucket(32), bucket(64)), "3 length buckets "),
    "another border": (of(bucket(32), bucket(64)), "the border between the buckets, 32, "),
    "layers": (
        of(bucket() | {"factors": [[1.0, 1.5, 2.0, 4.0]]}),
        "factors of each layer's own: ",
    ),
}


@pytest.mark.parametrize("name", SAMPLES)
def test_a_training_says_first_what_only_jaxrope_can_run(tmp_path, name):
    rope_fn, lost = SAMPLES[name]
    remarks = trained_with(tmp_path, rope_fn, {})
    said = [line for line in remarks if "only jaxrope" in line]
    assert len(said) == bool(lost) and not any("unfinished" in line for line in remarks)
    assert not lost or said[0].startswith(f"note: {ELSEWHERE}{lost}")


@pytest.mark.parametrize("name", SAMPLES)
def test_what_is_said_is_what_no_format_expresses(tmp_path, name):
    """Judged by the converter: a rope without a note can be written in some format, one with a note
    in none."""
    needs("gguf")
    rope_fn, lost = SAMPLES[name]
    rope.save(tmp_path / "rope.json", rope_fn, {})
    written = 0
    for form in FORMATS.keys() - {"jaxrope"}:
        try:
            convert(tmp_path / "rope.json", tmp_path / form, Settings(form))
            written += 1
        except InputError as error:
            assert "express" in str(error) or "cannot be written" in str(error), error
    assert (written == 0) == bool(lost)


def test_an_unfinished_file_is_told_wherever_it_is_used(tmp_path, capsys):
    note = "its factors are unfinished, the best so far of a search that has not ended. Start the"
    remarks = trained_with(tmp_path, of(bucket()), UNFINISHED)
    assert sum(note in line and line.startswith("note: config.rope, ") for line in remarks) == 1
    assert not any(note in line for line in trained_with(tmp_path, of(bucket()), {"seed": 1}))

    (tmp_path / "rope").mkdir()
    place = saved(tmp_path / "rope", rope_of(buckets=rows(256)))
    rope.save(place, rope.load(place), {"joined": [{"provenance": {"file": UNFINISHED}}]})
    code, _, told = run(capsys, "rope", place, tmp_path / "out", "--format=hf-llama")
    assert code == 0 and told.count(note) == 1

    model = pretrained.load(tiny(tmp_path).model.path)
    final = tmp_path / "final.json"
    rope.save(final, of(bucket()), {})
    rope.save(tmp_path / "rope.json", of(bucket()), UNFINISHED)
    marked = pretrained.with_rope(model, tmp_path / "rope.json")
    assert [note in line for line in marked.notes] == [True]
    assert pretrained.with_rope(marked, final).notes == ()
    exporting.export_folder(marked, tmp_path / "hf", exporting.Settings())
    rope.save(tmp_path / "hf" / "rope.json", of(bucket()), UNFINISHED)
    assert any(note in line for line in pretrained.load(tmp_path / "hf").notes)


@pytest.mark.parametrize(
    ("changes", "keys"),
    [
        (dict(start_tokens=(0,)), []),
        (dict(start_tokens=(0, 2)), ["search.start_tokens (0, 2)"]),
        (dict(start_tokens=(0,), per_layer=True), ["search.per_layer"]),
    ],
)
def test_a_search_says_first_what_only_jaxrope_could_run(tmp_path, changes, keys):
    config = tiny(tmp_path)
    config.search.update(changes)
    said = [line for line in search.prepare(config).notes if "only jaxrope can run" in line]
    assert [line.partition(":")[0] for line in said] == keys
    printed = cost.dry_run(config, timing=False)
    assert all(f"note: {line}" in printed for line in said)


def test_of_a_formula_nothing_is_lost():
    for method in ("pi", "ntk", "yarn", "dynamic_ntk"):
        made = rope.make(method, **GEOMETRY, factor=4.0)
        assert setup.elsewhere_notes(rope_export.Layout("llama", 8, 8, 64), made) == []
