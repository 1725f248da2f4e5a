"""The shape of the whole: floors, who may import what, which keys are read, how long things are."""

import ast
import functools
import importlib
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from configs import base
from jaxrope import schema
from jaxrope.schema import Config
from tests import config_reads

ROOT = Path(__file__).resolve().parent.parent
KEYS = [key for key, _ in schema.leaves(schema.read(base.get_config()))]
PACKAGE = ROOT / "jaxrope"

# A module imports from lower floors, or from its own floor where that makes no circle.
FLOORS = {
    0: ("errors", "schema"),
    1: ("mesh",),
    2: ("store", "attention"),
    3: ("shell", "rope"),
    4: ("decoder", "data"),
    5: ("convert",),
    6: ("setup", "generate"),
    7: ("evaluate", "report"),
    8: ("analysis", "search", "train"),
    9: ("topology",),
    10: ("recipe",),
    11: ("analyse", "extend"),
    12: ("demo",),
}
FLOOR_OF = {name: floor for floor, names in FLOORS.items() for name in names}

# Flags are parsed in these programs only, and through jaxrope/shell/cli.py.
PROGRAMS = (
    "train.py",
    "search.py",
    "jaxrope/demo.py",
    *(
        f"jaxrope/{name}/__main__.py"
        for name in (
            "analyse analysis convert evaluate extend generate recipe report search train"
        ).split()
    ),
)

# Library -> the only files or folders of the package that may import it.
ONLY_IN = {
    "orbax": ("jaxrope/store/checkpoint.py",),
    "matplotlib": ("jaxrope/report/",),
    "torch": ("jaxrope/extend/consumers.py",),  # opens exports there
    "transformers": ("jaxrope/extend/consumers.py",),
    "absl": ("jaxrope/shell/cli.py", "jaxrope/shell/experiment.py"),
    "argparse": ("jaxrope/shell/cli.py",),
    "safetensors": ("jaxrope/convert/",),
    "gguf": ("jaxrope/convert/gguf_weights.py",),
    "sentencepiece": ("jaxrope/data/pieces.py",),
    "huggingface_hub": ("jaxrope/convert/hub.py",),
    "aiohttp": ("jaxrope/convert/",),
    "tokenizers": ("jaxrope/data/",),
    "tensorboardX": ("jaxrope/train/",),
    "lm_eval": ("jaxrope/evaluate/harness_lm.py",),
    "jinja2": ("jaxrope/data/chat.py",),
    "optax": ("jaxrope/train/",),
}
MATHEMATICS = ("rope/", "decoder/losses.py", "attention/")  # jax and numpy, nothing else

# Spellings of Hugging Face; everywhere else the words are those of DecoderConfig.
HUGGING_FACE_NAMES = {
    "hidden_size",
    "intermediate_size",
    "layer_norm_eps",
    "linear_conv_kernel_dim",
    "linear_key_head_dim",
    "linear_num_key_heads",
    "linear_num_value_heads",
    "linear_value_head_dim",
    "decoder_sparse_step",
    "max_position_embeddings",
    "mlp_only_layers",
    "model_type",
    "moe_intermediate_size",
    "norm_topk_prob",
    "num_attention_heads",
    "num_experts_per_tok",
    "num_hidden_layers",
    "num_key_value_heads",
    "num_local_experts",
    "rms_norm_eps",
    "rope_parameters",
    "rope_scaling",
    "router_aux_loss_coef",
    "shared_expert_intermediate_size",
    "tie_word_embeddings",
}

MAX_FILE, MAX_FUNCTION, MAX_CLASS, MAX_PARAMETERS, MAX_PROGRAM = 400, 60, 150, 7, 60
LONGER_BECAUSE = {  # "path" or "path:function" -> one sentence that says why
    "jaxrope/decoder/config.py:DecoderConfig": "all in which families differ, a line and its field",
}
MORE_PARAMETERS_BECAUSE = {
    "jaxrope/data/loader.py:__init__": "what every row depends on",
    "jaxrope/decoder/forward.py:probe": "those of hidden, and what is asked of each layer",
}

SOURCES = {
    path.relative_to(ROOT).as_posix(): ast.parse(path.read_text(encoding="utf-8"))
    for path in [*sorted(PACKAGE.rglob("*.py")), ROOT / "train.py", ROOT / "search.py"]
    if path.exists()
}
MODULES = {name: tree for name, tree in SOURCES.items() if name.startswith("jaxrope/")}


@functools.cache
def imports(tree: ast.AST) -> list[str]:
    """Returns the dotted names that a file imports; `from a import b` gives "a.b"."""
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the floor"
            names += (f"{node.module}.{alias.name}" for alias in node.names)
    return names


def own_imports(tree: ast.AST) -> set[str]:
    """Returns the top modules of jaxrope that a file imports."""
    names = {name.split(".")[1] for name in imports(tree) if name.startswith("jaxrope.")}
    return names - {"__version__"}


def top_module(name: str) -> str:
    """Returns "rope" for "jaxrope/rope/file.py" and for "jaxrope/rope.py"."""
    return name.split("/")[1].removesuffix(".py")


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef]:
    return (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))


