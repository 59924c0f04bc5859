"""The table: who is in a row, what it says, how every format writes it. All figures are worked by hand."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from objbench.cells import files
from objbench.cells.about import spec_words
from objbench.cells.files import Damaged, read_json, write_json
from objbench.cells.identity import Cell, Training, write_cell
from objbench.cells.matrix import codes_now
from objbench.cells.result import CellResult, Position, Status, Trained
from objbench.cells.store import Store, read_record, write_record, write_trained
from objbench.commands.report import report
from objbench.detector import Detections
from objbench.errors import UsageError
from objbench.hookspecs import ClustererSpec, DataSpec, MetricSpec, ModelSpec, Published
from objbench.plugins import Registry, load_plugins
from objbench.report import tables, text
from objbench.report.believed import Score, Wanted, check_figures, read_cells
from objbench.report.drawn import Drawn
from objbench.report.rows import Row, rows_of, seeds_that_lack
from objbench.report.statistics import Comparison, compare_rows
from objbench.scenes import GroundTruth
from objbench.score.arrays import flat, save_tensors
from objbench.score.draws import draw_cell
from objbench.score.metrics import by_these_metrics, score
from objbench_plugins.published import objbench_published

NEW = ModelSpec("new", "", "", label="NEW")
OLD = ModelSpec("old", "", "", label="OLD & odd_1", clusters=False)
REAL = DataSpec("real", "", "", label="Real")
SIM = DataSpec("real-sim", "", "", stand_in_for="Real")
METRICS = {
    "ap": MetricSpec("ap", "", "", columns={"ap": "AP (%)"}, healthy={"ap": (0.3, 1.0)}),
    "others": MetricSpec("others", "", "", columns={"nmi": "NMI (%)", "nats": "Nats"}),
}
PRINTED = Published(
    "new",
    "real",
    {"ap": (0.973, 0.001), "acc_loose": (0.8, None), "nmi": (0.7554, 0.02)},
    "A paper, Table 2",
    "NEW",
    "Real",
    headings={"acc_loose": "ACC, loose (%)"},
    note="Its ACC is loose.",
)
GMM = ClustererSpec("gmm", "a mixture", "none:M", label="GMM", paper="A mixture's paper")
TRUE = ClustererSpec("labels", "given the labels", "none:L")
ELSEWHERE = Published("alien", "mars", {"acc_loose": (0.9, 0.00652)}, "A paper, Table 2", "ALIEN", "Mars")


@pytest.fixture
def registry() -> Registry:
    """Two models, a data set and its stand-in, three columns."""
    return Registry(
        models={m.name: m for m in (OLD, NEW)},
        data={d.name: d for d in (SIM, REAL)},
        metrics=dict(METRICS),
        clusterers={c.name: c for c in (GMM, TRUE)},
    )


def cell(model: str = "new", data: str = "real", seed: int = 0, ap: float = 0.9, **facts: Any) -> CellResult:
    name = "-".join(map(str, [model, data, seed, *facts.values()]))
    known: dict[str, Any] = {
        "protocol": "demo",
        "status": "done",
        "metrics": {"ap": ap, "nmi": ap / 2, "nats": 1.5},
        "model_config": {"lr": 0.1, "steps": 10},
        "data_config": {"size": 64},
    }
    return CellResult(**({"cell": name, "model": model, "data": data, "seed": seed} | known | facts))


def three(*aps: float, **facts: Any) -> list[CellResult]:
    return [cell(seed=seed, ap=ap, **facts) for seed, ap in enumerate(aps)]


def build(
    results: list[CellResult],
    registry: Registry,
    published: tuple[Published, ...] = (),
    comparison: Comparison | None = None,
) -> tables.Table:
    rows = rows_of(results, {}, registry, published)
    return tables.build(rows, tables.columns_of(registry, published), registry, comparison)


def lines(table: tables.Table) -> list[list[str]]:
    """The cells of the main sheet, without headings."""
    return [line.cells for block in text.sheets_of(table)[0].blocks for line in block]


# Who is in a row


def test_rows_come_by_data_then_model_in_the_order_of_registration(registry: Registry) -> None:
    results = [cell(m, d, s) for d in ("real", "real-sim") for m in ("new", "old") for s in (1, 0)]
    rows = rows_of(results, {}, registry)
    assert [(r.data, r.model) for r in rows] == [
        ("real-sim", "old"),
        ("real-sim", "new"),
        ("real", "old"),
        ("real", "new"),
    ]
    assert all([r.seed for r in row.results] == [0, 1] for row in rows)


def test_published_tables_set_the_order_even_when_they_are_not_printed(registry: Registry) -> None:
    registry.published = [PRINTED]
    rows = rows_of([cell("old"), cell("new"), cell("old", "real-sim")], {}, registry)
    assert [(r.data, r.model) for r in rows] == [("real", "new"), ("real", "old"), ("real-sim", "old")]


def test_configurations_are_rows_reported_apart_by_what_differs(registry: Registry) -> None:
    results = three(0.9, 0.8) + three(0.7, 0.6, model_config={"lr": 0.5, "steps": 10})
    assert [line[0] for line in lines(build(results, registry))] == ["NEW [lr=0.1]", "NEW [lr=0.5]"]
    results = three(0.9, 0.8) + three(0.7, 0.6, data_config={"size": 128})
    assert [line[1] for line in lines(build(results, registry))] == ["Real [size=128]", "Real [size=64]"]


def test_cells_of_another_plugin_source_or_mixture_never_share_a_row(registry: Registry) -> None:
    results = three(0.9, 0.8, 0.7)
    base: dict[str, Any] = {"model_config": {}, "data_config": {}, "protocol": {"name": "demo"}}
    for part, value in (
        ("model_code", "new"),
        ("data_code", "new"),
        ("harness_code", "new"),
        ("fingerprint", {"digits": 5}),
        ("clusterer", {"name": "gmm", "config": {"clusters": 3}}),
        ("protocol", {"name": "demo", "test_scenes": 7}),
    ):
        cells = {}
        for r in results:
            identity = base | ({part: value} if r.seed == 2 else {})
            clusterer = identity.pop("clusterer", {"name": "own"})
            cells[r.cell] = Cell(Training(identity, {}, {}, {}), clusterer)
        rows = rows_of(results, cells, registry)
        assert sorted(len(row.results) for row in rows) == [1, 2], part
        assert len({(row.options, row.data_options, row.clusterer) for row in rows}) == 2, part


def test_todays_code_is_told_apart_from_old_code_alone() -> None:
    """A detector that uses a clusterer has that clusterer's code in its key too: the options say so already."""
    registry = load_plugins()
    results, cells = [], {}
    for seed, uses in enumerate(([], ["kmeans"])):
        one = cell("gmair", "multimnist", seed=seed)
        config = {"start_with": uses[0] if uses else "gmm"}
        identity: dict[str, Any] = {
            "model": "gmair",
            "data": "multimnist",
            "seed": seed,
            "model_config": config,
        }
        identity |= {"data_config": {}, "protocol": {"name": "demo"}} | ({"uses": uses} if uses else {})
        identity |= codes_now(registry, Training(identity, {}, {}, {}))
        results.append(one)
        cells[one.cell] = Cell(Training(identity, {}, {}, {}), {"name": "own"})
    assert len({known.training.identity["model_code"] for known in cells.values()}) == 2
    assert [row.options for row in rows_of(results, cells, registry)] == [
        ("start_with=gmm",),
        ("start_with=kmeans",),
    ]
    old = cells[results[0].cell].training.identity | {"model_code": "0123456789"}
    cells[results[0].cell] = Cell(Training(old, {}, {}, {}), {"name": "own"})
    said = [row.options for row in rows_of(results, cells, registry)]
    assert ("code=012345", "start_with=gmm") in said
    assert any("(today's)" in word for words in said for word in words)


