"""Rows of a table: which cells share a row, and what sets rows apart."""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

from objbench.cells.about import is_registered, spec_words
from objbench.cells.code import clusterer_code_of, digest
from objbench.cells.files import canonical
from objbench.cells.identity import (
    EVALUATED,
    OWN,
    START,
    TEST_SEED,
    Cell,
    Training,
    plain,
    with_clusterer,
)
from objbench.cells.matrix import USUAL, codes_now
from objbench.cells.protocols import PROTOCOLS
from objbench.cells.result import CellResult
from objbench.hookspecs import ClustererSpec, DataSpec, ModelSpec, Published
from objbench.options import as_text
from objbench.plugins import Registry


class Fact(NamedTuple):
    """One thing that a cell's figures depend on."""

    name: str
    value: str
    """As text: an option as a user writes it, code as the first digits of its digest."""


Facts = tuple[Fact, ...]
"""Sorted by name."""


def seeds_that_lack(rows: Iterable[Row]) -> list[str]:
    """A line for each row that has no cell of a seed which its block has, or which lies before one."""
    ours = [row for row in rows if row.results]
    last: dict[Sequence[str], int] = {}
    for row in ours:
        last[row.block] = max(last.get(row.block, 0), *(result.seed for result in row.results))
    lines = []
    for row in ours:
        edges = [-1, *sorted({result.seed for result in row.results}), last[row.block] + 1]
        lacking = [(a + 1, b - 1) for a, b in itertools.pairwise(edges) if b - a > 1]
        if lacking:
            name = " ".join([row.name, *row.options])
            several = len(lacking) > 1 or lacking[0][0] < lacking[0][1]
            spans = [f"{a}-{b}" if b > a + 1 else ", ".join(map(str, range(a, b + 1))) for a, b in lacking]
            seeds = f"seed{'s' * several} {', '.join(spans)}"
            lines.append(f"{name} on {row.data} ({row.protocol}): there is no cell of {seeds}")
    return lines


@dataclass(frozen=True)
class Row:
    """The seeds of one configuration; or, without results, a row that only a publication has."""

    protocol: str = ""
    data: str = ""
    model: str = ""
    data_options: tuple[str, ...] = ()
    """What of its data is not the protocol's own or not of today, or is other than in other rows, as "key=value"."""
    options: tuple[str, ...] = ()
    """The same of its model."""
    other_code: tuple[str, ...] = ()
    """What code it was run with that is not what is installed now: "gmair 498cf6 (now 3fae12)"."""
    about: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """As `Training.about`: what is known of its plugins by the cells."""
    clusterer: str = ""
    """The name of the clusterer; OWN where the detector clusters, "" when the cells do not say."""
    replaces: bool = False
    """Whether the detector has clusters of its own, which the clusterer's replace."""
    clusters: int | None = None
    """How many clusters there can be, by the options of the clusterer, or of a detector that clusters; None when its
    options do not say."""
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
    def name(self) -> str:
        """As `--models` has it: the model alone where it keeps its meaning, else with its clusterer."""
        usual = self.clusterer == USUAL and not self.replaces
        return self.model if usual else with_clusterer(self.model, self.clusterer)

    @property
    def oracle(self) -> bool:
        """Whether its detector was given the true boxes."""
        return any(r.provenance.get("oracle") for r in self.results)

    @property
    def oracle_clusterer(self) -> bool:
        """Whether its clusterer was fitted with the true labels."""
        return any(r.provenance.get("oracle_clusterer") for r in self.results)


