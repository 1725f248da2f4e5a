"""Which keys of the configuration the package reads, by their whole path.

A small walk over syntax trees that follows values of the configuration: from a parameter that is
annotated with a section of the schema, or called `config`, through attributes, assignments, fields
of objects, and arguments and results of functions, until nothing new is learnt. In
`options = bench.options.kv; options.buffer` it sees "eval.kv.buffer" read. It does not look at the
order of statements, and takes containers for the union of what is in them.
"""

import ast
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from jaxrope.schema import Config, rules

_CONTAINER_METHODS = {"items", "values", "get", "copy", "pop", "setdefault"}
_PASSED_ON = {"sorted", "list", "tuple", "zip", "enumerate", "dict", "set", "next", "max", "min"}
_PASSED_ON |= {"reversed", "iter", "replace", "read", "deepcopy", "from_main"}
_WHOLE = {"asdict", "vars", "fields"}


class Path(NamedTuple):
    """A section of the configuration, or the whole of it, "", or a value in it."""

    key: str


class Name(NamedTuple):
    """A text that is the name of a key: what `getattr` takes."""

    text: str


class Module(NamedTuple):
    """A module of the package."""

    name: str


class Class(NamedTuple):
    """A class of the package; `section`: that of a task, whose functions see no other one."""

    module: str
    name: str


class Object(NamedTuple):
    """An object of a class."""

    of: Class
    section: str = ""


class Function:
    """A function of the package, and what is known of its parameters and its result."""

    def __init__(self, node, module: str, owner: Class | None, scope: dict):
        self.node, self.module, self.owner, self.scope = node, module, owner, scope
        self.parameters: dict[str, set] = {}
        self.returns: set = set()

    @property
    def names(self) -> list[str]:
        """The parameters that can be given by position, `self` excepted."""
        args = [*self.node.args.posonlyargs, *self.node.args.args]
        return [arg.arg for arg in args][1 if self.owner and args[:1] else 0 :]


def inside(rule) -> list[type[rules.Section]]:
    """Returns the sections that a rule allows."""
    if isinstance(rule, rules.One):
        return [rule.section]
    return list(rule.sections.values()) if isinstance(rule, rules.Select) else []


def walk_schema(section: type[rules.Section]) -> Iterator[tuple[str, type | None]]:
    """Yields (dotted key, None), and (its place, the class) of every section."""
    yield section.PATH, section
    for name, rule in rules.rules(section).items():
        yield section.key_of(name), None
        for other in inside(rule):
            yield from walk_schema(other)


