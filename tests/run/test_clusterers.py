"""Detectors with clusterers: what `--models` means, one training for many clusterers, and clusterers that go wrong."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch

from objbench.cells.identity import Cell, read_cell
from objbench.cells.matrix import Entry, entries
from objbench.cells.store import Store, read_record, read_trained
from objbench.clusterer import Objects
from objbench.errors import UsageError
from objbench.run.worker import check_same, how_it_failed, sentences
from objbench.score.arrays import load_detections, load_found, load_tensors
from running import TOY, Ran, objbench, rows_of, run, run_here, toy_cell, toy_cells, toys

OF_TOY = ["-o", "toy.steps=40"]
FAST = [*OF_TOY, "-o", "toy-plain.steps=40"]


# What --models means


def test_a_model_alone_keeps_its_meaning() -> None:
    words = ["toy", "toy-plain", "toy+shades", "toy-plain + shades"]
    assert entries(toys(), words) == [
        Entry("toy", "own"),
        Entry("toy-plain", "gmm"),
        Entry("toy", "shades"),
        Entry("toy-plain", "shades"),
    ]
    assert toy_cell("toy-plain").key == toy_cell("toy-plain+gmm").key
    assert toy_cell("toy").training.key == toy_cell("toy+shades").training.key
    assert toy_cell("toy+shades").name == "toy+shades on squares, seed 0"


@pytest.mark.parametrize(
    ("models", "says"),
    [
        ("toy+", "a clusterer is missing after the +; write toy alone, or one of: aae, "),
        ("+shades", "a detector is missing before the +"),
        ("toy+shade", "no clusterer named 'shade'; did you mean 'shades'?"),
        ("toy+own", "no clusterer named 'own'"),
        ("toi+shades", "no model named 'toi'; did you mean 'toy'?"),
        ("toy+shades+gmm", "a detector takes one clusterer; write toy+shades,toy+gmm for several rows"),
        ("toy+shades,toy+shades", "names the same thing twice, as 'toy+shades'; name it once"),
        ("toy-plain,toy-plain+gmm", "the same thing twice, as 'toy-plain' and 'toy-plain+gmm'"),
    ],
)
def test_other_words_are_one_line(models: str, says: str, tmp_path: Path) -> None:
    ran = run(tmp_path / "runs", models)
    assert (ran.code, ran.out) == (2, "")
    assert says in ran.err
    assert len(ran.err.splitlines()) == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("models", "option", "says"),
    [
        ("toy", "shades.clusters=3", "nothing in this run uses it (it has toy, squares)"),
        ("toy+shades", "gmm.clusters=3", "nothing in this run uses it (it has toy, squares, shades)"),
        ("toy+shades", "shades.cluster=3", "no shades option named 'cluster'; did you mean 'clusters'?"),
        ("toy+shades", "shades.clusters=0", "out of range: at least 1"),
        ("toy-plain", "gmm.seed=3", "no gmm option named 'seed'"),
        ("toy+shades", "shade.clusters=3", "no model, data set or clusterer named 'shade'"),
        ("toy+shades", "shades.trouble=cut", "its cut is wrong: margin=-1.0 is not a number above -1"),
        ("toy+shades", "shades.trouble=refuse", "'shades' on 'squares': it does not like such objects"),
    ],
)
def test_options_of_clusterers_are_checked_before_anything_runs(
    models: str, option: str, says: str, tmp_path: Path
) -> None:
    ran = run(tmp_path / "runs", models, "-o", option, "--plan")
    assert ran.code == 2
    assert says in ran.err
    assert len(ran.err.splitlines()) == 1


def test_what_is_in_a_key() -> None:
    base = toy_cell("toy+shades")
    assert base.clusterer["config"] == {"clusters": 10, "glimpse": 4, "noise": 0, "trouble": "none"}
    assert toy_cell("toy+shades", "shades.folder=/elsewhere").key == base.key
    assert toy_cell("toy+shades", "shades.folder=/elsewhere").about["config"]["folder"] == "/elsewhere"
    assert toy_cell("toy+shades", "shades.clusters=10").key == base.key
    for option in ("shades.clusters=9", "shades.noise=0.5"):
        other = toy_cell("toy+shades", option)
        assert other.training.key == base.training.key
        assert other.key != base.key
    assert toy_cells("toy+shades", scale="small")[0].clusterer["config"]["glimpse"] == 6


def test_the_data_set_says_how_many_clusters_there_are() -> None:
    from objbench.cells.matrix import matrix
    from objbench.cells.protocols import protocol

    for data, clusters in (("multimnist", 10), ("fruit2d-sim", 9), ("squares", 10)):
        cells = matrix(toys(), ["toy+shades", "toy-plain"], [data], [0], protocol("demo"), {})
        assert {cell.clusterer["config"]["clusters"] for cell in cells} == {clusters}
    override = {"shades": {"clusters": "4"}}
    (cell,) = matrix(toys(), ["toy+shades"], ["multimnist"], [0], protocol("demo"), override)
    assert cell.clusterer["config"]["clusters"] == 4
    assert cell.about["settings"]["clusters"] == 10


# Train once, cluster many


@pytest.mark.slow
def test_adding_a_clusterer_to_six_trained_cells_runs_no_training(tmp_path: Path) -> None:
    assert run(tmp_path, "toy,toy-plain", "--seeds", "3", *FAST).code == 0
    files = sorted(tmp_path.glob("cells/*/weights.safetensors")) + sorted(
        tmp_path.glob("cells/*/trained.json")
    )
    before = {file: file.stat().st_mtime_ns for file in files}
    assert len(before) == 12
    more = ["toy+shades,toy-plain+shades", "--seeds", "3", *FAST]
    plan = run(tmp_path, *more, "--plan").out
    assert plan.count("new, its training is done: only shades is to run") == 6
    assert "6 of 6 cells to run" in plan
    ran = run(tmp_path, *more, "--json")
    assert ran.code == 0, ran.err
    assert {(r["status"], r["clusterer"], r["train_steps"]) for r in rows_of(ran)} == {("done", "shades", 40)}
    assert all(row["clusterer_seconds"] > 0 for row in rows_of(ran))
    assert {file: file.stat().st_mtime_ns for file in files} == before
    assert len(list(tmp_path.glob("cells/*/weights.safetensors"))) == 6
    assert "nothing to run: all 6 cells are done" in run(tmp_path, *more).err


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two trainings with three clusterings each."""
    out = tmp_path_factory.mktemp("clusterers")
    models = "toy,toy+shades,toy+shades-by-label,toy-plain,toy-plain+shades,toy-plain+shades-by-label"
    ran = run(out, models, *FAST, "-o", "shades.clusters=2")
    assert ran.code == 0, ran.err
    return out


