"""``matmul``: the library's matrix product, dense, batched or routed to experts, with every operand format."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from gpucheck.checks.base import Check, Runtime
from gpucheck.checks.on_use import bounds, experts, extremes, operands, torch, wide
from gpucheck.model.case import DATA_KINDS, Case, CheckSpec, Param
from gpucheck.model.errors import Inapplicable
from gpucheck.model.product import Product
from gpucheck.model.record import Cost, NeededLaunches
from gpucheck.model.vocabulary import ViolationKind
from gpucheck.verify.expected import Axes, Expected

if TYPE_CHECKING:
    from torch import Tensor

    from gpucheck.library.adapters.base import KernelConfig
    from gpucheck.verify.bounds import Estimate

WEIGHTS = ("bf16", "fp16", "fp32", "fp8_e4m3", "fp8_e5m2", "mxfp8_e4m3", "mxfp4")
SIZES = ("m", "n", "k", "batch", "experts", "top_k", "elsewhere", "split_k", "block_m", "stages")
OF_ROUTED = ("experts", "top_k", "gather", "scatter", "gammas", "elsewhere")
OPERANDS = ("dense", "views", "far")
SWIGLU = (1.702, 7.0)  # alpha and limit of gpt-oss
EXACT_TERMS = {  # largest k whose sums of exact data are sure not to round, whatever values are drawn
    "bf16": 2**18,
    "fp16": 2**18,
    "fp32": 4096,
    "fp8_e4m3": 2048,
    "fp8_e5m2": 2048,
    "mxfp8_e4m3": 2**16,
    "mxfp4": 43690,
}


class Matmul(Check):
    """``x @ w`` through the library's entry point."""

    late_inputs = ("x",)

    spec = CheckSpec(
        name="matmul",
        summary="matrix product of the library: dense, batched, routed; fp16 to mxfp4",
        data_kinds=DATA_KINDS,
        rows=("mode", "weight"),
        params=(
            Param("mode", "dense", "dense, batched (b products) or routed to experts", ("dense", "batched", "routed")),
            Param("weight", "bf16", "format of the weights; mx formats take bf16 activations", WEIGHTS),
            Param("m", 64, "rows; with gather or scatter tokens", label="m"),
            Param("n", 64, "output columns before a fused swiglu", label="n"),
            Param("k", 64, "terms of each sum", label="k"),
            Param("batch", 0, "products of a batched case", label="b"),
            Param("experts", 0, "experts of a routed case", label="e"),
            Param("top_k", 0, "experts per token", label="top"),
            Param("load", "random", "how tokens spread over experts", ("random", "skewed", "one"), label="load-"),
            Param("sort", "given", "who sorts rows by expert", ("given", "library"), label="sort-"),
            Param("elsewhere", 0, "further experts, held by other ranks: their rows are left out", label="else"),
            Param("gather", False, "activations are token rows, picked by the routing"),
            Param("scatter", False, "results return to token order, summed over the experts of a token"),
            Param("gammas", False, "each row is multiplied by its gate"),
            Param("bias", False, "adds a bias per column (and expert)"),
            Param("swiglu", False, "fused swiglu, halves the columns"),
            Param("alpha", SWIGLU[0], "slope of the fused swiglu", label="alpha"),
            Param("limit", SWIGLU[1], "clamp of the fused swiglu", label="limit"),
            Param("layout", "strided", "how mx weights lie in memory", ("strided", "default"), label="layout-"),
            Param(
                "operands",
                "dense",
                "dense; views: cut out of wider tensors, w transposed; far: offsets beyond 2^31",
                OPERANDS,
                "operands-",
            ),
            Param("scales", "one", "fp8 weights: one scale, or one an expert", ("one", "each"), label="scales-"),
            Param("out", "bf16", "dtype of the result", ("bf16", "fp16", "fp32"), label="out-"),
            Param("into", False, "the caller gives the memory of the result"),
            Param("bare", False, "called without a precision config"),
            Param(
                "persistent", "auto", "force the persistent kernel or the other", ("auto", "yes", "no"), "persistent-"
            ),
            Param("split_k", 0, "parts of each sum; 0 leaves it to the library", label="split"),
            Param("block_m", 0, "rows of a tile; 0 leaves it to the library", label="bm"),
            Param("subtile", 0, "epilogue subtiles; 0 leaves it to the library", (0, 1, 2, 4), label="subtile"),
            Param("stages", 0, "stages of the software pipeline; 0 leaves it to the library", label="stages"),
        ),
    )

    def needs_memory(self, case: Case) -> int:
        return operands.FREE_FOR_FAR if case.params.get("operands") == "far" else 0

    def validate(self, params: Mapping[str, Any], data: str) -> str | None:
        mode, weight = params["mode"], params["weight"]
        if min(params[name] for name in SIZES) < 0:
            return "sizes cannot be negative"
        if (mode == "batched") != (params["batch"] > 0):
            return "batch goes with mode batched, and needs to be at least 1 there"
        if mode == "routed" and not 1 <= params["top_k"] <= params["experts"]:
            return f"a routed case needs 1 <= top_k <= experts, not {params['top_k']} and {params['experts']}"
        if not params["swiglu"] and (params["alpha"], params["limit"]) != SWIGLU:
            return "alpha and limit go with swiglu"
        if mode != "routed" and any(params[name] for name in OF_ROUTED):
            return "experts, top_k, gather, scatter, gammas and elsewhere go with mode routed"
        if params["elsewhere"] and data == "wide":
            return "elsewhere takes exact and normal data"
        if params["scales"] == "each" and (mode == "dense" or not weight.startswith("fp8")):
            return "scales each goes with fp8 weights of several experts or products"
        if params["bare"] and (weight not in ("bf16", "fp16") or params["out"] != weight):
            return "a bare call takes bf16 or fp16 weights and gives their dtype: out must be the same"
        if weight == "mxfp4" and params["k"] % 2:
            return "mxfp4 packs two values a byte: k must be even"
        if not weight.startswith("mx") and params["layout"] != "strided":
            return "layout default goes with mx weights"
        if params["operands"] == "far" and min(params["m"], params["n"], params["k"]) < 2:
            return "operands that lie far apart need m, n and k of at least 2"
        if params["swiglu"]:
            if data != "normal":
                return "swiglu rounds, so it takes normal data only; check swiglu has wide data"
            if params["n"] % 2 or params["scatter"]:
                return "swiglu needs an even n and no scatter"
            if params["gammas"] and params["split_k"] != 1:
                return "gammas of a swiglu need split_k = 1: parts of a split sum are multiplied before it"
        if data == "exact" and params["k"] > EXACT_TERMS[weight]:
            return f"exact {weight} data takes k up to {EXACT_TERMS[weight]}, not {params['k']}"
        return None

    def inputs(self, case: Case, generator: torch.Generator) -> dict[str, Tensor]:
        kind, x_kind = case["weight"], _activation_kind(case["weight"])
        rows, terms, columns = case["m"], case["k"], case["n"]
        lead: tuple[int, ...] = ()
        made: dict[str, Tensor] = {}
        if case["mode"] == "batched":
            lead = (case["batch"],)
        elif case["mode"] == "routed":
            lead = (case["experts"],)
            everywhere = case["experts"] + case["elsewhere"]
            ids = experts.choose(rows, everywhere, case["top_k"], case["load"], generator)
            ids = experts.own_choices(ids, case["experts"])
            gates = torch.rand(ids.shape, generator=generator)
            if case.data == "exact":
                gates = torch.exp2(-torch.randint(0, 5, ids.shape, generator=generator).float())
            made |= experts.choices(ids, gates, case["experts"])
            rows = rows if case["gather"] else rows * case["top_k"]
        x_lead = lead if case["mode"] == "batched" else ()
        x_shape, w_shape = (*x_lead, rows, terms), (*lead, terms, columns)
        if case.data == "wide":
            exponent = wide.exponents(kind, terms, generator)
            made["x"] = wide.activations(x_kind, x_shape, exponent, generator)
            made |= wide.weights(kind, w_shape, exponent, generator)
        else:
            made["x"] = operands.activations(x_kind, x_shape, case.data, generator)
            made |= operands.weights(kind, w_shape, case.data, generator)
        if kind.startswith("fp8"):
            made["x_scale"] = torch.tensor([operands.EXACT_FP8_SCALES[0] if case.data == "exact" else 1.61])
            if case["scales"] == "each":
                steps = torch.randint(1, 8, lead, generator=generator).float()
                made["w_scale"] = steps / 8 if case.data == "exact" else made["w_scale"] * steps
        if case["bias"]:
            shape = (*lead, columns)
            bias = operands.signed_integers(shape, 1, 64, generator)
            made["bias"] = bias if case.data == "exact" else torch.randn(shape, generator=generator)
        return _views(made) if case["operands"] == "views" else made

    def reference(self, case: Case, inputs: dict[str, Tensor]) -> dict[str, Expected]:
        x = operands.as_estimate(inputs["x"], case.data)
        out_dtype = operands.DTYPES[case["out"]]
        parts: list[Tensor] = []
        if case["mode"] != "routed":
            y = self._of_rows(case, inputs, x, None, parts)
            return {"y": Expected(extremes.settled(y), out_dtype, also=parts[0] if parts else None)}
        x = experts.rows_of(x, inputs, case["top_k"], case["gather"])
        columns = _columns(case)
        y = experts.each_expert(
            x, inputs, columns, lambda expert, rows: self._of_rows(case, inputs, rows, expert, parts)
        )
        also = torch.cat(parts) if parts else None
        if case["gammas"]:
            y = bounds.scale(y, inputs["gates"][: experts.served(inputs)].double()[:, None])
        if not case["scatter"]:
            return {"y": Expected(extremes.settled(y), out_dtype, also=also)}
        by_token, shape = inputs["to_sorted"].long(), (-1, case["top_k"], columns)
        stored = case["top_k"] > 1 and case["split_k"] <= 1
        if also is None:
            y = bounds.rounded(y, out_dtype) if stored else y
            return {"y": Expected(bounds.summed(experts.to_tokens(y, inputs, case["top_k"]), dim=1), out_dtype)}
        if stored:
            y, also = extremes.rounded(y, also, out_dtype)
        y, also = extremes.summed(experts.take(y, by_token, shape), also[by_token].reshape(shape), dim=1)
        return {"y": Expected(y, out_dtype, also=also)}

    def _of_rows(
        self, case: Case, inputs: dict[str, Tensor], x: Estimate, expert: int | None, also: list[Tensor]
    ) -> Estimate:
        """Product, scales, bias and activation of the rows of one expert, or of all rows.

        Of wide data ``also`` gets what the elements may be beside the estimate.
        """
        kind, pick = case["weight"], slice(None) if expert is None else expert
        scales = inputs["w_scale"][pick] if kind.startswith("mx") else None
        w = operands.as_estimate(
            operands.decode_weight(kind, inputs["w"][pick], scales), case.data, operands.weight_unit(kind)
        )
        dtype = operands.DTYPES[_activation_kind(kind)]
        if case.data == "wide":
            small = extremes.SMALLEST_NORMAL[inputs["x"].dtype]
            small_x, small_w = (x.value.abs() < small) & (x.value != 0), wide.small(kind, inputs["w"][pick], scales)
            y, flags = extremes.product(x.value, w.value, small_x, small_w, operands=dtype)
            also.append(flags)
        else:
            y = bounds.product(x, w, operands=dtype)
        if kind.startswith("fp8"):
            w_scale = inputs["w_scale"].double()
            if case["scales"] == "each":
                w_scale = w_scale[:, None, None] if expert is None else w_scale[expert]
            y = bounds.scale(y, inputs["x_scale"].double() * w_scale)
        if case["bias"]:
            bias = inputs["bias"].double()[pick]
            y = bounds.add(y, bias[:, None, :] if case["mode"] == "batched" else bias)
        return bounds.swiglu(y, float(case["alpha"]), float(case["limit"])) if case["swiglu"] else y

    def prepare(self, case: Case, inputs: dict[str, Tensor], runtime: Runtime) -> Any:
        if case["operands"] == "far":
            inputs = _far(inputs, case["weight"], runtime)
        weight = runtime.library.weight(
            case["weight"], inputs["w"], inputs.get("w_scale"), case["layout"], runtime.place
        )
        routing = None
        if case["mode"] == "routed":
            partial = case["elsewhere"] > 0
            routing = experts.routing(inputs, runtime.library, case["experts"], case["sort"], partial)
        rows = experts.served(inputs) if case["elsewhere"] and not case["scatter"] else None
        return {"weight": weight, "routing": routing, "rows": rows, **inputs}

    def launch(self, case: Case, prepared: Any, runtime: Runtime) -> dict[str, Tensor]:
        routing = prepared["routing"] and prepared["routing"]()
        into = self._room(case, prepared["x"]) if case["into"] else None
        y = runtime.library.matmul(
            prepared["x"],
            prepared["weight"],
            out_dtype=None if case["bare"] else operands.DTYPES[case["out"]],
            bias=prepared.get("bias"),
            routing=routing,
            gather=case["gather"],
            scatter=case["scatter"],
            gammas=routing.gates if case["gammas"] else None,
            swiglu=(float(case["alpha"]), float(case["limit"])) if case["swiglu"] else None,
            x_scale=prepared.get("x_scale"),
            into=into,
            config=_config(case),
        )
        if into is not None:
            y = given(into, y, runtime)
        return {"y": y if prepared["rows"] is None else y[: prepared["rows"]]}

    def _room(self, case: Case, x: Tensor) -> Tensor:
        """Memory for the result."""
        rows = case["m"] * (case["top_k"] if case["mode"] == "routed" and not case["scatter"] else 1)
        lead = (case["batch"],) if case["mode"] == "batched" else ()
        return x.new_empty((*lead, rows, _columns(case)), dtype=operands.DTYPES[case["out"]])

    def kernels(self, case: Case, runtime: Runtime) -> tuple[str, ...]:
        if not (case["m"] and case["n"] and case["k"]):
            return ()
        return runtime.library.kernels["matmul"]

    def needed_launches(self, case: Case, runtime: Runtime) -> tuple[NeededLaunches, ...]:
        if not self.kernels(case, runtime):
            return ()
        return runtime.library.products(_config(case), sums=int(case["scatter"] and case["top_k"] > 1))

    def cost(self, case: Case, inputs: dict[str, Tensor]) -> Cost:
        weights = [inputs[name] for name in ("w", "w_scale", "bias") if name in inputs]
        rows = written = case["m"] * max(case["batch"], 1)
        moved: float = operands.size(*weights)
        if case["mode"] == "routed":
            rows = case["m"] * case["top_k"]
            written = case["m"] if case["scatter"] else rows
            tables = {"histogram": True, "to_flat": case["gather"] or case["scatter"], "gates": case["gammas"]}
            moved = operands.size(*(inputs[name] for name, needed in tables.items() if needed))
            moved += operands.size(*(weight for weight in weights if weight.ndim == 1))
            moved += sum(experts.used_bytes(each, inputs["histogram"]) for each in weights if each.ndim > 1)
        moved += operands.size(inputs["x"]) + written * _columns(case) * operands.DTYPES[case["out"]].itemsize
        return Cost(2.0 * rows * case["n"] * case["k"], float(moved))

    def plain(self, case: Case, inputs: dict[str, Tensor]) -> Callable[[], Tensor]:
        """One product an expert, of operands dequantised ahead."""
        kind, out, finish = case["weight"], operands.DTYPES[case["out"]], _plain_epilogue(case, inputs)
        x = inputs["x"].to(torch.bfloat16) if kind.startswith("fp8") else inputs["x"]
        if case["mode"] != "routed":
            w = operands.plain_weight(kind, inputs["w"], inputs.get("w_scale"))
            return lambda: finish(x @ w, None).to(out)
        served, ws = experts.spans(inputs), experts.plain_weights(kind, inputs, "w")
        token = experts.tokens_of(inputs, case["top_k"])

        def call() -> Tensor:
            rows = x[token] if case["gather"] else x[: len(token)]
            y = rows.new_empty((len(rows), _columns(case)), dtype=out)
            for expert, span in served:
                y[span] = finish(rows[span] @ ws[expert], expert).to(out)
            y = y * inputs["gates"][: len(token), None] if case["gammas"] else y
            return (experts.in_token_order(y, inputs, case["top_k"]).sum(1) if case["scatter"] else y).to(out)

        return call

    def twins(self, case: Case) -> tuple[str, ...]:
        count = case["experts"] or case["batch"] or 1
        return (Product(case["weight"], case["layout"], case["k"], case["n"], count, case["mode"]).name,)

    def axes(self, case: Case, inputs: dict[str, Tensor]) -> dict[str, Axes]:
        if case["mode"] == "batched":
            return {"y": Axes(("batch", "row", "column"), (0, 128, 128))}
        if case["mode"] == "dense":
            return {"y": Axes(("row", "column"), (128, 128))}
        owners = experts.owners(inputs)
        if case["scatter"]:
            owners = experts.by_token(owners, inputs, case["top_k"])[..., 0]
            return {"y": Axes(("token", "column"), (128, 128), {"expert": owners})}
        return {"y": Axes(("row", "column"), (128, 128), {"expert": owners})}


