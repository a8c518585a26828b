"""Calls made again and again on the same operands: each must give the bits that were judged."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from gpucheck.verify.digest import integers


class RepeatedCalls:
    """Compares outputs on their device with those of a call that was judged; nobody waits for the answers."""

    def __init__(self, judged: Mapping[str, Tensor], before: int) -> None:
        """Args:
        judged: the outputs that were judged; copied, since a later call may overwrite them.
        before: calls that were made until then.
        """
        self._judged = {name: value.detach().clone() for name, value in judged.items()}
        self._before = before
        self._differs: list[list[Tensor]] = []  # by call and output

    def add(self, outputs: Mapping[str, Tensor]) -> None:
        """Takes the outputs of one more call."""
        self._differs.append([_differs(value, outputs.get(name)) for name, value in self._judged.items()])

    def differences(self) -> list[str]:
        """The first call whose outputs differ, in words; none where all are the same. Waits for the device."""
        if not self._judged:
            return []
        for number, flags in enumerate(self._differs, start=self._before + 1):
            names = [name for name, flag in zip(self._judged, torch.stack(flags).tolist(), strict=True) if flag]
            if names:
                total = self._before + len(self._differs)
                words = f"call {number} of {total} with equal inputs gave other bits than those judged"
                return [f"{words}: {', '.join(names)}"]
        return []


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