@pytest.fixture
def mine(store: Path, tmp_path: Path) -> Path:
    """A copy of the store, to add cells to."""
    return Path(shutil.copytree(store, tmp_path / "mine"))


def folder_of(store: Path, model: str, *options: str) -> Path:
    """Where a cell lies: "toy+shades", with these options of its clusterer."""
    return Store(store).folder(toy_cell(model, f"{model.partition('+')[0]}.steps=40", *options).key)


def test_all_clusterers_of_a_training_share_it(store: Path) -> None:
    assert len(list(store.glob("cells/*/weights.safetensors"))) == 2
    assert len(Store(store).cell_keys()) == 6


def test_a_plan_counts_a_training_once(tmp_path: Path) -> None:
    plan = run(tmp_path, "toy,toy+shades,toy+gmm", "--plan").out.splitlines()
    assert plan[0].endswith("toy on squares, seed 0: new  [unknown]")
    for line in plan[1:3]:
        assert "new; its training runs once, for toy on squares, seed 0" in line


def test_changing_an_option_of_a_clusterer_runs_it_alone(store: Path) -> None:
    words = ["toy+shades,toy+shades-by-label", *OF_TOY, "-o", "shades.clusters=5", "--plan"]
    plan = run(store, *words).out.splitlines()
    assert "toy+shades on squares, seed 0: new, its training is done: only shades is to run" in plan[0]
    assert plan[1].endswith("toy+shades-by-label on squares, seed 0: done")


