"""`objbench predict`: a trained cell on a user's own pictures."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from objbench.coco import read_detections
from objbench.errors import UsageError
from objbench.score.arrays import load_detections
from running import TOY, Ran, objbench, run_here, toy_cell


@pytest.fixture(scope="module", params=["toy", "toy-plain", "toy+shades"])
def cell(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished cell: with its own clusters, with a clusterer of what-latents, and with one of glimpses."""
    steps = f"{request.param.partition('+')[0]}.steps=30"
    result = run_here(tmp_path_factory.mktemp("out"), toy_cell(request.param, steps))
    assert result.status == "done", result.error
    return Path(result.path)


def export(folder: Path, n: int = 12) -> None:
    ran = objbench("data", "export", "squares", "--n", str(n), "--to", str(folder), "--plugin", TOY)
    assert ran.code == 0, ran.err


def predict(cell: Path, images: Path, target: Path, *more: str) -> Ran:
    return objbench(
        "predict", "--cell", str(cell), "--images", str(images), "--to", str(target), "--plugin", TOY, *more
    )


def ids(target: Path) -> set[int | str]:
    """The images that a results list has detections in."""
    return {row["image_id"] for row in json.loads(target.read_text())}


def rewrite(file: Path, new: Path | None = None, **columns: list[object]) -> None:
    """Writes an annotations file with these values of its images' keys; it moves to `new`."""
    body = json.loads(file.read_text())
    renamed = dict(zip([row["id"] for row in body["images"]], columns.get("id", []), strict=False))
    for row in body["annotations"]:
        row["image_id"] = renamed.get(row["image_id"], row["image_id"])
    for key, values in columns.items():
        for row, value in zip(body["images"], values, strict=True):
            row[key] = value
    if new:
        file.unlink()
    (new or file).write_text(json.dumps(body))


@pytest.mark.parametrize("where", ["", "images"])
@pytest.mark.slow
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


BARE: list[object] = [f"{i:06}.png" for i in range(3)]


@pytest.mark.parametrize("new", ["annotations.json", "images/_annotations.coco.json", "instances_val.json"])
def test_ids_are_looked_up_by_bare_names_in_files_of_usual_names(
    new: str, cell: Path, tmp_path: Path
) -> None:
    export(tmp_path / "scenes", 3)
    tmp_path /= "scenes"
    rewrite(tmp_path / "annotations.json", tmp_path / new, id=[12, "000011", 10], file_name=BARE)
    ran = predict(cell, tmp_path / "images", tmp_path / "found.json")
    assert ran.code == 0, ran.err
    assert ids(tmp_path / "found.json") == {12, "000011", 10}
    assert f"image_id is the id in {tmp_path / new}" in ran.err
    assert not (tmp_path / "found.json.images.json").exists()
    scored = objbench("score", "--truth", str(tmp_path / new), "--detections", str(tmp_path / "found.json"))
    assert (scored.code, scored.err) == (0, "")
    numbered = predict(cell, tmp_path / "images", tmp_path / "found.json", "--no-annotations")
    assert numbered.code == 0
    assert ids(tmp_path / "found.json") == {1, 2, 3}


def test_the_annotations_file_may_be_anywhere_and_write_its_paths_in_any_way(
    cell: Path, tmp_path: Path
) -> None:
    export(tmp_path / "scenes", 3)
    names: list[object] = ["C:\\data\\000000.png", "http://x/000001.png", "images/000002.png"]
    rewrite(tmp_path / "scenes" / "annotations.json", tmp_path / "mine.json", id=[7, 8, 9], file_name=names)
    for folder in (tmp_path / "scenes" / "images", tmp_path / "scenes"):
        ran = predict(cell, folder, tmp_path / "found.json", "--annotations", str(tmp_path / "mine.json"))
        assert ran.code == 0, ran.err
        assert ids(tmp_path / "found.json") == {7, 8, 9}


def test_a_folder_that_is_a_link_is_looked_up_as_any_other(cell: Path, tmp_path: Path) -> None:
    export(tmp_path / "scenes", 3)
    rewrite(tmp_path / "scenes" / "annotations.json", id=[7, 8, 9])
    (tmp_path / "scenes" / "images").rename(tmp_path / "scenes" / "disk2")
    (tmp_path / "scenes" / "images").symlink_to(tmp_path / "scenes" / "disk2")
    for folder in (tmp_path / "scenes" / "images", tmp_path / "scenes"):
        ran = predict(cell, folder, tmp_path / "found.json")
        assert ran.code == 0, ran.err
        assert ids(tmp_path / "found.json") == {7, 8, 9}


