"""Writes a table as text for a terminal, Markdown and LaTeX, and as plain numbers in CSV and JSON."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import rich.table
    from rich.console import Console

    from objbench.report.tables import Table


ABSENT = "--"
"""Written in place of a missing figure, as in the paper."""

NAME = 12
"""The least width of a column of names on a narrow terminal; with less space, each figure is on its own line."""

Record = Mapping[Hashable, Any]


class Line(NamedTuple):
    """A line of text cells."""

    cells: list[str]
    bold: frozenset[int] = frozenset()
    """The indices of its bold cells."""
    under: bool = False
    """True if it adds to the line above."""


class Sheet(NamedTuple):
    """A table of text, in blocks of lines with a rule between blocks."""

    headings: list[str]
    figures: range
    """The columns that contain figures."""
    blocks: list[list[Line]]


def sheets_of(table: Table) -> list[Sheet]:
    """The table as text; if rows were compared, also a second table with the differences of all pairs."""
    records = table.frame.to_dict("records")
    protocol = ["protocol"] * (len({r["protocol"] for r in records if r["seeds"]}) > 1)
    keys = [*protocol, "model_label", "data_label"]
    names = {"protocol": "Protocol", "model_label": "Model", "minus_label": "minus", "data_label": "Dataset"}

    def sheet(
        records: Sequence[Record], keys: list[str], last: list[str], lines: Callable[[Record], list[Line]]
    ) -> Sheet:
        headings = [*(names[k] for k in keys), *table.columns.values(), *last]
        blocks = itertools.groupby(records, key=lambda r: (r["protocol"], r["data_label"]))
        figures = range(len(keys), len(keys) + len(table.columns))
        written = [[line for r in block for line in lines(r)] for _, block in blocks]
        clean = [
            [line._replace(cells=[one_line(c) for c in line.cells]) for line in block] for block in written
        ]
        return Sheet([one_line(h) for h in headings], figures, clean)

    sheets = [sheet(records, keys, ["Seeds"], lambda r: _row_lines(r, keys, table.columns))]
    if len(table.pairs):
        pairs = table.pairs.to_dict("records")
        of_pair = [*protocol, "model_label", "minus_label", "data_label"]
        sheets.append(sheet(pairs, of_pair, [], lambda r: [_pair_line(r, of_pair, table.columns)]))
    return sheets


def one_line(text: str) -> str:
    """A label that every format can print: white space and control characters become one space."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _row_lines(record: Record, keys: list[str], columns: Mapping[str, str]) -> list[Line]:
    """The line of a row, and the lines under it: its interval, the paper's figures, the difference from them."""
    lead = [record[k] for k in keys]
    if not record["seeds"]:
        return [Line([*lead, *(_printed(record, c, h) for c, h in columns.items()), ABSENT])]
    figures = [_figure(record, c, h) for c, h in columns.items()]
    best = frozenset(i for i, c in enumerate(columns, len(lead)) if record.get(f"{c}_best"))
    lines = [Line([*lead, *figures, _seeds(record)], best)]

    def under(title: str, data: str, figures: Iterable[str]) -> None:
        blank = [""] * (len(lead) - 2)
        lines.append(Line([*blank, title, data, *figures, ""], under=True))

    if any(not math.isnan(record.get(f"{c}_low", math.nan)) for c in columns):
        under("95 % interval", "", (_interval(record, c, h) for c, h in columns.items()))
    if record["paper"]:
        under("paper", record["paper_data_label"], (_printed(record, c, h) for c, h in columns.items()))
        remark = "not the same data" if record["stand_in_for"] else ""
        under("difference", remark, (_signed(record[f"{c}_difference"], h) for c, h in columns.items()))
    return lines


def _pair_line(record: Record, keys: list[str], columns: Mapping[str, str]) -> Line:
    """The difference of two rows; bold if the interval does not contain 0."""
    figures = [f"{_signed(record[c], h)} {_interval(record, c, h)}" for c, h in columns.items()]
    apart = (i for i, c in enumerate(columns, len(keys)) if record[f"{c}_low"] > 0 or record[f"{c}_high"] < 0)
    return Line([*(record[k] for k in keys), *figures], frozenset(apart))


