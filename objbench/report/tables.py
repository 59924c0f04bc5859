"""The table of finished cells, as numbers, in the form of the paper's Table 2.

A row contains all seeds of one (protocol, data, model, configuration). `objbench.report.text` writes it as text.
"""

from __future__ import annotations

import math
import re
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from objbench.cells.about import KINDS, package_words
from objbench.cells.identity import OWN
from objbench.cells.matrix import USUAL
from objbench.cells.result import CellResult
from objbench.hookspecs import SAID, Published
from objbench.plugins import Registry
from objbench.report.rows import Row, words_of

if TYPE_CHECKING:
    import pandas as pd

    from objbench.report.statistics import Comparison


@dataclass(frozen=True)
class Table:
    """Rows as numbers, with notes."""

    frame: pd.DataFrame
    """One line per row. For each column `c`: `c` (mean over seeds), `c_std`, `c_n`; if rows were compared, also
    `c_low` and `c_high` (95 % interval) and `c_best`; if the metric's spec says when `c` is meaningful, also
    `c_doubtful` (seeds for which it is not); if there are published figures, also `c_paper`, `c_paper_std`,
    `c_difference`."""
    pairs: pd.DataFrame
    """One line per pair of compared rows: for each column `c` the mean difference `c` and its 95 % interval
    `c_low`, `c_high`."""
    columns: Mapping[str, str]
    """Metric value -> heading. If the heading contains "%", fractions are written as percent."""
    notes: Sequence[str]
    """Notes for readers, one line each."""


def columns_of(
    registry: Registry,
    published: Sequence[Published] = (),
    results: Iterable[CellResult] = (),
    more: bool = False,
) -> dict[str, str]:
    """Metric value -> heading: the columns of all registered metrics, and of metrics that are no longer registered but
    have figures in these results; then other published values, in the order of their publication.

    more: also the values that the metrics' specs list as `more`, at the end."""
    headings = {value: h for spec in registry.metrics.values() for value, h in spec.columns.items()}
    for result in results:
        for metric, columns in result.provenance.get("metric_columns", {}).items():
            if registry.is_gone("metric", metric):
                headings |= {value: h for value, h in columns.items() if value not in headings}
    order = list(headings)
    for row in sorted(published, key=lambda p: -len(p.values)):  # the row with most values gives the order
        values = list(row.values)
        for value, following in zip(values, [*values[1:], None], strict=True):
            if value not in headings:
                headings[value] = row.headings.get(value, value)
                order.insert(order.index(following) if following in order else len(order), value)
    further = {v: h for spec in registry.metrics.values() for v, h in spec.more.items()} if more else {}
    return {value: headings[value] for value in order} | {
        value: heading for value, heading in further.items() if value not in headings
    }


def build(
    rows: Sequence[Row],
    columns: Mapping[str, str],
    registry: Registry,
    comparison: Comparison | None = None,
    long: bool = False,
) -> Table:
    """The table of the rows from `rows_of`. comparison: the result of `statistics.compare` for the same rows.
    long: add notes with each model's spec: paper, code, differences, prior knowledge."""
    import pandas as pd

    healthy = {k: v for spec in registry.metrics.values() for k, v in spec.healthy.items()}
    meaningful = {k: v for spec in registry.metrics.values() for k, v in spec.meaningful.items()}
    printed = any(row.published for row in rows)
    records = []
    for i, row in enumerate(rows):
        record = _words(row, registry)
        if healthy:
            record["collapsed"] = sum(_has_collapsed(r, healthy) for r in row.done)
        for name, heading in columns.items():
            record |= _spread(name, [r.metrics.get(name, math.nan) for r in row.done])
            if name in meaningful:
                other, least = meaningful[name]
                record[f"{name}_doubtful"] = sum(r.metrics.get(other, math.nan) < least for r in row.done)
            if comparison is not None:
                low, high = comparison.intervals[i].get(name, (math.nan, math.nan))
                if "%" in heading:  # Student's t distribution has no bounds, but a share is in 0..1
                    low, high = max(low, 0.0), min(high, 1.0)
                record |= {
                    f"{name}_low": low,
                    f"{name}_high": high,
                    f"{name}_best": name in comparison.best[i] and not record.get(f"{name}_doubtful"),
                }
            if printed:
                mean, std = (row.published.values if row.published else {}).get(name, (math.nan, None))
                record |= {f"{name}_paper": mean, f"{name}_paper_std": math.nan if std is None else std}
                record[f"{name}_difference"] = record[name] - mean
        records.append(record)
    pairs = []
    for a, b, differences in comparison.pairs if comparison is not None else ():
        pair = {k: records[a][k] for k in ("protocol", "data", "data_label", "model", "model_label")}
        pair |= {"minus": records[b]["model"], "minus_label": records[b]["model_label"]}
        for name in columns:
            figures = differences.get(name, (math.nan,) * 3)
            pair |= dict(zip((name, f"{name}_low", f"{name}_high"), figures, strict=True))
        pairs.append(pair)
    notes = _notes(rows, records, registry, healthy, comparison)
    notes += _doubts(records, {name: meaningful[name] for name in columns if name in meaningful}, columns)
    notes += [line for row in rows if long for line in spec_notes(row, registry)]
    notes = list(dict.fromkeys(notes))
    return Table(pd.DataFrame(records), pd.DataFrame(pairs), columns, notes)


