"""What the small transformer is made of: sizes, operations in their order, seeded weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Generator, Tensor

from gpucheck.checks import experts, operands
from gpucheck.model.case import Case

EPSILON = 1e-5  # of the norms
ROPE_BASE = 150_000.0
YARN = {"factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "original_max_position_embeddings": 4096}
"""How gpt-oss stretches rope to longer texts than it was trained with first, in the words of its config.json."""
SWIGLU = (1.702, 7.0)  # alpha and limit
CODE_SIZE = 2.92  # rms of random e2m1 codes
BRANCH = 0.35  # what a block adds to the residual stream, relative to what it reads: larger ones amplify roundings
QUIET = 2.0**-8  # size of the first token of a prompt: the epsilon of the first norm counts beside it
LIKELY = 0.35  # share of one token's embedding in the logits of the token that is likely after it
EMBEDDING, UNEMBEDDING, ARGMAX = "embedding", "unembedding", "argmax"
LAYER = (
    "attention norm",
    "qkv",
    "rope",
    "attention",
    "attention out",
    "attention residual",
    "expert norm",
    "router",
    "routing histogram",
    "routing order",
    "routing places",
    "routing rows",
    "routing row offsets",
    "routing block offsets",
    "routing block map",
    "routing scatter order",
    "routing scatter places",
    "routing gates",
    "experts up",
    "experts down",
    "expert residual",
)
EXPERTS = "experts"  # from the router's logits to the sum over the experts of a token, where a caller has it as one
_APART = LAYER[LAYER.index("router") + 1 : LAYER.index("expert residual")]  # what EXPERTS holds
SERVED = (*(name for name in LAYER[:-1] if name not in _APART), EXPERTS, LAYER[-1])
"""The operations of a layer that a serving engine's own model shows."""
HEAD = ("final norm", UNEMBEDDING, ARGMAX)
PARTS = {
    "attention out": ("attention out part", "attention out parts"),
    "experts down": ("experts down part", "experts down parts"),
    UNEMBEDDING: ("unembedding part",),
}
"""Operations that ranks do together which share the model -> what is recorded before: a rank's own part of the sum or
of the columns, and the parts of a sum that it gathered of all ranks."""
COLLECTIVES = {
    "attention out": "all-reduce",
    "attention out parts": "all-gather",
    "experts down": "all-reduce",
    "experts down parts": "all-gather",
    UNEMBEDDING: "all-gather",
}
"""Operations of ranks that share the model -> the collective that gives them."""


def _with_parts(operations: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name for operation in operations for name in (*PARTS.get(operation, ()), operation))


IN_LAYER = frozenset((*_with_parts(LAYER), EXPERTS))
OPERATIONS = (EMBEDDING, *LAYER, *HEAD)
"""What is recorded of a step, in the order it is computed; those of LAYER once a layer."""
ROUTING = {
    "routing histogram": "histogram",
    "routing order": "to_flat",
    "routing places": "to_sorted",
    "routing rows": "rows",
    "routing row offsets": "row_offsets",
    "routing block offsets": "block_offsets",
    "routing block map": "block_map",
    "routing scatter order": "scatter_to_flat",
    "routing scatter places": "scatter_to_sorted",
}
"""Operations of LAYER with integer results -> the name of that table in a routing or its schedule."""
UNWRITTEN = -1  # in place of integers that were not computed; NaN in place of others
LOGITS, TOKENS = "logits", "tokens"
"""The results of :data:`HEAD` once more, compared with a reference that computed everything itself."""
ORDER = (EMBEDDING, *_with_parts(LAYER[:-1]), EXPERTS, LAYER[-1], *_with_parts(HEAD), LOGITS, TOKENS)
"""All outputs of all callers, as they are computed."""


def axes_of(output: str) -> tuple[str, ...]:
    """What the axes of an output are called."""
    lead = ("step", "layer") if output in IN_LAYER else ("step",)
    if output.endswith("parts"):
        return (*lead, "rank", "sequence", "column")
    if output in ("routing histogram", "routing rows", "routing row offsets"):
        return (*lead, "expert")
    if output in ("routing block offsets", "routing block map"):
        return (*lead, "size", "expert" if output == "routing block offsets" else "program")
    if output == "experts up":
        return (*lead, "row", "column")
    if output in ROUTING or output == "routing gates":
        return (*lead, "row")
    return (*lead, "sequence") if output in (ARGMAX, TOKENS) else (*lead, "sequence", "column")