def _columns(case: Case) -> int:
    """Columns of the result."""
    return int(case["n"] // 2 if case["swiglu"] else case["n"])


def _plain_epilogue(case: Case, inputs: dict[str, Tensor]) -> Callable[[Tensor, int | None], Tensor]:
    """Gives what plain torch makes of a product, of one expert's rows or of all: scales, bias and activation."""
    from gpucheck.checks.swiglu import plain_swiglu

    factors, bias, every = None, inputs.get("bias"), slice(None)
    if case["weight"].startswith("fp8"):
        factors = inputs["x_scale"] * inputs["w_scale"]
        if case["mode"] != "dense":
            factors = factors.expand(len(inputs["w"]))[:, None, None]
    if case["mode"] == "batched" and bias is not None:
        bias = bias[:, None]

    def finish(y: Tensor, expert: int | None) -> Tensor:
        pick = every if expert is None else expert
        y = y if factors is None else y * factors[pick]
        y = y if bias is None else y + bias[pick]
        return plain_swiglu(y, float(case["alpha"]), float(case["limit"])) if case["swiglu"] else y

    return finish


def given(into: Tensor, result: Tensor, runtime: Runtime) -> Tensor:
    """The memory that a call was given for its result; a call that returned other memory is a violation."""
    if into.numel() and result.data_ptr() != into.data_ptr():
        detail = "the result is not returned in the memory that the caller gave for it"
        runtime.report_violation(ViolationKind.OUTPUT, detail)
    return into


def _views(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same inputs as views that a server may hold: no tensor starts where its memory does, no rows are neighbours.

    Scales stay as they are: every adapter lays them out anew. So do choices of experts, which come from a kernel.
    """
    dense = [name for name in inputs if name.endswith("_scale") or name in ("ids", "id_gates")]
    made = {name: tensor if name in dense else operands.within(tensor) for name, tensor in inputs.items()}
    return {**made, "w": operands.within(inputs["w"].mT).mT}


def _far(inputs: dict[str, Tensor], kind: str, runtime: Runtime) -> dict[str, Tensor]:
    """The inputs with rows of x, and experts or batches of w, that lie further apart than 32 bits can say.

    Nothing but a few rows is computed, so the reference is that of a small case. Weights of 8 bits and less stay: every
    adapter lays them out anew.

    Raises:
        Inapplicable: on the CPU, or where too little memory is free.
    """
    from gpucheck.checks.no_launch import free_memory

    free = free_memory(runtime.device)
    if free < operands.FREE_FOR_FAR:
        words = f"{free >> 30} GiB free" if free else "the CPU"
        raise Inapplicable(
            f"operands that reach beyond 2^31 need a GPU with {operands.FREE_FOR_FAR >> 30} GiB free, not {words}"
        )
    names = ["x", "w"] if kind in ("bf16", "fp16", "fp32") and inputs["w"].ndim == 3 else ["x"]
    return {**inputs, **{name: runtime.place(operands.far_apart(inputs[name])) for name in names}}


def _activation_kind(weight: str) -> str:
    return "bf16" if weight.startswith("mx") else weight


def _config(case: Case) -> KernelConfig:
    from gpucheck.library.adapters.base import KernelConfig

    split_k = case["split_k"] or None
    if case["scatter"] and case["top_k"] > 1:
        split_k = split_k or 1  # fixes whether rows are rounded before they are summed, which the reference must know
    return KernelConfig(
        persistent={"auto": None, "yes": True, "no": False}[case["persistent"]],
        split_k=split_k,
        block_m=case["block_m"] or None,
        epilogue_subtile=case["subtile"] or None,
        num_stages=case["stages"] or None,
    )
