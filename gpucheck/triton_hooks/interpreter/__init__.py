"""Triton on the CPU: lets the library's real kernels run where there is no GPU.

Triton's own interpreter executes kernels with numpy. It lacks a driver, some operations and some arithmetic that the
library needs; every stand-in and repair lives in this package and is applied by :func:`install`.
"""

from __future__ import annotations

import os
import sys

_installed = False


def install(capability: tuple[int, int] = (8, 0), sms: int = 108, shared_memory: int = 166_912) -> None:
    """Makes this process run Triton kernels on the CPU. Further calls do nothing.

    Call it before ``triton_kernels`` is imported. It sets ``TRITON_INTERPRET=1`` and imports Triton.

    Args:
        capability: compute capability the stand-in device reports; kernels choose their code paths by it.
        sms: multiprocessors it reports; grid sizes and split-k depend on it.
        shared_memory: bytes of shared memory a block may use; numbers of pipeline stages depend on it.

    Raises:
        RuntimeError: Triton or the library was imported before without the interpreter.
    """
    global _installed
    if _installed:
        return
    if "triton_kernels" in sys.modules:
        raise RuntimeError(
            "triton_kernels is already imported: call gpucheck.triton_hooks.interpreter.install() before importing it"
        )
    if "triton" in sys.modules and os.environ.get("TRITON_INTERPRET") != "1":
        raise RuntimeError(
            "Triton was imported without TRITON_INTERPRET=1, so its kernels are already bound to the compiler: "
            "call gpucheck.triton_hooks.interpreter.install() before importing triton, or set TRITON_INTERPRET=1"
        )
    os.environ["TRITON_INTERPRET"] = "1"
    from . import aggregate, arithmetic, assembly, faster, hopper, language, launch

    stand_for(capability, sms, shared_memory)
    arithmetic.install()
    language.install()
    launch.install()
    faster.install()
    assembly.install()
    aggregate.install()
    hopper.install()
    _installed = True


def stand_for(capability: tuple[int, int], sms: int, shared_memory: int) -> None:
    """Puts a device in the place of the one that the interpreter stood for; see :func:`install`."""
    from . import stand_in_driver

    stand_in_driver.install(stand_in_driver.StandInDevice(capability, sms, shared_memory))


def repair_library() -> None:
    """Repairs what the interpreter cannot run of ``triton_kernels``, once that is imported."""
    from . import library_repairs

    library_repairs.repair()


def installed() -> bool:
    """Whether this process runs Triton kernels on the CPU."""
    return _installed
