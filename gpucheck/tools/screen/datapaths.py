"""The parts of a multiprocessor that the screen runs, in one table: kernel, sizes, what a tile is, what one costs."""

from __future__ import annotations

from dataclasses import dataclass, replace

POOL = 8  # groups of known tiles of a datapath that is no product
PANELS = 4  # of each operand of a product; each pair of them is a group


@dataclass(frozen=True)
class Datapath:
    """One part of a multiprocessor; sizes as the GPU runs it, see :meth:`small` for the interpreter."""

    name: str
    kernel: str  # "tensor_core", "chain", "walk" or "atomics"
    tile_words: str  # what one tile is, "{}" for the size of it
    unit_work: float  # of each of so many, in ``unit``
    unit: str  # of work: a rate is that a second
    warps: int
    format: str = ""  # of operands, as torch names the dtype
    function: str = ""  # of a chain
    k: int = 0  # length of a product's sums
    block: tuple[int, int, int] = (0, 0, 0)  # M, N, K that a program holds at once
    lanes: int = 0  # elements of a chain or a walk
    steps: int = 0  # of a chain, or blocks of a walk
    lanes_of_tile: int = 0  # how many elements a step of a tile has
    largest: int = 0  # operands of a product are integers up to it
    spread: int = 0  # and powers of two up to it, which cancel in each product
    exact: bool = True  # False: the vendor does not promise the bits

    @property
    def tile(self) -> str:
        """What one tile is, in words."""
        return self.tile_words.format(self.lanes_of_tile)

    @property
    def work(self) -> float:
        """Of a tile, in ``unit``."""
        return self.unit_work * (self.lanes_of_tile or _edge(self) ** 3)

    @property
    def numbers(self) -> int:
        """Groups in the pool."""
        return PANELS**2 if self.kernel == "tensor_core" else POOL

    @property
    def elements(self) -> int:
        """Elements whose bits a digest is made of."""
        return self.block[0] * self.block[1] if self.kernel == "tensor_core" else self.lanes

    @property
    def tiles(self) -> int:
        """Tiles of a group, which share a digest."""
        if self.kernel == "tensor_core":
            edge = _edge(self)
            return (self.block[0] // edge) * (self.block[1] // edge) * (self.k // edge)
        return self.steps * max(1, self.lanes // self.lanes_of_tile)

    @property
    def words(self) -> int:
        """Words of memory that a program walks over."""
        return {"walk": self.lanes * self.steps, "atomics": 2 * self.lanes}.get(self.kernel, 0)

    def small(self) -> Datapath:
        """The same with sizes that Triton's interpreter computes at once."""
        edge = _edge(self)
        if self.kernel == "tensor_core":
            return replace(self, k=edge, block=(edge, edge, edge))
        return replace(self, lanes=min(self.lanes, 256), steps=min(self.steps, 4), lanes_of_tile=256)


def _edge(path: Datapath) -> int:
    return 32 if path.format == "float64" else 64


def _product(name: str, format: str, k: int, block: tuple[int, int, int], largest: int, spread: int) -> Datapath:
    edge = 32 if format == "float64" else 64
    unit = "TOP" if format == "int8" else "TFLOP"
    tile = f"{edge}x{edge}x{edge} products"
    return Datapath(name, "tensor_core", tile, 2e-12, unit, 8, format, "", k, block, largest=largest, spread=spread)


DATAPATHS: tuple[Datapath, ...] = (
    _product("tensor fp16", "float16", 4096, (128, 256, 64), 300, 5),
    _product("tensor bf16", "bfloat16", 4096, (128, 256, 64), 255, 40),
    _product("tensor tf32", "float32", 2048, (128, 256, 32), 440, 40),
    _product("tensor fp8 e4m3", "float8_e4m3fn", 1024, (128, 128, 128), 5, 4),
    _product("tensor fp8 e5m2", "float8_e5m2", 1024, (128, 128, 128), 5, 8),
    _product("tensor int8", "int8", 4096, (128, 256, 128), 127, 0),
    _product("tensor fp64", "float64", 512, (128, 128, 16), 1 << 20, 200),
    Datapath("fma fp32", "chain", "{} chained steps", 7e-12, "TFLOP", 8, function="fused_multiply_add_32",
             lanes=4096, steps=512, lanes_of_tile=4096),
    Datapath("fma fp64", "chain", "{} chained steps", 7e-12, "TFLOP", 8, function="fused_multiply_add_64",
             lanes=2048, steps=512, lanes_of_tile=2048),
    Datapath("integer", "chain", "{} chained steps", 6e-12, "TOP", 32, function="integer",
             lanes=4096, steps=256, lanes_of_tile=2048),
    Datapath("special functions", "chain", "{} arguments of 8 functions", 8e-12, "TOP", 16,
             function="special_functions", lanes=2048, steps=64, lanes_of_tile=512, exact=False),
    Datapath("shuffles", "chain", "{} words handed on", 11e-12, "TOP", 32, function="shuffles",
             lanes=4096, steps=32, lanes_of_tile=1024),
    Datapath("shared memory", "chain", "{} words written and read", 8e-12, "TB", 16, function="shared_memory",
             lanes=8192, steps=32, lanes_of_tile=2048),
    Datapath("atomics", "atomics", "{} words, 2 operations each", 2e-12, "TOP", 16, lanes=1024, steps=16,
             lanes_of_tile=64),
    Datapath("L2", "walk", "{} words written and read", 8e-12, "TB", 32, lanes=8192, steps=8,
             lanes_of_tile=512),
    Datapath("device memory", "walk", "{} words written and read", 8e-12, "TB", 32, lanes=4096, steps=72,
             lanes_of_tile=512),
)  # fmt: skip
"""In the order of the report."""

LEAST_CAPABILITY = {
    "float8_e4m3fn": (8, 9),
    "float8_e5m2": (8, 9),
    "bfloat16": (8, 0),
    "float32": (8, 0),
    "float64": (8, 0),
}
"""Of the formats that not all tensor cores multiply: the first compute capability that does."""

CEILINGS: dict[str, dict[str, float]] = {
    "sm_90": {
        "tensor fp16": 989.4, "tensor bf16": 989.4, "tensor tf32": 494.7, "tensor fp8 e4m3": 1978.9,
        "tensor fp8 e5m2": 1978.9, "tensor int8": 1978.9, "tensor fp64": 66.9, "fma fp32": 66.9, "fma fp64": 33.5,
    },
    "sm_80": {
        "tensor fp16": 312.0, "tensor bf16": 312.0, "tensor tf32": 156.0, "tensor int8": 624.0, "tensor fp64": 19.5,
        "fma fp32": 19.5, "fma fp64": 9.7,
    },
}  # fmt: skip
"""What the data sheets of the cards with CEILING_SMS multiprocessors give, in the unit of the datapath a second."""
CEILING_SMS = {"sm_90": 132, "sm_80": 108}


def ceiling(architecture: str, name: str, multiprocessors: int) -> float:
    """The rate that the data sheet gives a datapath on so many multiprocessors; 0 where it gives none."""
    whole = CEILINGS.get(architecture, {}).get(name, 0.0)
    return whole * multiprocessors / CEILING_SMS[architecture] if whole else 0.0


def chosen(capability: tuple[int, int], *, small: bool = False) -> list[Datapath]:
    """The datapaths that a GPU has.

    Args:
        small: in the sizes of the interpreter.
    """
    found = [path for path in DATAPATHS if LEAST_CAPABILITY.get(path.format, (0, 0)) <= capability]
    return [path.small() for path in found] if small else found
