"""Variables that outlive a call, what functions do to them, and objects made on import."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field

from gpucheck.tools.audit.detectors.common import assigned, local_values
from gpucheck.tools.audit.package import Function, Module, Package

CONTAINERS = ("dict", "defaultdict", "OrderedDict", "WeakValueDictionary", "WeakKeyDictionary")
CHANGES = frozenset({"update", "clear", "pop", "append", "extend", "insert", "remove"})


@dataclass
class Variable:
    """A name of a module, or an attribute that a class sets up in ``__init__``, and what functions do with it."""

    module: Module
    name: str
    definition: ast.stmt
    value: ast.expr | None
    owner: ast.ClassDef | None = None
    writes: list[tuple[ast.AST, ast.AST, ast.expr | None, ast.expr | None]] = field(default_factory=list)
    """(function, node, key or None where the name itself is set, value)"""
    changes: list[ast.AST] = field(default_factory=list)  # calls like .update()
    tested: bool = False  # looked up before it is filled

    @property
    def is_container(self) -> bool:
        """Whether it starts as a dictionary of some sort."""
        value = self.value
        if isinstance(value, ast.Call):
            function = value.func
            return getattr(function, "attr", getattr(function, "id", "")) in CONTAINERS
        return isinstance(value, (ast.Dict, ast.DictComp))

    @property
    def expression(self) -> str:
        """How its module calls it."""
        return f"{self.owner.name}.{self.name}" if self.owner else self.name

    @property
    def writer(self) -> str:
        """Qualified name of the first function that fills it."""
        return self.module.qualified(self.writes[0][0])


def variables(package: Package) -> Iterator[Variable]:
    """The variables of all modules, and dictionaries that objects set up, with what functions do to them."""
    for module in package:
        for statement in module.tree.body:
            for target, value in assigned(statement):
                if isinstance(target, ast.Name):
                    yield _with_uses(Variable(module, target.id, statement, value))
        for owner in module.nodes(ast.ClassDef):
            for statement in _initialiser(owner):
                for target, value in assigned(statement):
                    if _is_self(target):
                        assert isinstance(target, ast.Attribute)
                        variable = Variable(module, target.attr, statement, value, owner)
                        if variable.is_container:
                            yield _with_uses(variable)


def instances(package: Package) -> Iterator[tuple[Module, ast.stmt, str, str]]:
    """Module-level objects of the package's own classes: (module, statement, name, full name of the class)."""
    for module in package:
        for statement in module.tree.body:
            for target, value in assigned(statement):
                if isinstance(target, ast.Name) and isinstance(value, ast.Call):
                    owner = package.resolve(module, value.func)
                    definition = package.definition(owner)
                    if definition and isinstance(definition[1], ast.ClassDef):
                        yield module, statement, target.id, owner


def is_local(function: ast.AST, variable: Variable) -> bool:
    """Whether the function has a name of its own that hides the variable."""
    if variable.owner or _is_global(function, variable):
        return False
    arguments = getattr(function, "args", None)
    named = {node.arg for node in ast.walk(arguments) if isinstance(node, ast.arg)} if arguments else set()
    return variable.name in named or variable.name in local_values(function)


def _is_global(function: ast.AST, variable: Variable) -> bool:
    return any(isinstance(node, ast.Global) and variable.name in node.names for node in ast.walk(function))


def _initialiser(owner: ast.ClassDef) -> list[ast.stmt]:
    for part in owner.body:
        if isinstance(part, ast.FunctionDef) and part.name == "__init__":
            return part.body
    return []


def _is_self(node: ast.AST, name: str = "") -> bool:
    return (
        isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
        and (not name or node.attr == name)
    )


def _with_uses(variable: Variable) -> Variable:
    """Fills in what functions do to a variable."""
    roots: list[ast.stmt] = variable.owner.body if variable.owner else variable.module.tree.body
    for root in roots:
        if isinstance(root, (*Function, ast.ClassDef)):
            for node in ast.walk(root):
                if _is_self(node, variable.name) if variable.owner else _is_name(node, variable.name):
                    _note_use(variable, node)
    return variable


def _is_name(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name


def _note_use(variable: Variable, node: ast.AST) -> None:
    module = variable.module
    function = module.function_of(node)
    if function is None or function.name == "__init__" and variable.owner:
        return
    parent = module.parents[node]
    outer = module.parents.get(parent)
    if isinstance(parent, ast.Subscript) and isinstance(parent.ctx, ast.Store) and outer is not None:
        value = next((value for target, value in assigned(outer) if target is parent), None)
        variable.writes.append((function, outer, parent.slice, value))
    elif isinstance(getattr(node, "ctx", None), ast.Store) and not variable.owner and _is_global(function, variable):
        value = next((value for target, value in assigned(parent) if target is node), None)
        variable.writes.append((function, parent, None, value))
    elif isinstance(parent, ast.Attribute) and isinstance(outer, ast.Call) and outer.func is parent:
        if parent.attr == "setdefault" and len(outer.args) == 2:
            variable.writes.append((function, outer, outer.args[0], outer.args[1]))
            variable.tested = True
        elif parent.attr in CHANGES and not is_local(function, variable):
            variable.changes.append(outer)
        elif parent.attr == "get":
            variable.tested = True
    elif isinstance(parent, ast.Compare):
        variable.tested = True  # ``key in cache`` and ``value is None``
