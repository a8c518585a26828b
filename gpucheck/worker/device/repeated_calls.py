"""Calls made again and again on the same operands: each must give the bits that were judged."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from gpucheck.verify.digest import integers


class RepeatedCalls:
    """Compares outputs on their device with those of a call that was judged."""

    def __init__(self, judged: Mapping[str, Tensor], *, own: bool = False) -> None:
        """Args:
        judged: copied, since a later call may overwrite them.
        own: they are copies already.
        """
        self._judged = {name: value if own else value.detach().clone() for name, value in judged.items()}
        self._differs: list[Tensor] = []  # by call, each (outputs,)

    def same(self, outputs: Mapping[str, Tensor]) -> bool:
        """Whether a call gave the very outputs that were judged, all of them. Waits for the device."""
        return bool(self._judged) and list(outputs) == list(self._judged) and not bool(self._flags(outputs).any())

    def add(self, outputs: Mapping[str, Tensor]) -> None:
        """Takes the outputs of one more call; nobody waits for the answer."""
        if self._judged:
            self._differs.append(self._flags(outputs))

    def differences(self, before: int) -> list[str]:
        """The first call added whose outputs differ, in words; none where all are the same. Waits for the device.

        Args:
            before: calls that were made before those.
        """
        found = torch.stack(self._differs).tolist() if self._differs else []
        for number, flags in enumerate(found, start=before + 1):
            names = [name for name, flag in zip(self._judged, flags, strict=True) if flag]
            if names:
                total = before + len(self._differs)
                words = f"call {number} of {total} with equal inputs gave other bits than those judged"
                return [f"{words}: {', '.join(names)}"]
        return []

    def _flags(self, outputs: Mapping[str, Tensor]) -> Tensor:
        """(outputs,) bool: which of those judged are other ones now."""
        flags = [_differs(value, outputs.get(name)) for name, value in self._judged.items()]
        return torch.stack([flag.to(flags[0].device) for flag in flags])


def _differs(judged: Tensor, value: Tensor | None) -> Tensor:
    """() bool, on the device of the judged output."""
    alike = value is not None and (value.dtype, value.shape, value.device) == (
        judged.dtype,
        judged.shape,
        judged.device,
    )
    if not alike or value is None:
        return torch.ones((), dtype=torch.bool, device=judged.device)
    return (integers(value.detach()) != integers(judged)).any()