def test_a_clusterer_replaces_the_clusters_of_the_detector(mine: Path) -> None:
    cell = toy_cell("toy+shades", "toy.steps=40", "shades.clusters=5")
    assert run_here(mine, cell).status == "done"
    folder = Store(mine).folder(cell.key)
    clusters = load_tensors(folder / "clusters.safetensors")["clusters"]
    assert torch.equal(load_detections(folder).clusters, clusters)
    own = load_found(folder.parent).clusters
    assert own is not None
    assert not torch.equal(own, clusters)
    record, _ = read_record(folder)
    assert record.clusterer == "shades"
    assert record.clusterer_seconds > 0
    assert record.provenance["objects_fitted_on"] > 0
    assert record.provenance["object_shape"] == [1, 4, 0]
    assert record.provenance["plugins"]["clusterer"]["file"] == "toy_plugin.py"
    assert record.provenance["oracle_clusterer"] is False


def test_the_table_names_clusterers_and_says_what_they_replace(store: Path) -> None:
    ran = objbench(
        "report", "--no-intervals", "--plugin", TOY, "--out", str(store), "--long", "--format", "json"
    )
    table = json.loads(ran.out)
    assert [row["model_label"] for row in table["rows"]] == [
        "toy [steps=40]",
        "toy + Shades [shades.clusters=2, steps=40]",
        "toy + shades-by-label (oracle) [steps=40]",
        "toy-plain + GMM [steps=40]",
        "toy-plain + Shades [shades.clusters=2, steps=40]",
        "toy-plain + shades-by-label (oracle) [steps=40]",
    ]
    assert [row["clusters"] for row in table["rows"]] == [None, 2, 10, 10, 2, 10]
    notes = " ".join(table["notes"])
    assert "toy + Shades: replaces toy's own clusters." in notes
    assert "toy-plain + Shades: replaces" not in notes
    assert "its clusterer was fitted with the true labels" in notes
    assert "was given the true boxes" not in notes
    assert "Clusters on squares: 2 (toy + Shades, toy-plain + Shades); 10 (toy + shades-by-label" in notes
    assert "Shades, paper: A paper on shades" in notes
    assert "toy + Shades [shades.clusters=2, steps=40] on squares: the clusterer took" in notes


def test_a_report_can_be_of_one_clusterer(store: Path) -> None:
    words = ["report", "--no-intervals", "--plugin", TOY, "--out", str(store), "--format", "json", "--models"]
    for models, clusterers in (
        ("toy+shades", {"shades"}),
        ("toy", {"own", "shades", "shades-by-label"}),
        ("toy-plain+gmm", {"gmm"}),
    ):
        rows = json.loads(objbench(*words, models).out)["rows"]
        assert {row["clusterer"] for row in rows} == clusterers
    assert "no cell in" in objbench(*words, "toy+gmm").err


def test_an_oracle_is_marked_and_its_clusters_are_the_classes(store: Path) -> None:
    folder = folder_of(store, "toy+shades-by-label")
    record, _ = read_record(folder)
    assert record.provenance["oracle_clusterer"] is True
    assert record.provenance["oracle"] is False
    for name, words in (("shades-by-label", "the true labels, to fit"), ("toy-oracle", "the true boxes")):
        assert f"oracle: it is given {words}; a bound" in objbench("info", name, "--plugin", TOY).out
    assert "oracle:" not in objbench("info", "shades", "--plugin", TOY).out


