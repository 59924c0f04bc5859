"""`objbench predict`: a trained cell on a user's own pictures."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from objbench.coco import read_detections
from objbench.evaluation import load_detections
from running import TOY, Ran, objbench, run_here, toy_cell


@pytest.fixture(scope="module", params=["toy", "toy-plain"])
def cell(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished cell, with clusters of its own or with a mixture."""
    result = run_here(tmp_path_factory.mktemp("out"), toy_cell(request.param, f"{request.param}.steps=30"))
    assert result.status == "done", result.error
    return Path(result.path)


def export(folder: Path, n: int = 12) -> None:
    ran = objbench("data", "export", "squares", "--n", str(n), "--to", str(folder), "--plugin", TOY)
    assert ran.code == 0, ran.err


def predict(cell: Path, images: Path, target: Path) -> Ran:
    return objbench(
        "predict", "--cell", str(cell), "--images", str(images), "--to", str(target), "--plugin", TOY
    )


@pytest.mark.parametrize("where", ["", "images"])
def test_it_finds_in_exported_pictures_what_the_cell_found_in_these_scenes(
    where: str, cell: Path, tmp_path: Path
) -> None:
    export(tmp_path / "scenes")
    ran = predict(cell, tmp_path / "scenes" / where, tmp_path / "found.json")
    assert ran.code == 0, ran.err
    found, before = read_detections(tmp_path / "found.json", range(1, 13)), load_detections(cell)
    assert found.boxes.dtype == torch.float64
    here = before.image < 12
    assert re.match(rf"{int(here.sum())} detections in 12 pictures: ", ran.out)
    assert torch.equal(found.image, before.image[here])
    assert torch.allclose(found.boxes.float(), before.boxes[here])
    assert torch.allclose(found.scores.float(), before.scores[here], atol=0.02)  # pictures have 256 levels
    assert (found.clusters == before.clusters[here]).float().mean() > 0.9
    scored = objbench("score", "--truth", str(tmp_path / "scenes" / "annotations.json"),
                      "--detections", str(tmp_path / "found.json"), "--plugin", TOY, "--json")  # fmt: skip
    assert scored.code == 0, scored.err


def test_image_ids_are_those_of_the_annotations_file(cell: Path, tmp_path: Path) -> None:
    export(tmp_path / "scenes", 3)
    file = tmp_path / "scenes" / "annotations.json"
    body = json.loads(file.read_text())
    for row, id_ in zip(body["images"], (70, 5, 900), strict=True):
        row["id"] = id_
    file.write_text(json.dumps(body))
    assert predict(cell, tmp_path / "scenes", tmp_path / "found.json").code == 0
    assert {row["image_id"] for row in json.loads((tmp_path / "found.json").read_text())} == {70, 5, 900}
    assert not (tmp_path / "found.json.images.json").exists()


def test_pictures_without_annotations_are_numbered_by_name_and_listed(cell: Path, tmp_path: Path) -> None:
    export(tmp_path / "scenes", 3)
    own = tmp_path / "own"
    own.mkdir()
    for i, name in enumerate(["b.png", "c.jpg", "a.jpeg"]):
        Image.open(tmp_path / "scenes" / "images" / f"{i:06}.png").save(own / name)
    (own / "notes.txt").write_text("not a picture")
    ran = predict(cell, own, tmp_path / "found.json")
    assert ran.code == 0, ran.err
    listed = json.loads((tmp_path / "found.json.images.json").read_text())["images"]
    assert [(row["id"], row["file_name"]) for row in listed] == [(1, "a.jpeg"), (2, "b.png"), (3, "c.jpg")]
    assert listed[0]["width"] == listed[0]["height"] == 16
    assert {row["image_id"] for row in json.loads((tmp_path / "found.json").read_text())} == {1, 2, 3}
    assert "found.json.images.json" in ran.err


@pytest.mark.parametrize(
    ("picture", "says"),
    [
        (Image.new("L", (20, 16)), "is 20x16 grey; the cell was trained on 16x16 grey"),
        (Image.new("RGB", (16, 16), "red"), "is 16x16 colour; the cell was trained on 16x16 grey"),
        (Image.new("RGBA", (16, 16), "red"), "is 16x16 colour"),
        (Image.new("L", (16, 17)), "is 16x17 grey"),
        (None, "cannot be read as an image"),
    ],
)
def test_a_picture_that_does_not_fit_is_one_line(
    picture: Image.Image | None, says: str, cell: Path, tmp_path: Path
) -> None:
    (tmp_path / "own").mkdir()
    if picture is None:
        (tmp_path / "own" / "x.png").write_bytes(b"no picture")
    else:
        picture.save(tmp_path / "own" / "x.png")
    ran = predict(cell, tmp_path / "own", tmp_path / "found.json")
    assert (ran.code, ran.out) == (2, "")
    assert "x.png" in ran.err
    assert says in ran.err
    assert len(ran.err.splitlines()) == 1
    assert not (tmp_path / "found.json").exists()


def test_what_is_missing_is_said(cell: Path, tmp_path: Path) -> None:
    assert "there is no such folder" in predict(cell, tmp_path / "none", tmp_path / "f.json").err
    (tmp_path / "own").mkdir()
    assert "no PNG or JPEG pictures" in predict(cell, tmp_path / "own", tmp_path / "f.json").err
    (tmp_path / "own" / "annotations.json").write_text('{"images": [{"id": 1, "file_name": "gone.png"}]}')
    ran = predict(cell, tmp_path / "own", tmp_path / "f.json")
    assert ran.code == 2
    assert "1 of its 1 images are not in" in ran.err
    assert 'such as "gone.png"; --annotations FILE names another file, --no-annotations' in ran.err
    (tmp_path / "own" / "annotations.json").write_text("[]")
    assert "not a COCO annotations file" in predict(cell, tmp_path / "own", tmp_path / "f.json").err


def test_an_oracle_cannot_look_at_pictures_without_their_truth(tmp_path: Path) -> None:
    result = run_here(tmp_path / "out", toy_cell("toy-oracle"))
    export(tmp_path / "scenes", 2)
    ran = predict(Path(result.path), tmp_path / "scenes", tmp_path / "found.json")
    assert ran.code == 2
    assert "is of an oracle" in ran.err
