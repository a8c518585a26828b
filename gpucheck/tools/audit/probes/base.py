"""One probing of a library: imports what is asked about and hands each hazard to the probe of its kind."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from gpucheck.library.adapters.base import Adapter
from gpucheck.model.errors import error_line
from gpucheck.tools.audit.hazard import Kind

Answer = tuple["bool | None", str]
"""Whether the hazard is real, or None where that stayed open, and what was seen."""

Probe = Callable[["Probing", dict[str, Any]], Answer]
"""Asks about one hazard."""


class Probing:
    """The library in this process and the hazards to ask about."""

    def __init__(
        self,
        adapter: Adapter,
        package: Path,
        hazards: list[dict[str, Any]],
        before: set[str],
        probes: Mapping[Kind, Probe],
    ) -> None:
        self.adapter = adapter
        self.package = package.resolve()
        self.hazards = hazards
        self.probes = probes
        self.before = before  # names in sys.modules before the library was imported
        self.memo: dict[str, Any] = {}  # for probes that observe once for many hazards

    def answers(self) -> list[Answer]:
        """The answer to each hazard, in order."""
        return [self._answer(hazard) for hazard in self.hazards]

    def of_kind(self, *kinds: Kind) -> list[dict[str, Any]]:
        """The hazards of some kinds."""
        names = {kind.value for kind in kinds}
        return [hazard for hazard in self.hazards if hazard["kind"] in names]

    def module(self, hazard: dict[str, Any]) -> ModuleType:
        """The module a hazard is in, imported.

        Raises:
            ImportError, AttributeError: it does not import with this Triton or torch.
        """
        parts = [self.package.name, *Path(hazard["file"]).with_suffix("").parts]
        return importlib.import_module(".".join(parts[:-1] if parts[-1] == "__init__" else parts))

    def value(self, hazard: dict[str, Any]) -> Any:
        """What the hazard's expression gives now, in its module; constants of Triton unwrapped."""
        result = eval(hazard["expression"], vars(self.module(hazard)))  # the library's own text
        return getattr(result, "value", result)

    def clear_caches(self) -> None:
        """Makes the library forget capabilities."""
        for hazard in self.of_kind(Kind.CAPABILITY_CACHE):
            cache = self.value(hazard)
            if hasattr(cache, "cache_clear"):
                cache.cache_clear()
            elif isinstance(cache, dict):
                cache.clear()
            else:
                setattr(self.module(hazard), hazard["expression"], None)

    def _answer(self, hazard: dict[str, Any]) -> Answer:
        probe = self.probes.get(Kind(hazard["kind"]))
        if probe is None:
            return None, "not probed: read from the source"
        try:
            return probe(self, hazard)
        except Exception as error:
            return None, f"not probed: {error_line(error)}"