class Walk:
    """The walk over modules.

    Attributes:
      read: the dotted keys that are read, "SECTION.*" for a section that is taken whole.
    """

    def __init__(self, trees: Mapping[str, ast.Module]):
        """Takes {dotted name of a module: its tree}."""
        self.read: set[str] = set()
        self._keys = {key for key, _ in walk_schema(Config) if key}
        self._words = {key.rpartition(".")[2] for key in self._keys}
        self._sections = {c.__name__: place for place, c in walk_schema(Config) if c is not None}
        self._places = {Path(place) for place in self._sections.values()}
        self._trees, self._learnt = trees, True
        self._globals: dict[str, dict[str, set]] = {name: {} for name in trees}
        self._fields: dict[Class, dict[str, set]] = {}
        self._order: dict[Class, list[str]] = {}
        self._texts: dict[Class, list[set[str]]] = {}  # words of the annotations of fields
        self._methods: dict[tuple[Class, str], Function] = {}
        self._functions: dict[int, Function] = {}
        for module, tree in trees.items():
            self._declare(module, tree)
        self._followed = set(self._holders())

    def run(self) -> set[str]:
        """Walks until nothing new is learnt; returns the keys that are read."""
        while self._learnt:
            self._learnt = False
            for module, tree in self._trees.items():
                self._statements(tree.body, self._globals[module], module, None)
            for function in list(self._functions.values()):
                self._body(function)
        return self.read

    def _add(self, types: set, more: set) -> None:
        more = {kind for kind in more if not isinstance(kind, Module | Class)}
        more = {k for k in more if not isinstance(k, Object) or k.of.name in self._followed}
        if not more <= types:
            types |= more
            self._learnt = True

    # --- what is declared

    def _declare(self, module: str, tree: ast.Module) -> None:
        scope = self._globals[module]
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    name, whole = alias.asname or alias.name, f"{node.module}.{alias.name}"
                    result = (
                        Module(whole)
                        if whole in self._trees
                        else Name(f"{node.module}:{alias.name}")
                    )
                    scope.setdefault(name, set()).add(result)
            elif isinstance(node, ast.ClassDef):
                self._class(node, module)
        for node in tree.body:
            if isinstance(node, ast.FunctionDef):
                scope.setdefault(node.name, set()).add(self._function(node, module, None, scope))

    def _holders(self) -> Iterator[str]:
        """Yields the names of classes whose objects hold a part of the configuration, or functions
        that may be called with one, by what their fields say; others need not be followed.
        """
        names, before = {*self._sections, "Callable"}, None
        while before != names:
            before = set(names)
            for of, fields in self._texts.items():
                if any(not names.isdisjoint(words) for words in fields):
                    names.add(of.name)
        return iter(names)

    def _class(self, node: ast.ClassDef, module: str) -> None:
        of, scope = Class(module, node.name), self._globals[module]
        scope.setdefault(node.name, set()).add(of)
        self._fields[of], self._order[of], self._texts[of] = {}, [], []
        for item in node.body:
            if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
                self._order[of].append(item.target.id)
                self._fields[of][item.target.id] = set()
                words = set(re.findall(r"\w+", ast.unparse(item.annotation)))
                is_config = item.target.id in ("config", "options")
                self._texts[of].append(words | ({"Config"} if is_config else set()))
            elif isinstance(item, ast.FunctionDef):
                self._methods[of, item.name] = self._function(item, module, of, scope)

    def _function(self, node, module: str, owner: Class | None, scope: dict) -> Function:
        if id(node) not in self._functions:
            self._functions[id(node)] = Function(node, module, owner, scope)
        return self._functions[id(node)]

    def _annotated(self, annotation, module: str) -> set:
        """Returns what an annotation names, the items of a container included."""
        result = set()
        for node in ast.walk(annotation) if annotation is not None else ():
            name = node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", None)
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                name = node.value
            if name in self._sections:
                result.add(Path(self._sections[name]))
            elif name is not None:
                of = self._resolve(self._globals[module].get(name, set()))
                if isinstance(node, ast.Attribute):
                    of = self._attribute(
                        self._type(node.value, self._globals[module], module), name
                    )
                result |= {Object(c) for c in of if isinstance(c, Class)}
        return result

    def _resolve(self, types: set) -> set:
        """Returns types with what is imported by name from another module in place."""
        result = set()
        for kind in types:
            module, _, name = kind.text.partition(":") if isinstance(kind, Name) else ("", "", "")
            if not name:
                result.add(kind)
            elif module in self._globals:
                result |= self._resolve(self._globals[module].get(name, set()) - {kind})
        return result

    # --- what is done

    def _body(self, function: Function) -> None:
        node, module = function.node, function.module
        args = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        scope = dict(function.scope)
        for i, arg in enumerate(args):
            types = function.parameters.setdefault(arg.arg, set())
            self._add(types, self._annotated(arg.annotation, module))
            if arg.arg == "config" and arg.annotation is None:
                self._add(types, {Path("")})
            if i == 0 and function.owner and arg.arg in ("self", "cls"):
                self._add(types, {Object(function.owner)})
            scope[arg.arg] = set(types)
        if isinstance(node, ast.Lambda):
            self._add(function.returns, self._type(node.body, scope, module))
            return
        self._add(function.returns, self._annotated(node.returns, module))
        if (
            any(scope[arg.arg] for arg in args)
            or function.scope.keys() - self._globals[module].keys()
        ):
            self._statements(node.body, scope, module, function)  # else nothing is learnt in it

    def _statements(self, body: list, scope: dict, module: str, function: Function | None) -> None:
        for statement in body:
            self._statement(statement, scope, module, function)

    def _statement(self, node, scope: dict, module: str, function: Function | None) -> None:
        if isinstance(node, ast.ClassDef):
            self._class_body(node, module)
        elif isinstance(node, ast.FunctionDef):
            if function is not None:  # a function inside sees the names around it
                inner = self._function(node, module, None, scope)
                inner.scope = {**inner.scope, **scope}
                scope.setdefault(node.name, set()).add(inner)
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                self._bind(target, node.value, scope, module)
        elif isinstance(node, ast.AnnAssign | ast.AugAssign):
            if node.value is not None:
                self._bind(node.target, node.value, scope, module)
        elif isinstance(node, ast.Return):
            if node.value is not None and function is not None:
                self._add(function.returns, self._type(node.value, scope, module))
        else:
            self._compound(node, scope, module, function)

    def _class_body(self, node: ast.ClassDef, module: str) -> None:
        of = Class(module, node.name)
        for item in node.body:
            if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
                types = self._annotated(item.annotation, module)
                if item.value is not None:
                    types |= self._type(item.value, self._globals[module], module)
                self._add(self._fields[of][item.target.id], types)

    def _compound(self, node, scope: dict, module: str, function: Function | None) -> None:
        if isinstance(node, ast.For):
            self._bind(node.target, node.iter, scope, module)
        for item in getattr(node, "items", []):  # of a `with`
            if item.optional_vars is not None:
                self._bind(item.optional_vars, item.context_expr, scope, module)
            self._type(item.context_expr, scope, module)
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.expr):
                self._type(child, scope, module)
            elif isinstance(child, ast.stmt):
                self._statement(child, scope, module, function)
            elif isinstance(child, ast.ExceptHandler | ast.match_case):
                self._statements(child.body, scope, module, function)

    def _bind(self, target, value, scope: dict, module: str) -> None:
        if isinstance(target, ast.Tuple | ast.List):
            parts = [value] * len(target.elts)
            if isinstance(value, ast.Tuple) and len(value.elts) == len(target.elts):
                parts = value.elts
            for element, part in zip(target.elts, parts, strict=True):
                self._bind(element, part, scope, module)
            return
        types = self._type(value, scope, module)
        if isinstance(target, ast.Name) and scope is self._globals[module]:
            self._add(scope.setdefault(target.id, set()), types)
        elif isinstance(target, ast.Name):  # of a function: it is walked again from its parameters
            scope[target.id] = scope.get(target.id, set()) | types
        elif isinstance(target, ast.Starred):
            self._bind(target.value, value, scope, module)
        elif isinstance(target, ast.Attribute):
            for owner in self._type(target.value, scope, module):
                if isinstance(owner, Object):
                    fields = self._fields[owner.of]
                    self._add(fields.setdefault(target.attr, set()), types)

    def _type(self, node, scope: dict, module: str) -> set:
        """Returns what an expression may be, and notes what it reads."""
        if isinstance(node, ast.Name):
            return self._resolve(scope.get(node.id) or self._globals[module].get(node.id, set()))
        if isinstance(node, ast.Attribute):
            return self._attribute(self._type(node.value, scope, module), node.attr)
        if isinstance(node, ast.Lambda):
            function = self._function(node, module, None, scope)
            function.scope = {**function.scope, **scope}
            return {function}
        if isinstance(node, ast.Call):
            return self._call(node, scope, module)
        if isinstance(node, ast.NamedExpr):
            self._bind(node.target, node.value, scope, module)
            return self._type(node.value, scope, module)
        if isinstance(node, ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp):
            within = dict(scope)
            for generator in node.generators:
                self._bind(generator.target, generator.iter, within, module)
                for condition in generator.ifs:
                    self._type(condition, within, module)
            results = [node.elt] if not isinstance(node, ast.DictComp) else [node.key, node.value]
            return set().union(*(self._type(result, within, module) for result in results))
        children = [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.expr)]
        children = node.values if isinstance(node, ast.Dict) else children
        types = [self._type(child, scope, module) for child in children]
        keeps = ast.IfExp | ast.BoolOp | ast.Tuple | ast.List | ast.Dict | ast.Starred | ast.BinOp
        if isinstance(node, ast.Subscript):
            return types[0]
        return set().union(*types) if isinstance(node, keeps) else set()

    def _attribute(self, owners: set, name: str) -> set:
        result = set()
        for owner in owners:
            if isinstance(owner, Path):
                key = f"{owner.key}.{name}" if owner.key else name
                if key in self._keys:
                    self._add(self.read, {key})
                    result |= {Path(key)} & self._places
            elif isinstance(owner, Module):
                whole = f"{owner.name}.{name}"
                here = self._globals[owner.name].get(name, set())
                result |= (
                    {Module(whole)} if whole in self._trees and not here else self._resolve(here)
                )
            elif isinstance(owner, Object):
                fields = self._fields[owner.of]
                if owner.section and name == "options":
                    result.add(Path(owner.section))
                    continue
                result |= fields.get(name, set())
                method = self._methods.get((owner.of, name))
                if method is not None:
                    result |= {method} | method.returns  # called, or a property
        return result

    def _call(self, node: ast.Call, scope: dict, module: str) -> set:
        positional = [self._argument(arg, scope, module) for arg in node.args]
        named = {k.arg: self._argument(k.value, scope, module) for k in node.keywords}
        everything = set().union(*positional, *named.values())
        func, owners = node.func, set()
        name = func.attr if isinstance(func, ast.Attribute) else getattr(func, "id", "")
        if isinstance(func, ast.Attribute):
            owners = self._type(func.value, scope, module)
        if name == "to_dict" or name in _WHOLE:
            self._whole(owners | everything)
            return owners | everything
        if name == "getattr" and len(positional) > 1:
            names = {kind.text for kind in positional[1] if isinstance(kind, Name)}
            return set().union(*(self._attribute(positional[0], text) for text in names))
        if name == "partial" and positional:  # its function is called with these, and more
            for function in positional[0]:
                if isinstance(function, Function):
                    self._pass(function, positional[1:], named)
            return {f for f in positional[0] if isinstance(f, Function)}
        result = set()
        for callee in self._type(func, scope, module):
            if isinstance(callee, Function):
                result |= self._pass(callee, positional, named)
            elif isinstance(callee, Class):
                result |= self._construct(callee, node, positional, named)
        if name in _CONTAINER_METHODS:
            result |= owners
        if any(isinstance(owner, Path) for owner in owners):
            result |= owners  # a method of a section, such as halved(), gives one
        return result | everything if name in _PASSED_ON else result

    def _argument(self, node, scope: dict, module: str) -> set:
        is_name = isinstance(node, ast.Constant) and node.value in self._words
        return {Name(node.value)} if is_name else self._type(node, scope, module)

    def _pass(self, function: Function, positional: list, named: dict) -> set:
        for name, types in [*zip(function.names, positional, strict=False), *named.items()]:
            if name is not None:
                self._add(function.parameters.setdefault(name, set()), types)
        return function.returns

    def _construct(self, of: Class, node: ast.Call, positional: list, named: dict) -> set:
        if of not in self._fields:
            return set()
        init = self._methods.get((of, "__init__"))
        if init is not None:
            self._pass(init, positional, named)
        fields = self._fields[of]
        values = dict(zip(self._order[of], positional, strict=False)) | named
        for name, types in values.items():
            if name in fields and name != "section":
                self._add(fields[name], types)
        if "section" in self._order[of]:
            self._task(of, node, values)
        return {Object(of)}

    def _task(self, of: Class, node: ast.Call, values: dict) -> None:
        """A task of `evaluate`: its functions see the section of config.eval that it names."""
        for text in {kind.text for kind in values.get("section", ()) if isinstance(kind, Name)}:
            place = f"eval.{text}"
            if place not in self._keys:
                continue
            for kind in values.get("counted_by", ()) or {Name("trials")}:
                if isinstance(kind, Name):
                    self._attribute({Path(place)}, kind.text)
            values_of = {"make": {Object(Class(of.module, "Request"), place)}}
            values_of["needs_text"] = {Path(place)}
            for name, types in values_of.items():
                for function in values.get(name, ()):
                    if isinstance(function, Function):
                        last = function.names[-1:]
                        self._pass(function, [], {last[0]: types} if last else {})

    def _whole(self, owners: set) -> None:
        """Notes that sections are taken whole."""
        self._add(self.read, {f"{owner.key}.*" for owner in owners if isinstance(owner, Path)})


def unread(keys: list[str], read: set[str]) -> list[str]:
    """Returns the keys that are not read: neither by their path, nor with a whole section that has
    no section inside. A section with others inside is taken whole only to be written down.
    """
    places = {key.rpartition(".")[0] for key in keys}
    whole = {key.removesuffix(".*") for key in read if key.endswith(".*")}
    plain = {place for place in whole if not any(p.startswith(f"{place}.") for p in places)}
    return [k for k in keys if k not in read and k.rpartition(".")[0] not in plain - {""}]
