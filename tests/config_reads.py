"""Which keys of the configuration the package reads, by their whole path.

A small walk over the syntax trees that follows values of the configuration: from a parameter that
is annotated with (or called) `config`, through attributes, assignments, fields of dataclasses,
annotations, and arguments of calls, until nothing new is learnt. `config.eval.kv.buffer` reads
"eval.kv.buffer", and so does `options.buffer` where `options` is `bench.options.kv`.

A type is a dotted path into the configuration ("" is all of it), or the name of a class.
"""

import ast
import dataclasses
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from jaxrope.schema import rules

PATHS = {"Config": ""}  # class of the schema -> its path; filled by `sections`
NAMED = {"config": "Config"}  # parameters without an annotation, by what they are called


class Path(NamedTuple):
    """A value of the configuration: a section, or the whole."""

    key: str


class Instance(NamedTuple):
    """An object of a class of the package."""

    name: str


def sections(section: type[rules.Section], found: dict[str, str] | None = None) -> dict[str, str]:
    """Returns {class: its path} of a section and of all inside."""
    found = {} if found is None else found
    found.setdefault(section.__name__, section.PATH)
    for rule in rules.rules(section).values():
        inside = [rule.section] if isinstance(rule, rules.One) else []
        if isinstance(rule, rules.Select):
            inside = list(rule.sections.values())
        for other in inside:
            sections(other, found)
    return found


def places(section: type[rules.Section]) -> Iterator[str]:
    """Yields the dotted path of every key and section, whatever sections select."""
    for name, rule in rules.rules(section).items():
        yield section.key_of(name)
        inside = [rule.section] if isinstance(rule, rules.One) else []
        if isinstance(rule, rules.Select):
            inside = list(rule.sections.values())
        for other in inside:
            yield from places(other)


@dataclasses.dataclass
class Function:
    """A function of the package: its parameters' types, and what it returns."""

    node: ast.FunctionDef | ast.Lambda
    owner: str  # its class, or ""
    types: dict[str, set]
    returns: set = dataclasses.field(default_factory=set)


