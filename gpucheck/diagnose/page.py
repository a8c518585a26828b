"""A page of ``gpucheck explain``: what a title that findings carry means, how it shows, how to confirm and fix it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Page:
    """What ``gpucheck explain`` prints under a title."""

    title: str  # as findings and the JSON report have it
    means: str
    shows: str
    confirm: str
    fix: str

    @property
    def parts(self) -> dict[str, str]:
        """The texts under the title, by what they tell."""
        return {part: text for part, text in vars(self).items() if part != "title"}


class Cause(Page):
    """A cause that findings name."""
