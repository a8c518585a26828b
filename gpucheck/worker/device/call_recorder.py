"""The calls that a case makes, written down as Python: of the library or of our own kernels, and of torch in between.

What is written is a straight line of statements. Tensors come from the inputs of the case or are kept as arguments;
objects of the library are rebuilt from their attributes. Each statement is on disk before it runs, so that what never
returns is there too.
"""

from __future__ import annotations

import json
import pkgutil
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import Enum
from importlib import import_module
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode, resolve_name

from gpucheck.checks import kernels as own_kernels
from gpucheck.records.replay_files import PROGRAM
from gpucheck.verify.views import to_device
from gpucheck.worker.device.python_source import Node, alias, call, text
from gpucheck.worker.protocol import ARGUMENT

RESULT = re.compile(r"\br\d+\b")


class Unwritable(Exception):
    """A value that no expression makes again."""


class Recorder(TorchFunctionMode):
    """Writes down the calls made while it is entered.

    Args:
        folder: gets the program and the tensors it takes beside the inputs.
        inputs: the tensors that are the inputs of the case, by name.
        adapter: whose library modules are watched; None where the case takes none.
    """

    def __init__(self, folder: Path, inputs: Mapping[str, Tensor], adapter: Any) -> None:
        super().__init__()
        self.folder, self.adapter = folder, adapter
        self._names: dict[int, str] = {}
        self._alive: list[Any] = []  # whatever has a name, so that no other object gets its id
        self._inside = 0
        self._modules: dict[str, str] = {}  # module -> what the program calls it
        self._lines: list[str] = []
        self._pure: dict[int, str] = {}  # line -> what it makes, of lines that do nothing else
        self._arguments = 0
        self._results = 0
        self._problem = ""
        for name, tensor in inputs.items():
            self._name(tensor, f'inputs["{name}"]')

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Records what is called inside, on this thread."""
        watched = [(self.adapter, name, value) for name, value in vars(self.adapter or object).items()]
        watched = [entry for entry in watched if isinstance(entry[2], ModuleType)]
        functions = list(_own_functions())
        for owner, name, module in watched:
            setattr(owner, name, _Watched(module, self))
        for module, name, function in functions:
            setattr(module, name, self.recorded(function, module.__name__, name))
        try:
            with self:
                yield
        finally:
            for owner, name, value in (*watched, *functions):
                setattr(owner, name, value)

    def recorded(self, function: FunctionType, module: str, name: str) -> Callable[..., Any]:
        """A function that writes down how it is called, unless a recorded one calls it."""

        def run(*args: Any, **kwargs: Any) -> Any:
            if self._inside:
                return function(*args, **kwargs)
            return self._run(function, lambda: f"{self._module(module)}.{name}", args, kwargs)

        return run

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._inside:
            return func(*args, **kwargs)
        self._inside += 1
        try:
            result = func(*args, **kwargs)
        finally:
            self._inside -= 1
        in_place = func.__name__ == "__setitem__" or (func.__name__.endswith("_") and func.__name__[:2] != "__")
        if in_place or any(True for _ in _tensors(result)):
            self._write(lambda: self._torch_call(func, args, kwargs), result, pure=not in_place)
        return result

    def end(self, outputs: Mapping[str, Tensor]) -> None:
        """Says what the outputs of the case are; without it, the program never came that far."""
        self._dump(self._guarded(lambda: {name: self._result(name, value) for name, value in outputs.items()}))

    def _result(self, name: str, value: Tensor) -> str:
        if id(value) not in self._names:
            raise Unwritable(f"output {name} comes from a call that is not known")
        return self._names[id(value)]

    def _run(self, function: Callable[..., Any], name: Callable[[], str], args: Any, kwargs: Any) -> Any:
        begun = len(self._lines)
        target = f"r{self._results + 1}"
        node = self._guarded(lambda: self._call(name(), args, kwargs))
        if node is not None:
            self._lines.append(text(("", [("", f"{target} = "), ("", node)], ""), 4))
            self._results += 1
        self._dump(None)
        self._inside += 1
        try:
            result = function(*args, **kwargs)
        finally:
            self._inside -= 1
        if result is None and len(self._lines) > begun:
            self._lines[-1] = self._lines[-1].removeprefix(f"{target} = ")
        self._name(result, target)
        return result

    def _write(self, node: Callable[[], Node], result: Any, *, pure: bool) -> None:
        made = self._guarded(node)
        if made is None:
            return
        self._results += 1
        target = f"r{self._results}"
        if pure:
            self._pure[len(self._lines)] = target
        self._lines.append(text(("", [("", f"{target} = "), ("", made)], ""), 4))
        self._name(result, target)

    def _torch_call(self, func: Any, args: Any, kwargs: Any) -> Node:
        name, owner = func.__name__, func.__self__ if func.__name__ == "__get__" else None
        if owner is not None:
            return ("", [("", self._expression(args[0])), ("", f".{owner.__name__}")], "")
        if getattr(Tensor, name, None) is func and not name.startswith("__"):
            return self._call(f"{text(self._expression(args[0]), 0)}.{name}", args[1:], kwargs)
        name = resolve_name(func)
        if name is None:
            raise Unwritable(f"torch function {func}")
        return self._call(name, args, kwargs)

    def _call(self, name: str, args: Any, kwargs: Any) -> Node:
        given = [("", self._expression(arg)) for arg in args]
        return call(name, given + [(f"{key}=", self._expression(value)) for key, value in kwargs.items()])

    def _guarded(self, make: Callable[[], Any]) -> Any:
        """What ``make`` gives; None once something could not be written, and the problem is noted."""
        if self._problem:
            return None
        try:
            return make()
        except Unwritable as reason:
            self._problem = f"it cannot be written down: {reason}"
            return None

    def _dump(self, outputs: Mapping[str, str] | None) -> None:
        lines = needed(self._lines, self._pure, tuple((outputs or {}).values()))
        lines, named = renumbered(lines, outputs or {})
        content = {
            "modules": self._modules,
            "lines": lines,
            "outputs": None if outputs is None else named,
            "arguments": self._arguments,
            "problem": self._problem,
        }
        (self.folder / PROGRAM).write_text(json.dumps(content), encoding="utf-8")

    def _module(self, module: str) -> str:
        if module not in self._modules:
            self._modules[module] = alias(module, self._modules.values())
        return self._modules[module]

    def _name(self, value: Any, path: str, depth: int = 4) -> None:
        """Gives a name to a value and to what can be reached from it."""
        if isinstance(value, (type, ModuleType, FunctionType, str, int, float, torch.dtype, Enum)) or not depth:
            return
        if isinstance(value, (tuple, list)):
            members = [(f"{path}[{index}]", member) for index, member in enumerate(value)]
        elif isinstance(value, dict):
            members = [(f"{path}[{key!r}]", member) for key, member in value.items() if isinstance(key, (str, int))]
        elif isinstance(value, Tensor):
            members = []
        elif hasattr(value, "__dict__"):
            members = [(f"{path}.{key}", member) for key, member in vars(value).items()]
        else:
            return
        if id(value) in self._names:
            return
        self._names[id(value)] = path
        self._alive.append(value)
        for name, member in members:
            self._name(member, name, depth - 1)

    def _expression(self, value: Any) -> Node:
        """What makes a value again."""
        if id(value) in self._names:
            return self._names[id(value)]
        if isinstance(value, Tensor):
            return self._argument(value)
        if isinstance(value, Enum):
            return f"{self._global(type(value))}.{value.name}"
        if value is None or value is ... or isinstance(value, (bool, int, str, float, torch.dtype, torch.device)):
            return _literal(value)
        if isinstance(value, slice):
            return call("slice", [("", self._expression(part)) for part in (value.start, value.stop, value.step)])
        if isinstance(value, (list, tuple, dict)):
            return self._collection(value)
        if isinstance(value, (type, FunctionType)) or not hasattr(value, "__dict__") or _is_kernel(value):
            return self._global(value)
        return self._known(value) or self._rebuilt(value)

    def _collection(self, value: Any) -> Node:
        if isinstance(value, dict):
            return ("{", [(f"{key!r}: ", self._expression(member)) for key, member in value.items()], "}")
        members = [("", self._expression(member)) for member in value]
        if isinstance(value, list):
            return ("[", members, "]")
        if hasattr(value, "_fields"):
            return call(self._global(type(value)), members)
        if not isinstance(value, torch.Size) and len(members) == 1:
            return call("tuple", [("", ("[", members, "]"))])
        return ("(", members, ")")

    def _rebuilt(self, value: Any) -> Node:
        """An object with the attributes of ``value``; its constructor is not called, which might change them."""
        fields = [(f"{key}=", self._expression(member)) for key, member in vars(value).items()]
        return call("made", [("", self._global(type(value))), *fields])

    def _known(self, value: Any) -> str:
        """The name of an object that its module holds, as constants are."""
        module = sys.modules.get(type(value).__module__)
        names = vars(module).items() if module else ()
        found = next((name for name, member in names if member is value and name.isidentifier()), "")
        return f"{self._module(type(value).__module__)}.{found}" if found else ""

    def _global(self, value: Any) -> str:
        """A class or function by its module and name."""
        plain: Any = value.fn if _is_kernel(value) else value
        module, name = getattr(plain, "__module__", None), getattr(plain, "__qualname__", "")
        found: Any = sys.modules.get(module or "")
        for part in name.split("."):
            found = getattr(found, part, None)
        if found is not value or module is None:
            raise Unwritable(f"a {type(value).__module__}.{type(value).__qualname__}: {value!r:.80}")
        return f"{name}" if module == "builtins" else f"{self._module(module)}.{name}"

    def _argument(self, tensor: Tensor) -> str:
        self._inside += 1
        try:
            torch.save(to_device(tensor.detach(), torch.device("cpu")), self.folder / ARGUMENT.format(self._arguments))
        finally:
            self._inside -= 1
        path = f'arguments["a{self._arguments}"]'
        self._arguments += 1
        self._name(tensor, path)
        return path


def needed(lines: Sequence[str], pure: Mapping[int, str], outputs: Sequence[str]) -> list[str]:
    """The lines without those that only make what neither a further line nor an output takes."""
    used = {name for output in outputs for name in RESULT.findall(output)}
    kept: list[str] = []
    for number in reversed(range(len(lines))):
        if number in pure and pure[number] not in used:
            continue
        used.update(RESULT.findall(lines[number]))
        kept.insert(0, lines[number])
    return kept


def renumbered(lines: Sequence[str], outputs: Mapping[str, str]) -> tuple[list[str], dict[str, str]]:
    """The same with results counted from 1 without gaps."""
    numbers: dict[str, str] = {}

    def number(found: re.Match[str]) -> str:
        return numbers.setdefault(found[0], f"r{len(numbers) + 1}")

    counted = [RESULT.sub(number, line) for line in lines]
    return counted, {name: RESULT.sub(number, value) for name, value in outputs.items()}


class _Watched:
    """A module whose functions are recorded when they are called."""

    def __init__(self, module: ModuleType, recorder: Recorder) -> None:
        self._module, self._recorder = module, recorder

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._module, name)
        if isinstance(value, FunctionType):
            return self._recorder.recorded(value, self._module.__name__, name)
        return value


def _own_functions() -> Iterator[tuple[ModuleType, str, FunctionType]]:
    """The host functions of our own kernels."""
    for found in pkgutil.iter_modules(own_kernels.__path__):
        module = import_module(f"{own_kernels.__name__}.{found.name}")
        for name, value in list(vars(module).items()):
            if isinstance(value, FunctionType) and value.__module__ == module.__name__ and name[0] != "_":
                yield module, name, value


def _is_kernel(value: Any) -> bool:
    """Whether this is a Triton function, compiled or interpreted, which goes by the name of its source."""
    return type(value).__module__.startswith("triton.runtime.") and hasattr(value, "fn")


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for member in value:
            yield from _tensors(member)


def _literal(value: Any) -> str:
    if isinstance(value, float) and value - value != 0:
        return f"float('{value}')"
    if isinstance(value, torch.device):
        return f"torch.device('{value}')"
    return "..." if value is ... else repr(value)