@dataclass(frozen=True)
class Caller:
    """Whose operations are recorded, and where these may round beside what they result in."""

    layer: tuple[str, ...] = LAYER  # operations of a layer
    logits: torch.dtype = torch.float32
    stored: torch.dtype | None = None  # may be the dtype of numbers within a norm, rope, product and sum; None: fp32
    scores: bool = False  # those of attention are stored, too
    yarn: bool = False  # rope as gpt-oss has it, with cosines and sines that the caller computes itself
    head: tuple[str, ...] = HEAD  # operations after all layers

    @property
    def operations(self) -> tuple[str, ...]:
        """All that is recorded of a step, in the order it is computed; those of :attr:`layer` once a layer."""
        return (EMBEDDING, *self.layer, *self.head)

    def dtype_of(self, operation: str) -> torch.dtype:
        """The dtype that an operation stores its result in."""
        wide = {UNEMBEDDING: self.logits, LOGITS: self.logits, ARGMAX: torch.int64, TOKENS: torch.int64}
        wide |= dict.fromkeys(PARTS[UNEMBEDDING], self.logits)
        return torch.int32 if operation in ROUTING else wide.get(operation, torch.bfloat16)


OWN = Caller()
"""The decoder of gpucheck itself."""
OF_RANKS = Caller(layer=_with_parts(LAYER), head=_with_parts(HEAD))
"""The same, of ranks that share the model."""


