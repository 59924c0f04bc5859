"""Rows of a table: which cells share a row, and what sets rows apart."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from objbench.cells.files import canonical
from objbench.cells.identity import EVALUATED, START
from objbench.cells.protocols import PROTOCOLS
from objbench.cells.result import CellResult
from objbench.hookspecs import Published
from objbench.plugins import Registry

Facts = tuple[tuple[str, str], ...]
"""Option and value, sorted."""

ALWAYS = ("start_from", "test_seed")
"""Facts that a row names even when no other row differs in them."""


def seeds_that_lack(rows: Iterable[Row]) -> list[str]:
    """A line for each row that has no cell of a seed which its block has, or which lies before one."""
    ours = [row for row in rows if row.results]
    last: dict[Sequence[str], int] = {}
    for row in ours:
        last[row.block] = max(last.get(row.block, 0), *(result.seed for result in row.results))
    lines = []
    for row in ours:
        lacking = sorted(set(range(last[row.block] + 1)) - {result.seed for result in row.results})
        if lacking:
            name = " ".join([row.model, *row.options])
            seeds = f"seed{'s' * (len(lacking) > 1)} {', '.join(map(str, lacking))}"
            lines.append(f"{name} on {row.data} ({row.protocol}): there is no cell of {seeds}")
    return lines


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
    trained_on: str = ""
    """What its cells were trained on, when they were only evaluated on its data; among `options`, too."""
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
        identity = identities.get(result.cell) or vars(result)
        of_data, of_model = _facts(identity)
        groups.setdefault((*names, of_data, of_model, _origin(identity)), []).append(result)
        shared.setdefault(names[:2], set(of_data)).intersection_update(of_data)
        shared.setdefault(names, set(of_model)).intersection_update(of_model)
    rows = []
    evaluated = [identity for identity in identities.values() if EVALUATED in identity]
    for (protocol, data, model, of_data, of_model, _), group in groups.items():
        data_options = _telling(of_data, shared[protocol, data])
        options = _telling(of_model, shared[protocol, data, model])
        trained_on = _trained_on(identities.get(group[0].cell, {}), evaluated, registry)
        options = (f"trained on {trained_on}", *options) if trained_on else options
        rows.append(Row(protocol, data, model, data_options, options, tuple(group), trained_on))
    rows.sort(key=lambda row: _place(row, registry))
    rows = [replace(row, published=_published(row, registry, published)) for row in rows]
    rest = [p for p in published if not any(p is row.published for row in rows)]
    return rows + [Row(published=p) for p in rest]


def _facts(identity: Mapping[str, Any]) -> tuple[Facts, Facts]:
    """What an identity says of the data and of the model, but for their names."""
    clusterer = identity.get("clusterer", {"name": "own"})
    start = identity.get(EVALUATED, {}).get("identity", identity).get(START)
    data = {
        **identity["data_config"],
        "content": _short(identity.get("fingerprint")),
        "code": str(identity.get("data_code"))[:6],
        **({"test_seed": identity["test_seed"]} if identity.get("test_seed") else {}),
    }
    model = {
        **identity["model_config"],
        **{f"{clusterer['name']}.{k}": v for k, v in clusterer.get("config", {}).items()},
        f"{clusterer['name']}.code": str(clusterer.get("code"))[:6],
        **({"start_from": start["training"][:8]} if start else {}),
        "protocol": _short(identity["protocol"]),
        "code": str(identity.get("model_code"))[:6],
        "objbench": str(identity.get("harness_code"))[:6],
    }
    of_data, of_model = (tuple(sorted((k, str(v)) for k, v in part.items())) for part in (data, model))
    return of_data, of_model


def _origin(identity: Mapping[str, Any]) -> str:
    """Equal for cells that may share a row: whose weights they begin with, but for the seed of an evaluation's."""
    start, evaluated = identity.get(START), identity.get(EVALUATED)
    of = {k: v for k, v in evaluated["identity"].items() if k != "seed"} if evaluated else None
    return _short([start, of])


def _trained_on(
    identity: Mapping[str, Any], evaluated: Iterable[Mapping[str, Any]], registry: Registry
) -> str:
    """What an evaluation's training saw, with what sets that apart from its own scenes and from other evaluations'.

    Empty for a cell that has a training of its own.
    """
    if EVALUATED not in identity:
        return ""
    then = identity[EVALUATED]["identity"]
    name, scale = then["data"], then["protocol"]["name"]
    others = [other[EVALUATED]["identity"] for other in evaluated if other["model"] == identity["model"]]
    alike = [other["data_config"] for other in (identity, *others) if other["data"] == name]
    differ = [k for k, v in then["data_config"].items() if any(other.get(k) != v for other in alike)]
    words = [f"{k}={then['data_config'][k]}" for k in sorted(differ)]
    if any(other["protocol"]["name"] != scale for other in (identity, *others)):
        words.append(f"protocol={scale}")
    if (spec := registry.data.get(name)) and spec.label:
        name = spec.label
    return " ".join([name, *words])


def _short(value: Any) -> str:
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:6]


def _telling(facts: Facts, shared: set[tuple[str, str]]) -> tuple[str, ...]:
    return tuple(f"{k}={v}" for k, v in facts if (k, v) not in shared or k in ALWAYS)


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
    """The first that is of this model on this data, or on what this data stands in for; none for an evaluation."""
    if row.trained_on:
        return None
    imitated = registry.data[row.data].stand_in_for if row.data in registry.data else ""
    for p in published:
        if p.model == row.model and (p.data == row.data or (imitated and p.data_label == imitated)):
            return p
    return None