def _words(row: Row, registry: Registry) -> dict[str, Any]:
    """The texts of a row: model, data, options, and how its seeds ended."""
    p = row.published
    quoted = {"paper": p.source if p else "", "paper_data_label": (p.data_label or p.data) if p else ""}
    words: dict[str, Any]
    if p and not row.results:
        words = {"protocol": "", "data": p.data, "data_label": p.data_label or p.data, "data_options": ""}
        words |= {"stand_in_for": "", "model": p.model, "model_label": f"{p.model_label or p.model} (paper)"}
        words |= {"model_options": "", "other_code": "", "clusterer": "", "clusters": None}
        words |= {"clusterer_seconds": math.nan}
    else:
        words = {"protocol": row.protocol, **_data_words(row, registry), **_model_words(row, registry)}
    ended = Counter("not run" if r.status == "new" else r.status for r in row.results if r.status != "done")
    return {
        **words,
        "oracle": row.oracle,
        "seeds": len(row.results),
        "done": len(row.done),
        "unfinished": ", ".join(f"{status} ({k} of {len(row.results)})" for status, k in ended.items()),
        "cells": " ".join(r.cell for r in row.results),
        **quoted,
    }


def _data_words(row: Row, registry: Registry) -> dict[str, Any]:
    words = words_of(row, registry)["data"]
    imitated = words.get("stand_in_for", "")
    label = (words.get("label") or row.data) + (f" (stand-in for {imitated})" if imitated else "")
    return {
        "data": row.data,
        "data_label": _with_options(label, row.data_options),
        "data_options": ", ".join(row.data_options),
        "stand_in_for": imitated,
    }


def _model_words(row: Row, registry: Registry) -> dict[str, Any]:
    label = name_of(row, registry) + (" (oracle)" if row.oracle or row.oracle_clusterer else "")
    seconds = [r.clusterer_seconds for r in row.done if r.clusterer_seconds]
    return {
        "model": row.model,
        "clusterer": row.clusterer,
        "clusters": row.clusters,
        "clusterer_seconds": statistics.fmean(seconds) if seconds else math.nan,
        "model_label": _with_options(label, row.options),
        "model_options": ", ".join(row.options),
        "other_code": ", ".join(row.other_code),
    }


def name_of(row: Row, registry: Registry) -> str:
    """A row's model and clusterer by their labels: "SPACE + GMM"."""
    words = words_of(row, registry)
    clusterer = row.clusterer
    if not clusterer and not words["model"].get("clusters", True):  # the cells do not say
        clusterer = USUAL
    label = str(words["model"].get("label") or row.model)
    if clusterer in ("", OWN):
        return label
    spec = registry.clusterers.get(clusterer)
    return f"{label} + {(spec.label if spec else words['clusterer'].get('label')) or clusterer}"


def _with_options(label: str, options: Sequence[str]) -> str:
    return f"{label} [{', '.join(options)}]" if options else label


def _spread(name: str, values: Sequence[float]) -> dict[str, float]:
    """Mean and sample standard deviation (n - 1) over the seeds that have this value; NaN when there are too few.

    Values that are not finite are left out.
    """
    known = [v for v in values if math.isfinite(v)]
    return {
        name: statistics.fmean(known) if known else math.nan,
        f"{name}_std": statistics.stdev(known) if len(known) > 1 else math.nan,
        f"{name}_n": len(known),
    }