def _seeds(record: Record) -> str:
    """The number of finished seeds, and the status of the others."""
    done, parts = record["done"], []
    if done:
        parts.append("1 (single seed)" if done == 1 else str(done))
    if record["unfinished"]:
        parts.append(record["unfinished"])
    if record.get("collapsed"):
        parts.append(f"collapsed ({record['collapsed']} of {done})")
    return ", ".join(parts)


def _figure(record: Record, column: str, heading: str) -> str:
    """Mean ± std; with n if some finished seeds have no such figure; in brackets if it is not meaningful."""
    mean, std, n = (record[column], record[f"{column}_std"], record[f"{column}_n"])
    if not n:
        return ABSENT
    text = _number(mean, heading, 1) + ("" if math.isnan(std) else f" ± {_number(std, heading, 2)}")
    text = f"({text})" if record.get(f"{column}_doubtful") else text
    return text if n == record["done"] else f"{text} (n={n})"


def _printed(record: Record, column: str, heading: str) -> str:
    """The paper's figure, with the digits printed there, at most two."""
    mean, std = record[f"{column}_paper"], record[f"{column}_paper_std"]
    if math.isnan(mean):
        return ABSENT
    digits = _number(mean, heading, 2).removesuffix("0")
    return digits + ("" if math.isnan(std) else f" ± {_number(std, heading, 2)}")


def _interval(record: Record, column: str, heading: str) -> str:
    low, high = record[f"{column}_low"], record[f"{column}_high"]
    return ABSENT if math.isnan(low) else f"[{_number(low, heading, 1)}, {_number(high, heading, 1)}]"


def _signed(value: float, heading: str) -> str:
    return ABSENT if math.isnan(value) else ("+" if value >= 0 else "") + _number(value, heading, 1)


def _number(value: float, heading: str, digits: int) -> str:
    """A fraction as percent if the heading contains "%", else the number with two more digits."""
    text = f"{100 * value:.{digits}f}" if "%" in heading else f"{value:.{digits + 2}f}"
    return text.replace("-", "−")


def markdown(table: Table) -> str:
    """The table in GitHub's Markdown, with the notes as a list."""
    parts = []
    for sheet in sheets_of(table):
        aligned = ["---:" if i in sheet.figures else "---" for i in range(len(sheet.headings))]
        lines = [[_md(h) for h in sheet.headings], aligned]
        for line in itertools.chain.from_iterable(sheet.blocks):
            cells = [c if i in sheet.figures else _md(c) for i, c in enumerate(line.cells)]
            cells = [f"**{c}**" if i in line.bold else c for i, c in enumerate(cells)]
            if line.under:
                cells = [f"*{c}*" if c else "" for c in cells]
            lines.append(cells)
        parts.append("\n".join(f"| {' | '.join(cells)} |" for cells in lines))
    parts.append("\n".join(f"- {_md(one_line(note))}" for note in table.notes))
    return "\n\n".join(parts) + "\n"


def _md(text: str) -> str:
    r"""Escapes Markdown's special characters: \ ` * | < [ ~~, the & of an entity, and _ except inside a word."""
    return re.sub(r"([\\`*|<\[]|~(?=~)|(?<=~)~|&(?=#?\w+;)|(?<!\w)_|_(?!\w))", r"\\\1", text)


def latex(table: Table) -> str:
    """The table as LaTeX tabulars for the package booktabs, with a rule between data sets, then the notes."""
    parts = ["% needs \\usepackage{booktabs}"]
    for sheet in sheets_of(table):
        columns = "".join("r" if i in sheet.figures else "l" for i in range(len(sheet.headings)))
        blocks = []
        for block in [[Line(sheet.headings)], *sheet.blocks]:
            blocks.append("\n".join(_latex_line(line) for line in block))
        body = "\n\\midrule\n".join(blocks)
        parts.append(f"\\begin{{tabular}}{{{columns}}}\n\\toprule\n{body}\n\\bottomrule\n\\end{{tabular}}")
    parts.append("\n".join(f"\\par\\footnotesize {_tex(one_line(note))}" for note in table.notes))
    return "\n\n".join(parts) + "\n"


def _latex_line(line: Line) -> str:
    cells = [f"\\textbf{{{_tex(c)}}}" if i in line.bold else _tex(c) for i, c in enumerate(line.cells)]
    if line.under:
        cells = [f"\\quad {c}" if c and i == 0 else c for i, c in enumerate(cells)]
    text = " & ".join(cells) + r" \\"
    return f"{{}}{text}" if text[0] in "[*" else text  # else the \\ before it takes this as its argument