class Walk:
    """The walk over all modules.

    Attributes:
      read: the dotted keys that are read.
    """

    def __init__(self, modules: Mapping[str, ast.Module], section: type[rules.Section]):
        classes = sections(section)
        self.read: set[str] = set()
        self._places = set(places(section))
        self._paths = dict(classes)  # of the schema
        self._fields: dict[str, dict[str, set]] = {}
        self._functions: dict[str, list[Function]] = {}
        self._methods: dict[tuple[str, str], Function] = {}
        self._globals: dict[str, set] = {}
        for tree in modules.values():
            for node in ast.walk(tree):
                if isinstance(node, ast.ClassDef):
                    self._declare(node)
            for node in ast.walk(tree):
                if isinstance(node, ast.FunctionDef) and not hasattr(node, "owner"):
                    self._add(node, "")
        self._trees = modules

    def run(self) -> set[str]:
        """Walks until nothing new is learnt; returns the keys that are read."""
        before = None
        while before != self._size():
            before = self._size()
            for tree in self._trees.values():
                self._block(tree, {})
            for functions in self._functions.values():
                for function in functions:
                    self._function(function)
            for function in self._methods.values():
                self._function(function)
        return self.read

    def _size(self) -> tuple:
        functions = [f for group in self._functions.values() for f in group]
        functions += self._methods.values()
        known = sum(len(t) for f in functions for t in f.types.values())
        known += sum(len(f.returns) for f in functions)
        fields = sum(len(t) for fields in self._fields.values() for t in fields.values())
        return len(self.read), known, fields

    # --- what is declared

    def _declare(self, node: ast.ClassDef) -> None:
        fields = self._fields.setdefault(node.name, {})
        for item in node.body:
            if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
                fields.setdefault(item.target.id, set()).update(self._annotated(item.annotation))
            elif isinstance(item, ast.FunctionDef):
                item.owner = node.name
                self._add(item, node.name)

    def _add(self, node, owner: str) -> None:
        types = {}
        for arg in [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]:
            types[arg.arg] = self._annotated(arg.annotation)
            if arg.arg in NAMED and arg.annotation is None:
                types[arg.arg] = {Path("")}
            if arg.arg == "self" and owner:
                types["self"] = {Instance(owner)}
        returns = self._annotated(getattr(node, "returns", None))
        function = Function(node, owner, types, returns)
        if owner:
            self._methods[owner, node.name] = function
        else:
            self._functions.setdefault(node.name, []).append(function)

    def _annotated(self, annotation) -> set:
        """Returns the types that an annotation names, those of a container's items too."""
        if annotation is None:
            return set()
        names = {n.id for n in ast.walk(annotation) if isinstance(n, ast.Name)}
        names |= {n.attr for n in ast.walk(annotation) if isinstance(n, ast.Attribute)}
        for node in ast.walk(annotation):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                names.add(node.value)
        return self._named(names)

    def _named(self, names) -> set:
        found = {Path(self._paths[name]) for name in names if name in self._paths}
        return found | {Instance(n) for n in names if n in self._fields and n not in self._paths}

    # --- what is done

    def _function(self, function: Function) -> None:
        scope = {name: set(types) for name, types in function.types.items()}
        body = function.node.body
        if isinstance(body, list):
            for _ in range(2):  # a name may be used in a loop before it is set
                for statement in body:
                    self._statement(statement, scope, function)
        else:
            function.returns |= self._type(body, scope)

    def _block(self, tree, scope: dict) -> None:
        for statement in tree.body:
            self._statement(statement, scope, None)

    def _statement(self, node, scope: dict, function: Function | None) -> None:
        if isinstance(node, ast.ClassDef):
            return
        if isinstance(node, ast.FunctionDef):
            if function is not None:  # it sees the names around it
                inner = self._inner(node)
                for name, types in scope.items():
                    if name not in inner.types:
                        inner.types[name] = set(types)
            return
        if isinstance(node, ast.Assign):
            types = self._type(node.value, scope)
            for target in node.targets:
                self._bind(target, node.value, types, scope)
            return
        if isinstance(node, ast.AugAssign):
            self._type(node.value, scope)
            return
        if isinstance(node, ast.AnnAssign) and node.value is not None:
            types = self._type(node.value, scope) | self._annotated(node.annotation)
            self._bind(node.target, node.value, types, scope)
            return
        if isinstance(node, ast.For):
            self._bind(node.target, node.iter, self._type(node.iter, scope), scope)
        if isinstance(node, ast.Return) and node.value is not None and function is not None:
            function.returns |= self._type(node.value, scope)
            return
        if isinstance(node, ast.With):
            for item in node.items:
                types = self._type(item.context_expr, scope)
                if item.optional_vars is not None:
                    self._bind(item.optional_vars, item.context_expr, types, scope)
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.expr):
                self._type(child, scope)
            elif isinstance(child, ast.stmt):
                self._statement(child, scope, function)
            elif isinstance(child, ast.ExceptHandler | ast.match_case):
                for statement in child.body:
                    self._statement(statement, scope, function)

    def _inner(self, node: ast.FunctionDef) -> Function:
        return next(f for f in self._functions[node.name] if f.node is node)

    def _bind(self, target, value, types: set, scope: dict) -> None:
        if isinstance(target, ast.Name):
            scope[target.id] = scope.get(target.id, set()) | types
        elif isinstance(target, ast.Tuple):
            same = isinstance(value, ast.Tuple) and len(value.elts) == len(target.elts)
            for i, element in enumerate(target.elts):
                part = self._type(value.elts[i], scope) if same else types
                self._bind(element, value.elts[i] if same else value, part, scope)
        elif isinstance(target, ast.Attribute):
            for owner in self._type(target.value, scope):
                if isinstance(owner, Instance):
                    fields = self._fields[owner.name]
                    fields.setdefault(target.attr, set()).update(types)

    def _type(self, node, scope: dict) -> set:
        """Returns the types an expression may have, and notes what it reads."""
        if isinstance(node, ast.Name):
            return set(scope.get(node.id, ()))
        if isinstance(node, ast.Attribute):
            return self._attribute(self._type(node.value, scope), node.attr)
        if isinstance(node, ast.Call):
            return self._call(node, scope)
        if isinstance(node, ast.Lambda):
            self._lambda(node, scope)
            return set()
        if isinstance(node, ast.NamedExpr):
            types = self._type(node.value, scope)
            self._bind(node.target, node.value, types, scope)
            return types
        if isinstance(node, ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp):
            return self._comprehension(node, scope)
        if isinstance(node, ast.Subscript):
            return self._type(node.value, scope) | self._nothing(self._type(node.slice, scope))
        types = set()
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.expr):
                types |= self._type(child, scope)
        keeps = isinstance(node, ast.IfExp | ast.BoolOp | ast.Tuple | ast.List | ast.Starred)
        return types if keeps or isinstance(node, ast.Dict) else set()

    def _nothing(self, _types: set) -> set:
        return set()

    def _attribute(self, owners: set, name: str) -> set:
        types = set()
        for owner in owners:
            if isinstance(owner, Path):
                key = f"{owner.key}.{name}" if owner.key else name
                if key in self._places:
                    self.read.add(key)
                    types.add(Path(key))
            else:
                types |= self._fields[owner.name].get(name, set())
                method = self._methods.get((owner.name, name))
                if method is not None:
                    types |= method.returns
        return types

    def _comprehension(self, node, scope: dict) -> set:
        inside = dict(scope)
        for generator in node.generators:
            types = self._type(generator.iter, inside)
            self._bind(generator.target, generator.iter, types, inside)
            for condition in generator.ifs:
                self._type(condition, inside)
        if isinstance(node, ast.DictComp):
            return self._type(node.key, inside) | self._type(node.value, inside)
        return self._type(node.elt, inside)

    def _lambda(self, node: ast.Lambda, scope: dict, given: list[set] | None = None) -> set:
        inside = dict(scope)
        for i, arg in enumerate(node.args.args):
            inside[arg.arg] = {Path("")} if arg.arg in NAMED else set()
            if given is not None and i < len(given):
                inside[arg.arg] |= given[i]
        return self._type(node.body, inside)

    def _call(self, node: ast.Call, scope: dict) -> set:
        given = [self._type(arg, scope) for arg in node.args]
        named = {k.arg: self._type(k.value, scope) for k in node.keywords}
        name = _last(node.func)
        if isinstance(node.func, ast.Attribute):
            owners = self._type(node.func.value, scope)
            if name == "to_dict":
                self._all_of(owners)
                return owners
            methods = [self._methods.get((o.name, name)) for o in owners if isinstance(o, Instance)]
            if any(methods):
                return self._pass([m for m in methods if m], given, named, skip=1)
            if any(isinstance(owner, Path) for owner in owners):
                return self._attribute(owners, name)  # a method of a section
        if name in ("asdict", "vars", "fields", "dict"):
            self._all_of(set().union(*given) if given else set())
            return set().union(*given) if given else set()
        if name in ("replace", "read", "copy"):
            return set().union(set(), *given)
        if name == "getattr" and len(node.args) > 1 and isinstance(node.args[1], ast.Constant):
            return self._attribute(given[0], node.args[1].value)
        if name == "get" and len(node.args) == 2 and isinstance(node.args[1], ast.Constant):
            if Path("") in given[0]:
                self.read.add(str(node.args[1].value))
        if name in self._fields and name not in self._paths:  # an object is made
            return self._construct(name, given, named)
        functions = self._functions.get(name or "", [])
        if name == "partial" and node.args:
            functions = self._functions.get(_last(node.args[0]) or "", [])
            given = given[1:]
        return self._pass(functions, given, named, skip=0)

    def _construct(self, name: str, given: list[set], named: dict) -> set:
        fields = self._fields[name]
        init = self._methods.get((name, "__init__"))
        if init is not None:
            self._pass([init], given, named, skip=1)
        else:
            for field, types in zip(fields, given, strict=False):
                fields[field] |= types
            for field, types in named.items():
                if field in fields:
                    fields[field] |= types
        return {Instance(name)}

    def _pass(self, functions, given: list[set], named: dict, skip: int) -> set:
        returns = set()
        for function in functions:
            names = [arg.arg for arg in function.node.args.args][skip:]
            for parameter, types in [*zip(names, given, strict=False), *named.items()]:
                if parameter in function.types:
                    function.types[parameter] |= types
            returns |= function.returns
        return returns

    def _all_of(self, owners: set) -> None:
        """Notes a section as read whole; not one with sections inside, which no program takes so
        but to write it down."""
        self.read |= {f"{owner.key}.*" for owner in owners if isinstance(owner, Path)}


def _last(node) -> str | None:
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else None


def unread(keys: Iterator[str], read: set[str]) -> list[str]:
    """Returns the keys that are not read: neither by their path nor with a whole section that has
    no section inside."""
    keys = list(keys)
    tops = {key.rpartition(".")[0] for key in keys}
    whole = {key.removesuffix(".*") for key in read if key.endswith(".*")}
    plain = {top for top in whole if top and not any(o.startswith(f"{top}.") for o in tops)}
    return [k for k in keys if k not in read and k.rpartition(".")[0] not in plain]