def _has_collapsed(result: CellResult, healthy: Mapping[str, tuple[float, float]]) -> bool:
    """True if a value is outside its healthy range; undefined values are left out."""
    known = {k: result.metrics[k] for k in healthy if not math.isnan(result.metrics.get(k, math.nan))}
    return any(not healthy[k][0] <= v <= healthy[k][1] for k, v in known.items())


def _notes(
    rows: Sequence[Row],
    records: Sequence[Mapping[str, Any]],
    registry: Registry,
    healthy: Mapping[str, tuple[float, float]],
    comparison: Comparison | None,
) -> list[str]:
    ours = [r for r in records if r["seeds"]]
    notes = ["Mean ± standard deviation over seeds."]
    if len(protocols := {r["protocol"] for r in ours}) == 1:
        notes = [f"Protocol {protocols.pop()}. {notes[0]}"]
    if any(r["done"] == 1 for r in ours):
        notes.append("Single seed: one training run; how far another would differ is not known.")
    for name, imitated in dict.fromkeys((r["data"], r["stand_in_for"]) for r in ours if r["stand_in_for"]):
        notes.append(f"{name} stands in for {imitated}: a figure on it is not a figure on {imitated}.")
    if any(row.trained_on for row in rows):
        notes.append("Trained on: its detector was trained on other scenes than it is tested on here.")
    if any(r["oracle"] for r in ours):
        notes.append("Oracle: was given the true boxes; a bound to compare with, not a detector.")
    notes += _clusterer_notes(rows, registry)
    notes += [line for row, r in zip(rows, records, strict=True) if (line := _mixed(row, r))]
    notes += _provenance_notes(rows, registry)
    if healthy and any(r["done"] for r in ours):
        limits = " or ".join(f"{k} outside {low:g}..{high:g}" for k, (low, high) in healthy.items())
        collapsed, runs = sum(r["collapsed"] for r in ours), sum(r["done"] for r in ours)
        notes.append(f"Collapsed: {collapsed} of {runs} runs ({limits}).")
    if comparison is not None:
        notes.append(
            f"95 % intervals: bootstrap over test scenes ({comparison.resamples} draws) and seeds; for one "
            "seed, over scenes alone. Bold: the best, and each figure for which the paired 95 % interval of "
            "its difference to the best contains 0 (each pair alone: no correction for the number of pairs)."
        )
        notes += comparison.notes
    published = [row.published for row in rows if row.published]
    notes += [f"Paper: {source}." for source in dict.fromkeys(p.source for p in published)]
    return notes + list(dict.fromkeys(p.note for p in published if p.note))


def _clusterer_notes(rows: Sequence[Row], registry: Registry) -> list[str]:
    """How many clusters there can be, whose clusters were replaced, and which clusterers were given labels."""
    notes = []
    ours = [row for row in rows if row.results]
    for data in dict.fromkeys(row.data for row in ours):
        mine = [row for row in ours if row.data == data and row.clusters is not None]
        if not mine:
            continue
        label = words_of(mine[0], registry)["data"].get("label") or data
        by_number: dict[int | None, list[str]] = {}
        numbers_of: dict[str, set[int | None]] = {}
        for row in mine:
            numbers_of.setdefault(name_of(row, registry), set()).add(row.clusters)
        for row in mine:
            name = name_of(row, registry)
            apart = row.options if len(numbers_of[name]) > 1 else ()
            by_number.setdefault(row.clusters, []).append(_with_options(name, apart))
        parts = [f"{n} ({', '.join(dict.fromkeys(names))})" for n, names in by_number.items()]
        numbers = str(mine[0].clusters) if len(by_number) == 1 else "; ".join(parts)
        notes.append(f"Clusters on {label}: {numbers}.")
    for row in ours:
        if row.replaces:
            own = words_of(row, registry)["model"].get("label") or row.model
            notes.append(f"{name_of(row, registry)}: replaces {own}'s own clusters.")
    if any(row.oracle_clusterer for row in ours):
        names = dict.fromkeys(name_of(row, registry) for row in ours if row.oracle_clusterer)
        notes.append(
            f"Oracle ({', '.join(names)}): its clusterer was fitted with the true labels; a bound to compare with."
        )
    return list(dict.fromkeys(notes))