def _tex(text: str) -> str:
    """Escapes LaTeX's special characters, and writes ± and the minus sign in LaTeX."""
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    special |= {c: f"\\{c}" for c in "&%$#_{}"} | {"±": r"$\pm$", "−": "$-$", "<": "$<$", ">": "$>$"}
    return "".join(special.get(c, c) for c in text)


def terminal(table: Table, width: int) -> list[rich.table.Table]:
    """The tables for a rich console of `width` characters, without the notes.

    On a narrow console, names are wrapped. If fewer than NAME characters are left for them, each figure is on its own
    line.
    """
    return [_grid(sheet, width) or _stacked(sheet, width) for sheet in sheets_of(table)]


def _grid(sheet: Sheet, width: int) -> rich.table.Table | None:
    """The sheet as a table; None when it does not fit."""
    from rich import box
    from rich.cells import cell_len
    from rich.table import Table as RichTable
    from rich.text import Text

    gap = 2 if width >= 100 else 1
    grid = RichTable(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, gap - 1, 0, 0), pad_edge=False)
    lines = [line for block in sheet.blocks for line in block]
    least = 0
    for i, heading in enumerate(sheet.headings):
        cells = [line.cells[i] for line in lines]
        if i in sheet.figures:  # on a narrow console, names are wrapped, but figures never are
            column = max(map(cell_len, [*heading.split(), *cells]))
            grid.add_column(Text(heading), justify="right", width=column)
        else:
            column = min(NAME, max(map(cell_len, [heading, *cells])))
            grid.add_column(Text(heading), overflow="fold")
        least += column + gap
    if least > width + gap:
        return None
    for block in sheet.blocks:
        for line in block:
            texts = [Text(c, "bold" if i in line.bold else "") for i, c in enumerate(line.cells)]
            grid.add_row(*texts, style="dim" if line.under else "")
        grid.add_section()
    return grid


def _stacked(sheet: Sheet, width: int) -> rich.table.Table:
    """One line for the names of a row, then one line per figure; two if a figure does not fit beside its heading."""
    from rich.cells import cell_len
    from rich.table import Table as RichTable
    from rich.text import Text

    grid = RichTable(box=None, show_header=False, pad_edge=False)
    grid.add_column(overflow="fold")
    for line in itertools.chain.from_iterable(sheet.blocks):
        style = "dim" if line.under else ""
        names = [c for c in line.cells[: sheet.figures.start] if c]
        grid.add_row(Text(", ".join(names), style))
        for i, figure in enumerate(line.cells[sheet.figures.start :], sheet.figures.start):
            heading, bold = Text(f"  {sheet.headings[i]}: ", style), "bold" if i in line.bold else ""
            if figure and heading.cell_len + cell_len(figure) > width:
                grid.add_row(heading)
                heading = Text("    ", style)
            if figure:
                grid.add_row(heading.append(figure, bold))
    return grid


def csv(table: Table) -> str:
    """The numbers of the rows, one line per row; fractions are in 0..1, and an undefined figure is empty."""
    return table.frame.replace([math.inf, -math.inf], math.nan).to_csv(index=False)


def as_json(table: Table) -> str:
    """{"rows": [...], "pairs": [...], "notes": [...]} with numbers; fractions are in 0..1, undefined ones are null."""

    def records(frame: Any) -> list[dict[str, Any]]:
        return [{k: _plain(v) for k, v in r.items()} for r in frame.to_dict("records")]

    body = {"rows": records(table.frame), "pairs": records(table.pairs), "notes": list(table.notes)}
    return json.dumps(body, indent=2) + "\n"


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def draw(table: Table, console: Console | None) -> str:
    """The table for a terminal, wrapped to its width; without a terminal, not wrapped and without colours."""
    from rich.console import Console

    on = console or Console(width=10_000, color_system=None, force_terminal=False, emoji=False)
    with on.capture() as capture:
        for grid in terminal(table, on.width):
            on.print(grid, "")
        for note in map(one_line, table.notes):
            on.print(note, markup=False, highlight=False, style="dim", soft_wrap=console is None)
    return "".join(f"{line.rstrip()}\n" for line in capture.get().strip("\n").splitlines())
