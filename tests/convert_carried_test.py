"""What came in goes out: tokenizer, templates, ids, dtype; through import, training, export."""

import json

import ml_dtypes
import pytest
from safetensors.numpy import load_file
from tiny_instruct import IDS, beside, config_of, train_on, write_base

from jaxrope.convert import exporting, importing, pretrained

BF16 = ml_dtypes.bfloat16


def export(source, target, **settings):
    """Returns the notes of an export."""
    model = pretrained.load(source, dtype=None)
    return exporting.export_folder(model, target, exporting.Settings(**settings))


def dtypes_of(folder):
    return {str(value.dtype) for value in load_file(folder / "model.safetensors").values()}


ROUTES = {
    "folder": lambda base, work: base,
    "import": lambda base, work: importing.import_folder(base, work) and work or work,
    "training": lambda base, work: train_on(base, work),
    "lora": lambda base, work: train_on(base, work, rank=2),
}


@pytest.mark.parametrize("route", ROUTES)
def test_files_ids_and_dtype_are_kept(tmp_path, route):
    base = write_base(tmp_path / "base", dtype=BF16)
    source = ROUTES[route](base, tmp_path / "work")
    notes = export(source, tmp_path / "out")
    assert beside(tmp_path / "out") == beside(base)
    config = config_of(tmp_path / "out")
    assert {name: config[name] for name in IDS} == IDS
    assert config["dtype"] == config["torch_dtype"] == "bfloat16"
    assert dtypes_of(tmp_path / "out") == {"bfloat16"}
    written = [note for note in notes if "written as bfloat16, as they came in" in note]
    assert len(written) == (route in ("training", "lora")), notes
    if route == "import":
        assert beside(tmp_path / "work") == beside(base)
    again = pretrained.load(tmp_path / "out", dtype=None)
    assert (again.config.eos_ids, again.config.pad_id) == ((1, 5), 320)


def test_a_dtype_that_is_asked_for_is_taken(tmp_path):
    base = write_base(tmp_path / "base", dtype=BF16)
    importing.import_folder(base, tmp_path / "work", dtype="float32")
    export(tmp_path / "work", tmp_path / "out")
    export(base, tmp_path / "wide", dtype="float32")
    for name in ("out", "wide"):
        assert dtypes_of(tmp_path / name) == {"float32"}


@pytest.mark.parametrize("longest, changes", [(128, True), (512, False), (10**30, False)])
def test_the_tokenizer_knows_the_new_length(tmp_path, longest, changes):
    """transformers' tokenizer warns and truncates at the old one."""
    base = write_base(tmp_path / "base", model_max_length=longest)
    work = train_on(base, tmp_path / "work", target_len=512)
    notes = export(work, tmp_path / "out")
    ours, theirs = beside(tmp_path / "out"), beside(base)
    changed = {name for name in ours if ours[name] != theirs[name]}
    assert changed == ({"tokenizer_config.json"} if changes else set())
    assert any("model_max_length was 128 and is 512 now" in note for note in notes) == changes
    before, after = (json.loads(files["tokenizer_config.json"]) for files in (theirs, ours))
    assert after == before | {"model_max_length": 512 if changes else longest}
    tokenizer = pytest.importorskip("transformers").AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.model_max_length == max(longest, 512) and tokenizer.bos_token_id == 0


def test_a_workdir_of_before_is_read(tmp_path):
    """model.json without the newest fields."""
    from jaxrope.store import sealed

    base = write_base(tmp_path / "base")
    importing.import_folder(base, tmp_path / "work")
    path = tmp_path / "work" / "model.json"
    values = sealed.read_json(path)
    older = {k: v for k, v in values.items() if k not in ("pad_id", "stored_dtype")}
    sealed.write_json(path, older | {"eos_id": 1})
    config = pretrained.read_config(tmp_path / "work")
    assert (config.eos_ids, config.pad_id, config.stored_dtype) == ((1,), None, None)


def test_eos_lists_of_a_case(shared, tmp_path):
    case = shared / "cases" / "06_eos_list"
    importing.import_folder(case, tmp_path / "work")
    export(tmp_path / "work", tmp_path / "out")
    assert config_of(tmp_path / "out")["eos_token_id"] == config_of(case)["eos_token_id"]
    generation = (tmp_path / "out" / "generation_config.json").read_bytes()
    assert generation == (case / "generation_config.json").read_bytes()
