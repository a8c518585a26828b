"""Damage to the kernel cache that a first run filled."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpucheck.model.errors import InfrastructureError

KERNEL = "_flash_attention_forward"


def hashes(run: Path) -> dict[str, str]:
    """Case -> the first digits of the hash of the attention kernel that rank 0 launched for it."""
    found = {}
    for line in (run / "records" / "rank-00000.jsonl").read_text().splitlines():
        item = json.loads(line)
        launches = [launch for launch in item.get("launches", []) if launch["kernel"] == KERNEL]
        if item.get("event") == "result" and launches:
            found[item["case"]] = launches[0]["hash"]
    return found


def truncate(cache: Path, case: str, kernels: Mapping[str, str]) -> None:
    """Cuts the description of a case's kernel off in the middle."""
    path = _description(cache, case, kernels)
    text = path.read_text()
    path.write_text(text[: len(text) // 2])


def swap(cache: Path, case: str, kernels: Mapping[str, str]) -> None:
    """Puts the binary that another case's kernel was compiled to where a case's own belongs."""
    path = _description(cache, case, kernels)
    donor = _description(cache, case.replace("/causal/", "/full/"), kernels)
    mine, other = _read(path), _read(donor)
    path.with_suffix(".cubin").write_bytes(donor.with_suffix(".cubin").read_bytes())
    path.write_text(json.dumps({**mine, "shared": other["shared"]}))  # so that it runs at all


def _description(cache: Path, case: str, kernels: Mapping[str, str]) -> Path:
    if case not in kernels:
        raise InfrastructureError(f"the run that fills the kernel cache launched no kernel for {case}")
    for path in cache.glob(f"*/{KERNEL}.json"):
        if str(_read(path).get("hash", "")).startswith(kernels[case]):
            return path
    raise InfrastructureError(f"{cache} holds no kernel {KERNEL} of {case}, compiled as {kernels[case]}")


def _read(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except ValueError:
        return {}  # damaged before
    return content
