"""Python source from nested parts, broken into lines where it is wide."""

from __future__ import annotations

import keyword
from collections.abc import Collection, Sequence

WIDTH = 100

Node = str | tuple[str, Sequence[tuple[str, "Node"]], str]  # type: ignore[misc]
"""A piece of source, or an opening, members each led by a keyword or key, and a closing."""


def call(name: str, members: Sequence[tuple[str, Node]]) -> Node:
    """A call, or anything else in parentheses."""
    return (f"{name}(", members, ")")


def text(node: Node, indent: int) -> str:
    """The source of a node that stands behind so many blanks.

    A node without opening and closing is its members one behind the other.
    """
    if isinstance(node, str):
        return node
    opening, members, closing = node
    if not opening:
        return "".join(prefix + text(member, indent) for prefix, member in members)
    flat = opening + ", ".join(prefix + text(member, 0) for prefix, member in members) + closing
    if len(flat) + indent <= WIDTH and "\n" not in flat:
        return flat
    inner = indent + 4
    lines = [f"{' ' * inner}{prefix}{text(member, inner)},\n" for prefix, member in members]
    return f"{opening}\n{''.join(lines)}{' ' * indent}{closing}"


def alias(module: str, taken: Collection[str]) -> str:
    """A name for a module, its last part where that is free."""
    name = module.rpartition(".")[2].lstrip("_") or "module"
    if keyword.iskeyword(name):
        name += "_"
    number = 2
    candidate = name
    while candidate in (*taken, "torch", "inputs", "arguments", "made"):
        candidate, number = f"{name}_{number}", number + 1
    return candidate