@pytest.mark.slow
def test_verify_clusters_again(store: Path) -> None:
    key = folder_of(store, "toy+shades", "shades.clusters=2")
    ran = objbench("verify", str(store), "--cell", f"{key.parent.name}/{key.name}", "--plugin", TOY)
    assert ran.code == 0, ran.err
    assert ran.out.startswith("same: all")


def test_show_and_rescore_take_such_cells(store: Path) -> None:
    folder = folder_of(store, "toy-plain+shades", "shades.clusters=2")
    key = f"{folder.parent.name}/{folder.name}"
    shown = objbench("show", key, "--out", str(store), "--plugin", TOY)
    assert shown.code == 0, shown.err
    assert "clusters.png" in shown.out
    assert shown.err == ""
    scored = objbench("rescore", str(store), key, "--plugin", TOY)
    assert (scored.code, "toy-plain+shades on squares, seed 0: no figure changed" in scored.out) == (0, True)


def test_a_clusterer_that_is_gone_is_named(store: Path) -> None:
    folder = folder_of(store, "toy-plain+shades", "shades.clusters=2")
    ran = objbench("show", str(folder), "--out", str(store))
    assert ran.code == 0
    assert "no plugin registers the clusterer 'shades' any more; the file toy_plugin.py had" in ran.err
    table = objbench("report", "--no-intervals", "--out", str(store)).out
    assert "toy-plain + Shades" in table
    assert "No plugin registers the clusterer shades any more; the file toy_plugin.py did." in " ".join(
        table.split()
    )


def test_code_of_another_clusterer_is_named(store: Path) -> None:
    from objbench.cells.files import read_json
    from objbench.report.rows import rows_of as as_rows

    cell = read_cell(folder_of(store, "toy-plain+shades", "shades.clusters=2"))
    other = Cell(cell.training, cell.clusterer | {"code": "0" * 16}, cell.about)
    results = [other.result("done")]
    (row,) = as_rows(results, {results[0].cell: other}, toys())
    assert [text for text in row.other_code if text.startswith("shades 000000 (now ")]
    assert read_json(folder_of(store, "toy+shades", "shades.clusters=2") / "cell.json")["about"]["replaces"]


def test_removing_a_cell_keeps_its_training(tmp_path: Path) -> None:
    cells = toy_cells("toy,toy+shades", "toy.steps=40")
    for cell in cells:
        assert run_here(tmp_path, cell).status == "done"
    assert objbench("rm", cells[1].key, "--out", str(tmp_path), "--yes").code == 0
    assert Store(tmp_path).cell_keys() == [cells[0].key]
    assert (Store(tmp_path).folder(cells[0].training.key) / "weights.safetensors").exists()


# Clusterers that go wrong


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            ["shades.trouble=raise"],
            "'shades' failed in its fit: RuntimeError: the shades broke (toy_plugin.py",
        ),
        (["shades.trouble=sys.exit"], "'shades' failed in its fit: it called sys.exit(3)"),
        (["shades.trouble=change"], "fit of 'shades' changed the glimpses that it was given"),
        (["shades.trouble=many"], "what assign of 'shades' returned is wrong"),
        (["shades.trouble=widen"], "it must be in 0..9, or -1 (noise)"),
        (["shades.trouble=short"], "what assign of 'shades' returned is wrong: a tensor of shape"),
        (["shades.trouble=forget"], "the state_dict of 'shades' does not hold all that it learnt"),
        (["shades.trouble=grow"], "the saved state of 'shades' does not fit the plugin"),
        (["shades.trouble=order"], "assign of 'shades' does not look at each object alone: given every"),
        (["shades.trouble=batch"], "assign of 'shades' does not look at each object alone: given every"),
        (["shades.trouble=random"], "assign of 'shades' does not look at each object alone: given every"),
        (["shades.trouble=meta"], "'shades' failed in the clustering: RuntimeError: Tensor.item() cannot be"),
        (
            ["shades.trouble=state"],
            "'shades' failed in the clustering: RuntimeError: the shades have no state",
        ),
    ],
)
def test_a_clusterer_that_goes_wrong_fails_its_cell_alone(options: list[str], says: str, mine: Path) -> None:
    cell = toy_cell("toy+shades", "toy.steps=40", *options)
    result = run_here(mine, cell)
    assert result.status == "failed"
    assert says in result.error
    assert result.error[:1] in "'fatw"  # a sentence, and not the class of an exception
    assert "\n" not in result.error
    assert read_trained(Store(mine).folder(cell.training.key)).position.step == 40
    assert not (Store(mine).folder(cell.key) / "clusters.safetensors").exists()


