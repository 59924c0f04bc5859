"""Writes the page: the templates of this folder, filled with what `objbench.report.page.content` gives."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.resources import files

import jinja2

import objbench
from objbench.cells.identity import Cell
from objbench.plugins import Registry
from objbench.report import text
from objbench.report.page.content import content_of, lines_of, sources_of
from objbench.report.pictures import COLOURS
from objbench.report.rows import Row
from objbench.report.tables import Table

TITLE = "objbench report"


def page(
    rows: Sequence[Row],
    cells: Mapping[str, Cell],
    table: Table,
    registry: Registry,
    pair: tuple[str, str] = ("", ""),
) -> tuple[str, list[str]]:
    """The page as HTML, and a line for each cell whose files cannot be read.

    Everything is in it, and it asks for nothing else. Whatever comes from plugins and records is escaped.

    pair: the keys of two cells on the same test scenes, which are compared when the page is opened; "" for none.
    rows, table: as `rows_of` and `tables.build` give them, of the same rows. cells: by key.
    """
    here = files(__package__ or "")

    def part(name: str) -> str:
        return (here / name).read_text(encoding="utf-8")

    content, problems = content_of(rows, cells, table, registry)
    sources = sources_of(rows, cells, table, registry)
    ours = [row for row in rows if row.results]
    count, done = sum(len(row.results) for row in ours), sum(len(row.done) for row in ours)
    protocols = ", ".join(dict.fromkeys(row.protocol for row in ours))
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    html = environment.from_string(part("page.html.jinja")).render(
        title=TITLE,
        summary=f"{len(ours)} rows, {done} finished cells of {count}; protocol {protocols}.",
        headings=[text.one_line(heading) for heading in table.columns.values()],
        lines=lines_of(table, rows, registry),
        sourced={source.row for source in sources},
        notes=table.notes,
        downloads=[
            ("table.csv", _uri("text/csv", text.csv(table))),
            ("table.tex", _uri("text/x-tex", text.latex(table))),
        ],
        sources=sources,
        problems=problems,
        content=content | {"colours": COLOURS, "pair": pair},
        made=f"Written by objbench {objbench.__version__} on {datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        css=part("uPlot.min.css") + part("page.css"),
        plot=part("uPlot.iife.min.js"),
        js=part("page.js"),
    )
    return html, problems


def _uri(kind: str, body: str) -> str:
    return f"data:{kind};charset=utf-8;base64,{base64.b64encode(body.encode()).decode()}"