def test_a_lookup_that_fails_by_half_is_an_error(cell: Path, tmp_path: Path) -> None:
    export(tmp_path / "scenes", 3)
    file, pictures, target = (
        tmp_path / "scenes" / "annotations.json",
        tmp_path / "scenes" / "images",
        tmp_path / "f",
    )

    def refused(says: str, *more: str) -> None:
        ran = predict(cell, pictures, target, *more)
        assert (ran.code, ran.out, target.exists()) == (2, "", False)
        assert says in ran.err
        assert len(ran.err.splitlines()) == 1

    rewrite(file, file_name=["x.png", *BARE[1:]])
    refused("1 of its 3 images are not in")
    rewrite(file, file_name=[BARE[0], *BARE[:2]])
    refused("the ids 1 and 2 both belong to")
    rewrite(file, file_name=["q/000000.png", "r/000000.png", BARE[1]])  # by a name that two have
    refused("2 of its 3 images are not in")
    rewrite(file, file_name=[*BARE[:2], 3])
    refused("images[2]: file_name 3 is not a text")
    rewrite(file, file_name=BARE, id=[1, 2, 1.05])
    refused("images[2]: id 1.05 is neither an integer nor a text")
    rewrite(file, id=[1, 2, 2])
    refused("images[2]: id 2 occurs twice")
    rewrite(file, id=[1, 2, 3])
    Image.new("L", (16, 16)).save(pictures / "more.png")
    refused("does not list 1 of the pictures in")
    (pictures / "more.png").unlink()
    refused("contradict each other", "--no-annotations", "--annotations", str(file))
    refused("cannot read", "--annotations", str(tmp_path / "none.json"))
    refused("'blackish' is no colour", "--background", "blackish")
    (file.parent / "instances_x.json").write_text("{}")
    refused("has several annotations files (annotations.json, instances_x.json); choose one")
    (file.parent / "instances_x.json").unlink()
    (file.parent / "other").mkdir()
    Image.new("L", (16, 16)).save(file.parent / "other" / "z.png")
    rewrite(file, file_name=["other/z.png"] * 3)
    refused("none of its 3 images is in")


def test_a_cell_needs_no_data(cell: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from toy_plugin import Squares

    export(tmp_path / "scenes", 3)
    assert predict(cell, tmp_path / "scenes", tmp_path / "found.json").code == 0

    def gone(*_: object) -> None:
        raise UsageError("the training files are gone")

    for module in [m for m in sys.modules.values() if getattr(m, "__file__", None) == TOY]:
        monkeypatch.setattr(module.Squares, "__init__", gone)
    monkeypatch.setattr(Squares, "__init__", gone)
    again = predict(cell, tmp_path / "scenes", tmp_path / "again.json")
    assert again.code == 0, again.err
    assert (tmp_path / "again.json").read_text() == (tmp_path / "found.json").read_text()


def test_pictures_of_other_modes_are_the_same_pictures(cell: Path, tmp_path: Path) -> None:
    export(tmp_path / "scenes", 3)
    pictures = tmp_path / "scenes" / "images"
    assert predict(cell, pictures, tmp_path / "found.json").code == 0
    grey = np.asarray(Image.open(pictures / "000000.png"))
    Image.fromarray(grey.astype(np.uint16) * 257).save(pictures / "000000.png")
    Image.open(pictures / "000001.png").convert("RGB").save(pictures / "000001.png")
    Image.open(pictures / "000002.png").convert("P").save(pictures / "000002.png")
    assert predict(cell, pictures, tmp_path / "again.json").code == 0
    assert (tmp_path / "again.json").read_text() == (tmp_path / "found.json").read_text()


def test_a_turned_picture_is_said(cell: Path, tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    image = Image.new("L", (16, 16))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "own" / "x.png", exif=exif)
    ran = predict(cell, tmp_path / "own", tmp_path / "f.json")
    assert ran.code == 0
    assert (
        f"1 pictures were turned as their EXIF data requires, such as {tmp_path / 'own' / 'x.png'}" in ran.err
    )


def test_nothing_is_written_when_the_results_cannot_be(cell: Path, tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    Image.new("L", (16, 16)).save(tmp_path / "own" / "x.png")
    for target in (tmp_path / "own", tmp_path / "none" / "f.json"):
        ran = predict(cell, tmp_path / "own", target)
        assert ran.code == 2
        assert "must be a file in an existing folder" in ran.err
    assert [path.name for path in (tmp_path / "own").iterdir()] == ["x.png"]


def test_a_model_that_is_gone_is_named_with_who_registered_it_and_the_cell(
    cell: Path, tmp_path: Path
) -> None:
    export(tmp_path / "scenes", 2)
    to = str(tmp_path / "f.json")
    ran = objbench("predict", "--cell", str(cell), "--images", str(tmp_path / "scenes"), "--to", to)
    name = json.loads((cell / "record.json").read_text())["model"]
    assert (ran.code, ran.out) == (2, "")
    assert ran.err == (
        f"objbench: cell {cell.parent.name}/{cell.name}: no plugin registers the model '{name}' any more; the file "
        "toy_plugin.py had registered it; name it with --plugin\n"
    )


def test_an_oracle_cannot_look_at_pictures_without_their_truth(tmp_path: Path) -> None:
    result = run_here(tmp_path / "out", toy_cell("toy-oracle"))
    export(tmp_path / "scenes", 2)
    ran = predict(Path(result.path), tmp_path / "scenes", tmp_path / "found.json")
    assert ran.code == 2
    assert "is a cell of an oracle" in ran.err