def rows_of(
    results: Collection[CellResult],
    cells: Mapping[str, Cell],
    registry: Registry,
    published: Sequence[Published] = (),
) -> list[Row]:
    """Cells as rows: by protocol, then data, then model, in the order of published tables, then registration.

    Cells share a row when they differ in the seed alone. A row says what of it is not the protocol's own setting, and
    not the code that is installed now; rows of one name also say what else differs between them.
    cells: the cells of the results, by key; of one that is missing only the configs count.
    published: goes beside the rows of its model and data (or of data that stand in for these); what matches
    no row follows in rows of its own.
    """
    groups: dict[tuple[Any, ...], list[CellResult]] = {}
    shared: dict[tuple[str, ...], set[Fact]] = {}  # what all cells of one data set or model have
    usual: dict[tuple[Any, ...], Usual] = {}
    given: dict[tuple[Any, ...], set[tuple[str, str]]] = {}  # options that are in no identity
    cells = {r.cell: cells.get(r.cell) or Cell(Training(vars(r), {}, {}, {}), {}) for r in results}
    for result in sorted(results, key=lambda r: r.seed):
        cell = cells[result.cell]
        names = (result.protocol, result.data, result.model, cell.clusterer.get("name", result.clusterer))
        of_data, of_model = facts_of_data(cell), facts_of_model(cell)
        group = (*names, of_data, of_model, _origin(cell))
        groups.setdefault(group, []).append(result)
        shared.setdefault(names[:2], set(of_data)).intersection_update(of_data)
        shared.setdefault(names, set(of_model)).intersection_update(of_model)
        for part, key in (("data", (*names[:2], of_data)), ("model", group)):
            about = cell.training.about
            if key not in usual or (about and not usual[key].about):  # earlier versions recorded no settings
                usual[key] = Usual.of(registry, cell)
            given.setdefault(key, set()).update(about.get(part, {}).get("given", {}).items())
        given[group].update(cell.about.get("given", {}).items())
    apart = _named_apart(groups, usual)
    rows = []
    evaluated = [c.training.identity for c in cells.values() if EVALUATED in c.training.identity]
    for group, members in groups.items():
        protocol, data, model, clusterer, of_data, of_model, _ = group
        cell, of_block, of_row = cells[members[0].cell], usual[protocol, data, of_data], usual[group]
        trained_on = _trained_on(cell.training.identity, evaluated, registry)
        row = Row(
            protocol=protocol,
            data=data,
            model=model,
            data_options=_telling(of_data, shared[protocol, data], of_block.data, apart[protocol, data])
            + _given(given[protocol, data, of_data]),
            options=((f"trained on {trained_on}",) if trained_on else ())
            + _telling(of_model, shared[group[:4]], of_row.model, apart[group[:4]])
            + _given(given[group]),
            trained_on=trained_on,
            other_code=of_row.other_code(cell),
            about=of_row.about,
            clusterer=clusterer,
            replaces=bool(cell.about.get("replaces", False)),
            clusters=_clusters(cell),
            results=tuple(members),
        )
        rows.append(row)
    rows.sort(key=lambda row: _place(row, registry))
    rows = [replace(row, published=_published(row, registry, published)) for row in rows]
    rest = [p for p in published if not any(p is row.published for row in rows)]
    return rows + [Row(published=p) for p in rest]


def facts_of_data(cell: Cell) -> Facts:
    """What figures depend on of the data set."""
    identity = cell.training.identity
    facts = _options(identity["data_config"]) | _options(_flat("content", identity.get("fingerprint")))
    facts |= {TEST_SEED: str(seed)} if (seed := identity.get(TEST_SEED)) else {}
    return _sorted(facts | _code("code", identity.get("data_code")))


def facts_of_model(cell: Cell) -> Facts:
    """What figures depend on of the detector, what clusters for it, objbench and the protocol."""
    identity, clusterer = cell.training.identity, cell.clusterer
    name = clusterer.get("name", OWN)
    facts = _options(identity["model_config"])
    facts |= _options({f"{name}.{k}": v for k, v in clusterer.get("config", {}).items()})
    start = identity.get(EVALUATED, {}).get("identity", identity).get(START)
    facts |= {START: start["training"][:8]} if start else {}
    scale = identity["protocol"]
    facts |= _options({f"protocol.{k}": v for k, v in scale.items()} if isinstance(scale, Mapping) else {})
    facts |= _code("code", identity.get("model_code")) | _code("objbench", identity.get("harness_code"))
    return _sorted(facts | _code(f"{name}.code", clusterer.get("code")))


