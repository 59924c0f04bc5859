"""The paper's Table 2 from finished cells, as numbers: who is in a row, and what the row says.

A row is every seed of one (protocol, data, model, configuration). `objbench.report.text` writes it down.
"""

from __future__ import annotations

import hashlib
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from objbench.hookspecs import Published
from objbench.matrix import MIXTURE
from objbench.plugins import Registry
from objbench.protocols import PROTOCOLS
from objbench.results import CellResult
from objbench.store import canonical

if TYPE_CHECKING:
    import pandas as pd

    from objbench.report.statistics import Comparison

Facts = tuple[tuple[str, str], ...]
"""Option and value, sorted."""


@dataclass(frozen=True)
class Row:
    """The seeds of one configuration; or, without results, a row that only a publication has."""

    protocol: str = ""
    data: str = ""
    model: str = ""
    data_options: tuple[str, ...] = ()
    """What sets its data apart from that of other rows, as "key=value"."""
    options: tuple[str, ...] = ()
    """What sets its model apart from the other rows of that name, as "key=value"."""
    results: tuple[CellResult, ...] = ()
    published: Published | None = None
    """What is printed beside it."""

    @property
    def done(self) -> list[CellResult]:
        """The seeds that finished: its figures are theirs."""
        return [r for r in self.results if r.status == "done"]

    @property
    def block(self) -> tuple[str, ...]:
        """Equal for rows that were tested alike, which can be compared."""
        return (self.protocol, self.data, *self.data_options)

    @property
    def oracle(self) -> bool:
        """Whether it was given the true boxes."""
        return any(r.provenance.get("oracle") for r in self.results)


@dataclass(frozen=True)
class Table:
    """Rows as numbers, and what to say of them."""

    frame: pd.DataFrame
    """A line a row. For each column `c`: `c` (mean over seeds), `c_std`, `c_n`; where rows were compared
    `c_low` and `c_high` (95 % interval), `c_best`; where some are published `c_paper`, `c_paper_std`,
    `c_difference`."""
    pairs: pd.DataFrame
    """A line for each pair of rows that were compared: for each column `c` the mean difference `c`, and its
    95 % interval `c_low`, `c_high`."""
    columns: Mapping[str, str]
    """Metric value -> heading. Where the heading says "%", fractions are written as percent."""
    notes: Sequence[str]
    """What a reader must know, one line each."""


def rows_of(
    results: Iterable[CellResult],
    identities: Mapping[str, Mapping[str, Any]],
    registry: Registry,
    published: Sequence[Published] = (),
) -> list[Row]:
    """Cells as rows: by protocol, then data, then model, in the order of published tables, then registration.

    Cells share a row when they differ in the seed alone; rows of one name are told apart by what differs.
    identities: cell -> all that its figures depend on, as `cell.json` has it; if missing, its configs.
    published: goes beside the rows of its model and data (or of data that stand in for these); what matches
    no row follows in rows of its own.
    """
    groups: dict[tuple[Any, ...], list[CellResult]] = {}
    shared: dict[tuple[str, ...], set[tuple[str, str]]] = {}  # what all cells of one data set or model have
    for result in sorted(results, key=lambda r: r.seed):
        names = (result.protocol, result.data, result.model)
        of_data, of_model = _facts(identities.get(result.cell) or vars(result))
        groups.setdefault((*names, of_data, of_model), []).append(result)
        shared.setdefault(names[:2], set(of_data)).intersection_update(of_data)
        shared.setdefault(names, set(of_model)).intersection_update(of_model)
    rows = []
    for (protocol, data, model, of_data, of_model), group in groups.items():
        data_options = _telling(of_data, shared[protocol, data])
        options = _telling(of_model, shared[protocol, data, model])
        rows.append(Row(protocol, data, model, data_options, options, tuple(group)))
    rows.sort(key=lambda row: _place(row, registry))
    rows = [replace(row, published=_published(row, registry, published)) for row in rows]
    rest = [p for p in published if not any(p is row.published for row in rows)]
    return rows + [Row(published=p) for p in rest]


def _facts(identity: Mapping[str, Any]) -> tuple[Facts, Facts]:
    """What an identity says of the data and of the model, but for their names."""
    data = {
        **identity["data_config"],
        "content": _short(identity.get("fingerprint")),
        "source": _short(identity.get("data_source")),
    }
    model = {
        **identity["model_config"],
        **{f"{MIXTURE}.{k}": v for k, v in identity.get("mixture", {}).items()},
        "protocol": _short(identity["protocol"]),
        "source": _short(identity.get("model_source")),
    }
    of_data, of_model = (tuple(sorted((k, str(v)) for k, v in part.items())) for part in (data, model))
    return of_data, of_model


def _short(value: Any) -> str:
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:6]


def _telling(facts: Facts, shared: set[tuple[str, str]]) -> tuple[str, ...]:
    return tuple(f"{k}={v}" for k, v in facts if (k, v) not in shared)


def _place(row: Row, registry: Registry) -> tuple[Any, ...]:
    """Where a row stands: as in the published tables, then as registered, then by name."""
    spec = registry.data.get(row.data)
    data = [row.data, *([spec.stand_in_for] if spec and spec.stand_in_for else [])]
    of_data = [name for p in registry.published for name in (p.data, p.data_label)]
    return (
        _rank([row.protocol], PROTOCOLS),
        _rank(data, [*of_data, *registry.data]),
        row.block,
        _rank([row.model], [*(p.model for p in registry.published), *registry.models]),
        row.model,
        row.options,
    )