def test_a_clusterer_leaves_the_dtype_of_new_tensors_to_others(mine: Path) -> None:
    result = run_here(mine, toy_cell("toy+shades", "toy.steps=40", "shades.trouble=float64"))
    assert (result.status, torch.get_default_dtype()) == ("done", torch.float32), result.error


def test_objects_at_a_border_may_be_rounded_to_either_side() -> None:
    """A cluster that hangs on the other objects fails; one object in two thousand is taken for rounding."""

    class Moody:
        def __init__(self, wrong: int) -> None:
            self.wrong = wrong

        def eval(self) -> None:
            """It is."""

        def assign(self, objects: Objects) -> torch.Tensor:
            every_second = float(objects.scores[1] - objects.scores[0]) > 1.5 / 4000
            return (objects.scores < (self.wrong if every_second else 0) / 4000).long()

    objects = Objects(torch.zeros(4000, 1, 0, 0), torch.arange(4000) / 4000)
    for wrong in (0, 4, 5):
        with pytest.raises(ValueError, match="5 of 4000") if wrong > 4 else contextlib.nullcontext():
            check_same("moody", Moody(wrong), objects, torch.zeros(4000, dtype=torch.int64), 2)


def test_a_long_error_keeps_its_beginning() -> None:
    status, line = how_it_failed(RuntimeError("x" * 5000))
    assert (status, len(line), line[:20], line[-7:]) == ("failed", 300, "RuntimeError: xxxxxx", "x [...]")


def test_memory_that_runs_out_is_said(mine: Path) -> None:
    result = run_here(mine, toy_cell("toy+shades", "toy.steps=40", "shades.trouble=allocate"))
    assert result.status == "out of memory"


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ([], []),
        ("too few", ["too few"]),  # one text instead of a list
        ([*"too few", "trained on two machines"], ["too few", "trained on two machines"]),
        (["one thing", "", "another\n thing", 3], ["one thing", "another thing", "3"]),
    ],
)
def test_warnings_are_sentences(said: Iterable[object], kept: list[str]) -> None:
    assert sentences(said) == kept


def test_one_text_as_warnings_is_one_warning(mine: Path) -> None:
    result = run_here(mine, toy_cell("toy+shades", "toy.steps=40", "shades.trouble=text"))
    assert result.provenance["warnings"] == ["a text, not a list"]


def test_too_few_objects_are_a_warning(tmp_path: Path) -> None:
    result = run_here(tmp_path, toy_cell("toy+shades", "toy.steps=40", "toy.trouble=nothing"))
    assert result.status == "done"
    assert "too few to shade" in result.provenance["warnings"]
    assert result.provenance["objects_fitted_on"] == 0


def test_what_latents_that_are_missing_are_said_before_training(tmp_path: Path) -> None:
    cell = toy_cell("toy+gmm", "toy.steps=40")
    result = run_here(tmp_path, cell)
    assert result.status == "failed"
    assert "'gmm' clusters what-latents, and 'toy' gives none; choose a clusterer" in result.error
    assert not (Store(tmp_path).folder(cell.training.key) / "trained.json").exists()


def test_what_latents_that_are_missing_are_said_of_a_finished_training(mine: Path) -> None:
    result = run_here(mine, toy_cell("toy+gmm", "toy.steps=40"))
    assert "'gmm' clusters what-latents, and 'toy' gives none; choose a clusterer" in result.error