@dataclass(frozen=True)
class Usual:
    """What a reader takes for granted in a cell: the protocol's own settings, and the code that is installed now."""

    data: Mapping[str, str]
    """Fact -> its usual value; a fact that is missing here has none."""
    model: Mapping[str, str]
    code: Mapping[str, str]
    """Part of an identity -> the digest of today's code, as far as it is known."""
    about: Mapping[str, Mapping[str, Any]]
    """As `Training.about`."""

    @staticmethod
    def of(registry: Registry, cell: Cell) -> Usual:
        """What is usual for a cell, by what it recorded of its settings, and by what is installed."""
        identity, about = cell.training.identity, cell.training.about
        code = codes_now(registry, cell.training)
        name = cell.clusterer.get("name", OWN)
        if is_registered(registry, "clusterer", name):
            with contextlib.suppress(ModuleNotFoundError):
                code["clusterer_code"] = digest(clusterer_code_of(registry.clusterers[name].target))
        if cell.about:
            about = {
                **about,
                name: cell.about,
            }  # earlier versions recorded gmm's settings beside the training's
        known = {part: about.get(part, {}).get("settings", {}) for part in ("model", "data", name)}
        model = _options(known["model"]) | _options({f"{name}.{k}": v for k, v in known[name].items()})
        scale = identity["protocol"]
        if isinstance(scale, Mapping) and scale.get("name") in PROTOCOLS:
            model |= _options({f"protocol.{k}": v for k, v in asdict(PROTOCOLS[scale["name"]]).items()})
        model |= _code("code", code.get("model_code")) | _code("objbench", code.get("harness_code"))
        model |= _code(f"{name}.code", code.get("clusterer_code"))
        model |= {START: ""}  # neither this nor other test scenes are ever taken for granted
        data = _options(known["data"]) | _code("code", code.get("data_code")) | {TEST_SEED: "0"}
        return Usual(data, model, code, about)

    def other_code(self, cell: Cell) -> tuple[str, ...]:
        """What code a cell was run with that is not today's, a text each."""
        identity = cell.training.identity | {"clusterer_code": cell.clusterer.get("code")}
        owners = {"model_code": identity.get("model"), "data_code": identity.get("data")}
        owners |= {"harness_code": "objbench", "clusterer_code": cell.clusterer.get("name")}
        return tuple(
            f"{owners[part]} {identity[part][:DIGITS]} (now {today[:DIGITS]})"
            for part, today in self.code.items()
            if identity.get(part) not in (None, today)
        )


DIGITS = 6
"""How many of a digest are printed."""
CODE = re.compile(r"(^|\.)code$|^objbench$")
"""Facts that are code."""


def _options(values: Mapping[str, Any]) -> dict[str, str]:
    return {name: as_text(plain(value)) for name, value in values.items()}


def _code(name: str, found: str | None) -> dict[str, str]:
    return {name: found[:DIGITS]} if found else {}


def _flat(name: str, value: Any) -> dict[str, Any]:
    """A fingerprint's values under dotted names; of a checksum the first digits."""
    if isinstance(value, Mapping):
        return {k: v for key, part in value.items() for k, v in _flat(f"{name}.{key}", part).items()}
    checksum = isinstance(value, str) and re.fullmatch(r"[0-9a-f]{16,}", value)
    return {name: value[:DIGITS] if checksum else value}


def _sorted(facts: Mapping[str, str]) -> Facts:
    return tuple(Fact(name, facts[name]) for name in sorted(facts))


def _named_apart(
    groups: Iterable[tuple[Any, ...]], usual: Mapping[tuple[Any, ...], Usual]
) -> dict[tuple[Any, ...], set[str]]:
    """Facts that rows name even where they are usual, by what these rows share: code that is not today's in one of
    them, and options that have other usual values in one (settings of another day)."""
    found: dict[tuple[Any, ...], set[str]] = {}
    seen: dict[tuple[Any, ...], str | None] = {}  # the usual value of an option, in the first of these rows
    for group in groups:
        for name, facts, expected in (
            (group[:2], group[4], usual[(*group[:2], group[4])].data),
            (group[:4], group[5], usual[group].model),
        ):
            named = found.setdefault(name, set())
            for fact in facts:
                value = expected.get(fact.name)
                if CODE.search(fact.name):
                    differs = value != fact.value
                else:
                    differs = seen.setdefault((*name, fact.name), value) != value
                if differs:
                    named.add(fact.name)
    return found


