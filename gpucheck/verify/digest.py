"""Hashes of outputs: equal bytes, equal digest; per tile, so that disagreeing ranks show where they disagree."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from gpucheck.verify.views import pieces_of

MOST_TILES = 1024
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def raw(tensor: Tensor) -> memoryview:
    """The bytes of a CPU tensor in row-major order."""
    if not tensor.numel():
        return memoryview(b"")
    dense = tensor.detach().contiguous()
    flat = dense.as_strided((dense.numel(),), (1,))  # a single element is contiguous whatever its stride says
    return memoryview(flat.view(torch.uint8).numpy().data)


def integers(tensor: Tensor) -> Tensor:
    """The same memory as integers of the elements' size, so that NaN equals itself; complex ones are two each."""
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    return tensor.view(_INTEGERS[tensor.element_size()])


def differing(tensor: Tensor, other: Tensor) -> int:
    """How many elements of two tensors of one shape and dtype differ in their bits."""
    count = 0
    for piece in pieces_of(tensor):
        different = integers(tensor[piece]) != integers(other[piece])
        count += int((different.any(-1) if tensor.is_complex() else different).sum())
    return count


def whole(*tensors: Tensor) -> str:
    """One hash over dtype, shape and bytes of CPU tensors."""
    digest = hashlib.blake2b(digest_size=16)
    for tensor in tensors:
        digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(raw(tensor))
    return digest.hexdigest()


def tiles(tensor: Tensor, tile: tuple[int, int] = (128, 128)) -> list[str]:
    """Hashes of the tiles of a CPU tensor seen as (rows, last axis), row of tiles by row of tiles.

    Tiles grow by doubling until there are at most ``MOST_TILES``; the result depends on the shape alone.
    """
    if tensor.ndim == 0 or not tensor.numel():
        return []
    matrix = tensor.reshape(-1, tensor.shape[-1])
    height, width = tile
    while -(-matrix.shape[0] // height) * -(-matrix.shape[1] // width) > MOST_TILES:
        height, width = height * 2, width * 2
    return [
        hashlib.blake2b(raw(part), digest_size=4).hexdigest()
        for band in matrix.split(height)
        for part in band.split(width, dim=1)
    ]
