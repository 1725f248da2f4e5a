"""Small faults in a copy of the package: which of them do the tests catch?

`make mutate FAULTS=40` draws them over the packages in proportion to their lines and runs, for
each, the tests nearest to its package until the first that fails. With --rest, what these miss goes
to the tests that CI leaves to `make full`.
"""

import argparse
import ast
import bisect
import itertools
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# The test files nearest to a package, by how their names begin; the first to fail ends a run.
NEAREST = {
    "analyse": "attention_verdicts attention_paper attention_objectives",
    "analysis": "analysis_ attention_objective_test",
    "attention": "attention_test attention_choice attention_spread decoder_",
    "configs": "config pod_configs recipe_configs",
    "convert": "convert_ parity",
    "data": "data_ needles mixture training_test",
    "demo": "wheel",
    "errors": "cli config files",
    "evaluate": "evaluat answering harness haystack items longppl needle_test oracles passkey"
    " perplexity protocols retrieval ruler tasks",
    "generate": "generat answering",
    "decoder": "decoder_ losses parity lora",
    "mesh": "mesh_ sharding hosts checkpoint attention_choice",
    "recipe": "recipe",
    "report": "report",
    "rope": "rope_ paper_tables",
    "schema": "schema config cli",
    "search": "search attention_objective_test needle_objective",
    "setup": "setup evaluate_ search_run",
    "shell": "cli config experiment progress heap search_run",
    "store": "store checkpoint files remote training_test",
    "topology": "topology offload",
    "train": "optimizer training lora mixture mesh_test",
}

COMPARISONS = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
ARITHMETIC = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
}
SWAPPED = dict(min="max", minimum="maximum", argmin="argmax", any="all", floor="ceil", zeros="ones")
SWAPPED |= {other: name for name, other in SWAPPED.items()}
MESSAGES = {"print", "log", "logging", "warnings", "InputError", "show", "DEFINE_string"}


def name_of(node: ast.AST) -> str:
    """Returns the first name of `a.b.c(...)`, or of what is called."""
    while isinstance(node, ast.Call | ast.Attribute):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else ""


def is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.JoinedStr) or (
        isinstance(node, ast.Constant) and isinstance(node.value, str)
    )


def children(node: ast.AST):
    """Yields what is computed below a node: no annotations, messages or decorators."""
    skipped = []
    if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
        skipped = [*node.decorator_list, getattr(node, "returns", None)]
    elif isinstance(node, ast.arg | ast.AnnAssign):
        skipped = [node.annotation]
    elif isinstance(node, ast.Assert):
        skipped = [node.msg]
    for child in ast.iter_child_nodes(node):
        message = isinstance(child, ast.Raise | ast.JoinedStr | ast.Import | ast.ImportFrom)
        message |= isinstance(child, ast.Call) and name_of(child) in MESSAGES
        if child not in skipped and not message:
            yield child