def _telling(
    facts: Facts, shared: set[Fact], usual: Mapping[str, str], apart: Container[str]
) -> tuple[str, ...]:
    """What must be said of a row: what is not usual, and what other rows of its name do not have.

    What is usual goes without saying, unless it is in `apart`; see `_named_apart`.
    """
    said = []
    for fact in facts:
        is_usual = usual.get(fact.name) == fact.value
        if is_usual and (fact in shared or fact.name not in apart):
            continue
        if fact in shared and fact.name not in usual:
            continue
        today = is_usual and CODE.search(fact.name)
        said.append(f"{fact.name}={fact.value}" + (" (today's)" if today else ""))
    return tuple(said)


def _origin(cell: Cell) -> str:
    """Equal for cells that may share a row: whose weights they begin with, but for the seed of an evaluation's."""
    start, evaluated = (cell.training.identity.get(part) for part in (START, EVALUATED))
    of = {k: v for k, v in evaluated["identity"].items() if k != "seed"} if evaluated else None
    return canonical([start, of])


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
    words = [f"{k}={as_text(then['data_config'][k])}" for k in sorted(differ)]
    if any(other["protocol"]["name"] != scale for other in (identity, *others)):
        words.append(f"protocol={scale}")
    if (spec := registry.data.get(name)) and spec.label:
        name = spec.label
    return " ".join([name, *words])


def _given(options: Iterable[tuple[str, str]]) -> tuple[str, ...]:
    return tuple(f"{name}={value}" for name, value in sorted(options))


def _clusters(cell: Cell) -> int | None:
    """How many clusters a cell's options allow, where they say."""
    config = cell.clusterer.get("config") or cell.training.identity.get("model_config") or {}
    found = config.get("clusters", config.get("components"))  # earlier versions called gmm's so
    return found if isinstance(found, int) else None


def words_of(row: Row, registry: Registry) -> dict[str, dict[str, Any]]:
    """What is said of a row's "model", "data" and "clusterer": by their specs, or by its cells where no plugin
    registers them."""
    specs: dict[str, ModelSpec | DataSpec | ClustererSpec | None]
    specs = {"model": registry.models.get(row.model), "data": registry.data.get(row.data)}
    specs["clusterer"] = registry.clusterers.get(row.clusterer)
    keys = {"model": "model", "data": "data", "clusterer": row.clusterer}
    return {
        part: dict(row.about.get(keys[part], {})) if spec is None else spec_words(spec, row.protocol)
        for part, spec in specs.items()
    }


def stand_in_for(row: Row, registry: Registry) -> str:
    """The label of the data set that a row's imitates, or ""."""
    return str(words_of(row, registry)["data"].get("stand_in_for", ""))


def _place(row: Row, registry: Registry) -> tuple[Any, ...]:
    """Where a row stands: as in the published tables, then as registered, then by name."""
    imitated = stand_in_for(row, registry)
    data = [row.data, *([imitated] if imitated else [])]
    of_data = [name for p in registry.published for name in (p.data, p.data_label)]
    return (
        _rank([row.protocol], PROTOCOLS),
        _rank(data, [*of_data, *registry.data]),
        row.block,
        _rank([row.model], [*(p.model for p in registry.published), *registry.models]),
        row.model,
        _rank([row.clusterer], [OWN, "", *registry.clusterers]),
        row.clusterer,
        row.options,
    )


def _rank(names: Sequence[str], order: Iterable[str]) -> int:
    """The first place that one of `names` has in `order`; behind all when none has."""
    places = list(order)
    return min((places.index(name) for name in names if name in places), default=len(places))


def _published(row: Row, registry: Registry, published: Sequence[Published]) -> Published | None:
    """The first that is of this model and clusterer on this data, or on what this data stands in for; none for an
    evaluation."""
    if row.trained_on:
        return None
    imitated = stand_in_for(row, registry)
    for p in published:
        if p.model == row.name and (p.data == row.data or (imitated and p.data_label == imitated)):
            return p
    return None
