"""The report as one page that needs nothing else: no network, no fonts, no scripts to be read."""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files

from gpucheck.report.blocks import NO_GPU_CHECKED, Report
from gpucheck.report.formats.html import sections
from gpucheck.report.formats.html.findings import findings
from gpucheck.report.formats.html.markup import Html, joined, tag


def render(report: Report) -> str:
    """The text of the file."""
    style, script = (
        Html(files(__name__).joinpath(name).read_text(encoding="utf-8")) for name in ("page.css", "page.js")
    )
    parts = {
        "matrix": ("Matrix", sections.matrix(report)),
        "findings": ("Findings", findings(report)),
        "bounds": ("Error against bound", sections.bounds(report)),
        "time": ("Time", sections.times(report)),
        "screen": ("Screen", sections.screen(report)),
        "speed": ("Speed", sections.speeds(report)),
        "cases": ("Cases", sections.cases(report)),
        "environment": ("Environment", sections.environment(report)),
    }
    shown = {name: part for name, part in parts.items() if part[1]}
    body = [
        sections.head(report),
        tag("nav", *(tag("a", title, href=f"#{name}") for name, (title, _) in shown.items()), aria_label="Sections"),
        tag("main", *(_section(name, *part) for name, part in shown.items())),
        tag("script", script),
    ]
    head = [
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", http_equiv="Content-Security-Policy", content=_policy(script)),
        tag("meta", name="color-scheme", content="light dark"),
        tag("link", rel="icon", href="data:,"),
        tag("title", f"{report.verdict}: {report.plan.scenario}" + f", {NO_GPU_CHECKED}" * (not report.gpus_checked)),
        tag("style", style),
    ]
    page = tag("html", tag("head", joined(head, "\n")), "\n", tag("body", joined(body, "\n")), lang="en")
    return f"<!doctype html>\n{page}\n"


def _section(name: str, title: str, content: Html) -> Html:
    return tag("section", tag("h2", title), content, id=name)


def _policy(script: str) -> str:
    """Nothing but the page's own script may run and nothing may be fetched, whatever a case is called."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