def _rank(names: Sequence[str], order: Iterable[str]) -> int:
    """The first place that one of `names` has in `order`; behind all when none has."""
    places = list(order)
    return min((places.index(name) for name in names if name in places), default=len(places))


def _published(row: Row, registry: Registry, published: Sequence[Published]) -> Published | None:
    """The first that is of this model on this data, or on what this data stands in for."""
    imitated = registry.data[row.data].stand_in_for if row.data in registry.data else ""
    for p in published:
        if p.model == row.model and (p.data == row.data or (imitated and p.data_label == imitated)):
            return p
    return None


def columns_of(registry: Registry, published: Sequence[Published] = ()) -> dict[str, str]:
    """Metric value -> heading: what metrics make columns of, and what else was published, in its order."""
    headings = {value: h for spec in registry.metrics.values() for value, h in spec.columns.items()}
    order = list(headings)
    for row in sorted(published, key=lambda p: -len(p.values)):  # the fullest row knows the order best
        values = list(row.values)
        for value, following in zip(values, [*values[1:], None], strict=True):
            if value not in headings:
                headings[value] = row.headings.get(value, value)
                order.insert(order.index(following) if following in order else len(order), value)
    return {value: headings[value] for value in order}


def build(
    rows: Sequence[Row],
    columns: Mapping[str, str],
    registry: Registry,
    comparison: Comparison | None = None,
) -> Table:
    """The table of `rows_of`. comparison: what `statistics.compare` says of these very rows."""
    import pandas as pd

    healthy = {k: v for spec in registry.metrics.values() for k, v in spec.healthy.items()}
    printed = any(row.published for row in rows)
    records = []
    for i, row in enumerate(rows):
        record = _words(row, registry)
        if healthy:
            record["collapsed"] = sum(_has_collapsed(r, healthy) for r in row.done)
        for name, heading in columns.items():
            record |= _spread(name, [r.metrics.get(name, math.nan) for r in row.done])
            if comparison is not None:
                low, high = comparison.intervals[i].get(name, (math.nan, math.nan))
                if "%" in heading:  # Student's t knows no bounds; a share does
                    low, high = max(low, 0.0), min(high, 1.0)
                record |= {
                    f"{name}_low": low,
                    f"{name}_high": high,
                    f"{name}_best": name in comparison.best[i],
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
    return Table(pd.DataFrame(records), pd.DataFrame(pairs), columns, notes)


def _words(row: Row, registry: Registry) -> dict[str, Any]:
    """What a row is, and how its seeds ended."""
    p = row.published
    quoted = {"paper": p.source if p else "", "paper_data_label": (p.data_label or p.data) if p else ""}
    if p and not row.results:
        words = {"protocol": "", "data": p.data, "data_label": p.data_label or p.data, "stand_in_for": ""}
        words |= {"model": p.model, "model_label": f"{p.model_label or p.model} (paper)"}
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
    spec = registry.data.get(row.data)
    imitated = spec.stand_in_for if spec else ""
    label = ((spec and spec.label) or row.data) + (f" (stand-in for {imitated})" if imitated else "")
    return {"data": row.data, "data_label": _with_options(label, row.data_options), "stand_in_for": imitated}


def _model_words(row: Row, registry: Registry) -> dict[str, Any]:
    spec = registry.models.get(row.model)
    label = (spec and spec.label) or row.model
    label += " + GMM" if spec and not spec.clusters else ""
    label += " (oracle)" if row.oracle else ""
    return {"model": row.model, "model_label": _with_options(label, row.options)}


def _with_options(label: str, options: Sequence[str]) -> str:
    return f"{label} [{', '.join(options)}]" if options else label


def _spread(name: str, values: Sequence[float]) -> dict[str, float]:
    """Mean and sample standard deviation (n - 1) over the seeds that have the figure; NaN where too few.

    A value that is not finite is none.
    """
    known = [v for v in values if math.isfinite(v)]
    return {
        name: statistics.fmean(known) if known else math.nan,
        f"{name}_std": statistics.stdev(known) if len(known) > 1 else math.nan,
        f"{name}_n": len(known),
    }


def _has_collapsed(result: CellResult, healthy: Mapping[str, tuple[float, float]]) -> bool:
    """Whether a figure lies outside what a sound run gives; one that is not defined says nothing."""
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
    if any(r["oracle"] for r in ours):
        notes.append("Oracle: was given the true boxes; a bound to compare with, not a detector.")
    for kind, known in (("model", registry.models), ("data", registry.data)):
        for name in dict.fromkeys(r[kind] for r in ours if r[kind] not in known):
            notes.append(f"No plugin registers {name} any more: its label, and what it is, cannot be told.")
    if healthy and any(r["done"] for r in ours):
        limits = " or ".join(f"{k} outside {low:g}..{high:g}" for k, (low, high) in healthy.items())
        collapsed, runs = sum(r["collapsed"] for r in ours), sum(r["done"] for r in ours)
        notes.append(f"Collapsed: {collapsed} of {runs} runs ({limits}).")
    if comparison is not None:
        notes.append(
            f"95 % intervals: bootstrap over test scenes ({comparison.resamples} draws) and seeds; for one "
            "seed, over scenes alone. Bold: the best, and what the paired 95 % interval of the difference "
            "does not tell from it (pair by pair, without a correction for the number of pairs)."
        )
    published = [row.published for row in rows if row.published]
    notes += [f"Paper: {source}." for source in dict.fromkeys(p.source for p in published)]
    return notes + list(dict.fromkeys(p.note for p in published if p.note))