def _doubts(
    records: Sequence[Mapping[str, Any]],
    meaningful: Mapping[str, tuple[str, float]],
    columns: Mapping[str, str],
) -> list[str]:
    """Which figures stand in brackets, and why."""
    reasons: dict[tuple[str, float], list[str]] = {}
    for name, reason in meaningful.items():
        if any(r.get(f"{name}_doubtful") for r in records):
            reasons.setdefault(reason, []).append(columns[name])
    return [
        f"(In brackets): {', '.join(headings)} of a row with a run whose {other} is under {least:g}; not meaningful."
        for (other, least), headings in reasons.items()
    ]


def _provenance_notes(rows: Sequence[Row], registry: Registry) -> list[str]:
    """Notes on brackets, on cells run with other code, and on plugins that are no longer registered."""
    ours, notes = [row for row in rows if row.results], []
    if any(row.options or row.data_options for row in ours):
        notes.append(
            "In brackets: options that differ from the protocol's settings, code that differs from the installed "
            "code, and what else distinguishes a row."
        )
    if other := dict.fromkeys(text for row in ours for text in row.other_code):
        notes.append(f"Run with other code than is installed now: {', '.join(other)}.")
    for part, kind in {**KINDS, "clusterer": "clusterer"}.items():
        for row in ours:
            name = getattr(row, part)
            if name not in ("", OWN) and registry.is_gone(kind, name):
                about = row.about.get(name if part == "clusterer" else part, {})
                source = package_words(about.get("plugin", {}))
                came = f"{source} did" if source else "which package did is not recorded"
                notes.append(f"No plugin registers the {kind} {name} any more; {came}.")
    for metric in dict.fromkeys(
        m for row in ours for r in row.done for m in r.provenance.get("metric_columns", {})
    ):
        if registry.is_gone("metric", metric):
            notes.append(
                f"No plugin registers the metric {metric} any more; its figures are those that were recorded."
            )
    if unknown := dict.fromkeys(row.model for row in ours if not row.about):
        notes.append(
            f"Cells of {', '.join(unknown)} do not record the protocol's own settings: of their options only "
            "those that set rows apart are named."
        )
    return list(dict.fromkeys(notes))


def spec_notes(row: Row, registry: Registry) -> list[str]:
    """What the specs of a row's model and clusterer say, a line each, or a line that nothing is said; and the time that
    the clusterer took."""
    if not row.results:
        return []
    words, lines = words_of(row, registry), []
    names = {"model": row.model} | ({} if row.clusterer in ("", OWN) else {"clusterer": row.clusterer})
    for kind, name in names.items():
        label, said = words[kind].get("label") or name, []
        for part, title in SAID.items():
            under = f" under {row.protocol}" if part == "differs" else ""
            if words[kind].get(part):
                said.append(f"{label}, {title}{under}: {words[kind][part]}")
        lines += said or [f"{label}: its plugin does not say of what paper it is, or what differs from it."]
    seconds = [r.clusterer_seconds for r in row.done if r.clusterer_seconds]
    if seconds:
        lines.append(
            f"{_with_options(name_of(row, registry), row.options)} on {_with_options(row.data, row.data_options)}: "
            f"the clusterer took {statistics.fmean(seconds):.1f} s a seed."
        )
    return lines


def _mixed(row: Row, record: Mapping[str, Any]) -> str:
    """A note if the finished cells of a row were run with different versions or on different devices; else ""."""
    found: dict[str, set[str]] = {"objbench": set(), "torch": set(), "device": set()}
    for result in row.done:
        known = result.provenance
        minor = re.match(r"\d+\.\d+", str(known.get("packages", {}).get("torch", "")))
        for name, value in (
            ("objbench", known.get("objbench")),
            ("torch", minor and minor[0]),
            ("device", known.get("device")),
        ):
            if value:
                found[name].add(value)
    mixed = [f"{name} ({', '.join(sorted(values))})" for name, values in found.items() if len(values) > 1]
    where = f"{record['model_label']} on {record['data_label']}"
    return f"{where}: its cells differ in {', '.join(mixed)}." if mixed else ""