def length(node: ast.AST) -> int:
    return node.end_lineno - node.lineno + 1


def test_every_module_has_a_floor():
    tops = {top_module(name) for name in MODULES} - {"__init__"}
    assert tops <= FLOOR_OF.keys(), "write the new module into FLOORS"


@pytest.mark.parametrize("name", MODULES)
def test_no_module_imports_from_above(name):
    if name in PROGRAMS or top_module(name) == "__init__":
        return
    here = FLOOR_OF[top_module(name)]
    above = {other for other in own_imports(MODULES[name]) if FLOOR_OF[other] > here}
    assert not above, f"{name} is on floor {here}"


def test_no_two_modules_import_each_other():
    needs = {}
    for name, tree in MODULES.items():
        if name not in PROGRAMS:
            needs.setdefault(top_module(name), set()).update(own_imports(tree) - {top_module(name)})
    while free := [name for name in needs if not needs[name] & needs.keys()]:
        for name in free:
            del needs[name]
    assert not needs, "these are in a circle, or need one that is"


def open_names(package: str) -> set[str]:
    """Returns what a package offers at its door: names, and modules whose names are all open."""
    return set(importlib.import_module(f"jaxrope.{package}").__all__)


@pytest.mark.parametrize("name", MODULES)
def test_others_come_in_by_the_door(name):
    here = top_module(name)
    for target in imports(MODULES[name]):
        parts = target.split(".")[1:]
        is_package = parts and (PACKAGE / parts[0] / "__init__.py").exists()
        if target.startswith("jaxrope.") and is_package and parts[0] not in (here, "configs"):
            is_program = parts[1:2] == ["__main__"]
            assert is_program or len(parts) < 2 or parts[1] in open_names(parts[0]), target


@pytest.mark.parametrize("library", ONLY_IN)
def test_a_library_is_imported_only_where_it_belongs(library):
    users = {n for n, t in SOURCES.items() if any(i.split(".")[0] == library for i in imports(t))}
    strangers = {name for name in users if not name.startswith(ONLY_IN[library] or ("-",))}
    assert not strangers


@pytest.mark.parametrize("part", MATHEMATICS)
def test_the_mathematics_needs_only_jax_and_numpy(part):
    for name, tree in MODULES.items():
        if name.startswith(f"jaxrope/{part}"):
            strangers = {"flax", "optax", "ml_collections", "scipy"}
            assert not strangers & {i.split(".")[0] for i in imports(tree)}, name


def test_pictures_are_drawn_only_for_programs():
    users = {name for name, tree in SOURCES.items() if "report" in own_imports(tree)}
    runs_programs = ("jaxrope/report/", "jaxrope/recipe/", "jaxrope/analyse/", "jaxrope/extend/")
    runs_programs += ("jaxrope/evaluate/program.py",)
    assert {name for name in users if not name.startswith(runs_programs)} <= set(PROGRAMS)


def test_configs_import_nothing_of_the_package_but_each_other():
    for path in (ROOT / "configs").glob("*.py"):
        for name in imports(ast.parse(path.read_text("utf-8"))):
            top = name.split(".")[0]
            is_known = top in sys.stdlib_module_names or top == "ml_collections"
            assert is_known or name.startswith("jaxrope.configs."), f"{path.name}: {name}"


def test_only_programs_can_be_run_or_see_the_command_line():
    for name, tree in SOURCES.items():
        if name not in (*PROGRAMS, "jaxrope/shell/cli.py"):
            assert not re.search(r"sys\.argv|__name__ == '__main__'", ast.unparse(tree)), name


@pytest.mark.parametrize("name", ["train.py", "search.py"])
def test_a_program_is_short(name):
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    assert len(lines) <= MAX_PROGRAM


def strings(tree: ast.AST) -> Iterator[str]:
    """Yields the strings of a file that are no docstrings."""
    for node in ast.walk(tree):
        for child in ast.iter_child_nodes(node):
            is_doc = isinstance(node, ast.Expr)
            if isinstance(child, ast.Constant) and isinstance(child.value, str) and not is_doc:
                yield child.value


def test_hugging_face_names_are_only_in_convert():
    for name, tree in SOURCES.items():
        if not name.startswith("jaxrope/convert/"):
            assert not HUGGING_FACE_NAMES & set(strings(tree)), name


def dotted(name: str) -> str:
    """Returns "jaxrope.rope" for "jaxrope/rope/__init__.py"."""
    return name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


@pytest.fixture(scope="module")
def walk():
    # what the schema says of a key is no use of it
    trees = {dotted(n): t for n, t in MODULES.items() if not n.startswith("jaxrope/schema/")}
    return functools.partial(config_reads.Walk, trees)


def test_every_key_of_base_is_read_somewhere(walk):
    assert config_reads.unread(KEYS, walk().run()) == []


def test_a_key_that_nothing_reads_is_seen(walk, monkeypatch):
    """Also one whose last word is that of another key, or of a function."""
    more = ["eval.kv.buffer", "eval.kv.window", "train.stride", "data.steps", "hosts.seed"]
    keys = [*config_reads.walk_schema(Config), *((key, None) for key in more)]
    monkeypatch.setattr(config_reads, "walk_schema", lambda _: keys)
    assert config_reads.unread([*KEYS, *more], walk().run()) == more