@dataclass(frozen=True)
class Shape:
    """Sizes; L layers, B sequences, S steps, E experts, k of them for a token."""

    layers: int
    batch: int
    tokens: int  # S: each step decodes one token of every sequence
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    window: int  # keys that the even layers see at most
    experts: int
    top_k: int
    intermediate: int
    vocabulary: int
    prompt: int = 1  # first steps of which the tokens are given
    caller: Caller = OWN
    ranks: int = 1  # that share the model; heads, kv_heads and intermediate are then those of one of them

    @classmethod
    def of(cls, case: Case, caller: Caller = OWN) -> Shape:
        """The shape that a case asks for."""
        sizes = {name: case[name] for name in cls.__dataclass_fields__ if name in case.params}
        return cls(**sizes, caller=caller)

    @property
    def turned(self) -> int:
        """Columns of queries and keys, which rope turns."""
        return (self.heads + self.kv_heads) * self.head_dim

    def result(self, operation: str) -> tuple[int, ...]:
        """Size of what an operation gives at one step."""
        rows, own = self.batch * self.top_k, self.kv_heads * self.head_dim
        tables = {operation: tuple(self._tables[name].shape) for operation, name in ROUTING.items()}
        sizes = {
            **tables,
            "qkv": (self.batch, self.turned + own),
            "rope": (self.batch, self.turned),
            "attention": (self.batch, self.heads * self.head_dim),
            "router": (self.batch, self.experts),
            "routing gates": (rows,),
            "experts up": (rows, self.intermediate),
            UNEMBEDDING: (self.batch, self.vocabulary),
            "unembedding part": (self.batch, self.vocabulary // self.ranks),
            "attention out parts": (self.ranks, self.batch, self.hidden),
            "experts down parts": (self.ranks, self.batch, self.hidden),
            ARGMAX: (self.batch,),
        }
        return sizes.get(operation, (self.batch, self.hidden))

    @cached_property
    def _tables(self) -> dict[str, Tensor]:
        """A routing and its schedule, of which the sizes are the same whatever is chosen."""
        ids = torch.arange(self.top_k).expand(self.batch, -1)
        return experts.whole(experts.tables(ids, torch.zeros(ids.shape), self.experts))

    def window_of(self, layer: int) -> int:
        """Keys that a layer sees at most; 0 means all."""
        return 0 if layer % 2 else self.window


def weights(shape: Shape, generator: Generator) -> dict[str, Tensor]:
    """Seeded weights, the first token of each sequence (B,) or its prompt (P, B), and the tables of rope.

    Products keep the size of what they are given, and each block adds BRANCH of that to the residual stream.
    """
    layers, hidden, inner = shape.layers, shape.hidden, shape.intermediate
    width = shape.heads * shape.head_dim

    def normal(*size: int, deviation: float, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return (torch.randn(size, generator=generator) * deviation).to(dtype)

    def coded(terms: int, columns: int, gain: float) -> tuple[Tensor, Tensor]:
        codes = operands.random_bytes((layers, shape.experts, terms // 2, columns), generator)
        lower = 127 + round(math.log2(gain / (CODE_SIZE * terms**0.5)) - 0.5)
        blocks = (layers, shape.experts, -(-terms // operands.BLOCK), columns)
        return codes, torch.randint(lower, lower + 2, blocks, generator=generator, dtype=torch.uint8)

    made = {
        "start": torch.randperm(shape.vocabulary, generator=generator)[: shape.batch],
        "embedding": normal(shape.vocabulary, hidden, deviation=1.0),
        "norms": 1 + normal(layers, 2, hidden, deviation=0.1, dtype=torch.float32),
        "final_norm": 1 + normal(hidden, deviation=0.1, dtype=torch.float32),
        "qkv": normal(layers, hidden, shape.turned + shape.kv_heads * shape.head_dim, deviation=1.4 * hidden**-0.5),
        "qkv_bias": normal(layers, shape.turned + shape.kv_heads * shape.head_dim, deviation=0.1, dtype=torch.float32),
        "sinks": normal(layers, shape.heads, deviation=1.0, dtype=torch.float32),
        "out": normal(layers, width, hidden, deviation=BRANCH * width**-0.5),
        "out_bias": normal(layers, hidden, deviation=0.1 * BRANCH, dtype=torch.float32),
        "router": normal(layers, hidden, shape.experts, deviation=2 * hidden**-0.5),
        "router_bias": normal(layers, shape.experts, deviation=0.1, dtype=torch.float32),
        "up_bias": normal(layers, shape.experts, 2 * inner, deviation=0.1, dtype=torch.float32),
        "down_bias": normal(layers, shape.experts, hidden, deviation=0.1 * BRANCH, dtype=torch.float32),
    }
    made["up"], made["up_scale"] = coded(hidden, 2 * inner, 1.0)
    made["down"], made["down_scale"] = coded(inner, hidden, BRANCH)
    if shape.prompt > 1:
        given = torch.randperm(shape.vocabulary, generator=generator)[: shape.prompt * shape.batch]
        made["start"] = given.reshape(shape.prompt, shape.batch)
        made["embedding"][made["start"][0]] *= QUIET
    if shape.caller.stored is not None:  # as a checkpoint stores them
        made |= {name: held.bfloat16().float() for name, held in made.items() if held.dtype == torch.float32}
    made["unembedding"] = _unembedding(made["embedding"], generator)
    made["cos"], made["sin"] = _rope(shape)
    return made


def _unembedding(embedding: Tensor, generator: Generator) -> Tensor:
    """(hidden, V): random, with a share that makes another token likely after each, as in text.

    Random logits alone have a best token that is often best by less than roundings.
    """
    vocabulary, hidden = embedding.shape
    after = torch.randperm(vocabulary, generator=generator)
    random = torch.randn((hidden, vocabulary), generator=generator)
    return ((random + LIKELY * embedding.float()[after].T) * hidden**-0.5).to(embedding.dtype)


def _rope(shape: Shape) -> tuple[Tensor, Tensor]:
    """Cosine and sine of each step's angles: (S, D/2) float32."""
    angles = torch.arange(shape.tokens, dtype=torch.float64)[:, None] * _frequencies(shape)
    size = 0.1 * math.log(YARN["factor"]) + 1 if shape.caller.yarn else 1.0
    return (angles.cos() * size).float(), (angles.sin() * size).float()


def _frequencies(shape: Shape) -> Tensor:
    """Angle of each pair of coordinates (D/2,) a step.

    Pairs that turn often within the texts of the first training keep their frequency, those that turn less than once
    have it divided by the factor, and those between, some of both.
    """
    half = shape.head_dim // 2
    pairs = torch.arange(half, dtype=torch.float64)
    frequencies = ROPE_BASE ** (-pairs / half)
    if not shape.caller.yarn:
        return frequencies

    def turning(times: float) -> float:
        """The pair that turns so many times."""
        return half * math.log(YARN["original_max_position_embeddings"] / (times * 2 * math.pi)) / math.log(ROPE_BASE)

    often, once = turning(YARN["beta_fast"]), turning(YARN["beta_slow"])
    divided = ((pairs - often) / (once - often)).clamp(0, 1)
    return frequencies * (1 - divided) + frequencies / YARN["factor"] * divided