def test_a_clusterer_whose_code_changed_since_it_was_planned_does_not_run(mine: Path) -> None:
    cell = toy_cell("toy+shades", "toy.steps=40", "shades.clusters=7")
    old = Cell(cell.training, cell.clusterer | {"code": "0" * 16}, cell.about)
    result = run_here(mine, old)
    assert "the source of 'shades' changed since this run was planned" in result.error


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trouble", "status", "says"),
    [("exit", "failed", "ended with exit code 7"), ("hang", "timed out", "killed after 60 s")],
)
def test_after_a_clusterer_that_takes_its_process_down_the_others_go_on(
    trouble: str, status: str, says: str, mine: Path
) -> None:
    ran = run(
        mine, "toy,toy+shades,toy+shades-by-label,toy+gmm", *OF_TOY, "-o", f"shades.trouble={trouble}",
        "-o", "shades-by-label.clusters=3", "--timeout", "60", "--json",
    )  # fmt: skip
    own, shades, labels, gmm = rows_of(ran)
    assert ran.code == 1
    assert (own["status"], labels["status"], gmm["status"]) == ("done", "done", "failed")
    assert shades["status"] == status
    assert says in shades["error"]
    assert "gives none" in gmm["error"]
    assert len(list(mine.glob("cells/*/trained.json"))) == 2


@pytest.mark.slow
def test_force_runs_a_training_once_for_all_its_clusterers(tmp_path: Path) -> None:
    words = ["toy+shades,toy", *OF_TOY, "-o", "shades.trouble=exit"]
    assert run(tmp_path, *words).code == 1
    assert run(tmp_path, *words, "--force").code == 1
    assert len(list(tmp_path.glob("cells/*.old-*"))) == 1


def test_cells_of_an_earlier_version_are_refused_in_one_line(mine: Path, tmp_path: Path) -> None:
    """The mixture had other options then, and its state other tensors."""
    now = toy_cell("toy-plain", "toy-plain.steps=40")
    config = {
        "components": 10,
        "covariance": "full",
        "pca": 0,
        "restarts": 5,
        "seed": 0,
        "standardise": False,
    }
    then = Cell(now.training, {"name": "gmm", "config": config, "code": "0" * 16})
    from objbench.cells.identity import write_cell
    from objbench.cells.store import write_record

    folder = Store(mine).folder(then.key)
    folder.mkdir()
    write_cell(folder, then)
    record, _ = read_record(Store(mine).folder(now.key))
    old = then.result("done", metrics=record.metrics, provenance=dict(record.provenance))
    write_record(folder, old)
    (tmp_path / "images").mkdir()
    ran = refused(mine, then, tmp_path)
    assert "run it again" in ran.err
    ran = objbench("report", "--no-intervals", "--plugin", TOY, "--out", str(mine))
    assert ran.code == 0
    assert "gmm.components=10" in ran.out
    ran = objbench("verify", str(mine), "--cell", then.key, "--plugin", TOY)
    assert ran.code == 2
    assert "was clustered by another version of 'gmm'" in ran.err
    assert objbench("rm", then.key, "--out", str(mine), "--yes").code == 0


def refused(store: Path, cell: Cell, folder: Path) -> Ran:
    """`objbench predict` of a cell that cannot be read."""
    from PIL import Image

    Image.new("L", (16, 16)).save(folder / "images" / "a.png")
    ran = objbench(
        "predict", "--cell", cell.key, "--images", str(folder / "images"), "--to", str(folder / "x.json"),
        "--out", str(store), "--plugin", TOY,
    )  # fmt: skip
    assert ran.code == 2
    assert "Traceback" not in ran.err
    return ran


def test_a_word_of_models_needs_a_registered_usual_clusterer() -> None:
    registry = toys()
    del registry.clusterers["gmm"]
    with pytest.raises(UsageError, match="no clusterer named 'gmm'"):
        entries(registry, ["toy-plain"])