def test_no_key_has_a_second_default():
    for name, tree in SOURCES.items():
        if name.startswith("jaxrope/convert/"):
            continue  # there `config` is the JSON of Hugging Face, whose keys are optional
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                owner = ast.unparse(node.func.value)
                is_get = node.func.attr == "get" and re.fullmatch(r"config(\.\w+)*", owner)
                assert not is_get, f"{name}: {ast.unparse(node)}"


def test_files_and_functions_are_short():
    found = {}
    for name, tree in SOURCES.items():
        found[name] = (max((n.end_lineno or 0 for n in tree.body), default=0), MAX_FILE)
        for node in functions(tree):
            found[f"{name}:{node.name}"] = (length(node), MAX_FUNCTION)
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                found[f"{name}:{node.name}"] = (length(node), MAX_CLASS)
    long = {place: lines for place, (lines, most) in found.items() if lines > most}
    assert {p: n for p, n in long.items() if p not in LONGER_BECAUSE} == {}
    assert LONGER_BECAUSE.keys() <= long.keys(), "no longer too long: take it out of the list"


def test_functions_have_few_parameters():
    for name, tree in SOURCES.items():
        for node in functions(tree):
            if f"{name}:{node.name}" in MORE_PARAMETERS_BECAUSE:
                continue
            a = node.args
            count = len([x for x in a.posonlyargs + a.args + a.kwonlyargs if x.arg != "self"])
            assert count <= MAX_PARAMETERS, f"{name}:{node.name} has {count}"


def test_every_module_says_what_it_is_for():
    for name, tree in SOURCES.items():
        assert ast.get_docstring(tree), name


def test_every_public_function_has_a_docstring():
    for name, tree in MODULES.items():
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{name}:{node.name}"


def test_no_file_is_called_utils():
    assert not [name for name in SOURCES if re.search(r"(utils|helpers|misc|common)\.py$", name)]


def test_no_exception_is_swallowed_that_was_not_thought_of():
    for name, tree in SOURCES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ExceptHandler) and not isinstance(node.body[-1], ast.Raise):
                caught = ast.unparse(node.type) if node.type else "BaseException"
                is_broad = re.search(r"\b(Base)?Exception\b", caught)
                assert not is_broad, f"{name}, line {node.lineno}: {caught}"


def test_text_is_read_and_written_as_utf_8():
    for name, tree in SOURCES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                assert not _depends_on_the_locale(node), f"{name}, line {node.lineno}"


def _depends_on_the_locale(call: ast.Call) -> bool:
    called = ast.unparse(call.func)
    if any(keyword.arg == "encoding" for keyword in call.keywords):
        return False
    if called.endswith(".write_text"):
        return len(call.args) < 2
    if called.endswith(".read_text"):
        return not call.args
    if called not in ("open", "os.fdopen"):
        return False
    modes = [*call.args[1:2], *(k.value for k in call.keywords if k.arg == "mode")]
    return not any("b" in str(getattr(mode, "value", "b")) for mode in modes)


def texts() -> Iterator[tuple[Path, str]]:
    """Yields every text file of the project and what is in it."""
    folders = [ROOT / "configs", PACKAGE, ROOT / "tests", ROOT / ".ci"]
    paths = [path for folder in folders for path in folder.rglob("*")]
    for path in [*paths, *ROOT.glob("*")]:
        # in a worktree .git is a file that names a folder
        if path.is_file() and not {"__pycache__", ".git"} & {*path.parts}:
            try:
                yield path, path.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                continue  # weights


def test_nothing_names_a_machine_or_where_packages_come_from():
    folders = "|".join(["work", "tmp", "root", "home", "opt", "mnt"])
    pattern = re.compile(rf"(?<![\w.}}~])/({folders})/\w|py" + r"pi\.|python" + r"hosted\.")
    for path, text in texts():
        found = pattern.search(text)
        assert not found, f"{path.relative_to(ROOT)}: {found.group() if found else ''}"


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < 200


def test_every_file_of_the_package_is_installed():
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    patterns = set(re.findall(r'"\*\*/\*(\.\w+)"', pyproject)) | {".py"}
    for path in PACKAGE.rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            assert path.suffix in patterns, f"add {path.suffix} to package-data in pyproject.toml"
    for folder in {path.parent for path in PACKAGE.rglob("*.py")}:
        assert (folder / "__init__.py").exists(), f"{folder} would not be installed"


@pytest.mark.parametrize("module", ["jaxrope.rope.methods", "jaxrope", "configs.base", "cli_test"])
def test_a_warning_in_our_own_code_is_an_error(module):
    with pytest.raises(DeprecationWarning, match="old"):
        warnings.warn_explicit("old", DeprecationWarning, "file.py", 1, module=module)


def test_a_warning_in_a_library_is_none(recwarn):
    warnings.warn_explicit("old", DeprecationWarning, "file.py", 1, module="library.jaxrope_like")
