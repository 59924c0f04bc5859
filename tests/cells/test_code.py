"""A key holds the code that runs: all of it, and nothing else."""

from __future__ import annotations

import ast
import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from objbench.cells import code
from objbench.cells.code import changed_files, code_of, digest, foreign, numerics_of
from objbench.cells.identity import Cell, read_cell, read_training, write_cell
from objbench.cells.matrix import changes_of_code, is_current
from objbench.cells.store import Store
from objbench.plugins import load_plugins
from running import TOY, rows_of, run, run_here, toy_cell, toys

PACKAGE = {
    "__init__.py": "import packed.switch\n",
    "switch.py": "FLAG = 1\n",
    "common.py": "def scale(x):\n    return 2 * x\n",
    "unused.py": "raise RuntimeError\n",
    "reference.py": "from packed.models.net import Net\n",
    "types_only.py": "class Shape: ...\n",
    "lazy.py": "y = 1\n",
    "named.py": "y = 1\n",
    "stars.py": "z = 1\n",
    "models/__init__.py": "",
    "models/net.py": (
        "from __future__ import annotations\n"
        "import importlib\n"
        "from typing import TYPE_CHECKING\n"
        "import numpy\n"
        "from ..common import scale\n"
        "from packed.stars import *\n"
        "if TYPE_CHECKING:\n"
        "    from packed.types_only import Shape\n"
        "class Net:\n"
        '    """A net."""\n'
        "    def step(self):\n"
        "        from packed import lazy\n"
        "        return importlib.import_module('packed.named')\n"
    ),
    "notes.txt": "nothing",
}
REACHED = ["__init__", "common", "lazy", "models/__init__", "models/net", "named", "stars", "switch"]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package whose model reaches some of its files by import, in every way there is."""
    folder = tmp_path / "packed"
    (folder / "models").mkdir(parents=True)
    for name, text in PACKAGE.items():
        (folder / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    return folder


def of_package() -> dict[str, str]:
    return code_of("packed.models.net:Net")


def test_a_plugins_code_is_what_its_target_reaches_inside_its_package(package: Path) -> None:
    assert sorted(of_package()) == [f"packed/{name}.py" for name in REACHED]
    assert foreign("packed.models.net:Net") == ["numpy"]
    assert "packed" not in sys.modules, "read, not executed"


@pytest.mark.parametrize("name", REACHED)
def test_each_file_that_runs_is_in_the_key(package: Path, name: str) -> None:
    before = of_package()
    file = package / f"{name}.py"
    file.write_text(file.read_text() + "NEW = 1\n")
    assert changed_files(before, of_package()) == [f"packed/{name}.py"]
    assert digest(before) != digest(of_package())


@pytest.mark.parametrize("name", ["unused.py", "reference.py", "types_only.py", "notes.txt"])
def test_a_file_that_does_not_run_is_not(package: Path, name: str) -> None:
    before = of_package()
    (package / name).write_text("NEW = 1\n")
    assert of_package() == before


SAME = {
    "a comment": lambda text: text + "# said otherwise\n",
    "a docstring": lambda text: text.replace("A net.", "Another net."),
    "no docstring": lambda text: text.replace('    """A net."""\n', ""),
    "space": lambda text: text.replace("\n", "\n\n"),
    "quotes": lambda text: text.replace("'packed.named'", '"packed.named"'),
    "a hook implementation": lambda text: text + "@hookimpl\ndef objbench_models():\n    return []\n",
}
OTHER = {
    "a value": lambda text: text + "x = 2\n",
    "an order": lambda text: text.replace("import numpy\n", "") + "import numpy\n",
    "a default": lambda text: text.replace("step(self)", "step(self, x=None)"),
    "a decorator": lambda text: text.replace("    def step", "    @staticmethod\n    def step"),
}


@pytest.mark.parametrize("how", SAME)
def test_what_changes_no_figure_changes_no_key(package: Path, how: str) -> None:
    before, file = of_package(), package / "models/net.py"
    edited = SAME[how](file.read_text())
    assert edited != file.read_text()
    file.write_text(edited)
    assert of_package() == before


@pytest.mark.parametrize("how", OTHER)
def test_what_may_change_a_figure_changes_the_key(package: Path, how: str) -> None:
    before, file = of_package(), package / "models/net.py"
    file.write_text(OTHER[how](file.read_text()))
    assert of_package() != before


def test_a_file_that_cannot_be_parsed_is_taken_as_it_is(package: Path) -> None:
    (package / "common.py").write_text("def (\n")
    before = of_package()
    (package / "common.py").write_text("def ((\n")
    assert changed_files(before, of_package()) == ["packed/common.py"]


def test_a_lone_files_code_is_itself_and_what_it_imports_from_beside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "lonely_one.py").write_text("import helper_one, json, numpy\nfrom kit_one import part\n")
    (tmp_path / "helper_one.py").write_text("x = 1\n")
    (tmp_path / "other_one.py").write_text("x = 1\n")
    (tmp_path / "json.py").write_text("not imported, as Python has one\n")
    (tmp_path / "kit_one").mkdir()
    (tmp_path / "kit_one/__init__.py").write_text("")
    (tmp_path / "kit_one/part.py").write_text("y = 1\n")
    expected = ["helper_one.py", "kit_one/__init__.py", "kit_one/part.py", "lonely_one.py"]
    assert sorted(code_of("lonely_one:Model")) == expected
    assert foreign("lonely_one:Model") == ["numpy"]


def test_a_module_is_told_from_a_package_whatever_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "lonely_two.py").write_text("import Helper_two\n")
    (tmp_path / "Helper_two.py").write_text("x = 1\n")
    assert sorted(code_of("lonely_two:Model")) == ["Helper_two.py", "lonely_two.py"]


def test_the_numerics_of_the_harness_are_in_the_key_and_nothing_that_only_runs_or_reports() -> None:
    registry = load_plugins()
    files = numerics_of(registry.model("gmair").target, registry.data_spec("multimnist").target)
    expected = [
        "detector",
        "latents",
        "score/detect",
        "score/random_state",
        "score/trained",
        "spatial/glimpses",
    ]
    expected += ["train/loop", "train/outcome", "train/steps", "train/batches", "train/checkpoint"]
    assert {f"objbench/{name}.py" for name in expected} <= files.keys()
    rooms = {"run", "report", "commands", "conformance", "cells"}
    assert not [name for name in files if name.split("/")[1] in rooms]
    for name in ("gmair", "spair", "space"):
        own = code_of(registry.model(name).target)
        assert f"objbench_plugins/{name}/model.py" in own
        assert not [file for file in own if "reference" in file], "for tests alone"


def test_digests_are_alike_in_all_versions_of_python() -> None:
    """Pinned: other digits here would retire every cell that there is."""
    text = "import a\nclass C(B):\n    x: int = 1\n    def f(self, y=None):\n        return f'{y!r:>3}' if y else 1.0\n"
    assert code._short(code._dumped(ast.parse(text)).encode()) == "632319d304605ce1"


# What runs is what the key says


@pytest.fixture
def toy_file(tmp_path: Path) -> Path:
    """The toy plugin as a file that can be edited, under a name of its own, with a helper beside it."""
    file = tmp_path / "toy_edited.py"
    text = Path(TOY).read_text().replace("toy_plugin:", "toy_edited:")
    file.write_text(text + "\nimport toy_beside\n")
    (tmp_path / "toy_beside.py").write_text("FACTOR = 1\n")
    return file


def cli(file: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """objbench in a process of its own: modules stay loaded in this one."""
    command = [sys.executable, "-m", "objbench", *words, "--plugin", str(file)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_an_edit_beside_a_plugin_file_makes_new_cells_and_a_comment_does_not(
    toy_file: Path, tmp_path: Path
) -> None:
    out = str(tmp_path / "out")
    words = ["run", "--models", "toy-fit", "--data", "squares", "--out", out]
    assert cli(toy_file, *words).returncode == 0
    toy_file.write_text(toy_file.read_text() + "# a comment\n")
    assert "nothing to run" in cli(toy_file, *words).stderr
    (tmp_path / "toy_beside.py").write_text("FACTOR = 2\n")
    planned = cli(toy_file, *words, "--plan").stdout
    assert "the code of toy-fit has changed" in planned
    assert "nothing to run" not in planned
    (cell,) = Store(out).cell_keys()
    shown = cli(toy_file, "show", cell, "--out", out)
    assert shown.returncode == 0
    assert "toy_beside.py changed since" in shown.stderr


def test_a_cell_whose_code_changed_since_it_was_planned_refuses_to_run(tmp_path: Path) -> None:
    cell = toy_cell("toy-fit")
    training = cell.training
    stale = {**training.code, "model_code": {**training.code["model_code"], "toy_plugin.py": "0" * 16}}
    identity = training.identity | {"model_code": digest(stale["model_code"])}
    planned = Cell(
        type(training)(identity, training.model_config, training.data_config, stale), cell.clusterer
    )
    result = run_here(tmp_path, planned)
    assert result.status == "failed"
    assert "the source changed since this run was planned (toy_plugin.py)" in result.error
    assert run_here(tmp_path, cell).status == "done", "the others go on"


def test_verify_and_predict_say_which_file_changed(tmp_path: Path) -> None:
    cell = toy_cell("toy-fit")
    training = cell.training
    stale = {
        **training.code,
        "harness_code": {**training.code["harness_code"], "objbench/train/old.py": "0" * 16},
    }
    identity = training.identity | {"harness_code": digest(stale["harness_code"])}
    planned = Cell(
        type(training)(identity, training.model_config, training.data_config, stale), cell.clusterer
    )
    assert changes_of_code(toys(), planned.training) == ["objbench/train/old.py"]


def test_a_changed_file_that_model_and_data_share_is_named_once() -> None:
    training = toy_cell("toy-fit").training
    stale = {
        name: {**files, "toy_plugin.py": "0" * 16}
        for name, files in training.code.items()
        if "toy_plugin.py" in files
    }
    then = dataclasses.replace(training, code=training.code | stale)
    assert len(stale) > 1
    assert changes_of_code(toys(), then) == ["toy_plugin.py"]


def test_training_json_that_was_edited_is_not_believed(tmp_path: Path) -> None:
    from objbench.cells.files import Damaged, read_json, write_json

    cell = toy_cell("toy-fit")
    folder = tmp_path / cell.key
    folder.mkdir(parents=True)
    write_cell(folder, cell)
    assert read_cell(folder) == Cell(read_training(folder.parent), cell.clusterer)
    assert read_cell(folder).key == cell.key
    body = read_json(folder.parent / "training.json")
    body["code"]["model_code"]["toy_plugin.py"] = "0" * 16
    write_json(folder.parent / "training.json", body)
    with pytest.raises(Damaged, match="its model_code is not the digest of the files"):
        read_cell(folder)
    (tmp_path / cell.training.key).rename(tmp_path / "copy")
    with pytest.raises(Damaged, match="a copy, or edited"):
        read_training(tmp_path / "copy")


def test_what_is_known_about_a_training_is_in_no_key_and_may_be_missing(tmp_path: Path) -> None:
    from objbench.cells.files import read_json, write_json

    cell = toy_cell("toy-plain", "toy-plain.steps=7", "squares.folder=/somewhere/else")
    folder = tmp_path / cell.key
    folder.mkdir(parents=True)
    write_cell(folder, cell)
    about = read_training(folder.parent).about
    assert about == cell.training.about
    assert about["model"]["settings"] == toy_cell("toy-plain").training.identity["model_config"]
    assert about["model"]["clusters"] is False
    assert about["model"]["plugin"] == about["data"]["plugin"] == {"file": "toy_plugin.py"}
    assert about["data"]["settings"] == toy_cell("toy-plain").training.identity["data_config"]
    assert about["data"]["given"] == {"folder": "else"}, "what is in no identity, and never a whole path"
    assert read_cell(folder).about == cell.about
    assert cell.about["settings"]["clusters"] == 10
    assert cell.about["replaces"] is False
    body = read_json(folder.parent / "training.json")
    del body["about"]  # as earlier versions wrote it
    write_json(folder.parent / "training.json", body)
    assert read_cell(folder) == cell
    assert read_cell(folder).training.about == {}


def test_a_cell_is_current_while_code_and_content_are_todays() -> None:
    cell = toy_cell("toy-plain", "toy-plain.steps=7")
    training = cell.training

    def current(**changes: str) -> bool:
        changed = dataclasses.replace(training, identity=training.identity | changes)
        return is_current(toys(), Cell(changed, cell.clusterer), {})

    assert current()
    for part in ("model_code", "data_code", "harness_code", "fingerprint"):
        assert not current(**{part: "0" * 16}), part
    assert not is_current(toys(), Cell(training, cell.clusterer | {"code": "0" * 16}), {})
    assert not is_current(load_plugins(), cell, {}), "its plugins are gone"


@pytest.mark.slow
def test_changing_an_option_of_the_clusterer_trains_nothing(tmp_path: Path) -> None:
    words = ["-o", "toy-plain.steps=6"]
    assert run(tmp_path, "toy-plain", *words).code == 0
    weights = next(tmp_path.glob("cells/*/weights.safetensors"))
    before = weights.stat().st_mtime_ns
    plan = run(tmp_path, "toy-plain", *words, "-o", "gmm.clusters=3", "--plan").out
    assert "new, its training is done: only gmm is to run" in plan
    (row,) = rows_of(run(tmp_path, "toy-plain", *words, "-o", "gmm.clusters=3", "--json"))
    assert row["status"] == "done"
    assert weights.stat().st_mtime_ns == before
    assert len(Store(tmp_path).cell_keys()) == 2
    assert len(list(tmp_path.glob("cells/*/weights.safetensors"))) == 1
