"""Turns what Triton, LLVM and ptxas say of a kernel into a problem: the words, the line of source, a hint."""

from __future__ import annotations

import gc
import re
from pathlib import Path
from typing import Any

from gpucheck.tools.compile.hints import hint
from gpucheck.tools.compile.outcome import Kind, Problem
from gpucheck.tools.compile.source_locations import Place, Sources, of_ptx
from gpucheck.triton_hooks.compiled_kernel import Excess, TooManyBlocks
from gpucheck.triton_hooks.launch_hooks import kernel_kinds
from gpucheck.triton_hooks.targets import Target

ERROR_LINES = 6  # of what a compiler says, kept for the report
FEWER_WARPS = "launch it with fewer warps"
FEWER_BLOCKS = "put the long extent on axis 0, fold axes into one, or launch in parts"
SMALLER_TILES = "smaller tiles or fewer pipeline stages need less"


class Problems:
    """Makes problems of errors about one target, placed in some sources."""

    def __init__(self, target: Target, sources: Sources) -> None:
        self._target, self._sources = target, sources

    def of_compilation(self, function: Any, error: BaseException, printed: str) -> tuple[Problem, bool]:
        """What a failed compilation means, and whether only the target or the machine is to blame.

        Args:
            function: the kernel.
            printed: what the compilers printed meanwhile.
        """
        said = f"{message(error)}\n{_diagnostics(printed)}".strip()
        lacks = self._target.lacks(said)
        place = self._place(function, error, said)
        code = self._sources.code(place) if place else _code_of(error)
        problem = Problem(Kind.ERROR, _short(said), self._name(place), code, lacks or hint(said))
        return problem, bool(lacks)

    def of_launch(self, function: Any, error: BaseException, launched: Place | None) -> Problem:
        """What it means that Triton refuses a launch before it compiles anything."""
        said = message(error)
        place = self._place(function, error, said) or launched
        code = self._sources.code(place) if place else ""
        return Problem(Kind.REFUSED, _short(said), self._name(place), code, hint(said))

    def of_excess(self, function: Any, excess: Excess) -> Problem:
        """That a kernel asks for more than the target has."""
        place = self._sources.of_function(function.src)
        place = place or Place(function.fn.__code__.co_filename, _first_line(function))
        advice = FEWER_WARPS if excess.resource in ("threads", "registers") else SMALLER_TILES
        error = f"{excess} on {self._target.name}"
        return Problem(Kind.RESOURCE, error, self._name(place), self._sources.code(place), advice)

    def of_grid(self, excess: TooManyBlocks, launched: Place | None) -> Problem:
        """That a launch has more blocks than the target allows; the driver only calls it an invalid argument."""
        code = self._sources.code(launched) if launched else ""
        return Problem(Kind.RESOURCE, f"{excess} on {self._target.name}", self._name(launched), code, FEWER_BLOCKS)

    def _name(self, place: Place | None) -> str:
        return self._sources.name(place) if place else ""

    def _place(self, function: Any, error: BaseException, said: str) -> Place | None:
        """The line of source that an error is about: the innermost one in a file worth naming."""
        for text, line in reversed(_lines_of(error)):
            place = self._sources.of_text(text, line)
            if place:
                return place
        missing = re.search(r"module 'triton[\w.]*' has no attribute '(\w+)'", said)
        if missing:
            return self._mention(function, rf"\.{missing[1]}\b")
        ptx = re.search(r"ptxas\S* (?P<file>\S+\.ptx), line (?P<line>\d+)", said)
        if ptx and Path(ptx["file"]).is_file():
            return self._original(function, of_ptx(Path(ptx["file"]).read_text(errors="replace"), int(ptx["line"])))
        listed = re.search(r"(?P<file>/[^:\s]+\.py):(?P<line>\d+):\d+: error:", said)
        if listed:
            return self._original(function, Place(listed["file"], int(listed["line"])))
        unknown = re.search(r"(?:invalid instruction\s*\n\s*|known instruction: ')(?P<name>[\w.]+)", said)
        return self._mention(function, re.escape(unknown["name"])) if unknown else None

    def _mention(self, function: Any, pattern: str) -> Place | None:
        """The first line that holds what the error names, in a kernel or in a function that it may call."""
        compiled, _ = kernel_kinds()
        every = [entry for entry in gc.get_objects() if issubclass(type(entry), compiled)]
        others = [entry.src for entry in every if entry is not function]
        for text in (function.src, *others):
            for number, line in enumerate(text.splitlines(), start=1):
                place = self._sources.of_text(text, number) if re.search(pattern, line) else None
                if place:
                    return place
        return None

    def _original(self, function: Any, place: Place | None) -> Place | None:
        """The place in the kernel as it was written, for one in a kernel that the library has rewritten."""
        if place is None or place.path != function.fn.__code__.co_filename:
            return place
        return self._sources.of_text(function.src, place.line - _first_line(function) + 1) or place


def chain(error: BaseException) -> list[BaseException]:
    """An error and its causes, the outermost first."""
    links: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in links:
        links.append(link)
        link = link.__cause__
    return links


def message(error: BaseException) -> str:
    """What the innermost cause says, with the name of its type in front where that says more."""
    innermost = chain(error)[-1]
    text = str(getattr(innermost, "error_message", None) or innermost).strip()
    quoted = re.fullmatch(r"(?P<kind>\w+)\((?P<quote>['\"])(?P<text>.*)(?P=quote)\)", text, re.DOTALL)
    if quoted:  # the representation of a cause that Triton has dropped
        return f"{quoted['kind']}: {quoted['text']}"
    kind = type(innermost).__name__
    return text if kind in ("CompilationError", "PTXASError", "RuntimeError", "Exception") else f"{kind}: {text}"


def _lines_of(error: BaseException) -> list[tuple[str, int]]:
    """The text of a kernel and the line in it, from 1, of each link of an error that names one."""
    named = []
    for link in chain(error):
        text, line = getattr(link, "src", None), getattr(getattr(link, "node", None), "lineno", None)
        if isinstance(text, str) and line is not None:
            named.append((text, int(line)))
    return named


def _code_of(error: BaseException) -> str:
    """The innermost line of a kernel's text that an error names."""
    for text, line in reversed(_lines_of(error)):
        return text.splitlines()[line - 1].strip()
    return ""


def _diagnostics(printed: str) -> str:
    """The lines that compilers print about an error, each with the one below it."""
    lines = printed.splitlines()
    marked = [number for number, line in enumerate(lines) if re.search(r"\berror\s*:", line, re.IGNORECASE)]
    wanted = sorted({number + offset for number in marked for offset in (0, 1)})
    return "\n".join(lines[number] for number in wanted if number < len(lines))


def _short(said: str) -> str:
    """The first lines of an error, without temporary files and what only repeats how ptxas was called."""
    lines = [re.sub(r"/\S*/tmp\w+(\.ptx)?", "<file>", line).strip() for line in said.splitlines()]
    kept = [line for line in lines if line and not line.startswith(("Repro command", "`ptxas` stderr"))]
    return "\n".join(list(dict.fromkeys(kept))[:ERROR_LINES])


def _first_line(function: Any) -> int:
    """The line of a kernel's ``def`` in its file."""
    first: int = getattr(function, "starting_line_number", function.fn.__code__.co_firstlineno)
    for offset, line in enumerate(getattr(function, "raw_src", [])):
        if line.strip().startswith("def "):
            return first + offset
    return first
