"""docs/files.md names every file that a run leaves, and every key in it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from objbench.cells.store import Store, read_curve
from objbench.score.arrays import load_tensors
from running import run, toy_cell

PAGE = (Path(__file__).parents[1] / "docs" / "files.md").read_text()
MODELS = {"toy": "own", "toy-plain": "gmm"}


@pytest.fixture(scope="module")
def trainings(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """What runs of a detector that clusters, and of one that does not, have left."""
    out = tmp_path_factory.mktemp("files")
    ran = run(out, ",".join(MODELS), "-o", "toy.steps=9", "-o", "toy-plain.steps=9", "--log", "csv")
    assert ran.code == 0, ran.err
    return [Store(out).folder(toy_cell(model, f"{model}.steps=9").training.key) for model in MODELS]


def section(heading: str) -> str:
    """The text below a heading."""
    (text,) = [
        part for part in re.split(r"^## ", PAGE, flags=re.MULTILINE) if part.startswith(f"`{heading}`")
    ]
    return text


def test_every_file_is_on_the_page(trainings: list[Path]) -> None:
    names = {path.name for folder in trainings for path in folder.rglob("*") if path.is_file()}
    assert {"curve.jsonl", "record.json", "shown.safetensors", "clusterer.safetensors", "curves.png"} <= names
    missing = [name for name in names if name not in PAGE and not name.endswith(".png")]
    assert not missing


@pytest.mark.parametrize("name", ["training.json", "trained.json", "cell.json", "record.json"])
def test_every_key_of_a_json_file_is_on_the_page(name: str, trainings: list[Path]) -> None:
    text = section(name)
    for folder in trainings:
        (file,) = folder.rglob(name)
        body = json.loads(file.read_text())
        keys = body.keys() - {"sha256", "format"}
        assert len(keys) >= 2
        assert not [key for key in keys if f"`{key}`" not in text]
        inner = {"training.json": "identity", "trained.json": "position"}.get(name)
        assert not [key for key in body.get(inner, {}) if f"`{key}`" not in text]


def test_every_key_of_a_curve_is_on_the_page(trainings: list[Path]) -> None:
    text = section("curve.jsonl")
    for folder in trainings:
        assert not [key for row in read_curve(folder) for key in row if f"`{key}`" not in text]


def test_every_tensor_is_on_the_page(trainings: list[Path]) -> None:
    text = PAGE[PAGE.index("## Tensors") :]
    for folder in trainings:
        for file in folder.rglob("*.safetensors"):
            assert f"`{file.name}`" in text
            names = (
                load_tensors(file)
                if file.name not in ("weights.safetensors", "clusterer.safetensors")
                else {}
            )
            assert not [name for name in names if f"`{name}`" not in text], file.name
    shown = load_tensors(trainings[0] / "shown.safetensors")
    assert (len(shown["images"]), len(shown["reconstructions"])) == (100, 8), "as the page says"