def changes(node: ast.AST):
    """Yields what a node may be replaced by, as source."""
    match node:
        case ast.Compare(ops=[op]) if type(op) in COMPARISONS:
            yield ast.Compare(node.left, [COMPARISONS[type(op)]()], node.comparators)
        case ast.BinOp(op=op) if type(op) in ARITHMETIC:
            if not is_text(node.left) and not is_text(node.right):
                yield ast.BinOp(node.left, ARITHMETIC[type(op)](), node.right)
        case ast.Constant(value=bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(value=int(value) | float(value)):
            yield ast.Constant(value + 1)
        case ast.BoolOp(op=op):
            yield ast.BoolOp(ast.Or() if isinstance(op, ast.And) else ast.And(), node.values)
        case ast.UnaryOp(op=ast.Not() | ast.USub()):
            yield node.operand
        case ast.IfExp():
            yield ast.IfExp(ast.UnaryOp(ast.Not(), node.test), node.body, node.orelse)
        case ast.Name(id=name) if name in SWAPPED:
            yield ast.Name(SWAPPED[name])
        case ast.Attribute(attr=name) if name in SWAPPED:
            yield ast.Attribute(node.value, SWAPPED[name])
        case ast.AugAssign() | ast.Expr(value=ast.Call()) | ast.Raise():
            yield ast.Pass()
        case ast.Assign(targets=[ast.Subscript() | ast.Attribute()]):
            yield ast.Pass()


def faults_of(text: str) -> list[tuple[ast.AST, str]]:
    """Returns (what is replaced, by what) for every fault that a source file can get."""
    found, waiting = [], [ast.parse(text)]
    while waiting:
        node = waiting.pop()
        found += [(node, f"({ast.unparse(c)})" if isinstance(node, ast.expr) else ast.unparse(c))
                  for c in changes(node)]  # fmt: skip
        if isinstance(node, ast.If | ast.While) and name_of(node.test) != "TYPE_CHECKING":
            found.append((node.test, f"(not ({ast.unparse(node.test)}))"))
        waiting += children(node)
    return sorted(found, key=lambda fault: (fault[0].lineno, fault[0].col_offset, fault[1]))


def replaced(text: str, node: ast.AST, source: str) -> str:
    """Returns a file with one node replaced; its lines keep their numbers."""
    lines = text.encode().splitlines(keepends=True)
    starts = [0, *itertools.accumulate(len(line) for line in lines)]
    first = starts[node.lineno - 1] + node.col_offset
    last = starts[node.end_lineno - 1] + node.end_col_offset
    blank = b" \\\n" * (node.end_lineno - node.lineno) if not isinstance(node, ast.stmt) else b""
    whole = text.encode()
    return (whole[:first] + source.encode() + blank + whole[last:]).decode()


def package_of(path: Path) -> str:
    return path.parts[1].removesuffix(".py")


def draw(count: int, seed: int):
    """Yields (file, line, before, after, the new text of the file); lines are drawn evenly."""
    paths = sorted(path.relative_to(ROOT) for path in (ROOT / "jaxrope").rglob("*.py"))
    texts = {path: (ROOT / path).read_text() for path in paths}
    texts = {path: text for path, text in texts.items() if faults_of(text)}
    ends = list(itertools.accumulate(len(text.splitlines()) for text in texts.values()))
    random_ = random.Random(seed)
    for number in range(count):
        place = (number + random_.random()) / count * ends[-1]
        path, text = list(texts.items())[bisect.bisect_right(ends, place)]
        node, source = random_.choice(faults_of(text))
        before = " ".join(ast.get_source_segment(text, node).split())
        yield path, node.lineno, before, source, replaced(text, node, source)


def nearest(path: Path) -> list[str]:
    prefixes = tuple(NEAREST[package_of(path)].split())
    names = [p for p in sorted((ROOT / "tests").glob("*_test.py")) if p.name.startswith(prefixes)]
    assert names, f"no tests are near {path}"
    order = {p: next(i for i, x in enumerate(prefixes) if p.name.startswith(x)) for p in names}
    return [f"tests/{p.name}" for p in sorted(names, key=order.get)]


def run(tree: Path, tests: list[str], *arguments: str, seconds: float) -> str | None:
    """Returns the first test that fails, "" when the time is over, None if all pass."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--tb=no"]
    paths = f"{tree}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    compiled = str(ROOT / ".pytest_cache" / "jax")
    try:
        done = subprocess.run(
            [*command, *tests, *arguments],
            cwd=tree,
            env=os.environ | {"PYTHONPATH": paths, "JAX_COMPILATION_CACHE_DIR": compiled},
            capture_output=True,
            text=True,
            timeout=seconds,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        return ""
    if done.returncode in (0, 5):  # 5: nothing to run
        return None
    failing = re.search(r"^(?:FAILED|ERROR) (\S+?)(?: - .*)?$", done.stdout, re.MULTILINE)
    return failing.group(1) if failing else tests[0]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faults", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="go on with fault number")
    parser.add_argument("--seconds", type=float, default=900.0, help="of one run of tests")
    parser.add_argument("--workers", default="2")
    parser.add_argument("--rest", action="store_true", help="then the tests that CI leaves out")
    parser.add_argument("--list", action="store_true", help="only show the faults")
    args = parser.parse_args()
    counts = dict.fromkeys(("caught", "rest", "missed"), 0)
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        skipped = shutil.ignore_patterns(".git", ".venv*", ".pytest_cache", "runs", "__pycache__")
        shutil.copytree(ROOT, tree, ignore=skipped)
        if (ROOT.parent / "shared").exists():
            (Path(folder) / "shared").symlink_to((ROOT.parent / "shared").resolve())
        for path, line, before, after, text in itertools.islice(
            draw(args.faults, args.seed), args.first, None
        ):
            compile(text, str(path), "exec")
            print(f"{path}:{line}: {before[:70]}  ->  {after[:70]}", flush=True)
            if args.list:
                continue
            began = time.monotonic()
            how = dict(seconds=args.seconds)
            workers = ("-n", args.workers, "--dist", "loadfile")
            (tree / path).write_text(text)
            failing, result = run(tree, nearest(path), *workers, **how), "caught"
            if failing is None and args.rest:
                failing, result = run(tree, nearest(path), *workers, "-m", REST, **how), "rest"
            (tree / path).write_text((ROOT / path).read_text())
            if failing and run(tree, [failing], "-n", "0", "-m", "", **how) is not None:
                sys.exit(f"{failing} fails without a fault")
            result = "missed" if failing is None else result
            counts[result] += 1
            print(f"  {result} in {time.monotonic() - began:.0f} s: {failing or ''}", flush=True)
    if not args.list:
        total = sum(counts.values())
        print(f"{counts['caught']} of {total} caught: {counts['caught'] / total:.0%}")
        if args.rest:
            print(f"{counts['rest']} more by the tests that CI leaves out")
    return 0


REST = "slow or matrix"

if __name__ == "__main__":
    sys.exit(main())
