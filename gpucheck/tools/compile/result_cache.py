"""Results of earlier compilations, kept in the cache so that asking again takes no time."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from dataclasses import asdict, dataclass
from pathlib import Path

import gpucheck
from gpucheck.host.software import installed_version, stat_fingerprint
from gpucheck.library.cache import writable
from gpucheck.library.cache_folder import cache_root
from gpucheck.library.content import content_hash
from gpucheck.model.case import Case
from gpucheck.model.plain import read
from gpucheck.records.run_folder import write_text
from gpucheck.tools.compile.outcome import CaseBuilt, Kernel, Result
from gpucheck.tools.compile.tritons import Triton
from gpucheck.triton_hooks.targets import Target

SCHEMA = 1
AMD_LINKERS = ("/opt/rocm/llvm/bin/ld.lld", "/usr/bin/ld.lld")  # without one, Triton 3.4 builds nothing for AMD
OURS = ("checks", "library", "model", "tools/compile", "triton_hooks")  # of our own code, what a result may depend on


@dataclass(frozen=True)
class ResultCache:
    """The kept results of one combination; whatever may change a result is part of the file's name."""

    file: Path
    kernels: Path  # Triton's own cache of compiled kernels; shared by all libraries and targets of one Triton

    @classmethod
    def of(cls, triton: Triton, content: str, target: Target) -> ResultCache:
        """The store of a combination.

        Args:
            content: hash of the library; "" for our own kernels.
        """
        folder, build = cache_root() / "compile", stat_fingerprint(triton.package, "triton")
        ours = [content_hash(Path(gpucheck.__file__).parent / name) for name in OURS]
        machine = (platform.python_version(), installed_version("torch"), any(map(os.path.exists, AMD_LINKERS)))
        facts = (SCHEMA, triton.version, build, content, target, *machine, *ours)
        digest = hashlib.sha256(repr(facts).encode()).hexdigest()[:32]
        return cls(folder / "results" / f"{digest}.json", folder / "kernels" / f"{triton.version}-{build[:8]}")

    def load(self, cases: tuple[Case, ...], result: Result) -> list[Case]:
        """Fills in what is known of some cases; returns the others."""
        known, kernels = self._read()
        unknown = []
        for case in cases:
            built = known.get(_name(case))
            if built is None or any(key not in kernels for key in built.kernels):
                unknown.append(case)
                continue
            result.cases[case.id] = built
            result.kernels |= {key: kernels[key] for key in built.kernels}
        return unknown

    def save(self, cases: list[Case], result: Result) -> None:
        """Adds the results of some cases to those that are kept.

        Raises:
            InfrastructureError: the cache cannot be written.
        """
        known, kernels = self._read()
        known |= {_name(case): result.cases[case.id] for case in cases}
        kernels |= {key: result.kernels[key] for case in cases for key in result.cases[case.id].kernels}
        kept = {
            "cases": {name: asdict(built) for name, built in known.items()},
            "kernels": {key: asdict(kernel) for key, kernel in kernels.items()},
        }
        with writable(self.file.parent):
            write_text(self.file, json.dumps(kept))

    def _read(self) -> tuple[dict[str, CaseBuilt], dict[str, Kernel]]:
        """All that is kept, cases by name and kernels by key; nothing where nothing or something damaged is there."""
        try:
            kept = json.loads(self.file.read_text(encoding="utf-8"))
            known = {name: read(CaseBuilt, item) for name, item in kept["cases"].items()}
            return known, {key: read(Kernel, item) for key, item in kept["kernels"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}, {}


def _name(case: Case) -> str:
    return f"{case.id} seed {case.seed}"
