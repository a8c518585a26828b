"""Repairs of the library under test where it assumes compiled kernels."""

from __future__ import annotations

import inspect
from typing import Any


class SpecializedKernel:
    """An interpreted kernel with constants and tuples bound.

    The library specialises a kernel by writing new source text, which needs a compiled kernel. Here the parameters
    are the same: constants are gone from the signature, each tuple is spread into its own named parameters.
    """

    def __init__(self, kernel: Any, constants: dict[str, Any], tuples: dict[str, Any]) -> None:
        self.kernel = kernel
        self.constants = constants
        self.tuples = {name: tuple(members) for name, members in tuples.items()}
        self.parameters = [
            parameter
            for name in inspect.signature(kernel.fn).parameters
            if name not in constants
            for parameter in self.tuples.get(name, (name,))
        ]

    @property
    def __name__(self) -> str:
        return str(self.kernel.__name__)

    def __getitem__(self, grid: Any) -> Any:
        return lambda *args, **kwargs: self.run(*args, grid=grid, warmup=False, **kwargs)

    def run(self, *args: Any, grid: Any, warmup: bool = False, **kwargs: Any) -> None:
        if len(args) > len(self.parameters):
            raise TypeError(f"{self.__name__} takes {len(self.parameters)} arguments, {len(args)} were given")
        values = dict(zip(self.parameters, args, strict=False)) | kwargs
        for name, members in self.tuples.items():
            values[name] = tuple(values.pop(member) for member in members)
        self.kernel.run(grid=grid, warmup=warmup, **values, **self.constants)


def repair() -> None:
    """Replaces the library's specialisation of kernels; call it before the library's matmul is imported."""
    from triton.runtime.interpreter import InterpretedFunction
    from triton_kernels import specialize as library_module

    original = library_module.specialize
    if original.__module__ == __name__:
        return

    def specialize(fn: Any, module: Any, constants: Any, tuples: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(fn, InterpretedFunction):
            return SpecializedKernel(fn, constants, tuples)
        return original(fn, module, constants, tuples, *args, **kwargs)

    library_module.specialize = specialize