def test_protocols_are_blocks_with_a_column_of_their_own(registry: Registry) -> None:
    table = build([*three(0.5, protocol="paper"), *three(0.9, protocol="demo")], registry)
    sheet = text.sheets_of(table)[0]
    assert sheet.headings[0] == "Protocol"
    assert [[line.cells[0] for line in block] for block in sheet.blocks] == [["demo"], ["paper"]]
    assert "Protocol" not in text.sheets_of(build(three(0.9), registry))[0].headings


# What a row says


def test_mean_and_sample_deviation_over_seeds(registry: Registry) -> None:
    table = build(three(0.90, 0.92, 0.94), registry)
    assert lines(table) == [["NEW", "Real", "92.0 ± 2.00", "46.0 ± 1.00", "1.500 ± 0.0000", "3"]]
    record = table.frame.iloc[0]
    assert record["ap"] == pytest.approx(0.92)
    assert record["ap_std"] == pytest.approx(0.02)
    assert record["ap_n"] == record["done"] == 3


def test_cells_that_are_not_done_are_reported(registry: Registry) -> None:
    ends = ["done", "failed", "failed", "out of memory", "timed out", "interrupted", "new"]
    results = [cell(seed=i, status=status, ap=0.9) for i, status in enumerate(ends)]
    table = build(results, registry)
    (line,) = lines(table)
    assert line[2] == "90.0"
    assert line[-1] == (
        "1 (single seed), failed (2 of 7), out of memory (1 of 7), timed out (1 of 7), "
        "interrupted (1 of 7), not run (1 of 7)"
    )
    (nothing,) = lines(build(results[1:3], registry))
    assert nothing[2:] == ["--", "--", "--", "failed (2 of 2)"]


def test_one_seed_is_flagged_and_has_no_deviation(registry: Registry) -> None:
    table = build(three(0.9), registry)
    assert lines(table)[0][2:] == ["90.0", "45.0", "1.500", "1 (single seed)"]
    assert any(note.startswith("Single seed") for note in table.notes)
    assert not any(note.startswith("Single seed") for note in build(three(0.9, 0.9), registry).notes)


