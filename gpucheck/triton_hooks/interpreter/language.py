"""Parts of Triton's language that its interpreter lacks."""

from __future__ import annotations

import ast
import operator
from types import CellType, FunctionType, SimpleNamespace
from typing import Any

_REVERSED = {
    "__radd__": operator.add,
    "__rsub__": operator.sub,
    "__rmul__": operator.mul,
    "__rtruediv__": operator.truediv,
    "__rfloordiv__": operator.floordiv,
    "__rmod__": operator.mod,
    "__rpow__": operator.pow,
    "__rand__": operator.and_,
    "__ror__": operator.or_,
    "__rxor__": operator.xor,
    "__rlshift__": operator.lshift,
    "__rrshift__": operator.rshift,
}


def install() -> None:
    """Completes the language and binds it to the interpreter once instead of at every call."""
    from triton.runtime import interpreter

    _patch_language_once(interpreter)
    _complete_constexpr(interpreter.tl.constexpr)
    _allow_casts_of_numbers(interpreter)
    _accept_plain_format_names(interpreter.TritonSemantic)
    _keep_closures(interpreter.FunctionRewriter)
    _order_launches(interpreter.tl)


def _patch_language_once(interpreter: Any) -> None:
    """Triton rebinds the whole language at every launch and device function call; its effect never differs."""
    kernel_like = SimpleNamespace(__globals__={"tl": interpreter.tl, "core": interpreter.tl.core})
    interpreter._patch_lang(kernel_like)
    unchanged = SimpleNamespace(restore=lambda: None)
    interpreter._patch_lang = lambda function: unchanged
    # Scalars are arrays of one element, which numpy no longer converts to int by itself.
    interpreter.tl.tensor.__index__ = lambda scalar: int(scalar.handle.data.item())


def _complete_constexpr(constexpr: Any) -> None:
    def reversed_operator(function: Any) -> Any:
        return lambda self, other: constexpr(function(getattr(other, "value", other), self.value))

    for name, function in _REVERSED.items():
        if name not in vars(constexpr):
            setattr(constexpr, name, reversed_operator(function))


def _allow_casts_of_numbers(interpreter: Any) -> None:
    """``x.to(dtype)`` is legal in a kernel even where ``x`` is a plain number."""

    def cast(value: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(value, (bool, int, float)):
            value = interpreter.interpreter_semantic.to_tensor(value, False)
        return value.to(*args, **kwargs)

    interpreter.gpucheck_cast = cast  # rewritten kernels see this module's globals

    class Transformer(interpreter.ASTTransformer):  # type: ignore[misc, name-defined]
        def visit_Assign(self, node: ast.Assign) -> Any:
            node.value = self.visit(node.value)
            return super().visit_Assign(node)

        def visit_Call(self, node: ast.Call) -> Any:
            self.generic_visit(node)
            if isinstance(node.func, ast.Attribute) and node.func.attr == "to":
                function = ast.Name(id="gpucheck_cast", ctx=ast.Load())
                return ast.Call(func=function, args=[node.func.value, *node.args], keywords=node.keywords)
            return node

    interpreter.FunctionRewriter.ast_transformer = Transformer()


class _FormatName(str):
    """A number format that is a plain string and also has the ``value`` of a compile-time constant."""

    @property
    def value(self) -> str:
        return str(self)


def _accept_plain_format_names(semantic: Any) -> None:
    """``tl.dot_scaled`` unwraps its format arguments, which interpreted kernels pass unwrapped."""
    original = semantic.dot_scaled

    def dot_scaled(
        self: Any, a: Any, a_scale: Any, a_format: Any, b: Any, b_scale: Any, b_format: Any, *rest: Any
    ) -> Any:
        names = [_FormatName(getattr(name, "value", name)) for name in (a_format, b_format)]
        return original(self, a, a_scale, names[0], b, b_scale, names[1], *rest)

    semantic.dot_scaled = dot_scaled


def _order_launches(language: Any) -> None:
    """A kernel that may begin before the one ahead of it has ended waits for that; here it has ended already."""
    cuda = language.extra.cuda
    for name in ("gdc_wait", "gdc_launch_dependents"):
        if hasattr(cuda, name):
            setattr(cuda, name, lambda **_: None)


def _keep_closures(rewriter: Any) -> None:
    """Gives a rewritten kernel the variables of the function that it is defined in, as the compiler gives it.

    Triton rewrites a kernel as if it stood at the top of its module. The variables are read when it is rewritten, like
    all that a kernel sees beside its arguments: they must not change once it was launched.
    """
    original = rewriter._compile_and_exec

    def compile_and_exec(self: Any, tree: Any) -> Any:
        made = original(self, tree)
        kept = {
            name: cell.cell_contents
            for name, cell in zip(self.fn.__code__.co_freevars, self.fn.__closure__ or (), strict=True)
            if holds(cell)
        }
        if not kept:
            return made
        closed = FunctionType(made.__code__, {**made.__globals__, **kept}, made.__name__, made.__defaults__)
        closed.__kwdefaults__, closed.__annotations__ = made.__kwdefaults__, made.__annotations__
        return closed

    def holds(cell: CellType) -> bool:
        try:
            cell.cell_contents  # noqa: B018 - it raises where nothing was bound yet
        except ValueError:
            return False
        return True

    rewriter._compile_and_exec = compile_and_exec