def test_neither_kind_of_oracle_can_be_the_best(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = rows_of(
        [
            cell(),
            cell("old", provenance={"oracle": True}),
            cell(clusterer=TRUE.name, provenance={"oracle_clusterer": True}),
        ],
        {},
        registry,
    )
    asked: list[list[bool]] = []

    def compare(runs: Any, blocks: Any, contenders: list[bool], draws: int) -> Comparison:
        asked.append(contenders)
        return Comparison(draws, [], [], [])

    class NoDraws:
        draws = 10

        def __call__(self, *_: Any) -> dict[str, Any]:
            return {}

        def notes(self, *_: Any) -> list[str]:
            return []

    monkeypatch.setattr("objbench.report.statistics.compare", compare)
    compare_rows(rows, registry, NoDraws())
    assert [not row.oracle and not row.oracle_clusterer for row in rows] == asked[0]
    assert sum(asked[0]) == 1


def test_a_figure_that_some_seeds_do_not_have_says_of_how_many_it_is(registry: Registry) -> None:
    results = [*three(0.8, 0.9), cell(seed=2, metrics={"ap": 0.7, "nmi": math.nan})]
    assert lines(build(results, registry))[0][2:5] == [
        "80.0 ± 10.00",
        "42.5 ± 3.54 (n=2)",
        "1.500 ± 0.0000 (n=2)",
    ]


def test_labels_say_what_is_a_mixture_a_stand_in_or_an_oracle(registry: Registry) -> None:
    table = build([cell("old", "real-sim", provenance={"oracle": True})], registry)
    assert lines(table)[0][:2] == ["OLD & odd_1 + GMM (oracle)", "real-sim (stand-in for Real)"]
    assert "real-sim stands in for Real: a figure on it is not a figure on Real." in table.notes
    assert any(note.startswith("Oracle") for note in table.notes)


def test_notes_tell_rows_of_one_name_apart(registry: Registry) -> None:
    """By the options that set them apart, in what is said of their clusters and of the seconds of their clusterer."""
    rows = [
        Row("demo", "real", "old", options=(f"gmm.clusters={n}",), clusterer="gmm", clusters=n,
            results=(cell("old", clusterer_seconds=float(n)),))
        for n in (3, 7)
    ]  # fmt: skip
    rows.append(Row("demo", "real", "new", clusterer="own", clusters=7, results=(cell(),)))
    notes = tables.build(rows, tables.columns_of(registry), registry, long=True).notes
    three, seven = (f"OLD & odd_1 + GMM [gmm.clusters={n}]" for n in (3, 7))
    label = registry.model("new").label or "new"
    assert any(note.endswith(f": 3 ({three}); 7 ({seven}, {label}).") for note in notes), notes
    assert f"{three} on real: the clusterer took 3.0 s a seed." in notes
    assert f"{seven} on real: the clusterer took 7.0 s a seed." in notes


def test_what_no_plugin_registers_any_more_is_said(registry: Registry) -> None:
    table = build([cell("gone", "lost")], registry)
    assert lines(table)[0][:2] == ["gone", "lost"]
    assert sum("any more" in note for note in table.notes) == 2


def test_collapsed_runs_are_counted(registry: Registry) -> None:
    table = build(three(0.9, 0.29, 0.30), registry)
    assert table.frame.loc[0, "collapsed"] == 1
    assert lines(table)[0][-1] == "3, collapsed (1 of 3)"
    assert "Collapsed: 1 of 3 runs (ap outside 0.3..1)." in table.notes


def test_figures_that_rest_on_few_objects_stand_in_brackets_and_are_never_the_best(
    registry: Registry,
) -> None:
    registry.metrics["others"] = replace(METRICS["others"], meaningful={"nmi": ("found", 0.5)})
    few = [replace(r, metrics=r.metrics | {"found": 0.4 + r.seed / 5}) for r in three(0.9, 0.8)]
    table = build(few, registry)
    assert lines(table)[0][3] == "(42.5 ± 3.54)"
    assert table.frame["nmi_doubtful"].tolist() == [1]
    assert (
        "(In brackets): NMI (%) of a row with a run whose found is under 0.5; not meaningful." in table.notes
    )
    enough = [replace(r, metrics=r.metrics | {"found": 0.5}) for r in three(0.9, 0.8)]
    table = build(enough, registry)
    assert lines(table)[0][3] == "42.5 ± 3.54"
    assert not any("In brackets)" in note for note in table.notes)
    best = Comparison(100, [{}], [{"ap", "nmi"}], [])
    assert build(enough, registry, comparison=best).frame["nmi_best"].tolist() == [True]
    assert build(few, registry, comparison=best).frame["nmi_best"].tolist() == [False]


def test_further_columns_are_one_flag_away(registry: Registry) -> None:
    registry.metrics["counts"] = MetricSpec(
        "counts", "", "", more={"count_error": "Count error", "ap": "again"}
    )
    assert list(tables.columns_of(registry)) == ["ap", "nmi", "nats"]
    assert tables.columns_of(registry, more=True) == tables.columns_of(registry) | {
        "count_error": "Count error"
    }


def test_a_run_has_collapsed_when_it_finds_little_or_puts_nearly_all_in_one_cluster() -> None:
    """By the metrics as they are registered; what is at the limit has not, and both at once is one run."""
    figures = [(0.29, 0.5), (0.30, 0.90), (0.99, 0.91), (0.1, 1.0), (0.99, math.nan)]
    runs = [
        cell("gmair", "multimnist", seed, metrics={"ap50": ap, "largest_cluster": share})
        for seed, (ap, share) in enumerate(figures)
    ]
    table = build(runs, load_plugins())
    assert lines(table)[0][-1] == "5, collapsed (3 of 5)"
    assert "Collapsed: 3 of 5 runs (ap50 outside 0.3..1 or largest_cluster outside 0..0.9)." in table.notes


# A row never hides what it is

OWN_SETTINGS = {"lr": 0.1, "steps": 10, "layers": [4, 2]}


def known(
    seed: int = 0,
    options: dict[str, Any] | None = None,
    data_options: dict[str, Any] | None = None,
    clusterer: dict[str, Any] | None = None,
    about: dict[str, Any] | None = None,
    **identity: Any,
) -> tuple[CellResult, Cell]:
    """A result and its cell, as a run records them, with these options of the user's."""
    own: dict[str, dict[str, Any]] = {
        "model": {"label": "NEW", "clusters": True, "settings": OWN_SETTINGS},
        "data": {"label": "Real", "stand_in_for": "", "settings": {"size": 64}},
    }
    model, data = OWN_SETTINGS | (options or {}), {"size": 64} | (data_options or {})
    whole = {"model": "new", "data": "real", "seed": seed, "protocol": {"name": "demo"}, "fingerprint": {}}
    whole |= {"model_config": model, "data_config": data} | identity
    own = {part: {**said, **(about or {}).get(part, {})} for part, said in own.items()}
    told = {"label": "GMM", "settings": {"clusters": 10}} if clusterer else {}
    one = Cell(Training(whole, model, data, {}, own), clusterer or {"name": "own"}, told)
    return one.result("done", metrics={"ap": 0.9, "nmi": 0.4, "nats": 1.5}), one


def table_of(
    registry: Registry, *cells: tuple[CellResult, Cell], long: bool = False, paper: bool = False
) -> tables.Table:
    results = [result for result, _ in cells]
    published = (PRINTED,) if paper else ()
    rows = rows_of(results, {result.cell: one for result, one in cells}, registry, published)
    return tables.build(rows, tables.columns_of(registry, published, results), registry, None, long)


FORMATS = {"table": lambda t: text.draw(t, None), "md": text.markdown, "latex": text.latex, "csv": text.csv,
           "json": text.as_json}  # fmt: skip


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("paper", [False, True])
def test_an_option_that_is_not_the_protocols_own_is_named_alone_and_in_every_format(
    registry: Registry, form: str, paper: bool
) -> None:
    gmm = {"name": "gmm", "config": {"clusters": 3}}
    table = table_of(registry, known(0, {"steps": 200, "layers": [8]}, {"size": 32}, gmm), paper=paper)
    written = FORMATS[form](table)
    for option in ("steps=200", "layers=8", "size=32", "gmm.clusters=3"):
        assert option in written
    for own in ("lr=", "gmm.seed"):
        assert own not in written


def test_the_protocols_own_settings_are_not_named(registry: Registry) -> None:
    """Numbers that are equal are one setting, and what a user repeats is no deviation."""
    table = table_of(registry, known(0, {"lr": 0.1, "steps": 10.0}), known(1))
    assert lines(table)[0][:2] == ["NEW", "Real"]
    assert not [note for note in table.notes if "bracket" in note or "record" in note]


def test_the_row_of_the_protocols_own_settings_stays_plain_beside_others(registry: Registry) -> None:
    """What another row changes is named there."""
    cells = known(0), known(1, {"steps": 20}), known(2, {"lr": 0.5}), known(3, data_options={"size": 96})
    labels = [line[:2] for line in lines(table_of(registry, *cells))]
    assert labels == [
        ["NEW", "Real"],
        ["NEW [lr=0.5]", "Real"],
        ["NEW [steps=20]", "Real"],
        ["NEW", "Real [size=96]"],
    ]


def test_rows_that_only_the_settings_of_their_day_part_still_differ(registry: Registry) -> None:
    then = known(0, {"steps": 20}, about={"model": {"settings": OWN_SETTINGS | {"steps": 20}}})
    labels = {line[0] for line in lines(table_of(registry, then, known(1)))}
    assert labels == {"NEW [steps=20]", "NEW [steps=10]"}


def test_options_that_are_in_no_identity_are_named(registry: Registry) -> None:
    files = ["mine", "yours"]
    cells = [known(i, about={"data": {"given": {"digits": name}}}) for i, name in enumerate(files)]
    (line,) = lines(table_of(registry, *cells))
    assert line[1] == "Real [digits=mine, digits=yours]"


def test_a_protocol_that_was_defined_otherwise_is_named_by_what_differs(registry: Registry) -> None:
    table = table_of(registry, known(protocol={"name": "demo", "test_scenes": 7, "fit_scenes": 2_000}))
    assert lines(table)[0][0] == "NEW [protocol.test_scenes=7]"


def test_cells_that_recorded_no_settings_say_so(registry: Registry) -> None:
    (note,) = [n for n in build(three(0.9), registry).notes if "settings" in n]
    assert note.startswith("Cells of new do not record the protocol's own settings")


@pytest.mark.parametrize(
    ("part", "mark", "owner"),
    [
        ("model_code", "code", "gmair"),
        ("data_code", "code", "multimnist"),
        ("harness_code", "objbench", "objbench"),
    ],
)
def test_code_that_is_not_installed_now_is_marked_and_todays_is_reported(
    part: str, mark: str, owner: str
) -> None:
    registry = load_plugins()
    today = codes_now(registry, known(model="gmair", data="multimnist")[1].training)
    assert set(today) == {"model_code", "data_code", "harness_code"}
    current = known(0, model="gmair", data="multimnist", **today)
    assert lines(table_of(registry, current))[0][:2] == ["GMAIR", "MultiMNIST"]
    old = known(1, model="gmair", data="multimnist", **(today | {part: "ab12cd" + 10 * "0"}))
    alone = table_of(registry, old)
    place, now = 1 if part == "data_code" else 0, today[part][:6]
    assert lines(alone)[0][place].endswith(f"[{mark}=ab12cd]")
    assert f"Run with other code than is installed now: {owner} ab12cd (now {now})." in alone.notes
    assert f"{owner} ab12cd (now {now})" in text.csv(alone)
    labels = {line[place] for line in lines(table_of(registry, current, old))}
    assert any(label.endswith(f"[{mark}={now} (today's)]") for label in labels)
    assert any(label.endswith(f"[{mark}=ab12cd]") for label in labels)


def test_code_of_another_mixture_is_marked() -> None:
    gmm = {"name": "gmm", "config": {"clusters": 10}, "code": "0" * 16}
    table = table_of(load_plugins(), known(model="spair", data="multimnist", clusterer=gmm))
    assert lines(table)[0][0] == "SPAIR + GMM [gmm.code=000000]"
    assert any("gmm 000000 (now " in note for note in table.notes)


def test_removing_a_plugin_renames_no_row() -> None:
    about = {
        "model": {"label": "Nicely", "clusters": False, "plugin": {"name": "nice-pack", "version": "1.2"}},
        "data": {"label": "Scenes", "stand_in_for": "Real", "plugin": {"file": "scenes.py"}},
    }
    gone = known(about=about, clusterer={"name": "gmm", "config": {"clusters": 10}})
    gone[0].metrics["odd"] = 0.25
    gone[0].provenance["metric_columns"] = {"oddness": {"odd": "Odd (%)"}, "ap": {"ap": "AP (%)"}}
    registry = Registry(metrics=dict(METRICS))
    table = table_of(registry, gone)
    assert lines(table)[0][:2] == ["Nicely + GMM", "Scenes (stand-in for Real)"]
    assert list(table.columns) == ["ap", "nmi", "nats", "odd"]
    assert lines(table)[0][5] == "25.0"
    assert "No plugin registers the model new any more; the package nice-pack 1.2 did." in table.notes
    assert "No plugin registers the data set real any more; the file scenes.py did." in table.notes
    assert any("metric oddness any more; its figures are those that were recorded" in n for n in table.notes)
    beside = rows_of([gone[0]], {gone[0].cell: gone[1]}, registry, [PRINTED])
    assert beside[0].published is PRINTED, "what it stands in for is kept, too"


def test_long_notes_say_what_a_model_is_whether_or_not_its_plugin_is_there(registry: Registry) -> None:
    differs = {"*": "All.", "demo": "Some.", "paper": "None."}
    registry.models["new"] = replace(
        NEW, paper="A. Uthor 2020", code="there", licence="MIT", differs=differs, prior_knowledge="sizes"
    )
    said = [
        "NEW, paper: A. Uthor 2020",
        "NEW, original code: there",
        "NEW, licence of that code: MIT",
        "NEW, differs from the paper under demo: All. Some.",
        "NEW, knows beforehand: sizes",
    ]
    assert list(table_of(registry, known(), long=True).notes[-5:]) == said
    assert not set(said) & set(table_of(registry, known()).notes)
    words = spec_words(registry.models.pop("new"), "demo")
    assert set(said) <= set(table_of(registry, known(about={"model": words}), long=True).notes)
    assert "NEW: its plugin does not say" in table_of(registry, known(), long=True).notes[-1]


# The paper's figures


def test_the_papers_figure_and_the_difference_stand_with_ours(registry: Registry) -> None:
    loose = {"ap": 0.95, "nmi": 0.5, "nats": 1.0, "acc_loose": 0.85}
    table = build([cell(seed=s, metrics=loose) for s in (0, 1)], registry, (PRINTED, ELSEWHERE))
    assert list(table.columns.values()) == ["AP (%)", "ACC, loose (%)", "NMI (%)", "Nats"]
    assert lines(table) == [
        ["NEW", "Real", "95.0 ± 0.00", "85.0 ± 0.00", "50.0 ± 0.00", "1.000 ± 0.0000", "2"],
        ["paper", "Real", "97.3 ± 0.10", "80.0", "75.54 ± 2.00", "--", ""],
        ["difference", "", "−2.3", "+5.0", "−25.5", "--", ""],
        ["ALIEN (paper)", "Mars", "--", "90.0 ± 0.65", "--", "--", "--"],
    ]
    assert "Paper: A paper, Table 2." in table.notes
    assert table.notes.count("Its ACC is loose.") == 1


def test_a_stand_in_is_compared_only_with_that_said(registry: Registry) -> None:
    table = build(three(0.9, data="real-sim"), registry, (PRINTED,))
    paper, difference = lines(table)[1:]
    assert paper[:3] == ["paper", "Real", "97.3 ± 0.10"]
    assert difference[:3] == ["difference", "not the same data", "−7.3"]


def test_table_2_is_as_printed() -> None:
    rows = objbench_published()
    assert [r.data_label for r in rows] == ["MNIST"] * 5 + ["MultiMNIST"] * 3 + ["Fruit2D"] * 3
    assert rows[0].values == {"acc_many_to_one": (0.984, 0.00652)}
    figures = {(r.model, r.data): r.values for r in rows}
    assert figures["gmair", "multimnist"] == {
        "ap50": (0.973, 0.001),
        "acc_many_to_one": (0.804, 0.0048),
        "nmi": (0.755, 0.0066),
    }
    assert figures["spair", "multimnist"]["ap50"] == (0.903, None)
    assert figures["space", "fruit2d"] == {
        "ap50": (0.938, None),
        "acc_many_to_one": (0.95, 0.0199),
        "nmi": (0.87, 0.022),
    }


def test_the_papers_rows_meet_our_plugins_and_columns() -> None:
    registry = load_plugins()
    headings = list(tables.columns_of(registry, registry.published).values())
    assert headings == ["AP (%, IoU=0.5)", "ACC (%)", "ACC, many to one (%)", "NMI (%)"]
    assert {"gmair"} <= {p.model for p in registry.published} & set(registry.models)
    assert {"multimnist"} <= {p.data for p in registry.published} & set(registry.data)


# The formats

COMPARED = Comparison(
    500,
    [
        {"ap": (0.84, 1.02), "nmi": (0.4, 0.5), "nats": (-2.0, 3.0)},
        {"ap": (0.2, 0.3), "nmi": (math.nan, math.nan)},
    ],
    [{"ap", "nmi"}, set()],
    [(0, 1, {"ap": (0.5, 0.4, 0.6), "nmi": (-0.1, -0.2, 0.05)})],
)


def compared(registry: Registry) -> tables.Table:
    return build([*three(0.9, 0.92), *three(0.2, 0.3, model="old")][::-1], registry, (), flipped(COMPARED))


def flipped(c: Comparison) -> Comparison:
    """`old` is registered before `new`, and so is the first row."""
    return Comparison(c.resamples, c.intervals[::-1], c.best[::-1], c.pairs)


def test_intervals_are_below_their_figures_and_shares_stay_within_bounds(registry: Registry) -> None:
    rows = lines(compared(registry))
    assert rows[2] == ["NEW", "Real", "91.0 ± 1.41", "45.5 ± 0.71", "1.500 ± 0.0000", "2"]
    assert rows[3] == ["95 % interval", "", "[84.0, 100.0]", "[40.0, 50.0]", "[−2.000, 3.000]", ""]
    assert rows[1][2:5] == ["[20.0, 30.0]", "--", "--"]


def test_markdown(registry: Registry) -> None:
    written = text.markdown(compared(registry))
    rows = [line for line in written.splitlines() if line.startswith("|")]
    assert rows[0] == "| Model | Dataset | AP (%) | NMI (%) | Nats | Seeds |"
    assert rows[1] == "| --- | --- | ---: | ---: | ---: | --- |"
    assert rows[2].startswith("| OLD & odd_1 + GMM | Real | 25.0 ± 7.07 |")
    assert rows[4].startswith("| NEW | Real | **91.0 ± 1.41** | **45.5 ± 0.71** | 1.500 ± 0.0000 | 2 |")
    assert rows[5].startswith("| *95 % interval* |  | *[84.0, 100.0]* |")
    assert rows[-1].endswith("| **+50.0 [40.0, 60.0]** | −10.0 [−20.0, 5.0] | -- -- |")
    assert len({row.count("|") for row in rows[:6]}) == 1


def test_markdown_escapes_what_would_be_markup(registry: Registry) -> None:
    registry.models["new"] = ModelSpec("new", "", "", label="a|b *c* _d_ e_f <g> `h`")
    written = text.markdown(build(three(0.9), registry))
    assert r"| a\|b \*c\* \_d\_ e_f \<g> \`h\` | Real |" in written


ODD = "[bad](http://x) &amp; ~~gone~~\nsecond\x1b[31m line"
AS_ONE_LINE = "[bad](http://x) &amp; ~~gone~~ second [31m line"


def test_a_label_of_several_lines_or_with_brackets_stays_one_cell(registry: Registry) -> None:
    registry.models["new"] = ModelSpec("new", "", "", label=ODD)
    registry.data["real"] = DataSpec("real", "", "", label="* star", stand_in_for="two\nlines")
    table = build([*three(0.9), *three(0.8, model="old")], registry)
    rows = [line for line in text.markdown(table).splitlines() if line.startswith("|")]
    assert len(rows) == 4
    assert (
        r"| \[bad](http://x) \&amp; \~\~gone\~\~ second \[31m line | \* star (stand-in for two lines) |"
        in rows[3]
    )
    written = text.latex(table)
    assert r"{}[bad](http://x) \& " not in written
    assert "\n{}[bad](http://x) \\&amp; " in written  # after \\\\ a bracket would be a length
    assert len([line for line in written.splitlines() if line.endswith(r"\\")]) == 3
    assert AS_ONE_LINE in text.draw(table, None)
    assert all(c == "\n" or c.isprintable() for c in text.draw(table, None))
    assert any("stands in for two lines" in line for line in text.markdown(table).splitlines()[-4:])
    assert next(csv.DictReader(io.StringIO(text.csv(table))))["data"] == "real"


def test_a_latex_row_may_begin_with_a_bracket_or_a_star(registry: Registry) -> None:
    for label in ("[x]", "*"):
        registry.models["new"] = ModelSpec("new", "", "", label=label)
        assert f"\n{{}}{label} & Real" in text.latex(build(three(0.9), registry))


def test_infinite_figures_are_none_in_every_format(registry: Registry) -> None:
    ends = [
        cell(seed=i, metrics={"ap": ap, "nmi": math.inf})
        for i, ap in enumerate((0.8, -math.inf, math.inf, 0.9))
    ]
    table = build(ends, registry)
    assert lines(table)[0][2:5] == ["85.0 ± 7.07 (n=2)", "--", "--"]
    table.frame.loc[0, "nmi"] = math.inf
    json.loads(text.as_json(table), parse_constant=pytest.fail)
    assert next(csv.DictReader(io.StringIO(text.csv(table))))["nmi"] == ""
    json.loads(json.dumps(ends[1].as_json()), parse_constant=pytest.fail)
    assert ends[1].as_json()["metrics"] == {"ap": None, "nmi": None}


@pytest.mark.parametrize("width", [20, 30, 40, 60, 80, 200])
def test_names_and_figures_stay_whole_on_any_terminal(registry: Registry, width: int) -> None:
    from rich.console import Console

    registry.models["old"] = ModelSpec("old", "", "", label="PCA on true boxes", clusters=False)
    table = build([*three(0.9, 0.92), *three(0.2, 0.3, model="old")], registry)
    console = Console(width=width, file=io.StringIO(), force_terminal=False)
    for grid in text.terminal(table, width):
        console.print(grid)
    printed = console.file.getvalue()
    assert max(map(len, printed.splitlines())) <= width
    for words in ("NEW", "Real", "91.0 ± 1.41", "45.5 ± 0.71", "1.500 ± 0.0000", "25.0 ± 7.07", "AP"):
        assert words in printed
    for word in ("PCA", "true", "boxes", "GMM"):
        assert word in printed


def test_latex(registry: Registry) -> None:
    registry.data["real"] = DataSpec("real", "", "", label=r"R_1 #2 {x} ~ ^ \ $")
    written = text.latex(compared(registry))
    body = written.split(r"\toprule")[1].split(r"\bottomrule")[0]
    assert r"\begin{tabular}{llrrrl}" in written
    assert r"Model & Dataset & AP (\%) & NMI (\%) & Nats & Seeds \\" in body
    assert r"OLD \& odd\_1 + GMM & " in body
    assert r"R\_1 \#2 \{x\} \textasciitilde{} \textasciicircum{} \textbackslash{} \$" in body
    assert r"\textbf{91.0 $\pm$ 1.41}" in body
    assert r"\quad 95 \% interval &  & [84.0, 100.0]" in body
    assert {line.count(" & ") for line in body.splitlines() if line.endswith(r"\\")} == {5}
    assert "%" not in body.replace(r"\%", "")
    assert "\N{MINUS SIGN}" not in written


def test_a_rule_parts_data_sets(registry: Registry) -> None:
    results = [cell("new"), cell("old"), cell("new", "real-sim")]
    assert text.latex(build(results, registry)).count(r"\midrule") == 2  # under the headings, and between


def test_csv_and_json_are_numbers(registry: Registry) -> None:
    results = [*three(0.9, 0.92), cell("old", status="failed", metrics={})]
    table = build(results, registry, (PRINTED, ELSEWHERE))
    old, new, alien = csv.DictReader(io.StringIO(text.csv(table)))
    assert float(new["ap"]) == pytest.approx(0.91)
    assert float(new["ap_paper"]) == 0.973
    assert float(new["ap_difference"]) == pytest.approx(-0.063)
    assert (old["ap"], old["done"], old["unfinished"]) == ("", "0", "failed (1 of 1)")
    assert (alien["seeds"], alien["acc_loose_paper_std"]) == ("0", "0.00652")
    body = json.loads(text.as_json(table))
    assert [row["model"] for row in body["rows"]] == ["old", "new", "alien"]
    assert body["rows"][0]["ap"] is None
    assert body["rows"][1]["ap_n"] == 2
    assert body["rows"][1]["cells"].split() == ["new-real-0", "new-real-1"]
    pairs = json.loads(text.as_json(compared(registry)))["pairs"]
    assert (pairs[0]["model"], pairs[0]["minus"], pairs[0]["ap_low"]) == ("old", "new", 0.4)


# The command


def cell_of(model: str, seed: int) -> Cell:
    """A cell as the matrix makes it, without settings."""
    identity = {
        "model": model,
        "seed": seed,
        "data": "multimnist",
        "model_config": {},
        "data_config": {},
        "protocol": {"name": "demo"},
    }
    return Cell(Training(identity, {}, {}, {}), {"name": "own"})


def stored(out: Path, model: str, seed: int, found_share: float, status: Status = "done") -> Path:
    """Writes a cell as `objbench run` does; 30 scenes of one object, of which a share is found."""
    registry, cell = load_plugins(), cell_of(model, seed)
    folder = folder_of(out, model, seed)
    folder.mkdir(parents=True)
    write_cell(folder, cell)
    image = torch.arange(30)
    boxes = torch.tensor([[4.0, 4, 12, 12]]).repeat(30, 1)
    truth = GroundTruth(30, image, boxes, image % 3)
    hit = image < 30 * found_share
    found = Detections(
        30, image, torch.where(hit[:, None], boxes, boxes + 20), torch.full((30,), 0.9), image % 3
    )
    if status == "done":
        save_tensors(folder.parent / "detections.safetensors", flat(found))
        save_tensors(folder.parent / "truth.safetensors", flat(truth))
        trained = Trained(cell.training.key, Position(), ("a", "b", "c"), (1, 32, 32), False, [], {})
        write_trained(folder.parent, trained, FILES)
    result = cell.result(
        status,
        metrics=score(registry, found, truth) if status == "done" else {},
        provenance=by_these_metrics(registry, registry.metrics.values()),
    )
    write_record(folder, result)
    return folder


AP = 0.81
"""Of detections that find 0.9, all with one score: precision 0.9 up to recall 0.9."""
FILES = ["detections.safetensors", "truth.safetensors"]


def folder_of(out: Path, model: str, seed: int) -> Path:
    """Where that cell lies."""
    return out / "cells" / cell_of(model, seed).key


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Three seeds of GMAIR, one of which failed, and of another model that finds less."""
    for seed in (0, 1):
        stored(tmp_path, "gmair", seed, 0.9)
        stored(tmp_path, "other", seed, 0.4)
    stored(tmp_path, "gmair", 2, 0.9, status="failed")
    stored(tmp_path, "other", 2, 0.9, status="failed")
    return tmp_path


def run(*words: str) -> tuple[str, str]:
    """stdout and stderr of `objbench report`; without intervals where the words do not say."""
    quick = [] if {"--intervals", "--pairs"} & {*words} else ["--no-intervals"]
    result = CliRunner().invoke(report, [*words, *quick], catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout, result.stderr


def test_the_command_prints_every_format(out: Path) -> None:
    printed, complaints = run("--out", str(out))
    assert "MultiMNIST" in printed
    assert "2, failed (1 of 3)" in printed
    assert "\x1b" not in printed
    assert not complaints
    assert "80.0" not in run("--out", str(out), "--format", "md")[0]
    with_paper = run("--out", str(out), "--format", "md", "--paper")[0]
    assert "97.3 ± 0.10" in with_paper
    assert "Eq. 16" in with_paper
    assert run("--out", str(out), "--format", "latex")[0].startswith("% needs")
    assert len(run("--out", str(out), "--format", "csv")[0].splitlines()) == 3
    rows = json.loads(run("--out", str(out), "--format", "json")[0])["rows"]
    assert [(r["model"], r["done"]) for r in rows] == [("gmair", 2), ("other", 2)]


def test_more_columns_are_printed(out: Path) -> None:
    headings = ["COCO AP (%)", "Count error", "F1 (%)", "ACC of all objects (%)"]
    plain, more = (
        run("--out", str(out), "--format", "csv")[0],
        run("--out", str(out), "--more", "--format", "md")[0],
    )
    assert all(heading in more for heading in headings)
    assert "coco_ap" not in plain


def test_intervals_set_the_better_model_in_bold(out: Path) -> None:
    printed, progress = run("--out", str(out), "--format", "json", "--intervals", "--resamples", "100")
    table = json.loads(printed)
    ours, other = table["rows"]
    assert ours["ap50_best"]
    assert not other["ap50_best"]
    assert ours["ap50_low"] < ours["ap50"] < ours["ap50_high"]
    assert table["pairs"][0]["ap50_low"] > 0
    assert progress == "", "it takes no time"


@pytest.mark.slow
def test_a_metric_that_cannot_weigh_scenes_gets_fewer_draws_and_a_note(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    slow = replace(load_plugins().metrics["ap50"], weighted="")
    registry = load_plugins()
    registry.metrics["ap50"] = slow
    results, identities = read_cells(Store(out), registry, Wanted(), None, lambda result: (result, []))
    asked = []

    def draw(result: CellResult, metric: str, first: int, end: int) -> dict[str, Any]:
        asked.append((metric, first, end))
        return draw_cell(result.path, registry.metric(metric), first, end)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    rows = rows_of(results, identities, registry)
    comparison = compare_rows(rows, registry, Drawn(registry, 300, draw))
    assert comparison.notes == ["ap50: 200 draws only, because its spec has no `weighted`."]
    assert comparison.intervals[0]["ap50"][0] < AP < comparison.intervals[0]["ap50"][1]
    assert [end - first for metric, first, end in asked if metric == "ap50"][:8] == [25] * 8
    assert "calling ap50 for each draw" in capsys.readouterr().err
    asked.clear()
    assert compare_rows(rows, registry, Drawn(registry, 300, draw)).intervals == comparison.intervals
    assert not asked, "draws are kept"
    registry.metrics["ap50"] = replace(slow, version=2)
    compare_rows(rows, registry, Drawn(registry, 300, draw))
    assert {metric for metric, _, _ in asked} == {"ap50"}, "the draws of another version are others"


def test_a_metric_that_fails_for_draws_is_left_out_with_a_line(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    registry = load_plugins()
    results, identities = read_cells(Store(out), registry, Wanted(), None, lambda result: (result, []))

    def draw(result: CellResult, metric: str, first: int, end: int) -> dict[str, Any]:
        if metric == "ap50":
            raise UsageError("metric 'ap50' failed in its function: no answer within 60 s; it was killed")
        return draw_cell(result.path, registry.metric(metric), first, end)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    rows = rows_of(results, identities, registry)
    comparison = compare_rows(rows, registry, Drawn(registry, 100, draw))
    assert "ap50" not in comparison.intervals[0]
    assert "acc" in comparison.intervals[0]
    assert "no intervals: metric 'ap50' failed" in capsys.readouterr().err
    table = tables.build(rows, tables.columns_of(registry), registry, comparison)
    assert "95 % interval" in text.draw(table, None)


@pytest.mark.slow
def test_figures_of_another_metric_version_are_scored_again(out: Path) -> None:
    folder = folder_of(out, "gmair", 0)
    result, _ = read_record(folder)
    result.metrics["ap50"] = 0.123
    result.provenance["metric_versions"]["ap50"] = 0
    write_record(folder, result)
    rows = json.loads(run("--out", str(out), "--format", "json")[0])["rows"]
    assert rows[0]["ap50_std"] == 0
    assert read_record(folder)[0].metrics["ap50"] == pytest.approx(AP)
    assert read_record(folder)[0].provenance["metric_versions"]["ap50"] == 1, "and kept"


def edited(folder: Path, **changes: Any) -> None:
    """Changes a record, and makes its checksum fit: whoever edits a file can do that."""
    result, _ = read_record(folder)
    write_record(folder, replace(result, **changes))


def cut(path: Path) -> None:
    """As a copy that was broken off."""
    path.write_bytes(path.read_bytes()[:-100])


def add_of_the_future(folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "FORMAT", files.FORMAT + 1)
        write_record(folder, cell_of("gmair", 0).result("done"))


def another_seed(folder: Path) -> None:
    """A second of the same training, passed off as a run of its own."""
    other = cell_of("gmair", 7).training
    write_json(folder.parent / "training.json", dataclasses.asdict(other))
    edited(folder, seed=7)


BAD = {
    "a record cut short": (lambda f: cut(f / "record.json"), "record.json was cut short or edited"),
    "a record edited": (
        lambda f: (f / "record.json").write_text((f / "record.json").read_text().replace('"ap50": 0', '"ap50": 1')),
        "record.json was cut short or edited",
    ),
    "no record": (lambda f: (f / "record.json").unlink(), "record.json is missing"),
    "an unreadable record": (
        lambda f: ((f / "record.json").unlink(), (f / "record.json").mkdir()),
        "record.json cannot be read",
    ),
    "no identity": (lambda f: (f / "cell.json").unlink(), "cell.json is missing"),
    "no identity of its training": (
        lambda f: (f.parent / "training.json").unlink(),
        "training.json is missing",
    ),
    "a training that did not end": (lambda f: (f.parent / "trained.json").unlink(), "trained.json is missing"),
    "detections cut short": (
        lambda f: cut(f.parent / "detections.safetensors"),
        "detections.safetensors was cut short or edited",
    ),
    "half a copy": (lambda f: (f.parent / "truth.safetensors").unlink(), "truth.safetensors is missing"),
    "a future format": (add_of_the_future, "record.json was written by another version of objbench"),
    "a future field": (
        lambda f: write_json(f / "record.json", read_json(f / "record.json") | {"more": 1}),
        "record.json was written by another version of objbench",
    ),
    "another identity": (
        another_seed,
        f"training.json is that of training {cell_of('gmair', 7).training.key}: a copy, or edited",
    ),
    "another seed": (lambda f: edited(f, seed=7), "record.json was edited: its seed is 7, the cell's 0"),
    "another model": (
        lambda f: edited(f, model="other"),
        "record.json was edited: its model is other, the cell's gmair",
    ),
    "another config": (
        lambda f: edited(f, model_config={"lr": 1}),
        "record.json was edited: its model_config is {'lr': 1}, the cell's {}",
    ),
}  # fmt: skip


@pytest.mark.parametrize("how", BAD)
def test_a_bad_cell_is_left_out_and_said_in_one_line(out: Path, how: str) -> None:
    """Never silently averaged: what is left is the other seed's figure alone."""
    spoil, says = BAD[how]
    folder = folder_of(out, "gmair", 0)
    edited(folder, metrics=read_record(folder)[0].metrics | {"ap50": 0.5})
    before = json.loads(run("--out", str(out), "--format", "json")[0])["rows"][0]
    assert (before["done"], before["ap50"]) == (2, pytest.approx((0.5 + AP) / 2))
    spoil(folder)
    printed, complaints = run("--out", str(out), "--format", "json")
    row = json.loads(printed)["rows"][0]
    assert (row["model"], row["done"], row["ap50"]) == ("gmair", 1, pytest.approx(AP))
    line, lacking = complaints.splitlines()
    assert line.startswith(f"warning: cell {folder.parent.name}/{folder.name} is left out: {says}")
    assert lacking == "warning: gmair on multimnist (demo): there is no cell of seed 0"


def test_a_cell_that_is_there_twice_counts_once(out: Path) -> None:
    folder = folder_of(out, "gmair", 0).parent
    names = {f"{folder.name} (copy)", cell_of("gmair", 9).training.key}
    for name in names:
        shutil.copytree(folder, out / "cells" / name)
    printed, complaints = run("--out", str(out), "--format", "json")
    assert json.loads(printed)["rows"][0]["done"] == 2
    assert {line.split(" is left out: ")[0] for line in complaints.splitlines()} == {
        f"warning: cell {name}/own" for name in names
    }
    assert all(
        f"it holds the record of cell {folder.name}/own: a copy" in line for line in complaints.splitlines()
    )


def test_figures_that_the_raw_detections_do_not_score_are_seen_when_these_are_read(out: Path) -> None:
    folder = folder_of(out, "gmair", 0)
    edited(folder, metrics=read_record(folder)[0].metrics | {"ap50": 0.99})
    words = ("--out", str(out), "--format", "json", "--intervals", "--resamples", "100")
    printed, complaints = run(*words)
    assert json.loads(printed)["rows"][0]["done"] == 1
    assert (
        f"warning: cell {folder.parent.name}/{folder.name} is left out: record.json was edited: its ap50 is "
        "0.9900, but its detections give 0.8100"
    ) in complaints


def test_an_infinite_figure_is_what_its_detections_score(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its record holds null, which is read as NaN."""
    folder = folder_of(out, "gmair", 0)
    edited(folder, metrics=read_record(folder)[0].metrics | {"ap50": -math.inf})
    result = replace(read_record(folder)[0], path=str(folder))
    registry = load_plugins()

    def scores(value: float) -> Score:
        monkeypatch.setenv("XDG_CACHE_HOME", str(out / f"cache{value}"))
        return lambda _: ({"ap50": {"ap50": value}}, [])

    check_figures(registry, result, scores(-math.inf))
    with pytest.raises(Damaged, match="its ap50 is nan"):
        check_figures(registry, result, scores(0.5))


def test_a_metric_edited_without_a_new_version_is_reported_as_that(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not as a record that somebody edited."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(out / "cache"))
    asked = []

    def scored(result: CellResult) -> tuple[dict[str, dict[str, float]], list[str]]:
        asked.append(result.cell)
        return {"ap50": {"ap50": AP}}, []

    folder = folder_of(out, "gmair", 0)
    result = replace(read_record(folder)[0], path=str(folder))
    result.metrics["ap50"] = 0.99
    with pytest.raises(Damaged, match=r"record\.json was edited: its ap50 is 0\.9900"):
        check_figures(load_plugins(), result, scored)
    result.provenance["metric_code"]["ap50"] = "0" * 16
    with pytest.raises(Damaged, match=r"code of the metric 'ap50', which was changed without a new version"):
        check_figures(load_plugins(), result, scored)
    assert len(asked) == 1, "what metrics give is kept"


def test_cells_of_one_row_that_were_run_in_different_surroundings_are_noted(out: Path) -> None:
    def surroundings(seed: int, torch: str, device: str = "AMD", objbench: str = "0.1.0") -> None:
        folder = folder_of(out, "gmair", seed)
        told = {"packages": {"torch": torch}, "device": device, "objbench": objbench}
        edited(folder, provenance=read_record(folder)[0].provenance | told)

    surroundings(0, "2.9.1")
    surroundings(1, "2.9.0+cpu")
    assert "differ in" not in run("--out", str(out))[0], "a patch release is no other torch"
    surroundings(1, "2.10.0", "Intel", "0.2.0")
    printed = run("--out", str(out))[0]
    assert (
        "GMAIR on MultiMNIST: its cells differ in objbench (0.1.0, 0.2.0), torch (2.10, 2.9), device (AMD, Intel)"
        in printed
    )


def test_seeds_that_a_row_lacks_are_said(out: Path) -> None:
    for seed in (0, 2):
        shutil.rmtree(folder_of(out, "other", seed).parent)
    assert run("--out", str(out))[1].splitlines() == [
        "warning: other on multimnist (demo): there is no cell of seeds 0, 2"
    ]


def test_many_seeds_that_a_row_lacks_are_said_as_spans() -> None:
    def row(*seeds: int) -> Row:
        results = [cell_of("m", seed).result("done") for seed in seeds]
        return Row(protocol="demo", data="d", model="m", results=results)

    lacking = [
        line.partition("no cell of ")[2] for line in seeds_that_lack([row(100, 101, 2**31 - 1), row(0, 1, 3)])
    ]
    assert lacking == ["seeds 0-99, 102-2147483646", "seeds 2, 4-2147483647"]


def test_a_report_is_of_the_models_and_data_that_are_wanted(out: Path) -> None:
    def models(*words: str) -> tuple[list[str], str]:
        printed, said = run("--out", str(out), "--format", "json", *words)
        return [row["model"] for row in json.loads(printed)["rows"]], said

    assert models("--models", "other") == (["other"], "")
    assert models("--models", "other,gmair", "--data", "multimnist") == (["gmair", "other"], "")
    assert models("--models", "gmair,gmiar", "--protocol", "demo") == (
        ["gmair"],
        f"warning: no cell in {out} is of the model 'gmiar'\n",
    )


def test_the_table_goes_to_a_file(out: Path) -> None:
    target = out / "table.md"
    printed, _ = run("--out", str(out), "--format", "md", "--to", str(target))
    assert not printed
    assert target.read_text() == run("--out", str(out), "--format", "md")[0]
    with pytest.raises(UsageError, match=r"--to .*: "):
        run("--out", str(out), "--to", str(out / "none" / "table.md"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["--models", "gmiar"],
            "no cells of gmiar in {out}; there are: gmair on multimnist (demo, 3), other",
        ),
        (
            ["--models", "gmair", "--data", "fruit2d"],
            "no cells of gmair on fruit2d in {out}; there are: gmair",
        ),
        (["--current"], "no cells of what is installed now in {out}; there are: gmair on multimnist"),
        (["--out", "nowhere"], "no cells in nowhere; run some with `objbench run --out nowhere`"),
        (["--protocol", "paper"], "no cells of protocol paper in "),
        (["--protocol", "papre"], "no protocol named 'papre'; did you mean 'paper'?"),
    ],
)
def test_wrong_usage_is_one_line(out: Path, words: list[str], said: str) -> None:
    with pytest.raises(UsageError) as error:
        run("--out", str(out), *words)
    assert str(error.value).startswith(said.format(out=out))
    assert "\n" not in str(error.value)


def objbench(code: str, *words: str) -> subprocess.CompletedProcess[str]:
    """`objbench` in a process of its own, and `code` after it."""
    code = f"import sys; from objbench.commands import main\ntry: main()\nfinally:\n    {code}"
    return subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)


def shell(line: str, **more: str) -> subprocess.CompletedProcess[str]:
    """A line of shell in which `objbench` is ours."""
    env = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"} | more
    program = f"{shlex.quote(sys.executable)} -m objbench"
    return subprocess.run(
        ["bash", "-c", f'objbench() {{ {program} "$@"; }}; {line}'], capture_output=True, text=True, env=env
    )


@pytest.mark.parametrize("buffering", [{}, {"PYTHONUNBUFFERED": "1"}], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("objbench list models >&-", "Bad file descriptor"),
        ("objbench list models >&- <&-", "Bad file descriptor"),
        ("objbench list models >/dev/full", "No space left on device"),
        ("objbench --help >/dev/full", "No space left on device"),
        ("objbench >/dev/full", "No space left on device"),
    ],
)
def test_a_stdout_that_cannot_be_written_is_one_line_and_exit_code_74(
    line: str, says: str, buffering: dict[str, str]
) -> None:
    ran = shell(line, **buffering)
    assert (ran.returncode, ran.stderr) == (74, f"objbench: cannot write the output: {says}\n")


@pytest.mark.slow
def test_nowhere_to_print_is_no_traceback_and_no_other_code(out: Path) -> None:
    for to in (">&- 2>&-", ">/dev/full 2>/dev/full"):
        assert shell(f"objbench report --out {out} {to}").returncode == 74


@pytest.mark.parametrize("words", ["list models", "report --format json --to /dev/fd/1"])
@pytest.mark.slow
def test_a_reader_that_has_enough_ends_it_quietly(out: Path, words: str) -> None:
    """As `| head` does, once it has closed the pipe."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    more = ["--out", str(out)] * words.startswith("report")
    ran = subprocess.run(
        [sys.executable, "-m", "objbench", *words.split(), *more], stdout=write_end, stderr=subprocess.PIPE
    )
    os.close(write_end)
    assert (ran.returncode, ran.stderr) == (141, b"")


@pytest.mark.slow
def test_a_report_goes_to_stdout_by_its_path(out: Path) -> None:
    said = run("--out", str(out), "--format", "md")[0]
    target = out / "appended.md"
    ran = shell(
        f"echo before > {target}; objbench report --no-intervals --out {out} --format md --to /dev/fd/1 >> {target}"
    )
    assert ran.returncode == 0, ran.stderr
    assert target.read_text() == f"before\n{said}"
    ran = shell(f"objbench report --no-intervals --out {out} --format md --to /proc/self/fd/1 | cat")
    assert ran.stdout == said


def test_hints_can_be_pasted(tmp_path: Path) -> None:
    odd, plugin = str(tmp_path / "it's here"), str(tmp_path / "plug in" / "odd_hints.py")
    Path(plugin).parent.mkdir()
    Path(plugin).write_text("")
    with pytest.raises(UsageError) as error:
        run("--out", odd, "--plugin", plugin)
    sys.modules.pop("odd_hints")
    hint = str(error.value).partition("`")[2].rstrip("`")
    assert shlex.split(hint) == ["objbench", "run", "--out", odd, "--plugin", plugin]


class Screen(io.StringIO):
    """A stream that is a terminal, or is not."""

    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_live_on_terminals_alone(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from objbench.run.progress import Progress

    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "0")
    monkeypatch.setenv("TERM", "xterm")
    screen = Screen(terminal)
    monkeypatch.setattr(sys, "stderr", screen)
    one = cell_of("[red]odd[/red]", 0)
    with Progress([one], {}) as progress:
        progress.begin(one)
        progress._live.refresh()
        progress.say("said :x:")
    assert "said :x:\n" in screen.getvalue()
    assert ("[red]odd[/red] on multimnist" in screen.getvalue()) == terminal
    assert ("\x1b" in screen.getvalue()) == terminal


def test_no_cells_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    done = objbench("pass", "report", "--out", str(tmp_path))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [
        f"objbench: no cells in {tmp_path}; run some with `objbench run --out {tmp_path}`"
    ]


@pytest.mark.slow
def test_a_report_needs_no_torch_in_its_own_process(out: Path) -> None:
    done = objbench("print('torch' in sys.modules, 'matplotlib' in sys.modules)", "report", "--out", str(out))
    assert "95 % interval" in done.stdout
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "False False"
